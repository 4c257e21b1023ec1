"""Images whose ground truth is a label PNG: every pixel's value, or colour, stands for a class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import cv2
import numpy as np
import torch

from datasets.files.decode import decode_color_map, decode_label_map
from datasets.readers.coco_reader import by
from datasets.readers.paired_files import PairedFiles
from eomt.classes import Classes
from eomt.errors import InputError
from eomt.targets import ImageTargets

VOID = -1
"""In place of a class: the pixel belongs to no segment."""


class LabelTable:
    """Which class each value of a label PNG stands for.

    Args:
        class_of: values, 0..65535, or with `colors` red + 256 * green + 65536 * blue, to classes, 0..C-1, or VOID.
            Several values may stand for one class.
        remedy: what to do about a value that is not in it, for messages.
        colors: the PNGs' colours are the values.
    """

    def __init__(self, class_of: Mapping[int, int], remedy: str, colors: bool = False):
        self._values = np.array(sorted(class_of), dtype=np.int64)
        self._classes = np.array([class_of[value] for value in sorted(class_of)], dtype=np.int64)
        self._remedy = remedy
        self.colors = colors

    def decode(self, data: bytes, where: str) -> np.ndarray:
        """The values of a PNG: unsigned integers [H, W]. InputError if it cannot be decoded."""
        return (decode_color_map if self.colors else decode_label_map)(data, where)

    def classes(self, values: np.ndarray, where: str) -> np.ndarray:
        """int64, of the shape of `values`: the class of each, or VOID.

        Raises:
            InputError: if one is not in the table; the message names `where`, the file, and the values.
        """
        place = np.searchsorted(self._values, values).clip(max=len(self._values) - 1)
        unknown = self._values[place] != values
        if unknown.any():
            unknown = np.unique(values[unknown])
            what = ("colour" if self.colors else "value") + "s" * (len(unknown) > 1)
            raise InputError(f"{where} has the {what} {self.describe(unknown)}, but no class for it: {self._remedy}")
        return self._classes[place]

    def describe(self, values: Iterable[int], most: int = 10) -> str:
        """Values in words, no more than `most` of them: "1, 2", or "[1, 2, 3], [4, 5, 6]"."""
        values = [int(value) for value in values]
        shown = [str([v & 255, v >> 8 & 255, v >> 16] if self.colors else v) for v in values[:most]]
        return ", ".join(shown) + (f" and {len(values) - most} more" if len(values) > most else "")


class LabelMaps:
    """Semantic segmentation from label PNGs; a `datasets.readers.base.Reader`.

    An image's segments are the classes that its PNG has, by class, none a crowd. `has_targets` is True for all
    images: to know of those without a class would take decoding every PNG. Such files hold no image ids:
    `image_id` counts the images from 1 in the order of their names, and `name` is the path of the image.

    Args:
        files: images with one label PNG each.
        classes: at most 32767 of them.
        table: from the PNGs' values to classes.
    """

    def __init__(self, files: PairedFiles, classes: Classes, table: LabelTable):
        most = np.iinfo(np.int16).max  # of an image's segments: targets number them in int16
        if len(classes) > most:
            raise InputError(f"the dataset has {len(classes)} classes, more than {most}")
        self.classes = classes
        self._files = files
        self._table = table

    def __len__(self) -> int:
        return len(self._files)

    def has_targets(self) -> np.ndarray:
        return np.ones(len(self), dtype=bool)

    def name(self, index: int) -> str:
        return self._files.name(index)

    def image_id(self, index: int) -> int:
        return index + 1

    def files(self) -> tuple[set[str], set[str]]:
        """The files that are used, and all that lie beside them."""
        return self._files.files()

    def read(self, index: int) -> tuple[np.ndarray, ImageTargets]:
        image, where = self._files.image(index)
        return image, self._targets(index, image.shape[:2], where)

    def _targets(self, index: int, size: tuple[int, int], image: str) -> ImageTargets:
        data, where = self._files.truth(0, index)
        values = self._table.decode(data, where)
        check_size(values.shape, size, where, image)
        if values.dtype == np.uint8:
            return self._targets_from_bytes(values, where)
        values, lengths = runs(values)
        classes = self._table.classes(values, where)
        return targets_from_runs(classes, classes, lengths, size)

    def _targets_from_bytes(self, pixels: np.ndarray, where: str) -> ImageTargets:
        """The same of uint8 [H, W], by tables of 256 values."""
        values = cv2.calcHist([pixels], [0], None, [256], [0, 256]).ravel().nonzero()[0]
        classes = self._table.classes(values, where)
        labels = np.unique(classes[classes != VOID])
        numbers = np.zeros(256, dtype=np.int16)
        numbers[values] = np.where(classes != VOID, np.searchsorted(labels, classes) + 1, 0)
        return one_plane(cv2.LUT(pixels, numbers), labels)


def check_size(label: tuple[int, ...], size: tuple[int, int], where: str, image: str) -> None:
    """InputError unless a map of ground truth has the size (height, width) of its image."""
    if label != size:
        raise InputError(f"{where} is {by(label)}, but its image {image} is {by(size)}: replace one of the two")


def runs(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Runs of equal pixels, row after row: int64 values [R] and their lengths [R].

    Neighbours mostly share their value, so looking up runs is faster than any look-up of each pixel.
    """
    flat = pixels.reshape(-1)
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    return flat[starts].astype(np.int64), np.diff(starts, append=flat.size)


def targets_from_runs(
    segments: np.ndarray, labels: np.ndarray, lengths: np.ndarray, size: tuple[int, int]
) -> ImageTargets:
    """Targets of one plane.

    Args:
        segments: int64 [R], a small number for each run's segment, at least 0, or VOID; targets come in its order.
        labels: int64 [R], the class of each run, equal in all runs of a segment; VOID where that is.
        lengths: int64 [R], pixels of each run, row after row.
        size: (height, width) of the plane.
    """
    # VOID, which is -1, has the last place.
    label_of = np.full(segments.max() + 2, VOID)
    label_of[segments] = labels
    found = label_of != VOID
    number_of = (found.cumsum() * found).astype(np.int16)
    ids = np.repeat(number_of[segments], lengths).reshape(size)
    return one_plane(ids, label_of[found])


def one_plane(ids: np.ndarray, labels: np.ndarray, crowd: np.ndarray | None = None) -> ImageTargets:
    """Targets of segments numbered from 1 in int16 [H, W]; integers [T], their classes; bool [T], default none."""
    return ImageTargets(
        torch.from_numpy(ids)[None],
        torch.from_numpy(labels.astype(np.int64)),
        torch.zeros(len(labels), dtype=torch.int64),
        torch.from_numpy(np.zeros(len(labels), dtype=bool) if crowd is None else np.array(crowd)),
    )
