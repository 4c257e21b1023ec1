"""Hungarian matching of queries and targets (DETR, arXiv 2005.12872, section 3.1), on sampled points."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor


@torch.no_grad()
def matching_cost(
    mask_logits: Tensor,
    class_logits: Tensor,
    masks: Tensor,
    labels: Tensor,
    mask_weight: float,
    dice_weight: float,
    class_weight: float,
    known: Tensor | None = None,
) -> Tensor:
    """Cost of matching each query to each target.

    Args:
        mask_logits: float32 or float64 [B, Q, P], at P points of the image.
        class_logits: [B, Q, C+1].
        masks: [B, T, P] in 0..1, the targets at the same points.
        labels: int64 [B, T]; below 0 where there is no target.
        mask_weight: the weight of binary cross-entropy, averaged over the points.
        dice_weight: the weight of 1 - (2 sum(p y) + 1) / (sum p + sum y + 1).
        class_weight: the weight of minus the probability of the target's class.
        known: [B, P] in 0..1, the weight of each point, at least `masks`; default 1.

    Returns:
        [B, Q, T], finite: within +-1e10, and 1e10 in place of a NaN.
    """
    probability, softplus = mask_logits.sigmoid(), F.softplus(mask_logits)
    masks_t = masks.transpose(1, 2)
    overlap = probability @ masks_t
    points: int | Tensor = mask_logits.shape[-1]
    if known is not None:
        probability, softplus = probability * known[:, None], softplus * known[:, None]
        points = known.sum(-1).clamp(min=1)[:, None, None]
    # BCE(x, y) = softplus(x) - x y, so that one product with the targets serves all pairs.
    bce = (softplus.sum(-1, keepdim=True) - mask_logits @ masks_t) / points
    total = probability.sum(-1)[:, :, None] + masks.sum(-1)[:, None, :]
    dice = 1 - (2 * overlap + 1) / (total + 1)
    index = labels.clamp(min=0)[:, None].expand(-1, class_logits.shape[1], -1)
    chosen = class_logits.softmax(-1).gather(2, index)
    cost = mask_weight * bce + dice_weight * dice - class_weight * chosen
    return cost.clamp(-1e10, 1e10).nan_to_num(nan=1e10)


def match(costs: Tensor, counts: Sequence[int]) -> Tensor:
    """Assign queries to targets at the least total cost, separately for each output and image.

    Args:
        costs: [O, B, Q, T] for O outputs. They go to the host in one transfer.
        counts: the number of targets of each image; costs beyond it are ignored.

    Returns:
        int64 [O, 3, M] on the costs' device: image, query and target of each pair, image by image, queries ascending;
        M = sum over images of min(Q, targets).
    """
    matches = []
    for output in costs.detach().cpu().numpy():
        rows = []
        for b, count in enumerate(counts):
            query, target = linear_sum_assignment(output[b, :, :count])
            rows.append(torch.stack([torch.full((len(query),), b), *map(torch.from_numpy, (query, target))]))
        matches.append(torch.cat(rows, dim=1))
    return torch.stack(matches).to(costs.device, non_blocking=True)
