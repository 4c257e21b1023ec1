"""Scaling, padding and cutting into windows, and the way back, against the original's recorded numbers."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eomt.classes import Classes
from eomt.errors import InputError
from eomt.inference.segmenter import Segmenter
from eomt.loss.mask_classification import MaskClassificationLoss
from eomt.model.eomt import EoMT
from eomt.postprocess.geometry import (
    FIT_AND_PAD,
    MAX_WINDOWS,
    WINDOWS,
    Placement,
    cover_size,
    cut_windows,
    fit_and_pad,
    fit_size,
    is_reduced,
    merge_windows,
    outlines,
    run_unpadded,
    undo_fit,
    window_starts,
)
from eomt.tasks import task_of
from eomt.training.annealing import Annealing
from eomt.training.module import EoMTModule

GOLDEN = Path(__file__).parents[1] / "golden"
CLASSES = Classes.from_categories([{"id": 1, "name": "cup"}, {"id": 2, "name": "sky", "isthing": 0}])
BACKBONES = {
    "learned": ("vit_small_patch14_reg4_dinov2", {"embed_dim": 32, "depth": 2, "num_heads": 2}),
    "with prefix": ("vit_small_patch16_224", {"embed_dim": 32, "depth": 2, "num_heads": 2}),
    "rotary": ("vit_small_patch16_dinov3_qkvb", {"embed_dim": 32, "depth": 2, "num_heads": 2}),
}


def random_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_fit_size_rounds_half_to_even_and_never_leaves_the_input():
    assert fit_size(480, 640, (640, 640)) == (480, 640)
    assert fit_size(427, 640, (96, 96)) == (64, 96)
    assert fit_size(1, 4, (10, 10)) == (2, 10)  # 2.5 rounds to 2
    assert fit_size(3, 8, (4, 4)) == (2, 4)  # 1.5 rounds to 2
    assert fit_size(5000, 1, (640, 640)) == (640, 1)  # 0.128 is clamped
    for height, width in np.random.default_rng(0).integers(1, 5000, (300, 2)):
        h, w = fit_size(int(height), int(width), (512, 640))
        assert 1 <= h <= 512
        assert 1 <= w <= 640
        assert h == 512 or w == 640


def test_fit_and_pad_puts_the_scaled_image_top_left():
    image = random_image(30, 50)
    (padded,), placement = fit_and_pad(image, (64, 40))
    assert placement == Placement(30, 50, 24, 40)
    assert padded.dtype == torch.uint8
    assert padded.shape == (3, 64, 40)
    scaled = np.array(Image.fromarray(image).resize((40, 24), Image.Resampling.BILINEAR))
    assert np.array_equal(padded[:, :24].permute(1, 2, 0).numpy(), scaled)
    assert not padded[:, 24:].any()


def test_pil_and_grey_images_are_taken():
    image = random_image(20, 31)
    assert torch.equal(fit_and_pad(image, (16, 16))[0], fit_and_pad(Image.fromarray(image), (16, 16))[0])
    (grey,), _ = fit_and_pad(Image.fromarray(image[:, :, 0]), (16, 16))
    assert torch.equal(grey[0], grey[1])


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        Image.new("RGB", (0, 3)),
    ],
)
def test_an_unfit_image_is_refused_in_one_line(image):
    with pytest.raises(InputError) as error:
        fit_and_pad(image, (16, 16))
    assert "\n" not in str(error.value)


def test_undo_fit_brings_a_picture_back_to_its_place():
    # A horizontal ramp over the image's part, rubbish in the padding: the ramp comes back, the rest does not.
    image = np.zeros((50, 100, 3), np.uint8)
    _, placement = fit_and_pad(image, (64, 64))
    assert placement[2:] == (32, 64)
    logits = torch.full((2, 64, 64), 1e6)
    logits[:, :32] = torch.linspace(-1, 1, 64)
    back = undo_fit(logits, placement, (64, 64))
    assert back.shape == (2, 50, 100)
    assert back.abs().max() <= 1
    assert (back.diff(dim=2) >= 0).all()
    assert torch.equal(undo_fit(logits, Placement(64, 64, 64, 64), (64, 64)), logits)


def test_a_maps_result_does_not_depend_on_its_company():
    logits = torch.randn(9, 24, 24, generator=torch.Generator().manual_seed(0))
    placement = Placement(133, 60, 96, 43)
    together = undo_fit(logits, placement, (96, 96))
    alone = torch.cat([undo_fit(one[None], placement, (96, 96)) for one in logits])
    assert torch.equal(together, alone)


def test_window_spans_are_the_originals():
    cases = json.loads((GOLDEN / "windows.json").read_text())["cases"]
    assert cases
    for case in cases:
        window = case["window"]
        resized = cover_size(case["height"], case["width"], (window, window))
        assert list(resized) == case["resized"]
        spans = [[start, start + window] for start in window_starts(max(resized), window)]
        assert spans == case["spans"], case


def test_windows_leave_no_column_bare_at_extreme_aspect():
    for size in (96, 512, 640):
        for length in [*range(size, 3 * size, 7), *range(7 * size, 7 * size + 40), 20 * size + 1]:
            starts = window_starts(length, size)
            assert starts[0] == 0
            assert starts[-1] == length - size
            assert all(0 < b - a <= size for a, b in itertools.pairwise(starts))


@pytest.mark.parametrize(("height", "width"), [(40, 100), (100, 40), (50, 50), (33, 34)])
def test_merging_the_cut_windows_gives_the_scaled_image(height, width):
    windows, placement = cut_windows(random_image(height, width), (32, 32))
    assert windows.shape[1:] == (3, 32, 32)
    whole = merge_windows(lambda number: windows[number].float(), placement, (32, 32))
    scaled = Image.fromarray(random_image(height, width)).resize(
        (placement.scaled_width, placement.scaled_height), Image.Resampling.BILINEAR
    )
    assert torch.equal(whole, torch.from_numpy(np.array(scaled)).permute(2, 0, 1).float())


@pytest.mark.parametrize("shape", [(1, 60_000), (100_000, 1), (2, 130)])
def test_images_of_extreme_proportions_take_no_more_windows(shape):
    image = random_image(*shape)
    windows, placement = cut_windows(image, (32, 32))
    assert len(windows) == MAX_WINDOWS
    assert is_reduced(placement, (32, 32))
    scaled = Image.fromarray(image).resize(placement[:1:-1], Image.Resampling.BILINEAR)
    scaled = torch.from_numpy(np.array(scaled)).permute(2, 0, 1)
    assert torch.equal(merge_windows(lambda number: windows[number].float(), placement, (32, 32)), scaled.float())
    assert torch.equal(WINDOWS.view(windows, placement, (32, 32)), scaled)
    assert not is_reduced(fit_and_pad(image, (32, 32))[1], (32, 32))
    assert not is_reduced(cut_windows(random_image(4, 128), (32, 32))[1], (32, 32))


@pytest.mark.parametrize("geometry", [FIT_AND_PAD, WINDOWS])
@pytest.mark.parametrize("shape", [(40, 60), (90, 31), (7, 200), (32, 32)])
def test_the_view_is_the_scaled_image(geometry, shape):
    image = random_image(*shape)
    inputs, placement = geometry.prepare(image, (32, 32))
    assert inputs.dtype == torch.uint8
    assert inputs.shape[1:] == (3, 32, 32)
    size = (placement.scaled_width, placement.scaled_height)
    scaled = np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    assert np.array_equal(geometry.view(inputs, placement, (32, 32)).permute(1, 2, 0), scaled)


def network_of(name):
    torch.manual_seed(0)
    backbone, options = BACKBONES[name]
    network = EoMT(backbone, 64, len(CLASSES), 5, 1, 8, options).eval()
    with torch.no_grad():
        if network.backbone.vit.pos_embed is not None:
            network.backbone.vit.pos_embed.normal_()
        network.class_head.weight.mul_(40)
    return network


def inputs_of(*shapes):
    made = [fit_and_pad(random_image(*shape, seed), (64, 64)) for seed, shape in enumerate(shapes)]
    return torch.cat([image for image, _ in made]), [placement for _, placement in made]


@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_each_image_goes_alone_with_those_of_its_size(name):
    network = network_of(name).double()
    network.backbone.crop_position = True
    inputs, placements = inputs_of((64, 64), (64, 30), (33, 64), (64, 27), (64, 32), (1, 300))
    taken, places = [], []

    def run(images, index):
        taken.append(tuple(images.shape))
        places.extend(index.tolist())
        return network(images)[-1].logits()

    masks, classes = run_unpadded(run, inputs, placements, 8, at_once=2)
    assert taken == [(1, 3, 64, 64), (2, 3, 64, 32), (1, 3, 64, 32), (1, 3, 40, 64), (1, 3, 8, 64)]
    assert places == [0, 1, 3, 4, 2, 5]
    side = masks.shape[-1]
    assert masks.shape == (6, 5, side, side)
    for k, (rows, columns) in enumerate([(64, 64), (64, 32), (40, 64), (64, 32), (64, 32), (8, 64)]):
        alone = network(inputs[k : k + 1, :, :rows, :columns])[-1].logits()
        below, beside = rows * side // 64, columns * side // 64
        assert torch.allclose(masks[k, :, :below, :beside], alone.mask_logits[0], atol=1e-9)
        assert torch.allclose(classes[k], alone.class_logits[0], atol=1e-9)
        # Beyond its end a mask continues: bilinear resizing sees no edge.
        assert torch.equal(
            masks[k, :, below:, :beside], masks[k, :, below - 1 : below, :beside].expand(-1, side - below, -1)
        )
        assert torch.equal(masks[k, :, :, beside:], masks[k, :, :, beside - 1 : beside].expand(-1, -1, side - beside))


@pytest.mark.parametrize("kind", ["semantic", "instance", "panoptic"])
def test_images_that_fill_the_input_have_the_same_results(kind):
    options = {"score_threshold": 0.0, "overlap_threshold": 0.0} if kind == "panoptic" else {}
    results = {}
    images = [random_image(64, 64), random_image(100, 100, 1)] + (
        [random_image(90, 40, 2)] if kind == "semantic" else []
    )
    for unpadded in (False, True):
        segmenter = Segmenter(network_of("learned"), task_of(kind, options), CLASSES, "cpu", unpadded=unpadded)
        results[unpadded] = segmenter(images)
    for one, other in zip(results[False], results[True], strict=True):
        assert len(one) > 0
        assert np.array_equal(one.map, other.map)
        assert np.array_equal(one.scores, other.scores)


def test_fewer_patches_go_through_the_network():
    network = network_of("learned")
    tokens = []
    network.backbone.vit.norm_pre.register_forward_hook(lambda module, args, output: tokens.append(output.shape[1]))
    task = task_of("panoptic", {"score_threshold": 0.0})
    for unpadded in (False, True):
        Segmenter(network, task, CLASSES, "cpu", unpadded=unpadded)(random_image(60, 120))
    prefix = network.backbone.num_prefix_tokens
    assert tokens == [prefix + 64, prefix + 32]


@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_validation_takes_the_same_option(masked):
    network = network_of("learned")
    annealing = Annealing([(0.0, 1.0)]) if masked else None
    task = task_of("panoptic")
    module = EoMTModule(
        network, task, CLASSES, MaskClassificationLoss(), annealing, validate_masked=masked, unpadded=True
    )
    assert network.backbone.crop_position
    inputs, placements = inputs_of((64, 64), (64, 30), (33, 64))
    drops = torch.zeros(1, 3, 5, dtype=torch.bool) if masked else None
    found = module.predict_inputs(inputs, placements, (1, 1, 1), [(0, k) for k in range(3)])
    for k, (rows, columns) in enumerate([(64, 64), (64, 32), (40, 64)]):
        own = None if drops is None else drops[:, k : k + 1]
        alone = network(inputs[k : k + 1, :, :rows, :columns], own)[-1].logits()
        assert torch.allclose(found.class_logits[k], alone.class_logits[0], atol=1e-5)


def test_outlines_filled_by_the_even_odd_rule_are_the_mask():
    random = np.random.default_rng(0)
    for _ in range(300):
        mask = random.random(random.integers(1, 9, 2)) < random.random()
        filled, area = np.zeros(mask.shape, bool), 0
        for ring in outlines(mask):
            following = np.roll(ring, -1, axis=0)
            for (x, y), (x2, y2) in zip(ring.tolist(), following.tolist(), strict=True):
                assert (x == x2) != (y == y2)
                filled[min(y, y2) : max(y, y2), x:] ^= True
            area += (ring[:, 0] * following[:, 1] - following[:, 0] * ring[:, 1]).sum() / 2
        assert np.array_equal(filled, mask)
        assert area == mask.sum()
