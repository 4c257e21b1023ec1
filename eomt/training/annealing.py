"""Mask annealing: the falling probability that a block masks its attention (arXiv 2503.19108, section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

Bound = int | float | str
"""A number of steps; or a fraction of the run, as a number up to 1 or a text such as "1/6"."""


@dataclass(frozen=True)
class Annealing:
    """Annealing of all masked blocks.

    Args:
        windows: (start, end) per masked block, first block first, see `resolve_windows`.
        span: see `resolve_windows`.
        power: the exponent of the polynomial, see `mask_probability`.
    """

    windows: Sequence[Sequence[Bound]]
    span: Bound = 1
    power: float = 0.9


def complete_windows(windows: Sequence | str, count: int) -> list[Sequence[Bound]]:
    """Return one annealing window per masked block.

    Args:
        windows: "auto", or (start, end) of the first masked blocks, ended by "auto" for those that are left. The
            window of block k of L2 is a sixth of the run from `1/6 + k / (2 L2 - 2)` on: those of the published
            networks, whose L2 is 3, 4 or 5.
        count: L2, the number of masked blocks.
    """
    given: list[Any] = ["auto"] if windows == "auto" else list(windows)
    if given[-1:] != ["auto"]:
        return given
    starts = [Fraction(1, 6) + Fraction(k, max(1, 2 * count - 2)) for k in range(count)]
    even = [(str(start), str(start + Fraction(1, 6))) for start in starts]
    return [*given[:-1], *even[len(given) - 1 :]]


def resolve_windows(windows: Sequence[Sequence[Bound]], total_steps: int, span: Bound = 1) -> list[tuple[int, int]]:
    """Turn annealing windows into optimizer steps.

    Args:
        windows: (start, end) per masked block, first block first, 0 <= start <= end. A window whose end is at most 1
            is in fractions of the run, any other in optimizer steps.
        total_steps: optimizer steps of the whole run.
        span: the part of the run that fractions refer to, a positive number or a text such as "39120/39153".
    """
    part = Fraction(str(span))
    resolved = []
    for window in windows:
        start, end = (Fraction(str(bound)) for bound in window)
        scale = total_steps * part if end <= 1 else 1
        resolved.append((math.floor(start * scale + Fraction(1, 2)), math.floor(end * scale + Fraction(1, 2))))
    return resolved


def mask_probability(step: int, start: int, end: int, power: float = 0.9) -> float:
    """Return the probability that a query's attention is masked in a block.

    Args:
        step: optimizer steps done.
        start: the last step at which it is 1.
        end: the first step at which it is 0.
        power: the exponent of the polynomial in between, `(1 - (step - start) / (end - start)) ** power`.
    """
    if step >= end:
        return 0.0
    if step <= start:
        return 1.0
    return (1 - (step - start) / (end - start)) ** power
