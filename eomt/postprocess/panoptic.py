"""Panoptic post-processing: from query masks and classes to one segment per pixel."""

from __future__ import annotations

import torch
from torch import Tensor

from eomt.postprocess.compete import compete
from eomt.postprocess.geometry import Placement
from eomt.postprocess.types import Segmentation


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
        Segments at the original size in query order, on the device of the logits. The host waits for the device twice,
        however many queries there are: for the number of those kept, and for what each has won.
    """
    scores, labels = class_logits.float().softmax(-1).max(-1)
    kept = ((labels < class_logits.shape[1] - 1) & (scores > score_threshold)).nonzero()[:, 0]
    scores, labels = scores[kept], labels[kept]
    if len(kept) == 0:
        ids = torch.zeros(placement.height, placement.width, dtype=torch.int32, device=mask_logits.device)
        return Segmentation(ids, labels, scores)

    code, counts, own_area = compete(mask_logits, kept, scores, placement, size, mask_threshold, max_bytes)
    outside, inside = counts.reshape(-1, 2).T
    things = is_thing.to(labels.device, non_blocking=True)[labels]
    table = torch.stack([labels, things.long(), own_area, outside + inside, inside]).T.tolist()
    lookup, first = _number_segments(table, overlap_threshold)
    ids = torch.tensor(lookup, dtype=torch.int32).to(code.device, non_blocking=True)[code]
    index = torch.tensor(first, dtype=torch.int64).to(code.device, non_blocking=True)
    return Segmentation(ids, labels[index], scores[index])


def _number_segments(
    table: list[tuple[int, int, int, int, int]], overlap_threshold: float
) -> tuple[list[int], list[int]]:
    """Drop and merge on the host.

    Args:
        table: per query its label, 1 for a thing, the area of its own mask, the pixels won, and those of
            the won that are inside its mask.

    Returns:
        The segment's number for each code of `compete` (0 for none), and the (first) query of each segment.
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
