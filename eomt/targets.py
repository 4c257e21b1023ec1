"""Ground truth in compact form: layered id maps instead of one mask per segment.

A segment is a set of pixels with a class. Segments that do not overlap share one plane of integers, so panoptic and
semantic ground truth is one plane for any number of segments. Overlapping instances take as many planes as keep them
apart (at most 5 on COCO).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.utils.data import default_collate

ImageId = int | float | str
"""An image's id in its data set, a whole number of any size or a text, which results repeat as it stands there."""

_BITS, _MORE, _SIGN = 5, 0x20, 0x10  # of a character of a run-length code
_MOST_CHARACTERS = 7  # of a length: 32 bits


class ImageTargets(NamedTuple):
    """The segments of one image. Segment t has the pixels where `ids[planes[t]] == t + 1`.

    Attributes:
        ids: int16 [K, H, W], K >= 1, or `id_type(T)` once cropped for training; 0 where a plane holds no segment.
        labels: int64 [T], the class of each segment, 0..C-1.
        planes: int64 [T], the plane of each segment, 0..K-1.
        crowd: bool [T], True for a region of many objects of one class (COCO's `iscrowd`).
        areas: float64 [T], each object's area in pixels as the dataset gives it, by which COCO tells small objects
            from large ones; None where it gives none.
        rles: T masks as COCO's compressed run lengths, where the dataset holds those: average precision compares
            masks in that form. None where it holds none, or after the masks were transformed.
        notes: what was taken for granted in reading, as pairs: a key of `datasets.readers.base.NOTES`, a description.
    """

    ids: Tensor
    labels: Tensor
    planes: Tensor
    crowd: Tensor
    areas: Tensor | None = None
    rles: tuple[bytes, ...] | None = None
    notes: tuple[tuple[str, str], ...] = ()

    def pin_memory(self) -> ImageTargets:
        """Stay as they are where a DataLoader pins a batch: scores are computed on the host."""
        return self

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
    """The smallest type that holds segment numbers up to `count`."""
    return np.int8 if count <= np.iinfo(np.int8).max else np.int16


def collate_targets(targets: Sequence[ImageTargets]) -> BatchTargets:
    """Stack images' targets, padding planes and segments to the largest of the batch."""
    planes = max(t.ids.shape[0] for t in targets)
    counts = tuple(len(t.labels) for t in targets)
    dtype = reduce(torch.promote_types, (t.ids.dtype for t in targets))
    # In a data loader's worker this stacks right into the memory that is shared with the main process.
    ids = default_collate([F.pad(t.ids.to(dtype), (0, 0, 0, 0, 0, planes - len(t.ids))) for t in targets])
    labels = torch.full((len(targets), max(counts)), -1, dtype=torch.int64)
    plane_of = torch.zeros((len(targets), max(counts)), dtype=torch.int64)
    for b, t in enumerate(targets):
        labels[b, : counts[b]] = t.labels
        plane_of[b, : counts[b]] = t.planes
    return BatchTargets(ids, labels, plane_of, counts)


def targets_from_id_map(
    id_map: np.ndarray, segment_ids: ArrayLike, labels: ArrayLike, crowd: ArrayLike | None = None
) -> ImageTargets:
    """Targets of segments that do not overlap.

    Args:
        id_map: integers [H, W]; pixels of any value not in `segment_ids` belong to no segment.
        segment_ids: T distinct values of the map, in the order of the result.
        labels: T classes.
        crowd: T flags, default none.
    """
    wanted = np.asarray(segment_ids, dtype=np.int64)
    ids = np.zeros(id_map.shape, dtype=np.int16)
    if len(wanted) and id_map.size:
        values, lengths = runs(id_map)
        order = np.argsort(wanted)
        segments = order[np.searchsorted(wanted, values, sorter=order).clip(max=len(wanted) - 1)]
        numbers = np.where(wanted[segments] == values, segments + 1, 0).astype(np.int16)
        ids = np.repeat(numbers, lengths).reshape(id_map.shape)
    return _image_targets(ids[None], labels, np.zeros(len(wanted)), crowd)


def targets_from_rles(
    counts: Sequence[bytes],
    size: tuple[int, int],
    labels: ArrayLike,
    crowd: ArrayLike | None = None,
    areas: ArrayLike | None = None,
) -> ImageTargets:
    """Targets of masks that may overlap, given as COCO's compressed run lengths.

    Args:
        counts: T codes, the `counts` of COCO's run lengths.
        size: (height, width) of each mask.
        labels: T classes.
        crowd: T flags, default none.
        areas: T areas in pixels, default None.

    Raises:
        ValueError: if a code is damaged or belongs to another size.
    """
    ids, planes = _layered((_decoded(code, size) for code in counts), size)
    return _image_targets(ids, labels, planes, crowd, areas)._replace(rles=tuple(counts))


def _decoded(code: bytes, size: tuple[int, int]) -> tuple[int, int, np.ndarray]:
    """Top and left of a mask's bounding box, and the mask in it: bool [h, w]."""
    check_rle(code, size[0] * size[1])
    rle: Any = {"size": size, "counts": code}
    left, top, width, height = coco_mask.toBbox(rle).astype(int)
    return top, left, coco_mask.decode(rle).view(bool)[top : top + height, left : left + width]


def _layered(masks: Iterable[tuple[int, int, np.ndarray]], size: tuple[int, int]) -> tuple[np.ndarray, list[int]]:
    """Put masks on planes, each on the first where its pixels are free.

    Args:
        masks: T times top, left and bool [h, w], the part of a plane that holds all pixels of a mask.
        size: (height, width) of a plane.

    Returns:
        int16 [K, height, width], K >= 1, the number of the mask, from 1, at each pixel; and the plane of each mask.
    """
    layers, planes = [np.zeros(size, dtype=np.int16)], []
    for number, (top, left, mask) in enumerate(masks, start=1):
        window = slice(top, top + mask.shape[0]), slice(left, left + mask.shape[1])
        plane = next((k for k, layer in enumerate(layers) if not layer[window][mask].any()), len(layers))
        if plane == len(layers):
            layers.append(np.zeros(size, dtype=np.int16))
        layers[plane][window][mask] = number
        planes.append(plane)
    return np.stack(layers), planes


def runs(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Runs of equal pixels, row after row: int64 values [R] and their lengths [R].

    Neighbours mostly share their value: looking up each run is a fraction of looking up each pixel.
    """
    flat = pixels.reshape(-1)
    starts = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts = np.concatenate([[0], starts]) if flat.size else starts
    return flat[starts].astype(np.int64), np.diff(starts, append=flat.size)


def _image_targets(
    ids: np.ndarray,
    labels: ArrayLike,
    planes: ArrayLike,
    crowd: ArrayLike | None,
    areas: ArrayLike | None = None,
) -> ImageTargets:
    # Copies: labels may be views of a read-only memory map.
    numbers = np.array(labels, dtype=np.int64)
    return ImageTargets(
        torch.from_numpy(ids),
        torch.from_numpy(numbers),
        torch.from_numpy(np.array(planes, dtype=np.int64)),
        torch.from_numpy(np.array(crowd if crowd is not None else np.zeros(len(numbers)), dtype=bool)),
        None if areas is None else torch.from_numpy(np.array(areas, dtype=np.float64)),
    )


def check_rle(code: bytes, pixels: int) -> None:
    """Raise ValueError unless a code is whole and its lengths add up to `pixels`: pycocotools reads beyond its end.

    Args:
        code: the `counts` of COCO's compressed run lengths.
        pixels: the number of pixels of the mask.
    """
    digits = _digits(code)
    if not len(digits) or digits.min() < 0 or digits.max() >= 64 or digits[-1] & _MORE:
        raise ValueError("its run lengths are no compressed code of COCO's")
    if np.diff(np.flatnonzero(digits & _MORE == 0), prepend=-1).max() > _MOST_CHARACTERS:
        raise ValueError("its run lengths are too large")
    lengths = run_lengths(code)
    if lengths.min() < 0 or lengths.sum() != pixels:
        raise ValueError(f"its run lengths do not make up {pixels} pixels")


def run_lengths(code: bytes) -> np.ndarray:
    """Lengths of the runs of zeros and ones in turn, zeros first, of a mask read column by column: int64 [R].

    A length, from the fourth on its difference to the length two before, stands in characters of 6 bits (code 48 +
    value): 5 of the number, the lowest first, and one that says that more follow (pycocotools' `maskApi.c`,
    rleToString).

    Args:
        code: the `counts` of COCO's compressed run lengths, whole.
    """
    digits = _digits(code)
    last = np.flatnonzero(digits & _MORE == 0)
    size = np.diff(last, prepend=-1)
    first = last + 1 - size
    position = np.arange(len(digits)) - np.repeat(first, size)
    lengths = np.add.reduceat((digits & ~_MORE) << _BITS * position, first)
    lengths -= ((digits[last] & _SIGN) > 0) * (1 << _BITS * size)
    for chain in (lengths[1::2], lengths[2::2]):
        np.cumsum(chain, out=chain)
    return lengths


def _digits(code: bytes) -> np.ndarray:
    return np.frombuffer(code, dtype=np.uint8).astype(np.int64) - 48
