"""Mask annealing against the original's recorded probabilities."""

import pytest

from eomt.training.annealing import mask_probability, resolve_windows
from tests.golden_numbers import golden_json


def test_mask_probability():
    expected = golden_json("annealing")
    windows = list(zip(expected["start_steps"], expected["end_steps"], strict=True))
    for step, row in zip(expected["steps"], expected["mask_probability"], strict=True):
        for (start, end), value in zip(windows, row, strict=True):
            assert mask_probability(step, start, end, expected["poly_power"]) == pytest.approx(value, abs=1e-6)


def test_windows_as_fractions_and_steps():
    sixths = [["1/6", "2/6"], ["2/6", "3/6"], ["3/6", "4/6"], ["4/6", "5/6"]]
    assert resolve_windows(sixths, 88_692) == [(14782, 29564), (29564, 44346), (44346, 59128), (59128, 73910)]
    giant = [[f"{4 + 3 * k}/24", f"{8 + 3 * k}/24"] for k in range(5)]
    starts, ends = zip(*resolve_windows(giant, 88_692), strict=True)
    assert starts == (14782, 25869, 36955, 48042, 59128)
    assert ends == (29564, 40651, 51737, 62824, 73910)
    assert resolve_windows([[0, 3000], [0.25, 0.5]], 1000) == [(0, 3000), (250, 500)]
