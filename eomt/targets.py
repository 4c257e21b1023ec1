"""Ground truth in compact form: layered id maps instead of one mask per segment.

A segment is a set of pixels with a class. Segments that do not overlap share one plane of integers,
so panoptic and semantic ground truth is one plane however many segments it has; overlapping
instances take as many planes as it needs to keep them apart (at most 5 on COCO).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class ImageTargets(NamedTuple):
    """The segments of one image. Segment t has the pixels where `ids[planes[t]] == t + 1`.

    Attributes:
        ids: int16 [K, H, W], K >= 1; 0 where a plane holds no segment.
        labels: int64 [T], the class of each segment, 0..C-1.
        planes: int64 [T], the plane of each segment, 0..K-1.
        crowd: bool [T], True for a region of many objects of one class (COCO's `iscrowd`).
        areas: float64 [T], the dataset's own measure of each object's area in pixels, by which COCO tells
            small objects from large ones; None where it gives none.
    """

    ids: Tensor
    labels: Tensor
    planes: Tensor
    crowd: Tensor
    areas: Tensor | None = None

    def masks(self) -> Tensor:
        """Expand to one mask per segment: bool [T, H, W]."""
        number = torch.arange(1, len(self.labels) + 1, device=self.ids.device, dtype=self.ids.dtype)
        return self.ids[self.planes] == number[:, None, None]


class BatchTargets(NamedTuple):
    """The segments of a batch of images of one size.

    Attributes:
        ids: int16 [B, K, H, W], K the largest number of planes of an image in the batch.
        labels: int64 [B, T], T the largest number of segments in the batch; -1 beyond an image's own.
        planes: int64 [B, T]; 0 beyond an image's own.
        counts: the number of segments of each image, on the host, so that no device need be asked.
    """

    ids: Tensor
    labels: Tensor
    planes: Tensor
    counts: tuple[int, ...]


def collate_targets(targets: Sequence[ImageTargets]) -> BatchTargets:
    """Stack images' targets, padding planes and segments to the largest of the batch."""
    planes = max(t.ids.shape[0] for t in targets)
    counts = tuple(len(t.labels) for t in targets)
    ids = targets[0].ids.new_zeros(len(targets), planes, *targets[0].ids.shape[1:])
    labels = torch.full((len(targets), max(counts)), -1, dtype=torch.int64)
    plane_of = torch.zeros((len(targets), max(counts)), dtype=torch.int64)
    for b, t in enumerate(targets):
        ids[b, : t.ids.shape[0]] = t.ids
        labels[b, : counts[b]] = t.labels
        plane_of[b, : counts[b]] = t.planes
    return BatchTargets(ids, labels, plane_of, counts)


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
        # Neighbours mostly share their value: look up each run of equal pixels once, not each pixel.
        pixels = id_map.reshape(-1)
        starts = np.concatenate([[0], np.flatnonzero(pixels[1:] != pixels[:-1]) + 1])
        values = pixels[starts].astype(np.int64)
        order = np.argsort(wanted)
        place = np.searchsorted(wanted[order], values).clip(max=len(wanted) - 1)
        found = wanted[order][place] == values
        numbers = np.where(found, order[place] + 1, 0).astype(np.int16)
        ids = np.repeat(numbers, np.diff(starts, append=pixels.size)).reshape(id_map.shape)
    return _image_targets(ids[None], labels, np.zeros(len(wanted)), crowd)


def targets_from_masks(masks: np.ndarray, labels: Sequence[int], crowd: Sequence[bool] | None = None) -> ImageTargets:
    """Targets of masks that may overlap: each goes to the first plane where its pixels are free.

    Args:
        masks: bool [T, H, W].
        labels: T classes.
        crowd: T flags, default none.
    """
    _, height, width = masks.shape
    layers = [np.zeros((height, width), dtype=np.int16)]
    planes = []
    for t, mask in enumerate(np.asarray(masks, dtype=bool)):
        free = next((k for k, layer in enumerate(layers) if not layer[mask].any()), len(layers))
        if free == len(layers):
            layers.append(np.zeros((height, width), dtype=np.int16))
        layers[free][mask] = t + 1
        planes.append(free)
    return _image_targets(np.stack(layers), labels, planes, crowd)


def select_segments(targets: ImageTargets, keep: np.ndarray) -> ImageTargets:
    """The segments with `keep` (bool [T]) True, renumbered in their order; the others' pixels become 0."""
    keep = np.asarray(keep, dtype=bool)
    lookup = np.zeros(len(keep) + 1, dtype=np.int16)
    lookup[1:][keep] = np.arange(1, keep.sum() + 1)
    index = torch.from_numpy(np.flatnonzero(keep))
    return ImageTargets(
        torch.from_numpy(lookup).index_select(0, targets.ids.flatten().int()).view(targets.ids.shape),
        targets.labels[index],
        targets.planes[index],
        targets.crowd[index],
    )


def _image_targets(
    ids: np.ndarray, labels: Sequence[int], planes: Sequence[int], crowd: Sequence[bool] | None
) -> ImageTargets:
    # Copies: labels may be views of a read-only memory map.
    return ImageTargets(
        torch.from_numpy(ids),
        torch.from_numpy(np.array(labels, dtype=np.int64)),
        torch.from_numpy(np.array(planes, dtype=np.int64)),
        torch.from_numpy(np.array(crowd if crowd is not None else np.zeros(len(labels)), dtype=bool)),
    )
