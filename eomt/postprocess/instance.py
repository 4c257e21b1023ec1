"""Instance post-processing: from query masks and classes to scored objects that may overlap."""

from __future__ import annotations

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from eomt.postprocess.geometry import Placement, undo_fit_in_chunks
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

    The rule of Mask2Former that EoMT follows: an object's mask is where its query's logit is above 0; its
    score is the class probability times the mean mask probability inside the mask. Objects with an empty
    mask stay, with score 0.

    Args:
        mask_logits: float [Q, h, w], over the whole input at any stride.
        class_logits: float [Q, C + 1], the last one for "no object".
        placement: of `fit_and_pad`.
        size: height and width of the network's input.
        top_k: how many pairs to take, all where there are fewer.
        max_bytes: how much the masks that are upsampled at a time may take. The result does not depend on
            it; at least one mask is upsampled.

    Returns:
        Objects at the original size by falling class probability, of equals the first query's first class
        first. The logits' device finds the masks' runs; all that is returned is on the host.
    """
    probabilities = class_logits.float().softmax(-1)[:, :-1]
    # A full stable sort, not topk: that leaves the order of equals to the device.
    scores, order = probabilities.flatten().sort(descending=True, stable=True)
    scores, order = scores[:top_k], order[:top_k]
    queries, labels = order // probabilities.shape[1], order % probabilities.shape[1]
    # A query may stand in the list with several classes: its mask is the same.
    distinct, position = queries.unique(return_inverse=True)

    rles: list[dict] = []
    # Filled in place: small tensors kept from each round would break up the memory that the masks leave.
    areas = torch.zeros(len(distinct), dtype=torch.int64, device=mask_logits.device)
    sums = torch.zeros(len(distinct), device=mask_logits.device)
    k = 0
    # Beside its logit, a pixel has its place in the mask, whether a run begins there, and a probability (of one
    # mask at a time).
    for logits in undo_fit_in_chunks(mask_logits, distinct, placement, size, max_bytes, pixel_bytes=6):
        inside = logits > 0
        rles += encode_masks(inside)
        # One mask after the other: PyTorch orders a sum by what else is reduced with it.
        for one, own in zip(logits, inside, strict=True):
            areas[k] = own.count_nonzero()
            sums[k] = one.sigmoid_().masked_fill_(~own, 0).sum()
            k += 1
        del logits, one, inside, own  # views would keep their chunk while the next one is made
    means = (sums / (areas + 1e-6)).clamp(max=1)
    scores *= means[position]
    return Instances(
        (placement.height, placement.width),
        [rles[k] for k in position.tolist()],
        labels.cpu(),
        scores.cpu(),
        areas[position].cpu(),
        queries.cpu(),
    )


def encode_masks(masks: Tensor) -> list[dict]:
    """COCO's compressed run lengths of bool masks [K, H, W], on any device.

    The masks stay where they are: only the places where a run begins come to the host, all at once. On a CPU
    this takes about as long as pycocotools' encoder, which reads masks column by column.
    """
    count, height, width = masks.shape
    # COCO walks down the columns. A run begins where a pixel differs from the one above, at the top from the
    # last of the column before, and in the corner from 0.
    begins = torch.empty_like(masks)
    torch.ne(masks[:, 1:], masks[:, :-1], out=begins[:, 1:])
    torch.ne(masks[:, 0, 1:], masks[:, -1, :-1], out=begins[:, 0, 1:])
    begins[:, 0, 0] = masks[:, 0, 0]
    places = begins.flatten().nonzero()[:, 0]
    del begins
    # Found row by row, sorted into the order of columns: there are few of them.
    mask, place = places // (height * width), places % (height * width)
    places = mask * (height * width) + place % width * height + place // width
    places = places.sort().values.numpy(force=True)
    starts = np.arange(count + 1) * (height * width)
    bounds = np.searchsorted(places, starts)
    rles = []
    for k in range(count):
        own = places[bounds[k] : bounds[k + 1]] - starts[k]
        rles.append({"size": [height, width], "counts": np.diff(own, prepend=0, append=height * width)})
    return coco_mask.frPyObjects(rles, height, width) if rles else []
