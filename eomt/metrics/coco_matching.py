"""Who finds whom: greedy matching of detections and true objects by COCO's rules, of all images at once.

The rules are those of `COCOeval` of the official pycocotools. Ten IoU thresholds (T) and four ranges of area
(A) are matched side by side.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

THRESHOLDS = np.linspace(0.5, 0.95, 10)
# All, small, medium, large: pixels from and to, where both ends belong to the range.
AREA_RANGES = np.array([[0, 1e5**2], [0, 32**2], [32**2, 96**2], [96**2, 1e5**2]])
SHAPE = (len(AREA_RANGES), len(THRESHOLDS))


class Pairs(NamedTuple):
    """All P pairs of a detection and a true object of one image and class with an IoU of at least 0.5.

    Attributes:
        detections, truths: int64 [P], their numbers.
        ious: float64 [P].
    """

    detections: np.ndarray
    truths: np.ndarray
    ious: np.ndarray

    def where(self, keep: np.ndarray) -> Pairs:
        """The pairs with `keep` (bool [P]) True, or those numbered so."""
        return Pairs(*(column[keep] for column in self))


class Matches(NamedTuple):
    """What became of the D detections that stand in a pair.

    Attributes:
        detections: int64 [D], ascending.
        right: bool [A, T, D], has a true object that counts.
        change: int8 [A, T, D]. A detection without a true object is counted as wrong if its own area is in
            the range, and ignored otherwise. One with a true object is counted if that one counts: 1 where
            this adds the detection to those counted, -1 where it takes it away.
    """

    detections: np.ndarray
    right: np.ndarray
    change: np.ndarray


def in_ranges(areas: np.ndarray) -> np.ndarray:
    """Which areas [N] are in which range: bool [A, N]."""
    low, high = AREA_RANGES.T[:, :, None]
    return (areas >= low) & (areas <= high)


def match(pairs: Pairs, ignored: np.ndarray, crowd: np.ndarray, group: np.ndarray, inside: np.ndarray) -> Matches:
    """Let each detection choose a true object.

    The detections of one image and class choose in their order. Each takes the object with the largest IoU,
    of equal ones the last, that no one before has taken; if there is none, one that is ignored, and of
    these crowds may be taken by many.

    Args:
        pairs: of detections in the order in which they choose.
        ignored: bool [A, G], true objects that are crowds or outside of the range.
        crowd: bool [G].
        group: int64 [N], one number for the detections of one image and class.
        inside: bool [A, N], detections whose own area is in the range.
    """
    number = np.bincount(pairs.detections, minlength=inside.shape[1])
    choosers, place = np.flatnonzero(number), np.cumsum(number > 0) - 1
    group, inside = group[choosers], inside[:, choosers]
    row = place[pairs.detections]
    # Mostly no detection of an image and class can choose between objects. Then who takes an object depends on
    # no area, and takes it at a row of thresholds.
    choice = np.isin(group, group[number[choosers] > 1])
    plain = ~choice[row]
    limits, truth = np.zeros((2, len(choosers)), dtype=np.int8), np.zeros(len(choosers), dtype=np.int64)
    limits[:, row[plain]] = _thresholds_taken(pairs.where(plain), crowd)
    truth[row[plain]] = pairs.truths[plain]
    steps = np.arange(len(THRESHOLDS), dtype=np.int8)[:, None]
    found = (limits[0] <= steps) & (steps < limits[1])
    counts = ~ignored[:, truth]
    right = found & counts[:, None]
    change = found * (counts.view(np.int8) - inside.view(np.int8))[:, None]

    if choice.any():
        right[..., choice], counted = _match_in_turns(
            pairs.where(~plain), ignored, crowd, group[choice], inside[:, choice]
        )
        change[..., choice] = counted.view(np.int8) - inside[:, None, choice].view(np.int8)
    return Matches(choosers, right, change)


def _thresholds_taken(pairs: Pairs, crowd: np.ndarray) -> np.ndarray:
    """Where each detection stands in one pair only: the thresholds at which it takes that object.

    Returns:
        int64 [2, P]: the first threshold and the one past the last.
    """
    high = np.searchsorted(THRESHOLDS, pairs.ious, side="right")
    order = np.lexsort((pairs.detections, pairs.truths))
    truths = pairs.truths[order]
    fresh = np.append(True, truths[1:] != truths[:-1])[: len(truths)]
    # Left to a detection are the thresholds that no one before has reached. Each object's own floor keeps out
    # what was reached at the one before.
    floor = np.cumsum(fresh) * (len(THRESHOLDS) + 1)
    reached = np.maximum.accumulate(high[order] + floor) - floor
    low = np.zeros_like(high)
    low[order[1:]] = np.where(fresh[1:], 0, reached[:-1])
    low[crowd[pairs.truths]] = 0
    return np.stack([low, high])


def _match_in_turns(
    pairs: Pairs, ignored: np.ndarray, crowd: np.ndarray, group: np.ndarray, inside: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`match` by its own words, for the D detections in `pairs`.

    Args:
        group: int64 [D].
        inside: bool [A, D].

    Returns:
        Who is right and who is counted, bool [A, T, D].
    """
    order = np.lexsort((pairs.truths, pairs.ious, pairs.detections))
    choosers, start, count = np.unique(pairs.detections[order], return_index=True, return_counts=True)
    # Groups do not meet: all groups' first detections choose at once, then all second ones, and so on.
    turn = _place_in_group(group)
    by_turn = np.argsort(turn, kind="stable")
    right = np.zeros((*SHAPE, len(choosers)), dtype=bool)
    counted = np.repeat(inside[:, None], len(THRESHOLDS), axis=1)
    taken = np.zeros((len(crowd), *SHAPE), dtype=bool)
    never, worst = ignored.T, len(crowd) + 1
    for now in np.split(by_turn, np.cumsum(np.bincount(turn))[:-1]):
        firsts = np.cumsum(count[now]) - count[now]
        place = np.arange(count[now].sum()) - np.repeat(firsts, count[now])
        rows = order[np.repeat(start[now], count[now]) + place]
        truth = pairs.truths[rows]
        free = (~taken[truth] | crowd[truth, None, None]) & (pairs.ious[rows, None] >= THRESHOLDS)[:, None]
        # Places grow with the IoU; objects that count come after all that are ignored.
        preference = place[:, None] + 1 + np.where(never[truth], 0, worst)
        best = np.maximum.reduceat(np.where(free, preference[:, :, None], 0), firsts, axis=0)
        chooser, area, threshold = best.nonzero()
        best = best[chooser, area, threshold]
        counts = best > worst
        chosen = truth[firsts[chooser] + best - 1 - counts * worst]
        taken[chosen, area, threshold] = True
        right[area, threshold, now[chooser]] = counts
        counted[area, threshold, now[chooser]] = counts
    return right, counted


def _place_in_group(group: np.ndarray) -> np.ndarray:
    """How many equal numbers stand before each: int64 [N]."""
    order = np.argsort(group, kind="stable")
    ordered = group[order]
    fresh = np.append(True, ordered[1:] != ordered[:-1])[: len(group)]
    steps = np.arange(len(group))
    place = np.empty_like(order)
    place[order] = steps - np.maximum.accumulate(np.where(fresh, steps, 0))
    return place
