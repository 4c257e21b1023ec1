"""COCO's protocol for objects: greedy matching, then precision over recall, for all images at once.

The rules are those of `COCOeval` of the official pycocotools. Ten IoU thresholds and four ranges of area
are counted side by side, in axes [..., A, T].
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
# All, small, medium, large: pixels from and to, where both ends belong to the range.
AREA_RANGES = np.array([[0, 1e5**2], [0, 32**2], [32**2, 96**2], [96**2, 1e5**2]])
MAX_DETECTIONS = (1, 10, 100)  # of one image and class
SHAPE = (len(AREA_RANGES), len(THRESHOLDS))


class Detections(NamedTuple):
    """N predicted objects.

    Attributes:
        images: int64 [N], ascending: the place of each one's image in the order in which ties are broken.
        labels: int64 [N].
        scores: float64 [N].
        areas: int64 [N].
    """

    images: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    areas: np.ndarray


class Truths(NamedTuple):
    """G true objects: labels int64 [G], areas float64 [G], crowd bool [G]."""

    labels: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray


class Pairs(NamedTuple):
    """All P pairs of a detection and a true object of one image and class with an IoU of at least 0.5.

    Attributes:
        detections, truths: int64 [P], their numbers.
        ious: float64 [P].
    """

    detections: np.ndarray
    truths: np.ndarray
    ious: np.ndarray


class Matches(NamedTuple):
    """What became of the D detections that stand in a pair.

    Attributes:
        detections: int64 [D], ascending.
        right: bool [D, A, T], has a true object that counts.
        counted: bool [D, A, T], is right or a false positive. The others are ignored.
    """

    detections: np.ndarray
    right: np.ndarray
    counted: np.ndarray


def precision_and_recall(
    detections: Detections, truths: Truths, pairs: Pairs, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Precision at 101 recalls, and the recall reached.

    Returns:
        precision: float64 [C, A, T, 101] with at most 100 detections of an image and class.
        recall: float64 [C, A, T, 3] with at most 1, 10 and 100. Both NaN where no true object counts.
    """
    # By class, the highest scores first, equal ones in the given order.
    order = np.argsort(-detections.scores, kind="stable")
    order = order[np.argsort(detections.labels[order], kind="stable")]
    detections, pairs = _renumber(detections, pairs, order)
    group, rank = _groups_and_ranks(detections)
    order = np.flatnonzero(rank < MAX_DETECTIONS[-1])
    if len(order) < len(rank):
        detections, pairs = _renumber(detections, pairs, order)
        group, rank = group[order], rank[order]

    inside = in_ranges(detections.areas)
    ignored = ~in_ranges(truths.areas) | truths.crowd[:, None]
    matches = match(pairs, ignored, truths.crowd, group, inside)
    wanted = np.zeros((num_classes, len(AREA_RANGES)), dtype=np.int64)
    np.add.at(wanted, truths.labels, ~ignored)

    precision = np.full((num_classes, *SHAPE, len(RECALLS)), np.nan)
    recall = np.full((num_classes, *SHAPE, len(MAX_DETECTIONS)), np.nan)
    bounds = np.searchsorted(detections.labels, np.arange(num_classes + 1))
    matched_bounds = np.searchsorted(matches.detections, bounds)
    for k in np.flatnonzero(wanted.any(1)):
        own = slice(matched_bounds[k], matched_bounds[k + 1])
        places = matches.detections[own]
        counted = np.cumsum(inside[bounds[k] : bounds[k + 1]], axis=0, dtype=np.int32)[places - bounds[k]]
        changed = matches.counted[own].astype(np.int32) - inside[places][:, :, None]
        counted = counted[:, :, None] + np.cumsum(changed, axis=0)
        right = matches.right[own]
        seen = wanted[k] > 0
        precision[k, seen] = _precision_at_recalls(right, counted, wanted[k])[seen]
        reached = [right[rank[places] < limit].sum(0) for limit in MAX_DETECTIONS]
        recall[k, seen] = (np.stack(reached, axis=-1) / np.maximum(wanted[k], 1)[:, None, None])[seen]
    return precision, recall


def in_ranges(areas: np.ndarray) -> np.ndarray:
    """Which areas [N] are in which range: bool [N, A]."""
    low, high = AREA_RANGES.T
    return (areas[:, None] >= low) & (areas[:, None] <= high)


def match(pairs: Pairs, ignored: np.ndarray, crowd: np.ndarray, group: np.ndarray, inside: np.ndarray) -> Matches:
    """Let each detection choose a true object.

    The detections of one image and class choose in their order. Each takes the object with the largest IoU,
    of equal ones the last, that no one before has taken; if there is none, one that is ignored, and of
    these crowds may be taken by many.

    Args:
        pairs: of detections in the order in which they choose.
        ignored: bool [G, A], true objects that are crowds or outside of the range.
        crowd: bool [G].
        group: int64 [N], one number for the detections of one image and class.
        inside: bool [N, A], detections whose own area is in the range. Others that choose none are ignored.
    """
    order = np.lexsort((pairs.truths, pairs.ious, pairs.detections))
    choosers, start, count = np.unique(pairs.detections[order], return_index=True, return_counts=True)
    # Groups do not meet: all groups' first detections choose at once, then all second ones, and so on.
    turn = _place_in_group(group[choosers])
    by_turn = np.argsort(turn, kind="stable")
    right = np.zeros((len(choosers), *SHAPE), dtype=bool)
    counted = np.repeat(inside[choosers, :, None], len(THRESHOLDS), axis=2)
    taken = np.zeros((len(crowd), *SHAPE), dtype=bool)
    for now in np.split(by_turn, np.cumsum(np.bincount(turn))[:-1]):
        firsts = np.cumsum(count[now]) - count[now]
        place = np.arange(count[now].sum()) - np.repeat(firsts, count[now])
        rows = order[np.repeat(start[now], count[now]) + place]
        truth = pairs.truths[rows]
        free = (~taken[truth] | crowd[truth, None, None]) & (pairs.ious[rows, None] >= THRESHOLDS)[:, None]
        # Places grow with the IoU; objects that count come after all that are ignored.
        preference = place[:, None] + 1 + np.where(ignored[truth], 0, len(ignored) + 1)
        best = np.maximum.reduceat(np.where(free, preference[:, :, None], 0), firsts, axis=0)
        chooser, area, threshold = best.nonzero()
        best = best[chooser, area, threshold]
        counts = best > len(ignored) + 1
        chosen = truth[firsts[chooser] + best - 1 - counts * (len(ignored) + 1)]
        taken[chosen, area, threshold] = True
        right[now[chooser], area, threshold] = counts
        counted[now[chooser], area, threshold] = counts
    return Matches(choosers, right, counted)


def _renumber(detections: Detections, pairs: Pairs, order: np.ndarray) -> tuple[Detections, Pairs]:
    """The detections `order`, and the pairs that they stand in."""
    place = np.full(len(detections.labels), -1)
    place[order] = np.arange(len(order))
    kept = place[pairs.detections] >= 0
    pairs = Pairs(place[pairs.detections[kept]], pairs.truths[kept], pairs.ious[kept])
    return Detections(*(column[order] for column in detections)), pairs


def _groups_and_ranks(detections: Detections) -> tuple[np.ndarray, np.ndarray]:
    """A number for each image and class, and each detection's place among those of its image and class."""
    images = detections.images.max(initial=0) + 1
    group = detections.labels * images + detections.images
    return group, _place_in_group(group)


def _place_in_group(group: np.ndarray) -> np.ndarray:
    """How many equal numbers stand before each: int64 [N]."""
    order = np.argsort(group, kind="stable")
    ordered = group[order]
    fresh = np.append(True, ordered[1:] != ordered[:-1])[: len(group)]
    steps = np.arange(len(group))
    place = np.empty_like(order)
    place[order] = steps - np.maximum.accumulate(np.where(fresh, steps, 0))
    return place


def _precision_at_recalls(right: np.ndarray, counted: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The best precision at each recall or beyond, 0 where the recall is not reached: float64 [A, T, 101].

    Args:
        right: bool [D, A, T], the detections of one class in the order of their scores.
        counted: int32 [D, A, T], right and wrong ones so far. Only right ones can be the best of a recall.
        wanted: int64 [A], true objects.
    """
    right, counted = (array.reshape(-1, SHAPE[0] * SHAPE[1]).T for array in (right, counted))
    column, place = right.nonzero()
    number = np.bincount(column, minlength=len(right))
    first = np.cumsum(number) - number
    so_far = np.arange(len(column)) - first[column] + 1
    curve = np.zeros(right.shape)
    curve[column, place] = so_far / (counted[column, place] + np.spacing(1))
    best = np.maximum.accumulate(curve[:, ::-1], axis=1)[:, ::-1][column, place]
    needed = np.stack([np.searchsorted(np.arange(n + 1) / max(n, 1), RECALLS) for n in wanted])
    needed = np.repeat(np.maximum(needed, 1), len(THRESHOLDS), axis=0)
    reached = needed <= number[:, None]
    result = np.zeros(reached.shape)
    result[reached] = best[(first[:, None] + needed - 1)[reached]]
    return result.reshape(*SHAPE, -1)
