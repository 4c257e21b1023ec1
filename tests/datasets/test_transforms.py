"""Training transforms: augmentations, and crops held against resizing, padding and cropping the whole image."""

import itertools
import random
from pathlib import Path

import albumentations as A
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch.nn import functional
from torchvision.transforms.v2 import functional as vision

from datasets import transforms
from datasets.transforms import (
    MAX_TRIES,
    Augmentations,
    Crop,
    TrainTransform,
    crop_image,
    crop_targets,
    draw_crop,
    nearest_pixels,
)
from eomt.errors import InputError
from eomt.targets import targets_from_id_map
from tests.coco_objects import targets_from_masks
from tests.memory_reader import segment_image

SIZES = [(48, 64), (61, 37), (1, 90), (33, 2), (200, 150)]


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(seed=0):
    return np.kron(noise(6, 8, seed), np.ones((5, 5, 1), np.uint8))


def random_masks(height, width, count, seed=0):
    """Overlapping rectangles and noise; the first mask is full, the second empty."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, height, width), dtype=bool)
    for mask in masks[2:]:
        top, left = rng.integers(0, height), rng.integers(0, width)
        mask[top : top + rng.integers(1, height + 1), left : left + rng.integers(1, width + 1)] = True
    masks[2] &= rng.random((height, width)) < 0.5
    masks[0] = True
    return masks


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
    """The targets are the masks that have a pixel, in their order."""
    keep = masks.flatten(1).any(1)
    assert torch.equal(targets.masks(), masks[keep])
    assert targets.labels.tolist() == np.array(labels)[keep.numpy()].tolist()
    assert targets.ids.dtype == (torch.int8 if keep.sum() <= 127 else torch.int16)
    assert len(targets.ids) == max(len(targets.planes.unique()), 1)
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
        assert torch.equal(pixels, expected)
    assert np.array_equal(image, before)


@pytest.mark.parametrize("old", SIZES)
@pytest.mark.parametrize("size", [(40, 40), (24, 56)])
def test_targets_equal_the_plain_way(old, size):
    masks, labels = random_masks(*old, 9), list(range(9))
    crowd = np.arange(9) == 4
    targets = targets_from_masks(masks, labels, crowd)
    before = targets.ids.clone()
    for crop in crops(old, size):
        check(crop_targets(targets, crop), plain_masks(masks[~crowd], crop), np.array(labels)[~crowd])
    assert torch.equal(targets.ids, before)


def test_no_segments():
    for targets in (
        targets_from_id_map(np.zeros((20, 30), int), [], []),
        targets_from_id_map(np.ones((20, 30), int), [1], [5], crowd=[True]),
        targets_from_masks(np.zeros((1, 20, 30), bool), [0]),
    ):
        for crop in crops((20, 30), (16, 16), 5):
            cropped = crop_targets(targets, crop)
            check(cropped, torch.zeros(0, 16, 16, dtype=torch.bool), [])
            assert cropped.ids.shape == (1, 16, 16)
            assert not cropped.ids.any()


def test_more_segments_than_a_byte_numbers():
    id_map = np.arange(1, 301).reshape(15, 20)
    masks = id_map == np.arange(1, 301)[:, None, None]
    targets = targets_from_id_map(id_map, range(1, 301), range(300))
    for factor in (1, 2):
        scaled = (15 * factor, 20 * factor)
        crop = Crop(False, (15, 20), scaled, ((0, scaled[0]), (0, scaled[1])), (40, 40))
        check(crop_targets(targets, crop), plain_masks(masks, crop), range(300))


MODES = ("nearest", "nearest-exact")


@pytest.mark.parametrize("mode", MODES)
def test_nearest_pixels_are_pytorchs(mode):
    for old in [1, 2, 3, 7, 48, 333, 427, 480, 613, 640]:
        line = torch.arange(old, dtype=torch.float32)[None, None]
        for new in [1, 2, 5, 64, 117, 234, 299, 327, 640, 871, 1280]:  # 117 of 333 wants single precision
            expected = functional.interpolate(line, new, mode=mode)[0, 0].long().numpy()
            assert np.array_equal(nearest_pixels(old, new, (0, new), mode), expected)
            assert np.array_equal(nearest_pixels(old, new, (new // 3, new), mode), expected[new // 3 :])


def test_masks_by_pixel_centres_lie_on_their_image():
    image, masks = np.zeros((64, 64, 3), np.uint8), np.zeros((1, 64, 64), bool)
    image[:, 30:], masks[..., 30:] = 255, True
    targets, off = targets_from_masks(masks, [0]), {mode: [] for mode in MODES}
    for side, flip in itertools.product((12, 20, 44, 90, 150), (False, True)):
        crop = Crop(flip, (64, 64), (side, side), ((0, side), (0, side)), (side, side))
        shown = float(crop_image(image, crop)[0, 0].sum()) / 255
        for mode in MODES:
            off[mode].append(abs(float(crop_targets(targets, crop, mode).ids[0, 0].sum()) - shown))
    assert max(off["nearest-exact"]) < 0.52 < max(off["nearest"])


def test_sizes_are_truncated_and_never_zero():
    def scaled(old, size, factor):
        return draw_crop(old, size, (factor, factor), np.random.default_rng(0)).scaled

    assert scaled((333, 500), (100, 100), 0.37) == (24, 37)  # 333 * 0.074 = 24.6, 500 * 0.074 = 37
    assert scaled((2, 500), (100, 100), 0.37) == (1, 37)
    assert scaled((600, 800), (100, 300), 1.0) == (100, 133)
    assert scaled((600, 800), (300, 100), 1.0) == (75, 100)


def aligned(pixels, targets, margin=2):
    """Compare an image of `segment_image` with its targets, away from edges; gives the number of pixels compared."""
    shown = torch.zeros(pixels.shape[1:])
    for mask, label in zip(targets.masks(), targets.labels, strict=True):
        assert mask.any()
        shown[mask] = 40.0 * label
    # Nearest and bilinear place an edge up to a source pixel apart, and it may lie just outside.
    side = 2 * margin + 1
    window = functional.pad(shown, (margin,) * 4, value=-1).unfold(0, side, 1).unfold(1, side, 1)
    inner = window.amax((2, 3)) == window.amin((2, 3))
    if inner.any():
        assert (pixels.float() - shown)[:, inner].abs().max() <= 1
    return int((inner & (shown > 0)).sum())


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
        compared += aligned(pixels, result)
    assert compared > 10_000


def test_published_chances():
    """Half of the images are mirrored; r uniform in 0.1..2.0; crops anywhere; all independent of each other."""
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
    pixels, result = TrainTransform((32, 32))(noise(40, 40), targets, (0,))
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


def photometric():
    recipe = OmegaConf.load(Path(__file__).parents[2] / "configs" / "recipe" / "photometric.yaml")
    return instantiate(recipe.data.augmentations, _convert_="all")


JITTERED = {
    "brightness": (1 - 32 / 255, 1 + 32 / 255),
    "contrast": (0.5, 1.5),
    "saturation": (0.5, 1.5),
    "hue": (-18 / 360, 18 / 360),
}


def test_the_recipes_jitter_has_the_published_ranges_chances_and_orders():
    compose = A.Compose(photometric(), save_applied_params=True)
    image, drawn, orders = noise(4, 4), {name: [] for name in JITTERED}, []
    for seed in range(2000):
        compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        order = []
        for name, parameters in compose(image=image)["applied_transforms"]:
            assert name == "ColorJitter"
            changed = {key: parameters[key] for key in JITTERED if parameters[key] != (0 if key == "hue" else 1)}
            [(key, value)] = changed.items()
            order.append(key)
            drawn[key].append((seed, value))
        orders.append(order)
    for name, (low, high) in JITTERED.items():
        values, width = np.array([value for _, value in drawn[name]]), high - low
        assert abs(len(values) / 2000 - 0.5) < 0.05
        assert low - 1e-6 <= values.min() < low + 0.02 * width
        assert high + 1e-6 >= values.max() > high - 0.02 * width
        assert abs(values.mean() - (low + high) / 2) < 0.05 * width
    first, second = list(JITTERED), ["brightness", "saturation", "hue", "contrast"]
    assert all(order in ([n for n in first if n in order], [n for n in second if n in order]) for order in orders)
    told = np.array(
        [order.index("contrast") < order.index("hue") for order in orders if {"contrast", "hue"} <= {*order}]
    )
    assert abs(told.mean() - 0.5) < 0.07
    applied = np.array([[name in order for name in JITTERED] for order in orders]).T
    assert np.abs(np.corrcoef(applied) - np.eye(4)).max() < 0.08


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        *[("brightness", 0.88), ("brightness", 1.1), ("contrast", 1.4), ("contrast", 0.5), ("saturation", 0.6)],
        *[("saturation", 1.5), ("hue", 0.05), ("hue", -0.04)],
    ],
)
def test_the_recipes_jitter_computes_what_torchvision_does(name, factor):
    ranges = {"brightness": (1, 1), "contrast": (1, 1), "saturation": (1, 1), "hue": (0, 0)} | {name: (factor, factor)}
    image = smooth()
    changed = A.ColorJitter(**ranges, p=1)(image=image)["image"]
    expected = getattr(vision, f"adjust_{name}")(torch.from_numpy(image).permute(2, 0, 1), factor)
    difference = np.abs(changed.astype(int) - expected.permute(1, 2, 0).numpy())
    assert difference.mean() < 1.5
    if name != "hue":  # albumentations' hues are steps of two degrees
        assert difference.max() <= 2
    assert np.array_equal(image, smooth())


MOVING = [
    A.HorizontalFlip(p=1),
    A.Transpose(p=1),
    A.Rotate(30, p=1),
    A.RandomCrop(50, 60, p=1),
    A.RandomResizedCrop((70, 90), p=1),
    A.OneOf([A.VerticalFlip(), A.Sequential([A.RandomRotate90(p=1), A.PadIfNeeded(200, 200, p=1)], p=1)], p=1),
    A.CoarseDropout(fill=0, fill_mask=0, p=1),
]


@pytest.mark.parametrize("transform", MOVING, ids=lambda transform: type(transform).__name__)
def test_augmentations_move_image_and_masks_alike(transform):
    image, targets = segment_image(120, 160, seed=3)
    augment, plain = (TrainTransform((96, 96), (0.8, 1.2), chosen) for chosen in ([transform], []))
    changed = compared = 0
    for seed in range(10):
        pixels, result = augment(image, targets, (seed,))
        changed += not torch.equal(pixels, plain(image, targets, (seed,))[0])
        compared += aligned(pixels, result, margin=4)
    assert changed > 5
    assert compared > 1500


def test_overlapping_instances_and_large_numbers_move_with_their_planes():
    for count, flip in ((9, A.HorizontalFlip(p=1)), (300, A.VerticalFlip(p=1))):
        masks = random_masks(40, 50, count)
        targets = targets_from_masks(masks, range(len(masks)))
        image, moved = Augmentations([flip])(noise(40, 50), targets, np.random.default_rng(0))
        axis = 2 if isinstance(flip, A.HorizontalFlip) else 1
        assert torch.equal(moved.masks(), torch.from_numpy(masks).flip(axis))
        assert np.array_equal(image, np.flip(noise(40, 50), axis - 1))


def test_removed_segments_are_dropped_and_fill_values_are_none():
    image, targets = segment_image(60, 80, seed=1)
    cut = A.Sequential([A.CenterCrop(30, 40, p=1), A.Pad(20, fill_mask=77, p=1)], p=1)
    _, result = TrainTransform((60, 80), (1.0, 1.0), [cut])(image, targets, (0,))
    assert result.ids.max() == len(result.labels) == 4
    corner = A.Crop(0, 0, 30, 20, p=1)
    _, result = TrainTransform((60, 80), (1.0, 1.0), [corner])(image, targets, (0,))
    assert 0 < len(result.labels) < 4
    assert len(result.masks().flatten(1).any(1)) == len(result.labels)


def test_augmentations_are_independent_of_each_other_and_of_the_crop():
    """Seeded by `set_random_seed`, transforms of a Compose would draw the same numbers."""
    image = np.zeros((40, 40, 3), np.uint8)
    image[:10, :10] = 255
    targets = targets_from_id_map(np.ones((40, 40), int), [1], [0])
    transform = TrainTransform((40, 40), (1.0, 1.0), [A.VerticalFlip(p=0.5), A.InvertImg(p=0.5)])
    drawn = []
    for seed in range(800):
        pixels = transform(image, targets, (seed,))[0][0]
        inverted = pixels[20, 20] == 255
        bright = (pixels == (0 if inverted else 255)).nonzero()[0].tolist()
        drawn.append([bool(inverted), bright[0] > 10, bright[1] > 10])  # the crop mirrors columns
    drawn = np.array(drawn).T
    assert np.abs(drawn.mean(1) - 0.5).max() < 0.06
    assert np.abs(np.corrcoef(drawn) - np.eye(3)).max() < 0.1


def test_a_seed_decides_everything():
    image, targets = segment_image(60, 80, seed=1)

    def made():
        others = [A.Rotate(p=0.5), A.ElasticTransform(p=0.5), A.GaussNoise(p=0.5), A.GridDropout(p=0.5)]
        return TrainTransform((48, 48), augmentations=[*photometric(), A.SomeOf(others, n=2, p=1)])

    first, second = made(), made()
    for seed in [(0, 1, 2), (0, 1, 3), (5,)]:
        second(image, targets, (99, 99))
        a, b = first(image, targets, seed), second(image, targets, seed)
        assert torch.equal(a[0], b[0])
        assert all(torch.equal(x, y) for x, y in zip(a[1][:4], b[1][:4], strict=True))
    results = [first(image, targets, (0, 1, s))[0] for s in range(5)]
    assert all(not torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize(
    ("augmentations", "message"),
    [
        ([{"p": 1}], r"data\.augmentations holds \{'p': 1\}, which is no transform of albumentations"),
        ([A.RandomCrop(500, 500, p=1)], r"data\.augmentations fail on 80x60 pixels \(CropSizeError: "),
        ([A.Normalize()], r"data\.augmentations give an image of float32 \[60, 80, 3\], .*: leave out Normalize"),
        ([A.ToTensorV2()], r"data\.augmentations give an image of torch\.uint8 \[3, 60, 80\]"),
    ],
)
def test_unfit_augmentations_end_in_one_line(augmentations, message):
    image, targets = segment_image(60, 80, seed=1)
    with pytest.raises(InputError, match=message) as error:
        TrainTransform((48, 48), augmentations=augmentations)(image, targets, (0,))
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:Argument")
def test_unknown_arguments_of_a_transform_are_refused():
    with pytest.raises(InputError, match=r"data\.augmentations: Argument\(s\) 'chance' are not valid for .*Flip"):
        Augmentations([A.OneOf([A.HorizontalFlip(chance=1)])])
