"""The interface of every dataset: images with their ground truth, read one at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

from eomt.classes import Classes
from eomt.errors import InputError
from eomt.targets import ImageId, ImageTargets


class Reader(Protocol):
    """A dataset before any transform. It can be pickled to workers and used by forked ones as it is.

    All files are found, and all that can be checked without decoding images is checked, when a reader is made; then
    it raises `eomt.errors.InputError`. `read` checks the image itself.

    A reader may have two methods more, which `check_data.py` calls: `annotated(index)`, see
    `datasets.readers.coco.CocoInstance`, and `files() -> tuple[set[str], set[str]]`, the paths that it uses and those
    that lie in its folders; and an attribute `photos`, the `datasets.files.photos.Photos` that it reads.

    Attributes:
        classes: the classes that the targets' labels count.
    """

    classes: Classes

    def __len__(self) -> int:
        """The number of images, also those without segments: validation scores them all."""

    def has_targets(self) -> np.ndarray:
        """bool [N]: the image has a segment to train on. Training leaves the others out."""

    def name(self, index: int) -> str:
        """The image's file name, for messages and for the names of results."""

    def image_id(self, index: int) -> ImageId:
        """The id under which result files name the image."""

    def read(self, index: int) -> tuple[np.ndarray, ImageTargets]:
        """Read one image.

        Returns:
            uint8 [H, W, 3], red, green, blue, contiguous and writable; and its targets of that size, crowd segments
            among them: training drops those, scores need them.

        Raises:
            InputError: if the image or its ground truth cannot be decoded or they contradict each other;
                the message names the image.
        """


class FirstImages:
    """The first images of a reader, itself a reader.

    Args:
        reader: the whole set.
        count: the number of images, at least 1; all if there are fewer.
    """

    def __init__(self, reader: Reader, count: int):
        self._reader = reader
        self._count = min(count, len(reader))
        self.classes = reader.classes
        self.name, self.image_id, self.read = reader.name, reader.image_id, reader.read
        for method in ("annotated", "files", "photos"):
            if hasattr(reader, method):
                setattr(self, method, getattr(reader, method))

    def __len__(self) -> int:
        return self._count

    def has_targets(self) -> np.ndarray:
        return self._reader.has_targets()[: self._count]


def open_root(root: str | Path | None, needs: str) -> Path:
    """The folder that holds a dataset, absolute.

    Args:
        root: the configured value.
        needs: the files that the folder must hold, for the message.

    Raises:
        InputError: if none is given or it is no folder.
    """
    if root is None:
        raise InputError("data.root is not set: give the folder that holds the dataset, as in data.root=DIR")
    path = Path(root).expanduser().absolute()
    if not path.is_dir():
        raise InputError(f"data.root: {path} is no folder; it must hold {needs}, as downloaded")
    return path


def check_size(truth: tuple[int, ...], size: tuple[int, ...], where: str, image: str) -> None:
    """Raise InputError unless ground truth has the size of its image, both (height, width)."""
    if truth != size:
        raise InputError(
            f"{where} is {_by(truth)} (width x height), but its image {image} is {_by(size)}: replace one of the two"
        )


def _by(size: tuple[int, ...]) -> str:
    return f"{size[1]}x{size[0]}"
