"""Checks of COCO's compressed run lengths."""

import pytest
from pycocotools import mask as coco_mask

from eomt.rle import check_rle
from eomt.targets import targets_from_rles


def test_long_runs_and_runs_of_nothing():
    # The longest numbers of a code, and runs of zero length, which other tools write.
    size = (1 << 15, 1 << 14)
    for lengths in ([1 << 28, (1 << 28) - 5, 5], [5, 0, 7, 2, 0, 1, 0, 0, (1 << 29) - 15, 0]):
        code = coco_mask.frPyObjects({"size": size, "counts": lengths}, *size)["counts"]
        check_rle(code, size[0] * size[1])
        with pytest.raises(ValueError, match="do not make up"):
            check_rle(code, size[0] * size[1] - 1)
    code = coco_mask.frPyObjects({"size": (4, 5), "counts": [5, 0, 7, 2, 0, 1, 5, 0]}, 4, 5)["counts"]
    assert targets_from_rles([code], (4, 5), [0]).ids[0].T.ravel().tolist() == [0] * 12 + [1] * 3 + [0] * 5


@pytest.mark.parametrize(
    ("code", "what"),
    [
        (b"", "no compressed code"),
        (b"P", "no compressed code"),
        (b"4\x20", "no compressed code"),
        (b"4p", "no compressed code"),
        (b"PPPPPPPP4", "too large"),
        (b"4", "do not make up 12 pixels"),
        (b"4\x3a", "do not make up 12 pixels"),
        (b"O=", "do not make up 12 pixels"),
    ],
)
def test_damaged_run_lengths(code, what):
    """pycocotools alone reads beyond the end of some of these."""
    for codes in ([code], [b"<", code], [code, b"<"]):
        with pytest.raises(ValueError, match=what):
            targets_from_rles(codes, (3, 4), [0] * len(codes))
