"""Panoptic post-processing: from query masks and classes to one segment per pixel."""

from __future__ import annotations

import torch
from torch import Tensor

from eomt.inference.geometry import Placement, undo_fit_in_chunks
from eomt.inference.segmentation import Segmentation


@torch.no_grad()
def panoptic_segmentation(
    mask_logits: Tensor,
    class_logits: Tensor,
    placement: Placement,
    size: tuple[int, int],
    is_thing: Tensor,
    score_threshold: float = 0.8,
    mask_threshold: float = 0.5,
    overlap_threshold: float = 0.8,
    max_bytes: int = 256 * 2**20,
) -> Segmentation:
    """Let the confident queries compete for the pixels of the original image.

    The rule of Mask2Former that EoMT follows: a query takes part if its best class is not "no object" and
    more probable than `score_threshold`; a pixel goes to the query with the largest product of class and
    mask probability; a segment is its pixels with a mask probability of at least `mask_threshold`. It is
    dropped if empty, or if the pixels won, also those below the threshold, are fewer than
    `overlap_threshold` of its own mask's. Of what remains, stuff of one class is one segment.

    Args:
        mask_logits: float [Q, h, w], over the whole input at any stride.
        class_logits: float [Q, C + 1], the last one for "no object".
        placement: of `fit_and_pad`.
        size: height and width of the network's input.
        is_thing: bool [C].
        max_bytes: how much the masks that are upsampled at a time may take. The result does not depend
            on it; at least one mask is upsampled.

    Returns:
        Segments at the original size in query order, on the device of the logits.
    """
    scores, labels = class_logits.float().softmax(-1).max(-1)
    kept = ((labels < class_logits.shape[1] - 1) & (scores > score_threshold)).nonzero()[:, 0]
    scores, labels = scores[kept], labels[kept]
    if len(kept) == 0:
        ids = torch.zeros(placement.height, placement.width, dtype=torch.int32, device=mask_logits.device)
        return Segmentation(ids, labels, scores)

    code, own_area = _compete(mask_logits, kept, scores, placement, size, mask_threshold, max_bytes)
    outside, inside = code.flatten().bincount(minlength=2 * len(kept)).reshape(-1, 2).T
    things = is_thing.to(labels.device)[labels]
    table = torch.stack([labels, things.long(), own_area, outside + inside, inside]).T.tolist()
    lookup, first = _number_segments(table, overlap_threshold)
    ids = torch.tensor(lookup, dtype=torch.int32, device=code.device)[code]
    index = torch.tensor(first, dtype=torch.int64, device=code.device)
    return Segmentation(ids, labels[index], scores[index])


def _compete(
    mask_logits: Tensor,
    kept: Tensor,
    scores: Tensor,
    placement: Placement,
    size: tuple[int, int],
    mask_threshold: float,
    max_bytes: int,
) -> tuple[Tensor, Tensor]:
    """Which of the K kept queries wins each pixel.

    Returns:
        int32 [H, W], 2k where query k wins with a probability below the threshold, 2k + 1 where it wins
        with at least that; and int64 [K], the pixels at or above the threshold in each query's mask.
    """
    shape = (placement.height, placement.width)
    best = torch.full(shape, -1.0, device=mask_logits.device)
    code = torch.zeros(shape, dtype=torch.int32, device=mask_logits.device)
    # Filled in place: a small tensor kept from each round would break up the memory that the maps leave, and
    # the next would find no room in it.
    own_area = torch.zeros(len(kept), dtype=torch.int64, device=mask_logits.device)
    k = 0
    for chunk in undo_fit_in_chunks(mask_logits, kept, placement, size, max_bytes):
        # One query after the other: a reduction over stacked masks walks across memory (3.5 times slower
        # on a CPU), and a running maximum with a strict comparison keeps the first of equals, as argmax.
        for logits in chunk:
            probability = logits.sigmoid_()
            inside = probability >= mask_threshold
            own_area[k] = inside.count_nonzero()
            probability *= scores[k]
            better = probability > best
            code.masked_fill_(better, 2 * k)
            code.masked_fill_(inside.logical_and_(better), 2 * k + 1)
            torch.maximum(best, probability, out=best)
            k += 1
        del chunk, logits, probability  # views would keep their chunk while the next one is made
    return code, own_area


def _number_segments(
    table: list[tuple[int, int, int, int, int]], overlap_threshold: float
) -> tuple[list[int], list[int]]:
    """Drop and merge on the host.

    Args:
        table: per query its label, 1 for a thing, the area of its own mask, the pixels won, and those of
            the won that are inside its mask.

    Returns:
        The segment's number for each code of `_compete` (0 for none), and the (first) query of each segment.
    """
    lookup, first = [], []
    stuff_number: dict[int, int] = {}
    for query, (label, is_thing, own, won, inside) in enumerate(table):
        number = 0
        if inside > 0 and won / own >= overlap_threshold:
            number = stuff_number.get(label, 0)
            if number == 0:
                first.append(query)
                number = len(first)
                if not is_thing:
                    stuff_number[label] = number
        lookup += [0, number]
    return lookup, first
