"""Values of rows."""

import pytest

from datasets.readers.coco_values import segmentation_code


def test_an_outline_that_would_fill_the_memory_is_refused():
    side = 1 << 20
    zigzag = [0, 0, side, side] * 10_000
    with pytest.raises(ValueError, match="outline of its polygons is"):
        segmentation_code([zigzag], (side, side))
    with pytest.raises(ValueError, match="outline of its polygons is"):
        segmentation_code([[0, 0, side, 0, side, side]] * 100, (side, side))
    small = [[0, 0, 90, 0, 90, 90, 0, 90]] * 200  # many corners, a short outline
    assert segmentation_code(small, (3000, 3000))["size"] == [3000, 3000]
