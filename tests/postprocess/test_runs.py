"""Run lengths of a mask by its box."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from eomt.postprocess.runs import decode_box, encode_at
from eomt.postprocess.types import Instances, Segmentation


@pytest.mark.parametrize("share", [0, 0.05, 0.5, 0.95, 1])
def test_masks_there_and_back(share):
    rng = np.random.default_rng(0)
    for _ in range(100):
        height, width = rng.integers(1, 60, 2).tolist()
        h, w = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
        top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
        own, mask = rng.random((h, w)) < share, np.zeros((height, width), dtype=bool)
        mask[top : top + h, left : left + w] = own
        rle = encode_at(own, top, left, (height, width))
        assert np.array_equal(coco_mask.decode(rle), mask)
        for code in (rle, coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))):
            found, y, x = decode_box(code)
            again = np.zeros_like(mask)
            again[y : y + found.shape[0], x : x + found.shape[1]] = found
            assert np.array_equal(again, mask)


def test_a_mask_in_an_image_of_400_megapixels_takes_its_box_alone():
    rle = encode_at(np.ones((3, 500), dtype=bool), 17000, 19000, (20000, 20000))
    assert coco_mask.area(rle) == 1500
    mask, top, left = decode_box(rle)
    assert (mask.shape, mask.all(), top, left) == ((3, 500), True, 17000, 19000)


def test_boxes_areas_and_thinned_predictions():
    import torch

    ids = np.random.default_rng(0).integers(0, 5, (40, 30)).astype(np.int32) * (np.arange(30) > 7)
    ids[ids == 3] = 0
    found = Segmentation(torch.from_numpy(ids.astype(np.int32)), torch.zeros(5, dtype=torch.int64), torch.ones(5))
    masks = np.stack([ids == s for s in range(1, 6)])
    assert found.areas.tolist() == masks.sum((1, 2)).tolist()
    rles = [coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks]
    assert np.array_equal(found.boxes(), np.stack([coco_mask.toBbox(rle) for rle in rles]))
    objects = Instances((40, 30), rles, found.labels, found.scores, found.areas, found.labels)
    for step in (1, 3, 7):
        for thinned in (found.thinned(step), objects.thinned(step)):
            assert np.array_equal(thinned.masks().numpy(), masks[:, ::step, ::step])
