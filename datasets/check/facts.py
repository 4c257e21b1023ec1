"""Facts of one image and its targets, gathered in a worker process."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from torch.utils.data import Dataset

from datasets.loader import BatchLoader
from datasets.readers.base import Reader
from eomt.errors import InputError
from eomt.targets import ImageTargets

_TOGETHER = 8  # images that a worker sends at once


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
    """

    size: tuple[int, int]
    digest: bytes
    labels: np.ndarray
    crowd: np.ndarray
    pixels: np.ndarray
    boxes: np.ndarray
    unlabelled: int


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
        wrong = wrong_form(image, targets, len(self.reader.classes))
        return Fault("bad_targets", wrong) if wrong else facts(image, targets)


def examined(reader: Reader, num_workers: int, timeout: float) -> Iterator[list[ImageFacts | Fault]]:
    """The facts or faults of all images in order, a list per batch of a worker.

    Args:
        reader: the images.
        num_workers, timeout: see `BatchLoader`.

    Raises:
        InputError: if a worker ends or hangs.
    """
    loader = BatchLoader(ExaminedImages(reader), list, num_workers, timeout, batch_size=_TOGETHER)
    return (batch for batch, _ in loader.batches())


def wrong_form(image: np.ndarray, targets: ImageTargets, num_classes: int) -> str:
    """The first breach of the `Reader` interface in words; empty if there is none."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        return f"the image must be uint8 [height, width, 3], found {image.dtype} {list(image.shape)}"
    ids, count = targets.ids.numpy(), len(targets.labels)
    if ids.ndim != 3 or ids.shape[1:] != image.shape[:2]:
        return f"the targets must be of the image's size {list(image.shape[:2])}, found {list(ids.shape[1:])}"
    if ids.size and not 0 <= ids.min() <= ids.max() <= count:
        return f"the targets' ids must be 0 to {count}, the number of segments, found {ids.min()} to {ids.max()}"
    labels = targets.labels.numpy()
    if count and not 0 <= labels.min() <= labels.max() < num_classes:
        return f"the targets' classes must be 0 to {num_classes - 1}, found {labels.min()} to {labels.max()}"
    return ""


def facts(image: np.ndarray, targets: ImageTargets) -> ImageFacts:
    """Facts of an image whose targets have the right form."""
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
    digest = blake2b(np.ascontiguousarray(image), digest_size=16, key=repr(image.shape).encode()).digest()
    unlabelled = labelled.size - int(labelled.sum())
    return ImageFacts(image.shape[:2], digest, targets.labels.numpy(), crowd, pixels, boxes, unlabelled)
