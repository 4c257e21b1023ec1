"""Point sampling: logits and targets are compared on random points (PointRend, arXiv 1912.08193).

Points are (x, y) in [0, 1]^2 over the whole image. Values are read bilinearly as `grid_sample` does
with `align_corners=False` and zero padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eomt.targets import BatchTargets


class LossPoints(NamedTuple):
    """The points of one output's loss.

    Attributes:
        match: [B, P, 2], where matching compares all queries and targets of an image.
        candidates: [M, 3P, 2], of which each matched mask takes the most uncertain ones.
        extra: [M, P/4, 2], which each matched mask takes as they are.
    """

    match: Tensor
    candidates: Tensor
    extra: Tensor


@dataclass(frozen=True)
class RandomPoints:
    """`LossPoints` that are drawn when they are asked for, uniformly: candidates of many masks would fill the memory.

    What is drawn hangs on nothing but the image's seed and the output, each time anew the same.

    Args:
        seeds: of each of B images.
        output: the number of the output whose points these are.
        matched: the number of matched masks of each image, min(queries, targets); M together.
        counts: points per image for `match`, per mask for `candidates` and for `extra`.
        device: where to draw.
    """

    seeds: tuple[int, ...]
    output: int
    matched: tuple[int, ...]
    counts: tuple[int, int, int]
    device: torch.device | str

    @property
    def match(self) -> Tensor:
        return self._draw(0, (1,) * len(self.seeds))

    @property
    def candidates(self) -> Tensor:
        return self._draw(1, self.matched)

    @property
    def extra(self) -> Tensor:
        return self._draw(2, self.matched)

    def _draw(self, part: int, rows: tuple[int, ...]) -> Tensor:
        values = torch.empty(sum(rows), self.counts[part], 2, device=self.device)
        for own, seed in zip(values.split(rows), self.seeds, strict=True):
            state = np.random.SeedSequence((seed, self.output, part)).generate_state(1, np.uint64) >> np.uint64(1)
            own.uniform_(generator=torch.Generator(self.device).manual_seed(int(state[0])))
        return values


def sample_logits(logits: Tensor, points: Tensor) -> Tensor:
    """Read maps [N, C, h, w] at points [N, P, 2]: [N, C, P], differentiable in the maps."""
    return F.grid_sample(logits, 2 * points[:, :, None] - 1, mode="bilinear", align_corners=False).squeeze(-1)


def sample_all_targets(targets: BatchTargets, points: Tensor) -> Tensor:
    """Read the masks of all segments at points shared by an image.

    Args:
        targets: of B images, T segments at most.
        points: [B, P, 2].

    Returns:
        [B, T, P] in 0..1, of the points' dtype; 0 beyond an image's own segments.
    """
    batch, planes = targets.ids.shape[:2]
    segments = targets.labels.shape[1]
    numbers = torch.arange(1, segments + 1, device=points.device, dtype=targets.ids.dtype)
    numbers = numbers.expand(batch, segments).masked_fill(targets.labels < 0, -1)[:, :, None]
    values = points.new_zeros(batch, segments, points.shape[1])
    flat = targets.ids.flatten(2)
    for index, weight in corners(points, *targets.ids.shape[2:]):
        ids = flat.gather(2, index[:, None].expand(-1, planes, -1))
        if planes > 1:
            ids = ids.gather(1, targets.planes[:, :, None].expand(-1, -1, index.shape[-1]))
        values += (ids == numbers) * weight[:, None]
    return values


def sample_targets(targets: BatchTargets, image: Tensor, segment: Tensor, points: Tensor) -> Tensor:
    """Read single segments' masks, each at points of its own.

    Args:
        targets: of a batch.
        image: int64 [M], the image of each mask.
        segment: int64 [M], the segment of each mask.
        points: [M, P, 2].

    Returns:
        [M, P] in 0..1, of the points' dtype.
    """
    planes, height, width = targets.ids.shape[1:]
    first = ((image * planes + targets.planes[image, segment]) * (height * width))[:, None]
    number = (segment + 1).to(targets.ids.dtype)[:, None]
    values = points.new_zeros(points.shape[:2])
    for index, weight in corners(points, height, width):
        values += (targets.ids.take(first + index) == number) * weight
    return values


def sample_known(targets: BatchTargets, image: Tensor, points: Tensor) -> Tensor:
    """How much of each point lies in any segment at all, that is neither in void nor in padding.

    Args:
        targets: of a batch.
        image: int64 [N], the image of each row of points.
        points: [N, P, 2].

    Returns:
        [N, P] in 0..1, of the points' dtype; at least what any one segment has there.
    """
    flat = (targets.ids > 0).any(1).flatten(1)[image]
    values = points.new_zeros(points.shape[:2])
    for index, weight in corners(points, *targets.ids.shape[2:]):
        values += flat.gather(1, index) * weight
    return values


def uncertain_points(logits: Tensor, candidates: Tensor, extra: Tensor, count: int) -> Tensor:
    """The `count` candidates whose logit is nearest to 0, and the extra points.

    Args:
        logits: [M, h, w].
        candidates: [M, N, 2].
        extra: [M, E, 2].

    Returns:
        [M, count + E, 2].
    """
    uncertainty = -sample_logits(logits[:, None], candidates).squeeze(1).abs()
    chosen = uncertainty.topk(count, dim=1, sorted=False).indices
    return torch.cat((candidates.gather(1, chosen[:, :, None].expand(-1, -1, 2)), extra), dim=1)


def corners(points: Tensor, height: int, width: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The four pixels around each point: flat index int64 [..., P] and weight [..., P], 0 outside."""
    x, y = points[..., 0] * width - 0.5, points[..., 1] * height - 0.5
    left, top = x.floor(), y.floor()
    fx, fy = x - left, y - top
    left, top = left.long(), top.long()
    for column, wx in ((left, 1 - fx), (left + 1, fx)):
        wx = wx * ((column >= 0) & (column < width))
        column = column.clamp(0, width - 1)
        for row, wy in ((top, 1 - fy), (top + 1, fy)):
            wy = wy * ((row >= 0) & (row < height))
            yield row.clamp(0, height - 1) * width + column, wx * wy
