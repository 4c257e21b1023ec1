"""Part of a resized, perhaps mirrored image: of its pixels, and of its segments.

What lies outside the part is neither resized nor drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from eomt.old_rle import runs_of_rles
from eomt.old_targets import ImageTargets, equal_pixels, id_type, layer_runs


class Crop(NamedTuple):
    """Mirror an image, resize it, and show a window of it at the top left of a canvas.

    Attributes:
        flip: mirror left and right.
        old, scaled: (height, width) of the image before and after it is resized.
        window: first row and row after the last, first column and column after the last, of the resized image.
        size: (height, width) of the canvas, at least the window's; zeros around the window.
    """

    flip: bool
    old: tuple[int, int]
    scaled: tuple[int, int]
    window: tuple[tuple[int, int], tuple[int, int]]
    size: tuple[int, int]

    def nearest(self) -> tuple[np.ndarray, np.ndarray]:
        """Which row of the image each row of the window shows after a nearest resize, and which column each column."""
        rows, columns = (nearest_pixels(*sides) for sides in zip(self.old, self.scaled, self.window, strict=True))
        return rows, self.old[1] - 1 - columns if self.flip else columns


def nearest_pixels(old: int, new: int, window: tuple[int, int]) -> np.ndarray:
    """Which of `old` pixels each pixel of window [start, end) shows after a nearest resize to `new`.

    PyTorch's rule for `mode="nearest"`: floor(i * old / new), in single precision.
    """
    scale = np.float32(old) / np.float32(new)
    pixels = np.arange(*window, dtype=np.float32) * scale
    return np.minimum(pixels.astype(np.int64), old - 1)


def crop_image(image: np.ndarray, crop: Crop) -> Tensor:
    """Resize bilinearly with antialias, as `torch.nn.functional.interpolate` does on 8-bit pixels.

    Equal to resizing the whole image to at most 1 of 255 grey levels.

    Args:
        image: uint8 [h, w, 3].

    Returns:
        uint8 [3, *crop.size].
    """
    (top, bottom), (left, right) = crop.window
    # PyTorch resizes from the origin. What lies behind the window's last row and column is not needed; of a crop
    # alone it could not tell where between two pixels it starts. Pillow can, and takes ten times as long.
    height, width = (needed(*sides) for sides in zip(crop.old, crop.scaled, (bottom, right), strict=True))
    if crop.flip:
        pixels = cv2.flip(image[:height, crop.old[1] - width :], 1)
    else:
        pixels = np.require(image[:height, :width], requirements=("C", "W"))
    # The batch axis must come first, or PyTorch does not see channels last and takes twice as long.
    pixels = torch.from_numpy(pixels.reshape(height, width, 3))[None].permute(0, 3, 1, 2)
    factors = [new / old for old, new in zip(crop.old, crop.scaled, strict=True)]
    # PyTorch takes as many pixels before as after for a side that keeps its size: then one more, which is not shown.
    ends = [
        end + (end == side and factor != 1)
        for end, side, factor in zip((bottom, right), (height, width), factors, strict=True)
    ]
    resized = torch.ops.aten._upsample_bilinear2d_aa(pixels, ends, False, *factors)
    shown = resized[0].permute(1, 2, 0).numpy()[top:bottom, left:right]
    canvas = np.empty((3, *crop.size), dtype=np.uint8)
    cv2.split(shown, list(_window(canvas, *shown.shape[:2])))
    return torch.from_numpy(canvas)


def needed(old: int, new: int, end: int) -> int:
    """How many of the first of `old` pixels the first `end` of `new` are made of, antialias included."""
    scale = old / new
    return min(old, int((end - 0.5) * scale + max(scale, 1)) + 2)


class RunTargets(NamedTuple):
    """Segments to train on that are not drawn yet: runs of pixels, counted down the columns of the image.

    Attributes:
        starts, ends: int64 [R], first pixel of each run and pixel after its last.
        owner: int64 [R], the segment of each run, 0..T-1; the runs of one segment do not touch.
        labels: int64 [T], the class of each segment.
        size: (height, width) of the image.
    """

    starts: np.ndarray
    ends: np.ndarray
    owner: np.ndarray
    labels: np.ndarray
    size: tuple[int, int]


def run_targets(counts: Sequence[bytes], size: tuple[int, int], labels: np.ndarray) -> RunTargets:
    """Of T masks as COCO's compressed run lengths. ValueError if a code is damaged or belongs to another size."""
    return RunTargets(*runs_of_rles(counts, size[0] * size[1]), labels, size)


def crop_targets(targets: ImageTargets | RunTargets, crop: Crop) -> ImageTargets:
    """Resize to the nearest pixel. Crowds are dropped, and so are segments without a pixel in the window.

    Returns:
        Targets of the size `crop.size`, ids in `id_type` of what is left, without areas and codes.
    """
    return (_crop_runs if isinstance(targets, RunTargets) else _crop_planes)(targets, crop)


def _crop_planes(targets: ImageTargets, crop: Crop) -> ImageTargets:
    (rows, row_place), (columns, column_place) = (_distinct(pixels) for pixels in crop.nearest())
    # Lines are copied as a whole, and turning a plane takes less than picking columns pixel by pixel.
    ids = targets.ids.numpy()[:, rows[0] : rows[-1] + 1].take(rows - rows[0], axis=1)
    ids = np.stack([cv2.transpose(plane).take(columns, axis=0) for plane in ids])

    starts, numbers = equal_pixels(ids)
    keep = np.zeros(len(targets.labels) + 1, dtype=bool)
    keep[numbers] = True
    keep = keep[1:] & ~targets.crowd.numpy()
    new = np.zeros(len(keep) + 1, dtype=id_type(keep.sum()))
    new[1:][keep] = np.arange(1, keep.sum() + 1)
    ids = np.repeat(new[numbers], np.diff(starts, append=ids.size)).reshape(ids.shape)

    canvas = np.empty((len(ids), *crop.size), dtype=new.dtype)
    for window, plane in zip(_window(canvas, len(row_place), len(column_place)), ids, strict=True):
        window[:] = cv2.transpose(plane.take(column_place, axis=0)).take(row_place, axis=0)
    return _targets(canvas, targets.labels.numpy()[keep], targets.planes.numpy()[keep])


def _crop_runs(targets: RunTargets, crop: Crop) -> ImageTargets:
    rows, columns = crop.nearest()
    starts, ends, owner, column = _split(targets)
    # Of the columns of the image that are shown, each is drawn once.
    distinct, place = _distinct(columns)
    slot = np.full(targets.size[1], -1)
    slot[distinct] = np.arange(len(distinct))
    first_row = np.searchsorted(rows, np.arange(targets.size[0] + 1))
    starts, ends = first_row[starts], first_row[ends]
    inside = (starts < ends) & (slot[column] >= 0)
    starts, ends, owner = (values[inside] for values in (starts, ends, owner))
    offset = slot[column[inside]] * len(rows)

    kept = np.zeros(len(targets.labels), dtype=bool)
    kept[owner] = True
    owner, count = (np.cumsum(kept) - 1)[owner], int(kept.sum())
    pixels = len(distinct) * len(rows)
    planes, layers = layer_runs(starts + offset, ends + offset, owner, count, pixels, id_type(count))
    canvas = np.empty((len(layers), *crop.size), dtype=id_type(count))
    for plane, layer in zip(_window(canvas, len(rows), len(columns)), layers, strict=True):
        cv2.transpose(layer.reshape(-1, len(rows)).take(place, axis=0), plane)
    return _targets(canvas, targets.labels[kept], np.array(planes, dtype=np.int64))


def _distinct(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of a sequence that only rises or only falls, each once; and the place in them of each."""
    first = np.ones(len(pixels), dtype=bool)
    first[1:] = pixels[1:] != pixels[:-1]
    return pixels[first], np.cumsum(first) - 1


def _split(targets: RunTargets) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The parts of the runs in each column: first row, row after the last, segment, and column."""
    height = targets.size[0]
    first = targets.starts // height
    parts = (targets.ends - 1) // height - first + 1
    run = np.repeat(np.arange(len(parts)), parts)
    column = first[run] + np.arange(len(run)) - (np.cumsum(parts) - parts)[run]
    starts = np.maximum(targets.starts[run] - column * height, 0)
    ends = np.minimum(targets.ends[run] - column * height, height)
    return starts, ends, targets.owner[run], column


def _window(canvas: np.ndarray, height: int, width: int) -> np.ndarray:
    """The top left of planes [N, H, W], what is right of it and below set to 0."""
    canvas[:, height:] = 0
    canvas[:, :height, width:] = 0
    return canvas[:, :height, :width]


def _targets(ids: np.ndarray, labels: np.ndarray, planes: np.ndarray) -> ImageTargets:
    labels, planes = (torch.from_numpy(np.array(values, dtype=np.int64)) for values in (labels, planes))
    return ImageTargets(torch.from_numpy(ids), labels, planes, torch.zeros(len(labels), dtype=torch.bool))
