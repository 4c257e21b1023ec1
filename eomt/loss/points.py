"""Random points on which logits and targets are compared (PointRend, arXiv 1912.08193), and targets read at them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eomt.model.outputs import sample_maps
from eomt.targets import BatchTargets


@dataclass(frozen=True)
class RandomPoints:
    """Uniform points (x, y) in [0, 1]^2 for one output's loss, which depend on the images' seeds and the output alone.

    Drawn when they are asked for, the same each time: candidates of many masks would fill the memory.

    Args:
        seeds: the seed of each of B images.
        output: the number of the output that the points are for.
        matched: the number of matched masks of each image, min(queries, targets); M in all.
        counts: points per image for `match`, per mask for `candidates` and for `extra`.
        device: the device to draw on.
    """

    seeds: tuple[int, ...]
    output: int
    matched: tuple[int, ...]
    counts: tuple[int, int, int]
    device: torch.device | str

    @property
    def match(self) -> Tensor:
        """[B, P, 2], for the matching of an image's queries and targets."""
        return self._draw(0, (1,) * len(self.seeds))

    @property
    def candidates(self) -> Tensor:
        """[M, 3P, 2], of which each matched mask takes the most uncertain ones."""
        return self._draw(1, self.matched)

    @property
    def extra(self) -> Tensor:
        """[M, P/4, 2], which each matched mask takes as they are."""
        return self._draw(2, self.matched)

    def _draw(self, part: int, rows: tuple[int, ...]) -> Tensor:
        values = torch.empty(sum(rows), self.counts[part], 2, device=self.device)
        for own, seed in zip(values.split(rows), self.seeds, strict=True):
            state = np.random.SeedSequence((seed, self.output, part)).generate_state(1, np.uint64) >> np.uint64(1)
            own.uniform_(generator=torch.Generator(self.device).manual_seed(int(state[0])))
        return values


def sample_all_targets(targets: BatchTargets, points: Tensor) -> Tensor:
    """Read the masks of all segments at points shared by an image.

    Args:
        targets: the segments of B images, at most T each.
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
    for index, weight in _corners(points, *targets.ids.shape[2:]):
        ids = flat.gather(2, index[:, None].expand(-1, planes, -1))
        if planes > 1:
            ids = ids.gather(1, targets.planes[:, :, None].expand(-1, -1, index.shape[-1]))
        values += (ids == numbers) * weight[:, None]
    return values


def sample_targets(targets: BatchTargets, image: Tensor, segment: Tensor, points: Tensor) -> Tensor:
    """Read single segments' masks, each at its own points.

    Args:
        targets: the segments of the batch.
        image, segment: int64 [M], the image and the segment of each mask.
        points: [M, P, 2].

    Returns:
        [M, P] in 0..1, of the points' dtype.
    """
    planes, height, width = targets.ids.shape[1:]
    first = ((image * planes + targets.planes[image, segment]) * (height * width))[:, None]
    number = (segment + 1).to(targets.ids.dtype)[:, None]
    values = points.new_zeros(points.shape[:2])
    for index, weight in _corners(points, height, width):
        values += (targets.ids.take(first + index) == number) * weight
    return values


def sample_known(targets: BatchTargets, image: Tensor, points: Tensor) -> Tensor:
    """The share of each point that lies in any segment, neither in void nor in padding.

    Args:
        targets: the segments of the batch.
        image: int64 [N], the image of each row of points.
        points: [N, P, 2].

    Returns:
        [N, P] in 0..1, of the points' dtype; at least the share of any one segment there.
    """
    flat = (targets.ids > 0).any(1).flatten(1)[image]
    values = points.new_zeros(points.shape[:2])
    for index, weight in _corners(points, *targets.ids.shape[2:]):
        values += flat.gather(1, index) * weight
    return values


def uncertain_points(logits: Tensor, candidates: Tensor, extra: Tensor, count: int) -> Tensor:
    """Choose the `count` candidates whose logit is nearest to 0, and all extra points.

    Args:
        logits: [M, h, w].
        candidates: [M, N, 2].
        extra: [M, E, 2].

    Returns:
        [M, count + E, 2].
    """
    uncertainty = -sample_maps(logits[:, None], candidates).squeeze(1).abs()
    chosen = uncertainty.topk(count, dim=1, sorted=False).indices
    return torch.cat((candidates.gather(1, chosen[:, :, None].expand(-1, -1, 2)), extra), dim=1)


def _corners(points: Tensor, height: int, width: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The four pixels around each point, as `grid_sample` weights them with `align_corners=False`.

    Args:
        points: float [..., P, 2].
        height, width: the size of the map.

    Yields:
        Four times: index into the flattened map int64 [..., P], and weight [..., P], 0 outside the map.
    """
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
