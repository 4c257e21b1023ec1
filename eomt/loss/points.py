"""Random points on which logits and targets are compared (PointRend, arXiv 1912.08193), and targets read at them.

A point is (x, y) in [-1, 1]^2 over the image, as `grid_sample` takes it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eomt.targets import BatchTargets

# Odd numbers near 2^k / golden ratio; the factors of SplitMix64 (Steele et al. 2014), of a host's keys, and of a
# 32-bit hash found by search (hash-prospector), of a device's numbers. The signed integer has the bits of 0x9E3779B9.
_GOLDEN, _GOLDEN_32 = 0x9E3779B97F4A7C15, -0x61C88647
_KEY_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_FIRST_FACTOR, _SECOND_FACTOR = 0x21F0AAAD, 0x735A2D97

_FOUR = {torch.int8: torch.int32, torch.int16: torch.int64}
"""The type that holds four numbers of a type."""


def hash_keys(seeds: Sequence[int] | np.ndarray, places: Sequence[int] | np.ndarray) -> Tensor:
    """Keys for `uniform`, of seeds [...] below 2^64 at places [...] below 2^63: int32 [..., 2] on the host."""
    seed, place = (np.asarray(values, dtype=np.uint64) for values in (seeds, places))
    key = seed + (place + np.uint64(1)) * np.uint64(_GOLDEN)
    for shift, factor in _KEY_ROUNDS:
        key = (key ^ (key >> np.uint64(shift))) * np.uint64(factor)
    return torch.from_numpy((key ^ (key >> np.uint64(31)))[..., None].view(np.int32))


def uniform(keys: Tensor, count: int) -> Tensor:
    """Random numbers that depend on a key and a number's index alone, bit for bit the same on every device.

    Integers that wrap around at 32 bits, of which the upper 24 become a number, exactly.

    Args:
        keys: int32 [..., 2] of `hash_keys`.
        count: the numbers for each key, below 2^31.

    Returns:
        float32 [..., count], multiples of 2^-23 in [-1, 1).
    """
    first, second = keys.split(1, dim=-1)
    x = torch.arange(count, dtype=torch.int32, device=keys.device).mul_(_GOLDEN_32) + first
    # The upper halves of little-endian words, for a shift that does not repeat the sign.
    low, high = x.view(torch.int16).unflatten(-1, (-1, 2)).unbind(-1)
    low.bitwise_xor_(high)
    x.mul_(_FIRST_FACTOR).add_(second)
    low.bitwise_xor_(high)
    x.mul_(_SECOND_FACTOR).bitwise_right_shift_(8)
    # In place: candidates are many.
    return x.view(torch.float32).copy_(x).mul_(2.0**-23)


class RandomPoints:
    """Uniform points for a loss, which depend on the images' seeds, the output and the mask alone.

    Drawn when they are asked for, the same each time: candidates of many masks would fill the memory.

    Args:
        seeds: the seed of each of B images, below 2^64.
        num_outputs: O.
        matched: the number of matched masks of each image, min(queries, targets); M in all.
        counts: P, the points of an image for the matching, and of a mask N candidates and E further points.
        device: the device to draw on.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        num_outputs: int,
        matched: Sequence[int],
        counts: tuple[int, int, int],
        device: torch.device | str,
    ):
        self._counts = counts
        # Place 0 is the image's, the others are its masks'.
        place = np.concatenate([np.zeros(len(seeds), dtype=np.int64), *(np.arange(1, n + 1) for n in matched)])
        seed = np.array(seeds, dtype=np.uint64)
        seed = np.concatenate([seed, seed.repeat(matched)])
        places = (np.arange(num_outputs)[:, None] << 32) + place
        keys = hash_keys(np.broadcast_to(seed, places.shape), places)
        if torch.device(device).type == "cuda":
            keys = keys.pin_memory()  # those of many masks would otherwise wait for the device
        self._images, self._masks = keys.to(device, non_blocking=True).split((len(seeds), sum(matched)), dim=1)

    def match(self) -> Tensor:
        """Points of each image for the matching: [O, B, P, 2]."""
        return uniform(self._images, 2 * self._counts[0]).view(*self._images.shape[:2], -1, 2)

    def of_masks(self, masks: slice) -> tuple[Tensor, Tensor]:
        """Candidates [R, N, 2] and further points [R, E, 2] of some of the O M masks."""
        points = uniform(self._masks.flatten(0, 1)[masks], 2 * sum(self._counts[1:])).unflatten(1, (-1, 2))
        candidates, further = points.split(self._counts[1:], dim=1)
        return candidates, further


class TargetReader:
    """Targets that are read at points as `grid_sample` reads masks, bilinearly, with zeros outside.

    The segments of the four pixels around a point stand side by side, so that a point takes one access to memory.

    Args:
        targets: the segments of B images, at most T each, on K planes.
        known: read too how much of each point is known, in any segment: neither in void nor in padding.
    """

    def __init__(self, targets: BatchTargets, known: bool = False):
        self._targets, self._known = targets, known
        ids = targets.ids
        if known:
            # One more plane, whose segment 1 is all segments.
            ids = torch.cat((ids, (ids > 0).any(1, keepdim=True).to(ids.dtype)), dim=1)
        self._planes, height, width = ids.shape[1:]
        self._area, self._stride = (height + 1) * (width + 1), width + 1
        # To places on the padded planes, whose pixel 0 has its centre at 0.
        half = torch.tensor(((width, height), (width + 1, height + 1))) / 2
        self._half, self._middle = half.to(ids.device, non_blocking=True)
        ids = F.pad(ids, (1, 1, 1, 1))
        above, below = ids[:, :, :-1], ids[:, :, 1:]
        corners = (above[..., :-1], above[..., 1:], below[..., :-1], below[..., 1:])
        self._corners = torch.stack(corners, dim=-1).view(_FOUR[ids.dtype]).flatten()

    def all_masks(self, points: Tensor) -> Tensor:
        """Read all segments of the images at points that they share.

        Args:
            points: [O, B, P, 2].

        Returns:
            [O, B, P, 1 + T] of the points' dtype, in 0..1: first the known share of each point, or 1; then the
            masks, 0 beyond an image's own.
        """
        batch, planes = self._targets.ids.shape[:2]
        plane = torch.arange(batch * self._planes, dtype=torch.int32, device=points.device).view(batch, -1, 1)
        ids, within = self._around(points[:, :, None], plane)
        x, y = torch.stack((1 - within, within), dim=-1).unbind(-2)
        shares = (y[..., None] * x[..., None, :]).flatten(-2).expand(ids.shape)
        number, share = (part[:, :, :planes].transpose(2, 3).flatten(3) for part in (ids.long(), shares))
        masks = shares.new_zeros(*points.shape[:3], 1 + self._targets.labels.shape[1]).scatter_add_(3, number, share)
        first = masks[..., 0]
        first.copy_((ids[:, :, -1] * shares[:, :, -1]).sum(-1)) if self._known else first.fill_(1)
        return masks

    def masks(self, image: Tensor, segment: Tensor, points: Tensor) -> tuple[Tensor, Tensor | None]:
        """Read single segments, each at its own points.

        Args:
            image, segment: int64 [R].
            points: [R, P, 2].

        Returns:
            The segments [R, P] in 0..1, of the points' dtype; and the known share of each point likewise, or None.
        """
        first = image * self._planes
        plane, number = first + self._targets.planes[image, segment], segment + 1
        if self._known:
            plane = torch.stack((plane, first + self._planes - 1), dim=1)
            number = torch.stack((number, torch.ones_like(number)), dim=1)
        ids, within = self._around(points[:, None], plane.view(len(plane), -1, 1).int())
        inside = ids == number.to(ids.dtype).view(len(number), -1, 1, 1)
        inside = inside.movedim(-1, 0).to(points.dtype, memory_format=torch.contiguous_format)
        x, y = within.unbind(-1)
        above, below = torch.lerp(inside[::2], inside[1::2], x)
        shares = torch.lerp(above, below, y).unbind(1)
        return shares[0], shares[1] if self._known else None

    def _around(self, points: Tensor, plane: Tensor) -> tuple[Tensor, Tensor]:
        """The segments at the four pixels around points [..., P, 2] of a plane [..., 1], [..., P, 4], and the points'
        places between these [..., P, 2]."""
        place = torch.addcmul(self._middle, points, self._half)
        x, y = place.int().unbind(-1)
        index = torch.add(torch.add(x, y, alpha=self._stride), plane, alpha=self._area)
        ids = self._corners.index_select(0, index.flatten()).view(self._targets.ids.dtype)
        return ids.view(*index.shape, 4), place.frac_()


def sample_maps(maps: Tensor, points: Tensor) -> Tensor:
    """Read maps [N, h, w] bilinearly at points [N, P, 2] of their own, with zeros outside: [N, P]."""
    return F.grid_sample(maps[:, None], points[:, None], align_corners=False).flatten(1)


def uncertain_points(logits: Tensor, candidates: Tensor, extra: Tensor, count: int) -> Tensor:
    """Choose the `count` candidates whose logit is nearest to 0, and all extra points.

    Args:
        logits: [M, h, w].
        candidates: [M, N, 2].
        extra: [M, E, 2].

    Returns:
        [M, count + E, 2].
    """
    certainty = sample_maps(logits, candidates).abs_()
    chosen = certainty.topk(count, dim=1, largest=False, sorted=False).indices
    # A point as one complex number needs no index of its coordinates.
    near = torch.view_as_real(torch.view_as_complex(candidates).gather(1, chosen))
    return torch.cat((near, extra), dim=1)
