import numpy as np
import pytest
import torch
from albumentations.augmentations.pixel import functional as pixelwise
from torch.nn import functional
from torchvision.transforms.v2 import functional as vision

from datasets import transforms
from datasets.color import ColorJitter, adjust_contrast, adjust_saturation, draw_colors
from datasets.transforms import MAX_TRIES, TrainTransform, draw_crop
from eomt.targets import targets_from_id_map, targets_from_masks
from tests.memory_reader import segment_image


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_sizes_are_truncated_and_never_zero():
    def scaled(old, size, factor):
        return draw_crop(old, size, (factor, factor), np.random.default_rng(0)).scaled

    assert scaled((333, 500), (100, 100), 0.37) == (24, 37)  # 333 * 0.074 = 24.6, 500 * 0.074 = 37
    assert scaled((2, 500), (100, 100), 0.37) == (1, 37)
    assert scaled((600, 800), (100, 300), 1.0) == (100, 133)
    assert scaled((600, 800), (300, 100), 1.0) == (75, 100)


@pytest.mark.parametrize("size", [(96, 96), (64, 128)])
def test_image_and_targets_stay_aligned(size):
    transform = TrainTransform(size, scale_range=(0.3, 2.0))
    image, targets = segment_image(120, 160, seed=3)
    compared = 0
    for seed in range(40):
        pixels, result = transform(image, targets, (seed,))
        assert pixels.shape == (3, *size)
        assert pixels.dtype == torch.uint8
        assert result.ids.shape == (1, *size)
        shown = torch.zeros(size)
        for mask, label in zip(result.masks(), result.labels, strict=True):
            assert mask.any()
            shown[mask] = 40.0 * label
        # Nearest and bilinear place an edge up to a source pixel apart, and it may lie just outside.
        window = functional.pad(shown, (2, 2, 2, 2), value=-1).unfold(0, 5, 1).unfold(1, 5, 1)
        inner = window.amax((2, 3)) == window.amin((2, 3))
        if inner.any():
            assert (pixels.float() - shown)[:, inner].abs().max() <= 1
            compared += int((inner & (shown > 0)).sum())
    assert compared > 10_000


def test_published_chances():
    """Flip half of the images; r uniform in 0.1..2.0; crops anywhere; none depends on another."""
    drawn = [draw_crop((64, 64), (64, 64), (0.1, 2.0), np.random.default_rng((0, seed))) for seed in range(1500)]
    flipped = np.array([crop.flip for crop in drawn])
    scales = np.array([(crop.scaled[0] + 0.5) / 64 for crop in drawn])
    places = np.array([[start / max(crop.scaled[0] - 64, 1) for start, _ in crop.window] for crop in drawn])
    assert abs(flipped.mean() - 0.5) < 0.05
    expected = 0.1 + 1.9 * np.linspace(0.05, 0.95, 19)
    assert np.abs(np.quantile(scales, np.linspace(0.05, 0.95, 19)) - expected).max() < 0.08
    assert scales.min() >= 0.09
    assert scales.max() <= 2.01
    large = scales > 1.2
    assert np.abs(np.quantile(places[large], [0.1, 0.5, 0.9], axis=0).T - [0.1, 0.5, 0.9]).max() < 0.1
    assert places[large].min() == 0
    assert places[large].max() == 1
    together = np.corrcoef(np.stack([flipped, scales, *places.T])[:, large])
    assert np.abs(together - np.eye(4)).max() < 0.15
    for crop in drawn:
        assert all(end - start == min(64, side) for (start, end), side in zip(crop.window, crop.scaled, strict=True))


def test_scale_range():
    transform = TrainTransform((64, 64), scale_range=(0.5, 0.75))
    image, targets = np.zeros((64, 64, 3), np.uint8), targets_from_id_map(np.ones((64, 64), int), [1], [0])
    sides = [int((transform(image, targets, (s,))[1].ids[0] == 1).any(1).sum()) for s in range(60)]
    assert min(sides) in (32, 33)
    assert max(sides) in (46, 47)


def test_color_jitter_ranges_and_orders():
    limits = {
        "brightness": (1 - 32 / 255, 1 + 32 / 255),
        "contrast": (0.5, 1.5),
        "saturation": (0.5, 1.5),
        "hue": (-18 / 360, 18 / 360),
    }
    draws = [draw_colors(np.random.default_rng(seed)) for seed in range(2000)]
    applied = {}
    for name, (low, high) in limits.items():
        values = np.array([draw[name] for draw in draws])
        applied[name] = values != (0 if name == "hue" else 1)
        values, width = values[applied[name]], high - low
        assert abs(len(values) / 2000 - 0.5) < 0.05
        assert low <= values.min() < low + 0.02 * width
        assert high >= values.max() > high - 0.02 * width
        assert abs(values.mean() - (low + high) / 2) < 0.05 * width
    orders = [draw["order"] for draw in draws]
    names = list(limits)  # brightness, contrast, saturation, hue
    legal = (names, ["brightness", "saturation", "hue", "contrast"])
    first = np.array([[names[k] for k in order] == legal[0] for order in orders])
    assert all([names[k] for k in order] in legal for order in orders)
    assert abs(first.mean() - 0.5) < 0.05
    assert np.abs(np.corrcoef(np.stack([first, *applied.values()])) - np.eye(5)).max() < 0.08


def smooth(seed=0):
    return np.kron(noise(6, 8, seed), np.ones((5, 5, 1), np.uint8))


ADJUSTED = [("brightness", 0.88), ("brightness", 1.1), ("contrast", 1.4), ("contrast", 0.5), ("saturation", 0.6)]
ADJUSTED += [("saturation", 1.5), ("hue", 0.05), ("hue", -0.04)]


@pytest.mark.parametrize(("name", "factor"), ADJUSTED)
def test_color_jitter_acts_as_torchvisions(name, factor, monkeypatch):
    image = smooth()
    drawn = {"brightness": 1, "contrast": 1, "saturation": 1, "hue": 0, "order": [0, 1, 2, 3]} | {name: factor}
    monkeypatch.setattr("datasets.color.draw_colors", lambda generator: drawn)
    ours = ColorJitter()(image, None)
    theirs = getattr(vision, f"adjust_{name}")(torch.from_numpy(image).permute(2, 0, 1), factor)
    difference = np.abs(ours.astype(int) - theirs.permute(1, 2, 0).numpy())
    assert difference.mean() < 1.5
    if name != "hue":  # albumentations' hues are steps of two degrees
        assert difference.max() <= 2
    assert np.array_equal(image, smooth())


def test_contrast_and_saturation_are_albumentations():
    for seed in range(3):
        for image in (noise(40, 30, seed), smooth(seed), np.full((9, 9, 3), 255, np.uint8)):
            for factor in (0.5, 0.77, 1, 1.2, 1.5):
                for ours, theirs in [
                    (adjust_contrast, pixelwise.adjust_contrast_torchvision),
                    (adjust_saturation, pixelwise.adjust_saturation_torchvision),
                ]:
                    difference = ours(image, factor).astype(int) - theirs(image, factor)
                    assert np.abs(difference).max() <= 1


def test_color_jitter_changes_pixels_and_leaves_targets():
    image, targets = segment_image(60, 80, seed=1)
    plain, jittered = TrainTransform((32, 32)), TrainTransform((32, 32), color_jitter=True)
    changed = 0
    for seed in range(10):
        pixels, result = jittered(image, targets, (seed,))
        # Colours are drawn after the place: that does not depend on them.
        assert torch.equal(result.ids, plain(image, targets, (seed,))[1].ids)
        flat = {int(pixels[0][mask].max()) for mask in result.masks()}
        changed += not flat <= {40, 80, 120, 160}
    assert changed >= 3


def test_a_seed_decides_everything():
    image, targets = segment_image(60, 80, seed=1)
    first, second = TrainTransform((48, 48), color_jitter=True), TrainTransform((48, 48), color_jitter=True)
    for seed in [(0, 1, 2), (0, 1, 3), (5,)]:
        second(image, targets, (99, 99))
        a, b = first(image, targets, seed), second(image, targets, seed)
        assert torch.equal(a[0], b[0])
        assert all(torch.equal(x, y) for x, y in zip(a[1][:4], b[1][:4], strict=True))
    results = [first(image, targets, (0, 1, s))[0] for s in range(5)]
    assert all(not torch.equal(results[0], other) for other in results[1:])


def test_crowds_are_dropped_and_overlaps_kept():
    masks = np.zeros((3, 40, 40), dtype=bool)
    masks[0, :30], masks[1, 10:], masks[2, 20:, 20:] = True, True, True
    targets = targets_from_masks(masks, [4, 5, 6], crowd=[False, True, False])
    transform = TrainTransform((40, 40), scale_range=(1.0, 1.0))
    image = noise(40, 40)
    for seed in range(6):
        _, result = transform(image, targets, (seed,))
        assert result.labels.tolist() == [4, 6]
        assert not result.crowd.any()
        kept = torch.from_numpy(masks[[0, 2]])
        assert any(torch.equal(result.masks(), way) for way in (kept, kept.flip(2)))


@pytest.fixture
def tries(monkeypatch):
    """One entry per crop that is drawn."""
    drawn = []
    monkeypatch.setattr(transforms, "draw_crop", lambda *args: (drawn.append(1), draw_crop(*args))[1])
    return drawn


def test_an_image_of_crowds_alone_trains_without_target(tries):
    targets = targets_from_id_map(np.ones((40, 40), int), [1], [2], crowd=[True])
    transform = TrainTransform((32, 32))
    pixels, result = transform(noise(40, 40), targets, (0,))
    assert pixels.any()
    assert len(result.labels) == 0
    assert not result.ids.any()
    assert len(tries) == 1


def test_tries_are_bounded(tries):
    id_map = np.zeros((400, 400), int)
    id_map[3, 3] = 1  # nearest resizing by a tenth looks at every tenth pixel, from 0 or from 399 mirrored
    transform = TrainTransform((400, 400), scale_range=(0.1, 0.1))
    _, result = transform(noise(400, 400), targets_from_id_map(id_map, [1], [0]), (0,))
    assert len(result.labels) == 0
    assert len(tries) == MAX_TRIES == 10


def test_a_lost_segment_is_tried_again(tries, monkeypatch):
    id_map = np.zeros((40, 40), int)
    id_map[:12, :12] = 1  # a crop of a quarter of the image shows this corner now and then
    transform = TrainTransform((40, 40), scale_range=(2.0, 2.0))
    resized = []
    monkeypatch.setattr(transforms, "crop_image", lambda image, crop: resized.append(crop))
    found = [len(transform(noise(40, 40), targets_from_id_map(id_map, [1], [0]), (s,))[1].labels) for s in range(20)]
    assert sum(found) >= 18
    assert len(tries) > 30
    assert len(resized) == 20  # the image itself once
