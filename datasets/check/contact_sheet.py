"""Contact sheets: images with their targets, as annotated and as the network receives them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from PIL import Image
from torch import Tensor
from torch.nn import functional

from datasets.module import SegmentationData
from datasets.readers.base import Reader
from datasets.sampler import SampleKey
from datasets.samples import EvaluationSet
from eomt.classes import Classes, SegmentClass
from eomt.errors import InputError
from eomt.postprocess.draw import contact_sheet, draw_segments, side_by_side
from eomt.targets import ImageTargets

TILE = 480  # pixels, of a picture's longer side
TITLE = 36  # characters
AUGMENTED = 2  # versions of each training image
CROWD_GREY = (150, 150, 150)


def train_sheet(data: SegmentationData, usable: ArrayLike, count: int) -> np.ndarray | None:
    """Draw training images, their targets, and their augmented versions of the first epochs.

    Args:
        data: the sets.
        usable: indices of the images that can be read.
        count: rows of the sheet, one from each of as many equal parts of the set.

    Returns:
        uint8 [H, W, 3], a row per image; None if there is none to show.
    """
    if not data.reader("train").has_targets().any():
        return None
    images = data.training_set()
    keys = np.flatnonzero(np.isin(images.indices, usable))
    rows = []
    for key in spread(keys, count, data.seed):
        seen = []
        for epoch in range(AUGMENTED):
            item = images[SampleKey(epoch, key, 0)]
            if isinstance(item, InputError):  # an augmentation fails
                raise item
            drawn = _drawn(item.image, item.targets, images.reader.classes)
            seen.append((f"epoch {epoch}: {_by(item.image)}", drawn))
        rows.append(_row(images.reader, int(images.indices[key]), seen))
    return contact_sheet(rows) if rows else None


def val_sheet(data: SegmentationData, usable: ArrayLike, count: int) -> np.ndarray | None:
    """Draw validation images, their targets, and both as the network receives them; see `train_sheet`."""
    images = EvaluationSet(data.reader("val"), data.geometry, data.image_size)
    rows = []
    for index in spread(usable, count, data.seed):
        item = images[index]
        if isinstance(item, InputError):
            raise item
        assert item.targets is not None, "of this rank's own images"
        view = data.geometry.view(item.inputs, item.placement, data.image_size)
        _, height, width = view.shape
        targets = item.targets._replace(ids=_nearest(item.targets.ids, (height, width)))
        inputs = f"{len(item.inputs)} input{'s' * (len(item.inputs) > 1)} of {_by(item.inputs)}"
        seen = [(f"network: {_by(view)}, {inputs}", _drawn(view, targets, images.reader.classes))]
        rows.append(_row(images.reader, index, seen))
    return contact_sheet(rows) if rows else None


def spread(indices: ArrayLike, count: int, seed: int) -> list[int]:
    """Choose one at random from each of `count` equal parts; all if there are no more."""
    generator = np.random.default_rng(seed)
    parts = [part for part in np.array_split(np.asarray(indices, dtype=np.int64), max(count, 1)) if len(part)]
    return [int(generator.choice(part)) for part in parts] if count else []


def _row(reader: Reader, index: int, seen: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    image, targets = reader.read(index)
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    name, (height, width) = reader.name(index), image.shape[:2]
    title = name if len(name) <= TITLE else f"...{name[-TITLE:]}"
    tiles = [(f"targets: {width} x {height}", _drawn(pixels, targets, reader.classes)), *seen]
    plain, _ = _scaled(pixels, targets.ids)
    height = max(picture.shape[0] for picture in (plain, *(picture for _, picture in tiles)))
    return side_by_side(_padded(plain, height), [(text, _padded(tile, height)) for text, tile in tiles], title)


def _drawn(image: Tensor, targets: ImageTargets, classes: Classes) -> np.ndarray:
    """Draw targets over an image of their size, uint8 [3, H, W]; crowds are grey."""
    pixels, ids = _scaled(image, targets.ids)
    free = max(classes.ids) + 1
    crowds = tuple(SegmentClass(free + k, f"{c.name} (crowd)", CROWD_GREY, False) for k, c in enumerate(classes))
    labels = targets.labels + len(classes) * targets.crowd
    return draw_segments(pixels, _flat(ids, targets.planes), labels, Classes((*classes, *crowds)))


def _scaled(image: Tensor, ids: Tensor) -> tuple[np.ndarray, Tensor]:
    """Resize both to a tile, uint8 [h, w, 3] and [K, h, w], so that class names have one size on all."""
    height, width = image.shape[1:]
    factor = TILE / max(height, width)
    size = max(round(height * factor), 1), max(round(width * factor), 1)
    # Enlarged pixels stay squares.
    how = Image.Resampling.NEAREST if factor > 1 else Image.Resampling.BILINEAR
    picture = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((size[1], size[0]), how)
    return np.array(picture), _nearest(ids, size)


def _nearest(ids: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(ids[None].float(), size, mode="nearest-exact")[0].to(ids.dtype)


def _flat(ids: Tensor, planes: Tensor) -> Tensor:
    """Merge planes [K, H, W] to one map [H, W]: smaller segments hide larger ones, as a tie its wearer."""
    counts = torch.stack([torch.bincount(plane.flatten().long(), minlength=len(planes) + 1) for plane in ids]).sum(0)
    flat = torch.zeros(ids.shape[1:], dtype=ids.dtype)
    for number in (counts[1:].argsort(descending=True) + 1).tolist():
        flat[ids[planes[number - 1]] == number] = number
    return flat


def _padded(picture: np.ndarray, height: int) -> np.ndarray:
    """Pad with white below and to the right, to the height and to a tile's width."""
    room = ((0, height - picture.shape[0]), (0, max(TILE - picture.shape[1], 0)), (0, 0))
    return np.pad(picture, room, constant_values=255)


def _by(image: Tensor) -> str:
    return f"{image.shape[-1]} x {image.shape[-2]}"
