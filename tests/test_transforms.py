import random
import warnings

import albumentations
import numpy as np
import pytest
import torch
from torch.nn import functional
from torchvision.transforms.v2 import functional as vision

from datasets.transforms import (
    MAX_TRIES,
    LargeScaleJitter,
    TrainTransform,
    color_jitter_transforms,
    nearest_pixels,
)
from eomt.targets import targets_from_id_map, targets_from_masks
from tests.memory_reader import segment_image


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def plain_way(image, masks, size, scaled, window):
    """Resize everything, pad it, crop it."""
    pixels = vision.resize(torch.from_numpy(image).permute(2, 0, 1), scaled, antialias=True)
    planes = vision.resize(
        torch.from_numpy(masks), scaled, interpolation=vision.InterpolationMode.NEAREST, antialias=False
    )
    padding = [0, 0, max(size[1] - scaled[1], 0), max(size[0] - scaled[0], 0)]
    return [vision.crop(vision.pad(x, padding), window[0][0], window[1][0], *size).numpy() for x in (pixels, planes)]


@pytest.mark.parametrize("old", [(48, 64), (61, 37), (1, 90), (33, 2)])
@pytest.mark.parametrize("size", [(40, 40), (24, 56)])
def test_resize_pad_crop_equals_the_plain_way(old, size):
    jitter = LargeScaleJitter(size, (0.1, 2.0))
    image, masks = noise(*old), noise(*old, seed=1)[..., :2].transpose(2, 0, 1).copy()
    for seed in range(30):
        jitter.set_random_seed(seed)
        result = jitter(image=image, masks=masks)
        params = jitter.get_applied_params()
        pixels, planes = plain_way(image, masks, size, params["scaled"], params["window"])
        height, width = result["image"].shape[:2]
        assert np.abs(result["image"].transpose(2, 0, 1).astype(int) - pixels[:, :height, :width]).max() <= 1
        assert np.array_equal(result["masks"], planes[:, :height, :width])
        assert not pixels[:, height:].any()
        assert not pixels[:, :, width:].any()


def test_nearest_pixels_are_pytorchs():
    for old in [1, 2, 3, 7, 48, 333, 427, 480, 613, 640]:
        line = torch.arange(old, dtype=torch.float32)[None, None]
        for new in [1, 2, 5, 64, 117, 234, 299, 327, 640, 871, 1280]:  # 117 of 333 wants single precision
            expected = functional.interpolate(line, new, mode="nearest")[0, 0].long().numpy()
            assert np.array_equal(nearest_pixels(old, new, (0, new)), expected)
            assert np.array_equal(nearest_pixels(old, new, (new // 3, new)), expected[new // 3 :])


def test_sizes_are_truncated_and_never_zero():
    jitter = LargeScaleJitter((100, 100), (0.37, 0.37))
    scaled = jitter.get_params_dependent_on_data({"shape": (333, 500, 3)}, {})["scaled"]
    assert scaled == [24, 37]  # 333 * 0.074 = 24.6, 500 * 0.074 = 37
    assert jitter.get_params_dependent_on_data({"shape": (2, 500, 3)}, {})["scaled"] == [1, 37]
    for size, fitting in [((100, 300), [100, 133]), ((300, 100), [75, 100])]:
        jitter = LargeScaleJitter(size, (1.0, 1.0))
        assert jitter.get_params_dependent_on_data({"shape": (600, 800, 3)}, {})["scaled"] == fitting


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
    transform = TrainTransform((64, 64))
    flip, jitter = transform._pipeline.transforms
    image, targets = np.zeros((64, 64, 3), np.uint8), targets_from_id_map(np.ones((64, 64), int), [1], [0])
    flipped, scales, places = [], [], []
    for seed in range(1500):
        transform(image, targets, (0, seed))
        params = jitter.get_applied_params()
        flipped.append(bool(flip.get_applied_params()))
        scales.append((params["scaled"][0] + 0.5) / 64)
        places.append([start / max(params["scaled"][0] - 64, 1) for start, _ in params["window"]])
    scales, flipped, places = np.array(scales), np.array(flipped), np.array(places)
    assert abs(flipped.mean() - 0.5) < 0.05
    expected = 0.1 + 1.9 * np.linspace(0.05, 0.95, 19)
    assert np.abs(np.quantile(scales, np.linspace(0.05, 0.95, 19)) - expected).max() < 0.08
    assert scales.min() >= 0.09
    assert scales.max() <= 2.01
    large = scales > 1.2
    assert np.abs(np.quantile(places[large], [0.1, 0.5, 0.9], axis=0).T - [0.1, 0.5, 0.9]).max() < 0.1
    together = np.corrcoef(np.stack([flipped, scales, *places.T])[:, large])
    assert np.abs(together - np.eye(4)).max() < 0.15


def test_scale_range():
    transform = TrainTransform((64, 64), scale_range=(0.5, 0.75))
    image, targets = np.zeros((64, 64, 3), np.uint8), targets_from_id_map(np.ones((64, 64), int), [1], [0])
    sides = [int((transform(image, targets, (s,))[1].ids[0] == 1).any(1).sum()) for s in range(60)]
    assert min(sides) in (32, 33)
    assert max(sides) in (46, 47)


def test_color_jitter_ranges_and_orders():
    pipeline = albumentations.Compose(color_jitter_transforms())
    brightness, choice = pipeline.transforms
    generator, python_generator = np.random.default_rng(0), random.Random(0)
    pipeline.set_random_state(generator, python_generator)
    drawn = {"brightness": [], "contrast": [], "saturation": [], "hue": []}
    orders = []
    for transform, name in zip([brightness, *choice.transforms[0]], drawn, strict=True):
        original = transform.apply

        def apply(img, name=name, original=original, **params):
            fixed = {key for key in drawn if params[key] == (0 if key == "hue" else 1)}
            assert fixed == set(drawn) - {name}
            drawn[name].append(params[name])
            orders[-1].append(name)
            return original(img, **params)

        transform._key2func["image"] = apply
    image = noise(4, 4)
    for _ in range(2000):
        orders.append([])
        pipeline(image=image)
    limits = {
        "brightness": (1 - 32 / 255, 1 + 32 / 255),
        "contrast": (0.5, 1.5),
        "saturation": (0.5, 1.5),
        "hue": (-18 / 360, 18 / 360),
    }
    for name, (low, high) in limits.items():
        width = high - low
        assert abs(len(drawn[name]) / 2000 - 0.5) < 0.05
        assert low <= min(drawn[name]) < low + 0.02 * width
        assert high >= max(drawn[name]) > high - 0.02 * width
        assert abs(np.mean(drawn[name]) - (low + high) / 2) < 0.05 * width
    both = [order for order in orders if {"contrast", "saturation"} <= set(order)]
    first = np.mean([order.index("contrast") < order.index("saturation") for order in both])
    assert abs(first - 0.5) < 0.08
    legal = (["brightness", "contrast", "saturation", "hue"], ["brightness", "saturation", "hue", "contrast"])
    for order in orders:
        assert any(order == [name for name in way if name in order] for way in legal)


def test_color_jitter_acts_as_torchvisions():
    image = np.kron(noise(6, 8), np.ones((5, 5, 1), np.uint8))
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    for name, factor in [("brightness", 0.88), ("contrast", 1.4), ("saturation", 0.6), ("hue", 0.05)]:
        ranges = {"brightness": (1, 1), "contrast": (1, 1), "saturation": (1, 1), "hue": (0, 0)}
        ours = albumentations.ColorJitter(**(ranges | {name: (factor, factor)}), p=1)(image=image)["image"]
        theirs = getattr(vision, f"adjust_{name}")(pixels, factor).permute(1, 2, 0).numpy()
        assert np.abs(ours.astype(int) - theirs).mean() < 1.5


def test_color_jitter_changes_pixels_and_leaves_targets():
    image, targets = segment_image(60, 80, seed=1)
    plain, jittered = TrainTransform((32, 32)), TrainTransform((32, 32), color_jitter=True)
    assert len(jittered._pipeline.transforms) == len(plain._pipeline.transforms) + 2
    changed = 0
    for seed in range(10):
        pixels, result = jittered(image, targets, (seed,))
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


def counted(transform):
    """Count the runs of its pipeline."""
    runs = []
    pipeline = transform._pipeline
    original = pipeline.postprocess
    pipeline.postprocess = lambda data: (runs.append(1), original(data))[1]
    return runs


def test_an_image_of_crowds_alone_trains_without_target():
    targets = targets_from_id_map(np.ones((40, 40), int), [1], [2], crowd=[True])
    transform = TrainTransform((32, 32))
    runs = counted(transform)
    pixels, result = transform(noise(40, 40), targets, (0,))
    assert pixels.any()
    assert len(result.labels) == 0
    assert not result.ids.any()
    assert len(runs) == 1


def test_tries_are_bounded():
    id_map = np.zeros((400, 400), int)
    id_map[3, 3] = 1  # nearest resizing by a tenth looks at every tenth pixel, from 0 or from 399 mirrored
    transform = TrainTransform((400, 400), scale_range=(0.1, 0.1))
    runs = counted(transform)
    _, result = transform(noise(400, 400), targets_from_id_map(id_map, [1], [0]), (0,))
    assert len(result.labels) == 0
    assert len(runs) == MAX_TRIES == 10


def test_a_lost_segment_is_tried_again():
    id_map = np.zeros((40, 40), int)
    id_map[:12, :12] = 1  # a crop of a quarter of the image shows this corner now and then
    transform = TrainTransform((40, 40), scale_range=(2.0, 2.0))
    runs = counted(transform)
    found = [len(transform(noise(40, 40), targets_from_id_map(id_map, [1], [0]), (s,))[1].labels) for s in range(20)]
    assert sum(found) >= 18
    assert len(runs) > 30


def test_read_only_arrays_are_taken_as_they_are():
    image, targets = segment_image(40, 50, seed=2)
    image.flags.writeable = False
    before = image.copy(), targets.ids.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(4):
            TrainTransform((32, 32))(image, targets, (seed,))
    assert np.array_equal(image, before[0])
    assert torch.equal(targets.ids, before[1])
