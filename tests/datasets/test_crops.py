"""Parts of images and of their segments, against resizing, padding and cropping all of it."""

import warnings

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torch.nn import functional
from torchvision.transforms.v2 import functional as vision

from datasets.crops import Crop, crop_image, crop_targets, nearest_pixels, run_targets
from datasets.transforms import draw_crop
from eomt.targets import targets_from_id_map, targets_from_masks

SIZES = [(48, 64), (61, 37), (1, 90), (33, 2), (200, 150)]


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def random_masks(height, width, count, seed=0):
    """Rectangles and noise that overlap; one of them is everything, one has no pixel."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, height, width), dtype=bool)
    for mask in masks[2:]:
        top, left = rng.integers(0, height), rng.integers(0, width)
        mask[top : top + rng.integers(1, height + 1), left : left + rng.integers(1, width + 1)] = True
    masks[2] &= rng.random((height, width)) < 0.5
    masks[0] = True
    return masks


def compressed(masks):
    return [coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"] for mask in masks]


def crops(old, size, count=30):
    for seed in range(count):
        yield draw_crop(old, size, (0.1, 2.0), np.random.default_rng(seed))


def plain_way(tensor, crop, mode):
    """Mirror, resize everything, pad it, crop it: [C, h, w] to [C, *size]."""
    antialias = mode == vision.InterpolationMode.BILINEAR
    flipped = vision.horizontal_flip(tensor) if crop.flip else tensor
    resized = vision.resize(flipped, list(crop.scaled), interpolation=mode, antialias=antialias)
    padding = [0, 0, *(max(room - side, 0) for room, side in zip(crop.size[::-1], crop.scaled[::-1], strict=True))]
    (top, _), (left, _) = crop.window
    return vision.crop(vision.pad(resized, padding), top, left, *crop.size)


def plain_masks(masks, crop):
    return plain_way(torch.from_numpy(masks), crop, vision.InterpolationMode.NEAREST)


def check(targets, masks, labels):
    """Those of the masks that have a pixel, in their order."""
    keep = masks.flatten(1).any(1)
    assert torch.equal(targets.masks(), masks[keep])
    assert targets.labels.tolist() == np.array(labels)[keep.numpy()].tolist()
    assert targets.ids.dtype == (torch.int8 if keep.sum() <= 127 else torch.int16)
    assert targets.labels.dtype == targets.planes.dtype == torch.int64
    assert not targets.crowd.any()
    assert len(targets.crowd) == len(targets.labels)
    assert targets.areas is targets.rles is None
    assert targets.ids.is_contiguous()


@pytest.mark.parametrize("old", SIZES)
@pytest.mark.parametrize("size", [(40, 40), (24, 56)])
def test_images_equal_the_plain_way(old, size):
    image = noise(*old)
    before = image.copy()
    for crop in crops(old, size):
        pixels = crop_image(image, crop)
        expected = plain_way(torch.from_numpy(image).permute(2, 0, 1), crop, vision.InterpolationMode.BILINEAR)
        assert pixels.dtype == torch.uint8
        assert pixels.is_contiguous()
        assert (pixels.int() - expected.int()).abs().max() <= 1
        assert not pixels[:, crop.scaled[0] :].any()
        assert not pixels[:, :, crop.scaled[1] :].any()
    assert np.array_equal(image, before)


def test_a_window_takes_what_its_last_pixels_are_made_of():
    """Every end of a window, enlarged and reduced."""
    image = noise(31, 1)
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    for new in (7, 13, 31, 45, 62):
        whole = vision.resize(pixels, [new, 1], antialias=True)
        for end in range(1, new + 1):
            crop = Crop(False, (31, 1), (new, 1), ((0, end), (0, 1)), (end, 1))
            assert (crop_image(image, crop).int() - whole[:, :end].int()).abs().max() <= 1


@pytest.mark.parametrize("old", SIZES)
@pytest.mark.parametrize("size", [(40, 40), (24, 56)])
def test_planes_equal_the_plain_way(old, size):
    masks, labels = random_masks(*old, 9), list(range(9))
    crowd = np.arange(9) == 4
    targets = targets_from_masks(masks, labels, crowd)
    before = targets.ids.clone()
    for crop in crops(old, size):
        check(crop_targets(targets, crop), plain_masks(masks[~crowd], crop), np.array(labels)[~crowd])
    assert torch.equal(targets.ids, before)


@pytest.mark.parametrize("old", SIZES)
@pytest.mark.parametrize("size", [(40, 40), (24, 56)])
def test_runs_equal_the_plain_way(old, size):
    masks, labels = random_masks(*old, 9), np.arange(9)
    runs = run_targets(compressed(masks), old, labels)
    for crop in crops(old, size):
        cropped = crop_targets(runs, crop)
        check(cropped, plain_masks(masks, crop), labels)
        # As many planes as those of its own masks take.
        assert (
            cropped.ids.shape[0] == targets_from_masks(cropped.masks().numpy().transpose(0, 2, 1), [0] * 9).ids.shape[0]
        )


def test_no_segments():
    for targets in (
        targets_from_id_map(np.zeros((20, 30), int), [], []),
        targets_from_id_map(np.ones((20, 30), int), [1], [5], crowd=[True]),
        run_targets([], (20, 30), np.zeros(0, int)),
        run_targets(compressed(np.zeros((1, 20, 30), bool)), (20, 30), np.zeros(1, int)),
    ):
        for crop in crops((20, 30), (16, 16), 5):
            cropped = crop_targets(targets, crop)
            check(cropped, torch.zeros(0, 16, 16, dtype=torch.bool), [])
            assert cropped.ids.shape == (1, 16, 16)
            assert not cropped.ids.any()


def test_more_segments_than_a_byte_numbers():
    id_map = np.arange(1, 301).reshape(15, 20)
    masks = id_map == np.arange(1, 301)[:, None, None]
    for targets in (
        targets_from_id_map(id_map, range(1, 301), range(300)),
        run_targets(compressed(masks), (15, 20), np.arange(300)),
    ):
        for factor in (1, 2):
            scaled = (15 * factor, 20 * factor)
            crop = Crop(False, (15, 20), scaled, ((0, scaled[0]), (0, scaled[1])), (40, 40))
            check(crop_targets(targets, crop), plain_masks(masks, crop), range(300))


def test_nearest_pixels_are_pytorchs():
    for old in [1, 2, 3, 7, 48, 333, 427, 480, 613, 640]:
        line = torch.arange(old, dtype=torch.float32)[None, None]
        for new in [1, 2, 5, 64, 117, 234, 299, 327, 640, 871, 1280]:  # 117 of 333 wants single precision
            expected = functional.interpolate(line, new, mode="nearest")[0, 0].long().numpy()
            assert np.array_equal(nearest_pixels(old, new, (0, new)), expected)
            assert np.array_equal(nearest_pixels(old, new, (new // 3, new)), expected[new // 3 :])


def test_read_only_arrays_are_taken_as_they_are():
    image = noise(40, 50)
    image.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for crop in crops((40, 50), (32, 32), 6):
            crop_image(image, crop)
