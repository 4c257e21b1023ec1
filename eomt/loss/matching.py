"""Hungarian matching of queries and targets (DETR, arXiv 2005.12872, section 3.1), on sampled points."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, distributed

log = logging.getLogger("eomt")

_ROUNDED = 16
"""The device's solver is compiled for each number of targets, which is rounded up to a multiple of this."""


@torch.no_grad()
def matching_cost(
    mask_logits: Iterable[Tensor],
    class_logits: Tensor,
    masks: Tensor,
    labels: Tensor,
    mask_weight: float,
    dice_weight: float,
    class_weight: float,
) -> Tensor:
    """Cost of matching each query to each target.

    Args:
        mask_logits: of each of O outputs, float32 or float64 [B, Q, P], at P points of the image.
        class_logits: [O, B, Q, C+1].
        masks: [O, B, P, 1 + T] in 0..1, first the weights of the points, and then the targets at the same points, which
            are at most those weights.
        labels: int64 [B, T]; below 0 where there is no target.
        mask_weight: the weight of binary cross-entropy, averaged over the points.
        dice_weight: the weight of 1 - (2 sum(p y) + 1) / (sum p + sum y + 1).
        class_weight: the weight of minus the probability of the target's class.

    Returns:
        [O, B, Q, T], finite: within +-1e10, and 1e10 in place of a NaN.
    """
    # BCE(x, y) = softplus(x) - x y, so that one product with the targets serves all pairs.
    sums = [
        (logits.sigmoid().bmm(own), logits.bmm(own), F.softplus(logits).bmm(point))
        for logits, own, point in zip(mask_logits, masks.unbind(), masks[..., :1].unbind(), strict=True)
    ]
    probability, logit, softplus = (torch.stack(parts) for parts in zip(*sums, strict=True))
    sizes = (1, labels.shape[1])
    (points, area), (total, overlap) = (part.split(sizes, -1) for part in (masks.sum(2, keepdim=True), probability))
    bce = (softplus - logit[..., 1:]) / points.clamp(min=1)
    dice = 1 - (2 * overlap + 1) / (total + area + 1)
    index = labels.clamp(min=0)[:, None].expand(*class_logits.shape[:3], -1)
    chosen = class_logits.softmax(-1).gather(3, index)
    cost = mask_weight * bce + dice_weight * dice - class_weight * chosen
    return cost.clamp(-1e10, 1e10).nan_to_num(nan=1e10)


class Pairs(NamedTuple):
    """Matched queries and targets of O outputs, M in each: image by image, an image's queries ascending.

    Attributes:
        image: int64 [M], the image of each pair.
        query: int64 [O, M].
        segment: int64 [O, M].
        table: int64 [O, B, N], each image's matched queries, N the most of an image; any queries beyond an image's own.
        place: int64 [M], the place of each pair in an output's table, flattened.
    """

    image: Tensor
    query: Tensor
    segment: Tensor
    table: Tensor
    place: Tensor


class Matcher:
    """Assignment of queries to targets at the least total cost, separately for each output and image.

    By SciPy on the host, which waits for the costs; or on a GPU by torch-linear-assignment, without waiting. The
    device's assignments are compared with SciPy's for the first costs of each size; if it fails or differs, SciPy
    takes over for good.

    Args:
        solver: gives the target of each query or -1, int64 [N, Q], from costs [N, Q, T]. Default:
            torch-linear-assignment where it is installed and the costs are on a GPU, otherwise none.
    """

    def __init__(self, solver: Callable[[Tensor], Tensor] | None = None):
        self._solver = solver
        self._sought = solver is not None
        self._compared: set[tuple[int, int]] = set()

    def __call__(self, costs: Tensor, counts: Sequence[int]) -> Pairs:
        """Match.

        Args:
            costs: finite [O, B, Q, T].
            counts: the number of targets of each image; costs beyond it are ignored.
        """
        matched = np.minimum(counts, costs.shape[2])
        image, slot = (np.arange(matched.max()) < matched[:, None]).nonzero()
        places = torch.from_numpy(np.stack((image, image * matched.max() + slot)))
        image, place = places.to(costs.device, non_blocking=True)
        query, segment = self._assign(costs, counts)
        of_query, of_segment = (part.flatten(1).index_select(1, place) for part in (query, segment))
        return Pairs(image, of_query, of_segment, query, place)

    def _assign(self, costs: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Queries and segments [O, B, N]."""
        if max(counts) == 0:
            query, segment = torch.zeros(2, *costs.shape[:2], 0, dtype=torch.int64, device=costs.device)
            return query, segment
        if costs.is_cuda and not self._sought:
            self._solver, self._sought = _device_solver(), True
        # With more targets than queries, what pads the others' targets would be matched in their place.
        if self._solver is not None and max(counts) <= costs.shape[2]:
            try:
                return self._on_device(self._solver, costs, counts)
            except Exception as error:  # a compiler's, a driver's, or the comparison's
                self._solver = None
                if not distributed.is_initialized() or distributed.get_rank() == 0:
                    log.warning("matching on the host, by SciPy: torch-linear-assignment failed (%s)", error)
        return _on_host(costs, counts)

    def _on_device(
        self, solver: Callable[[Tensor], Tensor], costs: Tensor, counts: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        queries, targets = costs.shape[2:]
        number = torch.tensor(counts).to(costs.device, non_blocking=True)[:, None]
        own = torch.arange(targets, device=costs.device) < number
        # Targets that cost the same with each query take those that the image's own targets leave.
        spare = min(queries, -(-targets // _ROUNDED) * _ROUNDED) - targets
        padded = F.pad(costs.where(own[:, None], 0), (0, spare)).flatten(0, 1)
        target = solver(padded).view(costs.shape[:3])
        free = (target < 0) | (target >= number)
        query = free.to(torch.int8).argsort(dim=2, stable=True)[..., :targets]
        segment = target.gather(2, query).where(own, 0)
        size = (queries, targets + spare)
        if size not in self._compared:
            found, best = (
                costs.flatten(2).gather(2, of_query * targets + of_segment).where(own, 0).sum((1, 2))
                for of_query, of_segment in ((query, segment), _on_host(costs, counts))
            )
            if not torch.allclose(found, best, rtol=1e-4, atol=1e-4):
                raise ValueError(f"its assignments cost {found.tolist()} where SciPy's cost {best.tolist()}")
            self._compared.add(size)
        return query, segment


def _on_host(costs: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Queries and segments [O, B, N], by SciPy: one transfer to the host, one back."""
    outputs, batch, queries, _ = costs.shape
    pairs = np.zeros((2, outputs, batch, min(queries, max(counts))), dtype=np.int64)
    for o, output in enumerate(costs.cpu().numpy()):
        for b, count in enumerate(counts):
            pairs[:, o, b, : min(queries, count)] = linear_sum_assignment(output[b, :, :count])
    query, segment = torch.from_numpy(pairs).to(costs.device, non_blocking=True)
    return query, segment


def _device_solver() -> Callable[[Tensor], Tensor] | None:
    try:
        # Private, of the version that pyproject.toml pins: the public function waits for the device twice, to look for
        # costs that are not finite, which ours are.
        from torch_linear_assignment._triton import batch_linear_assignment
    except ImportError:
        return None
    return partial(batch_linear_assignment, validation="off")
