"""What every dataset of this project is: images with their ground truth, read one at a time."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from eomt.classes import Classes
from eomt.targets import ImageTargets


class Annotated(NamedTuple):
    """What annotation files say of S segments beside their pixels. Training looks at none of it.

    Attributes:
        start: int64 [N + 1]; the segments of image i, in the order of its targets, are start[i]..start[i + 1] - 1.
        boxes: float64 [S, 4], left, top, width, height, in pixels; NaN where there is none, infinite where it is not
            four numbers.
        areas: float64 [S], pixels; likewise.
        outlines: float64 [S, 4], left, top, right, bottom of the polygons; NaN where there are none.
    """

    start: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    outlines: np.ndarray

    def of(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes, areas and outlines of an image's segments."""
        here = slice(*self.start[index : index + 2])
        return self.boxes[here], self.areas[here], self.outlines[here]


class Reader(Protocol):
    """A dataset before any transform. It can be pickled to workers and used by forked ones as it is.

    A reader may have two methods more, which `check_data.py` calls: `annotated() -> Annotated`, and
    `files() -> tuple[set[str], set[str]]`, the paths that it uses and those that lie where it looks. And it may have
    `read_for_training`, as `read` but with targets in whatever form `TrainTransform` takes, where that is faster.

    All files are found, and all that can be checked without decoding images is checked, when a reader
    is made; then it raises `eomt.errors.InputError`. `read` checks the image itself.

    Attributes:
        classes: what the targets' labels count.
    """

    classes: Classes

    def __len__(self) -> int:
        """The number of images, also those without segments: validation scores them all."""

    def has_targets(self) -> np.ndarray:
        """bool [N]: the image has a segment to train on. Training leaves the others out."""

    def name(self, index: int) -> str:
        """The image's file name, for messages and for the names of results."""

    def image_id(self, index: int) -> int:
        """The id under which result files name the image."""

    def read(self, index: int) -> tuple[np.ndarray, ImageTargets]:
        """Read one image.

        Returns:
            uint8 [H, W, 3], red, green, blue, contiguous and writable; and its targets of that size,
            crowd segments among them: whoever trains drops those, whoever scores needs them.

        Raises:
            InputError: if the image or its ground truth cannot be decoded or they contradict each other;
                the message names the image.
        """


class FirstImages:
    """The first images of a reader, itself a reader.

    Args:
        reader: where they come from.
        count: how many, at least 1; all if there are fewer.
    """

    def __init__(self, reader: Reader, count: int):
        self._reader = reader
        self._count = min(count, len(reader))
        self.classes = reader.classes
        self.name, self.image_id, self.read = reader.name, reader.image_id, reader.read
        for method in ("annotated", "files", "read_for_training"):
            if hasattr(reader, method):
                setattr(self, method, getattr(reader, method))

    def __len__(self) -> int:
        return self._count

    def has_targets(self) -> np.ndarray:
        return self._reader.has_targets()[: self._count]
