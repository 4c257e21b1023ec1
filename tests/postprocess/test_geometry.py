"""Scaling, padding and cutting into windows, and the way back, against the original's recorded numbers."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eomt.errors import InputError
from eomt.postprocess.geometry import (
    FIT_AND_PAD,
    WINDOWS,
    Placement,
    cover_size,
    cut_windows,
    fit_and_pad,
    fit_size,
    merge_windows,
    undo_fit,
    window_starts,
)

GOLDEN = Path(__file__).parents[1] / "golden"


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
    padded, placement = fit_and_pad(image, (64, 40))
    assert placement == Placement(30, 50, 24, 40)
    assert padded.dtype == torch.uint8
    assert padded.shape == (3, 64, 40)
    scaled = np.array(Image.fromarray(image).resize((40, 24), Image.Resampling.BILINEAR))
    assert np.array_equal(padded[:, :24].permute(1, 2, 0).numpy(), scaled)
    assert not padded[:, 24:].any()


def test_fit_and_pad_takes_pil_and_grey_images():
    image = random_image(20, 31)
    assert torch.equal(fit_and_pad(image, (16, 16))[0], fit_and_pad(Image.fromarray(image), (16, 16))[0])
    grey = fit_and_pad(Image.fromarray(image[:, :, 0]), (16, 16))[0]
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


@pytest.mark.parametrize("geometry", [FIT_AND_PAD, WINDOWS])
@pytest.mark.parametrize("shape", [(40, 60), (90, 31), (7, 200), (32, 32)])
def test_the_view_is_the_scaled_image(geometry, shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    inputs, placement = geometry.prepare(image, (32, 32))
    assert inputs.dtype == torch.uint8
    assert inputs.shape[1:] == (3, 32, 32)
    size = (placement.scaled_width, placement.scaled_height)
    scaled = np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    assert np.array_equal(geometry.view(inputs, placement, (32, 32)).permute(1, 2, 0), scaled)
