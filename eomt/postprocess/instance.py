"""Instance post-processing: from query masks and classes to scored objects that may overlap."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from eomt.postprocess.geometry import Placement, undo_fit_in_chunks
from eomt.postprocess.runs import coco_mask
from eomt.postprocess.types import Instances


@torch.no_grad()
def instance_segmentation(
    mask_logits: Tensor,
    class_logits: Tensor,
    placement: Placement,
    size: tuple[int, int],
    top_k: int = 100,
    max_bytes: int = 256 * 2**20,
) -> Instances:
    """Take the most probable pairs of query and class as objects.

    The rule of Mask2Former (arXiv 2112.01527) that EoMT follows: an object's mask is where its query's logit is above
    0; its score is the class probability times the mean mask probability inside the mask. Objects with an empty mask
    stay, with score 0.

    Args:
        mask_logits: float [Q, h, w], over the whole input at any stride.
        class_logits: float [Q, C + 1], the last one for "no object".
        placement, size: see `fit_and_pad`.
        top_k: the number of pairs to take, all where there are fewer.
        max_bytes: the memory that the masks upsampled at a time may take; the result does not depend on it.

    Returns:
        Objects at the original size by falling score, of equals the more probable class first, then the first query's
        first class; all on the host.
    """
    probabilities = class_logits.float().softmax(-1)[:, :-1]
    # A full stable sort: `topk` leaves the order of equals to the device.
    scores, order = probabilities.flatten().sort(descending=True, stable=True)
    scores, order = scores[:top_k], order[:top_k]
    queries, labels = order // probabilities.shape[1], order % probabilities.shape[1]
    # A query may be listed with several classes: its mask is encoded once.
    distinct, position = queries.unique(return_inverse=True)

    rles: list[dict[str, Any]] = []
    # Filled in place: small tensors from each round would fragment the memory that the masks leave.
    areas = torch.zeros(len(distinct), dtype=torch.int64, device=mask_logits.device)
    sums = torch.zeros(len(distinct), device=mask_logits.device)
    k = 0
    # Per pixel of a mask: a logit, whether it is inside, and whether a run starts there.
    for logits in undo_fit_in_chunks(mask_logits, distinct, placement, size, max_bytes, pixel_bytes=6):
        inside = logits > 0
        rles += encode_masks(inside)
        # One mask after the other: PyTorch's order of a sum depends on the other masks that it reduces.
        for one, own in zip(logits, inside, strict=True):
            areas[k] = own.count_nonzero()
            sums[k] = one.sigmoid_().masked_fill_(~own, 0).sum()
            k += 1
        del logits, one, inside, own  # before the next chunk is made
    means = (sums / (areas + 1e-6)).clamp(max=1)
    # The original leaves them by class probability. Stable, so that ties, and with them AP, stay as they were.
    scores, order = (scores * means[position]).sort(descending=True, stable=True)
    position = position[order]
    return Instances(
        (placement.height, placement.width),
        [rles[k] for k in position.tolist()],
        labels[order].cpu(),
        scores.cpu(),
        areas[position].cpu(),
        queries[order].cpu(),
    )


def encode_masks(masks: Tensor) -> list[dict[str, Any]]:
    """Encode bool masks [K, H, W] on any device as COCO's compressed run lengths.

    Only the positions where runs start are copied to the host, all at once.
    """
    count, height, width = masks.shape
    # COCO runs down the columns. A run starts where a pixel differs from the one above, at the top from the last of
    # the column before, and in the corner from 0.
    is_start = torch.empty_like(masks)
    torch.ne(masks[:, 1:], masks[:, :-1], out=is_start[:, 1:])
    torch.ne(masks[:, 0, 1:], masks[:, -1, :-1], out=is_start[:, 0, 1:])
    is_start[:, 0, 0] = masks[:, 0, 0]
    pixels = is_start.flatten().nonzero()[:, 0]
    del is_start
    # Found row by row; sorted into the order of columns.
    mask, pixel = pixels // (height * width), pixels % (height * width)
    pixels = mask * (height * width) + pixel % width * height + pixel // width
    pixels = pixels.sort().values.cpu().numpy()
    starts = np.arange(count) * (height * width)
    rles = [
        {"size": [height, width], "counts": np.diff(own - start, prepend=0, append=height * width)}
        for own, start in zip(np.split(pixels, np.searchsorted(pixels, starts[1:])), starts, strict=False)
    ]
    return coco_mask.frPyObjects(rles, height, width) if rles else []
