"""Ground truth in compact form: layered id maps instead of one mask per segment.

A segment is a set of pixels with a class. Segments that do not overlap share one plane of integers,
so panoptic and semantic ground truth is one plane however many segments it has; overlapping
instances take as many planes as it needs to keep them apart (at most 5 on COCO).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import default_collate

from eomt.old_rle import runs_of_rles

_STRIPE = 128  # columns


class ImageTargets(NamedTuple):
    """The segments of one image. Segment t has the pixels where `ids[planes[t]] == t + 1`.

    Attributes:
        ids: int16 [K, H, W], K >= 1, or `id_type(T)` once cropped for training; 0 where a plane holds no segment.
        labels: int64 [T], the class of each segment, 0..C-1.
        planes: int64 [T], the plane of each segment, 0..K-1.
        crowd: bool [T], True for a region of many objects of one class (COCO's `iscrowd`).
        areas: float64 [T], the dataset's own measure of each object's area in pixels, by which COCO tells
            small objects from large ones; None where it gives none.
        rles: T masks again as COCO's compressed run lengths, where the dataset holds those: average precision
            compares masks in that form. None where it holds none, or the masks are no longer those.
    """

    ids: Tensor
    labels: Tensor
    planes: Tensor
    crowd: Tensor
    areas: Tensor | None = None
    rles: tuple[bytes, ...] | None = None

    def masks(self) -> Tensor:
        """Expand to one mask per segment: bool [T, H, W]."""
        number = torch.arange(1, len(self.labels) + 1, device=self.ids.device, dtype=self.ids.dtype)
        return self.ids[self.planes] == number[:, None, None]


class BatchTargets(NamedTuple):
    """The segments of a batch of images of one size.

    Attributes:
        ids: int8 or int16 [B, K, H, W], K the largest number of planes of an image in the batch.
        labels: int64 [B, T], T the largest number of segments in the batch; -1 beyond an image's own.
        planes: int64 [B, T]; 0 beyond an image's own.
        counts: the number of segments of each image, on the host, so that no device need be asked.
    """

    ids: Tensor
    labels: Tensor
    planes: Tensor
    counts: tuple[int, ...]


def id_type(count: int) -> type[np.signedinteger]:
    """The smallest type that numbers so many segments."""
    return np.int8 if count <= np.iinfo(np.int8).max else np.int16


def collate_targets(targets: Sequence[ImageTargets]) -> BatchTargets:
    """Stack images' targets, padding planes and segments to the largest of the batch."""
    planes = max(t.ids.shape[0] for t in targets)
    counts = tuple(len(t.labels) for t in targets)
    dtype = reduce(torch.promote_types, (t.ids.dtype for t in targets))
    # In a data loader's worker it stacks right into the memory that is shared with the main process.
    ids = default_collate([_pad_planes(t.ids.to(dtype), planes) for t in targets])
    labels = torch.full((len(targets), max(counts)), -1, dtype=torch.int64)
    plane_of = torch.zeros((len(targets), max(counts)), dtype=torch.int64)
    for b, t in enumerate(targets):
        labels[b, : counts[b]] = t.labels
        plane_of[b, : counts[b]] = t.planes
    return BatchTargets(ids, labels, plane_of, counts)


def _pad_planes(ids: Tensor, planes: int) -> Tensor:
    return F.pad(ids, (0, 0, 0, 0, 0, planes - len(ids))) if len(ids) < planes else ids


def targets_from_id_map(
    id_map: np.ndarray, segment_ids: Sequence[int], labels: Sequence[int], crowd: Sequence[bool] | None = None
) -> ImageTargets:
    """Targets of segments that do not overlap.

    Args:
        id_map: integers [H, W]; pixels whose value is none of `segment_ids` belong to no segment.
        segment_ids: T distinct values of the map, in the order of the result.
        labels: T classes.
        crowd: T flags, default none.
    """
    wanted = np.asarray(segment_ids, dtype=np.int64)
    ids = np.zeros(id_map.shape, dtype=np.int16)
    if len(wanted) and id_map.size:
        starts, values = equal_pixels(id_map)
        values = values.astype(np.int64)
        order = np.argsort(wanted)
        place = np.searchsorted(wanted[order], values).clip(max=len(wanted) - 1)
        found = wanted[order][place] == values
        numbers = np.where(found, order[place] + 1, 0).astype(np.int16)
        ids = np.repeat(numbers, np.diff(starts, append=id_map.size)).reshape(id_map.shape)
    return _image_targets(ids[None], labels, np.zeros(len(wanted)), crowd)


def targets_from_masks(masks: np.ndarray, labels: Sequence[int], crowd: Sequence[bool] | None = None) -> ImageTargets:
    """Targets of masks that may overlap: each goes to the first plane where its pixels are free.

    Args:
        masks: bool [T, H, W].
        labels: T classes.
        crowd: T flags, default none.
    """
    count, height, width = masks.shape
    padded = np.zeros((count, height * width + 2), dtype=bool)
    padded[:, 1:-1] = masks.reshape(count, height * width)
    owner, edges = np.nonzero(padded[:, 1:] != padded[:, :-1])
    planes, layers = layer_runs(edges[::2], edges[1::2], owner[::2], count, height * width)
    return _image_targets(np.stack(layers).reshape(-1, height, width), labels, planes, crowd)


def targets_from_rles(
    counts: Sequence[bytes],
    size: tuple[int, int],
    labels: Sequence[int],
    crowd: Sequence[bool] | None = None,
    areas: Sequence[float] | None = None,
) -> ImageTargets:
    """As `targets_from_masks`, of masks as COCO's compressed run lengths. Decodes no mask to pixels of its own.

    Args:
        counts: T codes, the `counts` of COCO's run lengths.
        size: height and width of each mask.
        labels: T classes.
        crowd: T flags, default none.
        areas: T areas in pixels, default None.

    Raises:
        ValueError: if a code is damaged or belongs to another size.
    """
    height, width = size
    starts, ends, owner = runs_of_rles(counts, height * width)
    planes, layers = layer_runs(starts, ends, owner, len(counts), height * width)
    ids = np.empty((len(layers), height, width), dtype=np.int16)
    # Stripe by stripe: columns and rows of the whole do not fit the processor's cache, and it takes twice as long.
    for plane, layer in zip(ids, layers, strict=True):
        for left in range(0, width, _STRIPE):
            plane[:, left : left + _STRIPE] = layer.reshape(width, height)[left : left + _STRIPE].T
    return _image_targets(ids, labels, planes, crowd, areas)._replace(rles=tuple(counts))


def equal_pixels(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each run of equal pixels starts, row after row, and their value.

    Neighbours mostly share their value: looking up each run is a fraction of looking up each pixel.
    """
    pixels = ids.reshape(-1)
    starts = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    starts = np.concatenate([[0], starts]) if pixels.size else starts
    return starts, pixels[starts]


def layer_runs(
    starts: np.ndarray,
    ends: np.ndarray,
    owner: np.ndarray,
    count: int,
    pixels: int,
    dtype: type[np.signedinteger] = np.int16,
) -> tuple[list[int], list[np.ndarray]]:
    """Put masks that are given as runs on planes: each on the first where no earlier one is in its way.

    Args:
        starts, ends: the runs [R] of pixels, none empty, those of one mask apart from each other.
        owner: the mask [R] that each belongs to.
        count: T, the number of masks.
        pixels: of each mask.
        dtype: of the planes; holds `count`.

    Returns:
        The plane of each mask, and K >= 1 planes: [pixels], the number of the mask, from 1, at each.
    """
    order = np.argsort(starts, kind="stable")
    starts, ends, owner = starts[order], ends[order], owner[order]
    planes = _choose_planes(starts, ends, owner, count)
    layers = []
    plane_of_run = np.array(planes, dtype=np.int64)[owner]
    for plane in range(max(planes, default=0) + 1):
        here = plane_of_run == plane
        edges = np.stack([starts[here], ends[here]], axis=1)
        numbers = np.zeros(edges.size + 1, dtype=dtype)
        numbers[1::2] = owner[here] + 1
        layers.append(np.repeat(numbers, np.diff(edges.ravel(), prepend=0, append=pixels)))
    return planes, layers


def _choose_planes(starts: np.ndarray, ends: np.ndarray, owner: np.ndarray, count: int) -> list[int]:
    """Greedy colouring of the graph of masks that overlap; arguments as for `layer_runs`, sorted by start."""
    # A run overlaps those that begin after it, up to its end.
    runs = np.arange(len(starts))
    later = np.searchsorted(starts, ends) - runs - 1
    one = np.repeat(runs, later)
    other = one + 1 + np.arange(len(one)) - np.repeat(np.cumsum(later) - later, later)
    pair = np.unique(np.maximum(owner[one], owner[other]) * count + np.minimum(owner[one], owner[other]))
    earlier: list[list[int]] = [[] for _ in range(count)]
    for code in pair.tolist():
        earlier[code // count].append(code % count)
    planes: list[int] = []
    for others in earlier:
        taken = {planes[k] for k in others}
        planes.append(next(k for k in range(count) if k not in taken))
    return planes


def _image_targets(
    ids: np.ndarray,
    labels: Sequence[int],
    planes: Sequence[int],
    crowd: Sequence[bool] | None,
    areas: Sequence[float] | None = None,
) -> ImageTargets:
    # Copies: labels may be views of a read-only memory map.
    return ImageTargets(
        torch.from_numpy(ids),
        torch.from_numpy(np.array(labels, dtype=np.int64)),
        torch.from_numpy(np.array(planes, dtype=np.int64)),
        torch.from_numpy(np.array(crowd if crowd is not None else np.zeros(len(labels)), dtype=bool)),
        None if areas is None else torch.from_numpy(np.array(areas, dtype=np.float64)),
    )
