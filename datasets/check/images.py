"""Examination of one image and its ground truth: facts, gathered in a worker process, and what is odd about them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from torch.utils.data import Dataset

from datasets.readers.base import Reader, listed
from eomt.classes import Classes
from eomt.errors import InputError
from eomt.targets import ImageTargets

SMALL_SIDE = 32  # pixels; an image with a shorter side is odd
LONGEST = 5.0  # times the shorter side
TINY = 16  # pixels; a segment with fewer is odd
# Boxes often enclose polygons, from which masks differ by about a pixel; polygons that cross themselves, of which COCO
# has some, count areas twice. The area of a box in place of its object's differs far more.
OUTSIDE = 1.5  # pixels
BOX_OFF = (3.0, 0.05)  # pixels, and share of the box's longer side: the larger counts
AREA_OFF = (64.0, 0.5)  # pixels, and share

_listed = partial(listed, most=5)


class ImageFacts(NamedTuple):
    """One image and its T segments.

    Attributes:
        size: height and width.
        digest: digest of the image's pixels.
        labels: int64 [T].
        crowd: bool [T].
        pixels: int64 [T].
        boxes: int64 [T, 4], left, top, right, bottom (the pixel after the last); zeros for a segment without pixels.
        unlabelled: pixels in no segment, or in a crowd alone.
        notes: those of its targets.
    """

    size: tuple[int, int]
    digest: bytes
    labels: np.ndarray
    crowd: np.ndarray
    pixels: np.ndarray
    boxes: np.ndarray
    unlabelled: int
    notes: tuple[tuple[str, str], ...]


class Fault(NamedTuple):
    """Reason why an image is unusable: the kind of finding, and a description."""

    kind: str
    what: str


class ExaminedImages(Dataset):
    """Facts of each image of a reader, or its fault."""

    def __init__(self, reader: Reader):
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> ImageFacts | Fault:
        try:
            image, targets = self.reader.read(index)
        except InputError as error:
            return Fault("unreadable", str(error))
        except Exception as error:  # of a custom reader: the other images are still checked
            return Fault("unreadable", f"the reader failed with {type(error).__name__}: {error}")
        wrong = _wrong_form(image, targets, len(self.reader.classes))
        return Fault("bad_targets", wrong) if wrong else _facts(image, targets)


def _wrong_form(image: np.ndarray, targets: ImageTargets, num_classes: int) -> str:
    """The first breach of the `Reader` interface in words; empty if there is none."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        return f"the image must be uint8 [height, width, 3], found {image.dtype} {list(image.shape)}"
    ids, labels, count = targets.ids.numpy(), targets.labels.numpy(), len(targets.labels)
    if ids.ndim != 3 or ids.shape[1:] != image.shape[:2]:
        return f"the targets must be of the image's size {list(image.shape[:2])}, found {list(ids.shape[1:])}"
    if ids.size and not 0 <= ids.min() <= ids.max() <= count:
        return f"the targets' ids must be 0 to {count}, the number of segments, found {ids.min()} to {ids.max()}"
    if count and not 0 <= labels.min() <= labels.max() < num_classes:
        return f"the targets' classes must be 0 to {num_classes - 1}, found {labels.min()} to {labels.max()}"
    return ""


def _facts(image: np.ndarray, targets: ImageTargets) -> ImageFacts:
    count, crowd = len(targets.labels), targets.crowd.numpy()
    pixels, boxes = np.zeros(count, dtype=np.int64), np.zeros((count, 4), dtype=np.int64)
    labelled = np.zeros(image.shape[:2], dtype=bool)
    counted = np.concatenate([[False], ~crowd])
    for plane in targets.ids.numpy():
        pixels += np.bincount(plane.ravel(), minlength=count + 1)[1:]
        labelled |= counted[plane]
        for number, box in enumerate(ndimage.find_objects(plane)):
            if box is not None:
                rows, columns = box
                boxes[number] = columns.start, rows.start, columns.stop, rows.stop
    digest = blake2b(np.ascontiguousarray(image).data, digest_size=16, key=repr(image.shape).encode()).digest()
    unlabelled = labelled.size - int(labelled.sum())
    return ImageFacts(image.shape[:2], digest, targets.labels.numpy(), crowd, pixels, boxes, unlabelled, targets.notes)


def odd_image(image: ImageFacts, classes: Classes, num_queries: int) -> Iterator[tuple[str, str]]:
    """Oddities of an image and its segments, as pairs: kind of finding, description."""
    yield from image.notes
    height, width = image.size
    if min(image.size) < SMALL_SIDE:
        yield "small_image", f"{width} x {height} (width x height), a side of fewer than {SMALL_SIDE} pixels"
    if max(image.size) > LONGEST * min(image.size):
        yield "long_image", f"{width} x {height} (width x height)"
    count = (~image.crowd).sum()
    if not count:
        yield "no_segment", "only crowd regions" if len(image.crowd) else "no segment"
    if image.crowd.any():
        yield "crowd", _listed(classes[label].name for label in image.labels[image.crowd])
    if count > num_queries:
        yield "many_segments", f"{count} segments, the network has {num_queries} queries"
    empty, tiny = image.pixels == 0, (image.pixels > 0) & (image.pixels < TINY)
    if empty.any():
        yield "empty_segment", _listed(classes[label].name for label in image.labels[empty])
    if tiny.any():
        pairs = zip(image.labels[tiny], image.pixels[tiny], strict=True)
        yield "tiny_segment", _listed(f"{classes[label].name} of {count} pixels" for label, count in pairs)


def odd_annotations(
    image: ImageFacts, boxes: np.ndarray, areas: np.ndarray, outlines: np.ndarray, classes: Classes
) -> Iterator[tuple[str, str]]:
    """Boxes, areas and outlines (see `CocoInstance.annotated`) that contradict the image or its masks."""
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    names = [classes[label].name for label in image.labels]
    broken = np.isinf(boxes).any(axis=1)
    if broken.any():
        yield "box", f"no [left, top, width, height]: {_listed(names[s] for s in np.flatnonzero(broken))}"
    corners[broken] = np.nan

    # Missing values are NaN: comparisons with them are False.
    height, width = image.size
    reaching = [
        f"the {what} of {names[s]} {_numbers(reach[s])}"
        for what, reach in (("box", corners), ("polygon", outlines))
        for s in np.flatnonzero(
            (reach < -OUTSIDE).any(axis=1) | (reach[:, 2:] > (width + OUTSIDE, height + OUTSIDE)).any(axis=1)
        )
    ]
    if reaching:
        yield "outside", f"beyond {width} x {height} (width x height): {_listed(reaching)} (left, top, right, bottom)"

    # Empty masks have a finding of their own.
    solid = image.pixels > 0
    room = np.maximum(BOX_OFF[0], BOX_OFF[1] * (image.boxes[:, 2:] - image.boxes[:, :2]).max(axis=1))
    off = np.flatnonzero(solid & (np.abs(corners - image.boxes).max(axis=1) > room))
    if len(off):
        pairs = (f"{names[s]} has the box {_numbers(corners[s])}, its mask {_numbers(image.boxes[s])}" for s in off)
        yield "box", f"{_listed(pairs)} (left, top, right, bottom)"
    room = np.maximum(AREA_OFF[0], AREA_OFF[1] * image.pixels)
    off = np.flatnonzero(solid & (np.abs(areas - image.pixels) > room))
    if len(off):
        yield "area", _listed(f"{names[s]} has the area {areas[s]:g}, its mask {image.pixels[s]} pixels" for s in off)


def _numbers(values: np.ndarray) -> str:
    return f"[{', '.join(f'{value:.6g}' for value in values)}]"
