"""COCO's protocol for objects: precision over recall, for all images at once.

The rules are those of `COCOeval` of the official pycocotools. Ten IoU thresholds (T) and four ranges of area
(A) are counted side by side.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from eomt.metrics.coco_matching import SHAPE, Pairs, in_ranges, match

RECALLS = np.linspace(0, 1, 101)
MAX_DETECTIONS = (1, 10, 100)  # of one image and class


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
    order = order[_argsort(detections.labels[order])]
    detections, pairs = _renumber(detections, pairs, order)
    group, rank = _groups_and_ranks(detections)
    order = np.flatnonzero(rank < MAX_DETECTIONS[-1])
    if len(order) < len(rank):
        detections, pairs = _renumber(detections, pairs, order)
        group, rank = group[order], rank[order]

    inside = in_ranges(detections.areas)
    ignored = ~in_ranges(truths.areas) | truths.crowd
    matches = match(pairs, ignored, truths.crowd, group, inside)
    wanted = np.stack([np.bincount(truths.labels[~row], minlength=num_classes) for row in ignored], axis=1)

    precision = np.full((num_classes, *SHAPE, len(RECALLS)), np.nan)
    recall = np.full((num_classes, *SHAPE, len(MAX_DETECTIONS)), np.nan)
    bounds = np.searchsorted(detections.labels, np.arange(num_classes + 1))
    own_bounds = np.searchsorted(matches.detections, bounds).tolist()
    before = np.pad(np.cumsum(inside, axis=1, dtype=np.int32), ((0, 0), (1, 0)))
    for k in np.flatnonzero(wanted.any(1)):
        own = slice(own_bounds[k], own_bounds[k + 1])
        places, right = matches.detections[own], matches.right[..., own]
        counted = (before[:, places + 1] - before[:, bounds[k], None])[:, None]
        counted = counted + np.cumsum(matches.change[..., own], axis=-1, dtype=np.int32)
        curves = _precision_and_recall_of_class(right, counted, rank[places], wanted[k])
        seen = wanted[k] > 0
        precision[k, seen], recall[k, seen] = (curve[seen] for curve in curves)
    return precision, recall


def _renumber(detections: Detections, pairs: Pairs, order: np.ndarray) -> tuple[Detections, Pairs]:
    """The detections `order`, and the pairs that they stand in."""
    place = np.full(len(detections.labels), -1)
    place[order] = np.arange(len(order))
    pairs = pairs._replace(detections=place[pairs.detections])
    return Detections(*(column[order] for column in detections)), pairs.where(pairs.detections >= 0)


def _groups_and_ranks(detections: Detections) -> tuple[np.ndarray, np.ndarray]:
    """A number for each image and class, and each detection's place among those of its image and class.

    Args:
        detections: sorted by class.
    """
    group = detections.labels * (detections.images.max(initial=0) + 1) + detections.images
    # Sorted by image, those of one class stay together.
    order = _argsort(detections.images)
    ordered = group[order]
    first = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])[: len(group)])
    number = np.diff(first, append=len(group))
    rank = np.empty_like(order)
    rank[order] = np.arange(len(group)) - np.repeat(first, number)
    return group, rank


def _argsort(values: np.ndarray) -> np.ndarray:
    """Stable argsort of integers from 0. In 16 bits, where they fit, NumPy does it in linear time."""
    return np.argsort(values.astype(np.min_scalar_type(values.max(initial=0))), kind="stable")


def _precision_and_recall_of_class(
    right: np.ndarray, counted: np.ndarray, rank: np.ndarray, wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The best precision at each recall or beyond, 0 where the recall is not reached; and the recall.

    Args:
        right: bool [A, T, D], of the class's detections in the order of their scores.
        counted: int32 [A, T, D], right and wrong ones so far. Only right ones can be the best of a recall.
        rank: int64 [D], each one's place among the class's detections of its image.
        wanted: int64 [A], true objects.

    Returns:
        float64 [A, T, 101] and [A, T, 3].
    """
    rows, columns = SHAPE[0] * SHAPE[1], len(rank)
    hits = np.flatnonzero(right)
    row = hits // max(columns, 1)
    number = np.bincount(row, minlength=rows)
    first = np.cumsum(number) - number
    so_far = np.arange(1, len(hits) + 1) - first[row]
    precision = so_far / (counted.ravel()[hits] + np.spacing(1))
    needed = np.stack([np.searchsorted(np.arange(n + 1) / max(n, 1), RECALLS) for n in wanted])
    needed = np.repeat(np.maximum(needed, 1), SHAPE[1], axis=0)
    reached = needed <= number[:, None]
    # From one recall to the next, or to the end of the row: the first that is needed is the row's first.
    best = np.zeros(reached.shape)
    best[reached] = np.maximum.reduceat(precision, (first[:, None] + needed - 1)[reached]) if len(hits) else 0
    best = np.maximum.accumulate(best[:, ::-1], axis=1)[:, ::-1]

    hit_rank = rank[hits - row * columns]
    found = [np.bincount(row[hit_rank < limit], minlength=rows) for limit in MAX_DETECTIONS]
    recall = np.stack(found, axis=-1).reshape(*SHAPE, -1) / np.maximum(wanted, 1)[:, None, None]
    return best.reshape(*SHAPE, -1), recall
