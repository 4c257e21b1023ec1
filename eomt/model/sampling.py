"""Bilinear reading of maps at points, as in PointRend (arXiv 1912.08193).

Points are (x, y) in [0, 1]^2 over the whole map. Values are those of `grid_sample` with `align_corners=False` and zero
padding.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor


def sample_maps(maps: Tensor, points: Tensor) -> Tensor:
    """Read maps [N, C, h, w] at points [N, P, 2]: [N, C, P], differentiable in the maps."""
    return F.grid_sample(maps, 2 * points[:, :, None] - 1, mode="bilinear", align_corners=False).squeeze(-1)


def corners(points: Tensor, height: int, width: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The four pixels around each point.

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
