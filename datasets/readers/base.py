"""The interface of every dataset: images with their ground truth, read one at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from datasets.files.index import Index
from eomt.classes import Classes
from eomt.errors import InputError
from eomt.postprocess.geometry import MAX_WINDOWS
from eomt.targets import ImageId, ImageTargets

NOTES = {
    "unknown_id": "images whose panoptic PNG shows ids that its JSON lacks: those pixels are void",
    "no_pixels": "images whose panoptic PNG lacks segments of its JSON: these count as missed when scored",
    "no_segment": "images without a segment, or of crowds alone: left out of training unless data.keep_empty=true",
    "reduced": f"images too long for {MAX_WINDOWS} windows, validated at a lower resolution: cut them into pieces",
}
"""Texts of a run's notes on single images, by their kind; readers name kinds in `ImageTargets.notes`."""

SKIP_BAD = "data.skip_bad=true leaves out what is bad"

NAMED = 10
"""Faults, files or classes that a message names; it counts the rest."""


MOST_DETAILS = 10_000
"""Faults that are kept: a file of another kind has one in every row."""


class Reader(Protocol):
    """A dataset before any transform. It can be pickled to workers and used by forked ones as it is.

    All files are found, and all that can be checked without decoding images is checked, when a reader is made; then
    it raises `eomt.errors.InputError`. `read` checks the image itself.

    A reader may have more. `remarks() -> list[str]` says of the whole set, a line each, what is left out, limited or
    taken for granted; a run prints it once. `check_data.py` calls `annotated(index)`, see
    `datasets.readers.coco.CocoInstance`; `files() -> tuple[set[str], set[str]]`, the paths that it uses and those
    that lie in its folders; and `left_out() -> list[str]`, a line for each fault that `data.skip_bad` passes over. An
    attribute `photos` is the `datasets.files.photos.Photos` that it reads. For chosen classes, `segments()`, see there,
    tells which images show them without reading any, and `one_per_class = True` that an image has at most one segment
    of a class, as in semantic segmentation: so have merged ones.

    Attributes:
        classes: the classes that the targets' labels count.
    """

    classes: Classes

    def __len__(self) -> int:
        """The number of images, also those without segments: validation scores them all."""
        ...

    def has_targets(self) -> np.ndarray:
        """bool [N]: the image has a segment to train on. Training leaves the others out."""
        ...

    def name(self, index: int) -> str:
        """The image's file name, for messages and for the names of results."""
        ...

    def image_id(self, index: int) -> ImageId:
        """The id under which result files name the image."""
        ...

    def read(self, index: int) -> tuple[np.ndarray, ImageTargets]:
        """Read one image.

        Returns:
            uint8 [H, W, 3], red, green, blue, contiguous and writable; and its targets of that size, crowd segments
            among them: training drops those, scores need them.

        Raises:
            InputError: if the image or its ground truth cannot be decoded or they contradict each other;
                the message names the image.
        """
        ...


class Subset:
    """Some images of a reader, itself a reader.

    Args:
        reader: the whole set.
        numbers: the images' numbers there, rising; those beyond its end are left out.

    Attributes:
        whole: that reader.
        numbers: int64 [N].
    """

    def __init__(self, reader: Reader, numbers: Sequence[int] | np.ndarray):
        numbers = np.asarray(numbers, dtype=np.int64)
        numbers = numbers[numbers < len(reader)]
        if isinstance(reader, Subset):
            reader, numbers = reader.whole, reader.numbers[numbers]
        self.whole, self.numbers = reader, numbers
        self.classes = reader.classes
        self.name, self.image_id, self.read = (partial(self._of, name) for name in ("name", "image_id", "read"))
        if hasattr(reader, "annotated"):
            self.annotated = partial(self._of, "annotated")
        for method in ("files", "left_out", "photos", "remarks"):
            if hasattr(reader, method):
                setattr(self, method, getattr(reader, method))

    def __len__(self) -> int:
        return len(self.numbers)

    def has_targets(self) -> np.ndarray:
        return self.whole.has_targets()[self.numbers]

    def _of(self, method: str, index: int) -> Any:
        return getattr(self.whole, method)(int(self.numbers[index]))


def divided(reader: Reader, share: float, train: bool) -> list[int]:
    """The numbers of the images that are trained on, or of the others, by a digest of their names.

    Raises:
        InputError: if there are fewer than two images.
    """
    if len(reader) < 2:
        raise InputError(f"data.split={share:g} needs two images or more, found {len(reader)}")
    names = (reader.name(number).encode("utf-8", "surrogateescape") for number in range(len(reader)))
    digests = [blake2b(name).digest() for name in names]
    order = sorted(range(len(digests)), key=digests.__getitem__)
    count = min(max(round(share * len(order)), 1), len(order) - 1)
    return sorted(order[:count] if train else order[count:])


def listed(what: Iterable[object], separator: str = ", ", count: int | None = None, most: int = NAMED) -> str:
    """The first `most` of `count` names or faults, default all of `what`, and the number of the rest."""
    what = list(what)
    shown = [str(item) for item in what[:most]]
    more = (len(what) if count is None else count) - len(shown)
    return separator.join([*shown, *[f"and {more} more"] * (more > 0)])


def index_remarks(index: Index) -> list[str]:
    """The remarks in an index's `meta` and texts: what was taken for granted in a set, and what is left out."""
    lines, count = list(index.meta["remarks"]), index.meta["left_out"]
    if count:
        lines.append(f"data.skip_bad=true leaves out {count}: {listed(left_out(index), '; ', count)}")
    return lines


def left_out(index: Index) -> list[str]:
    """The faults that `data.skip_bad` passes over, as far as an index keeps them."""
    kept = min(index.meta["left_out"], MOST_DETAILS)
    return [line.decode() for line in index.texts("left_out", 0, kept)]


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
