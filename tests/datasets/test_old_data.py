"""Targets, crops and colours held against the code that they replace."""

import albumentations as A
import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from datasets import old_color, old_crops, transforms
from eomt import old_rle, old_targets, targets
from eomt.rle import check_rle


def random_masks(seed):
    rng = np.random.default_rng(seed)
    count, height, width = rng.integers(0, 15), rng.integers(1, 60), rng.integers(1, 60)
    masks = rng.random((count, height, width)) < rng.random((count, 1, 1)) ** 3
    return masks & (rng.random((count, 1, 1)) < 0.9)


def compressed(masks):
    return [coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"] for mask in masks]


def outcome(function, *arguments):
    try:
        function(*arguments)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("seed", range(60))
def test_targets_and_crops(seed):
    masks, rng = random_masks(seed), np.random.default_rng(seed)
    count, size, codes = len(masks), masks.shape[1:], compressed(masks)
    crowd, areas = rng.random(count) < 0.2, rng.random(count)
    new = targets.targets_from_rles(codes, size, range(count), crowd, areas)
    old = old_targets.targets_from_rles(codes, size, range(count), crowd, areas)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(new[:5], old[:5], strict=True))
    assert new.rles == old.rles
    new_masks, old_masks = (module.targets_from_masks(masks, range(count)) for module in (targets, old_targets))
    assert all(torch.equal(a, b) for a, b in zip(new_masks[:4], old_masks[:4], strict=True))
    runs = old_crops.run_targets(
        [code for code, c in zip(codes, crowd, strict=True) if not c], size, np.flatnonzero(~crowd)
    )
    for _ in range(5):
        crop = transforms.draw_crop(size, (24, 40), (0.1, 2.0), rng)
        cropped = transforms.crop_targets(new, crop)
        for given in (runs, old):
            expected = old_crops.crop_targets(given, old_crops.Crop(*crop))
            assert torch.equal(cropped.masks(), expected.masks())
            assert torch.equal(cropped.labels, expected.labels)
            assert cropped.ids.dtype == expected.ids.dtype


@pytest.mark.parametrize("seed", range(20))
def test_damaged_codes(seed):
    masks, rng = random_masks(seed), np.random.default_rng(seed)
    pixels = masks[0].size if len(masks) else 0
    for code in compressed(masks):
        for _ in range(20):
            damaged = bytearray(code)
            damaged[rng.integers(len(damaged))] = rng.integers(30, 130)
            damaged = damaged[: rng.integers(len(damaged) + 1)] if rng.random() < 0.3 else damaged
            damaged += bytes([rng.integers(48, 112)]) if rng.random() < 0.3 else b""
            damaged = bytes(damaged)
            assert outcome(check_rle, damaged, pixels) == outcome(old_rle.runs_of_rles, [damaged], pixels)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_colors(name):
    """Equal, but for contrast and saturation by at most 1 of 255 levels."""
    old, rng = old_color.ColorJitter(), np.random.default_rng(0)
    unchanged = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}
    for _ in range(20):
        image = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        factor = rng.uniform(-0.05, 0.05) if name == "hue" else rng.uniform(0.5, 1.5)
        values = unchanged | {name: factor}
        new = A.ColorJitter(**{key: (value, value) for key, value in values.items()}, p=1)(image=image)["image"]
        expected = old._jitter.apply(image, **values, order=[0, 1, 2, 3])
        assert np.abs(new.astype(int) - expected).max() <= (name in ("contrast", "saturation"))
