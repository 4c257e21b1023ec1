"""Ground truth of other formats as the rows of COCO's: `build_index` checks, draws and keeps both alike."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from datasets.files.source import Folder, Member, Source, is_hidden, stat_digest, without_heic_twins
from eomt.errors import InputError
from eomt.photo import IMAGE_SUFFIXES, Form, photo_size


class BadImage(InputError):
    """The reason why the ground truth of an image cannot be read; `image_id` is its id."""

    def __init__(self, image_id: str, error: InputError):
        super().__init__(str(error))
        self.image_id = image_id


Row = dict[str, Any] | InputError
"""A row as COCO's JSON has it, or why there is none."""


@dataclass
class Foreign(ABC):
    """A set of another format. Its rows are as a JSON of COCO's instance form has them; `isthing` 0 is stuff.

    Rows are read when they are asked for, images first.

    Args:
        path: the file or folder of its annotations.
        source: its images.
        split: "train" or "val".
        all_things: all classes are to be things.
        form: the form in which photos are taken, if one is chosen.

    Attributes:
        members: the files of `source`.
        photos: the names of those that are photos, sorted; see `without_heic_twins`.
        sizes: (height, width) of the images by id, once their rows have been read.
        remarks: lines on the whole set, complete once all rows have been read.
    """

    path: Path
    source: Source
    split: str
    all_things: bool
    form: Form | None

    def __post_init__(self):
        self.members = self.source.members()
        photos = (n for n in sorted(self.members) if n.lower().endswith(IMAGE_SUFFIXES) and not is_hidden(n))
        self.photos = without_heic_twins(photos)
        self.sizes: dict[str, tuple[int, int]] = {}
        self.remarks: list[str] = []

    @abstractmethod
    def files(self) -> Iterable[Path]:
        """The files on whose contents the rows depend."""

    @abstractmethod
    def images(self) -> Iterable[Row]:
        """The images' rows."""

    @abstractmethod
    def categories(self) -> Iterable[Row]:
        """The classes' rows."""

    @abstractmethod
    def annotations(self) -> Iterable[Row]:
        """The objects' rows."""

    def rows(self, keys: Collection[str]) -> Iterator[tuple[str, Row]]:
        """The rows of some of the three arrays with its name, as `stream_arrays` gives those of a JSON."""
        for key in ("images", "categories", "annotations"):
            if key in keys:
                yield from ((key, row) for row in getattr(self, key)())

    def digest(self) -> bytes:
        """A digest that changes when one of the files or an argument does, see `stat_digest`."""
        return stat_digest(self.files(), f"{self.form} {self.split} {self.path}\n").encode()

    def image_file(self, name: str) -> Path:
        """The path of an image, as if an archive were unpacked."""
        return Path(os.path.normpath(self.source.path), name)

    def photo_row(self, name: str) -> Row:
        """The row of a photo, under its name as its id."""
        return self.sized_row(name, self.source, name, self.members[name], self.form or "upright")

    def sized_row(self, image_id: str, source: Source, name: str, member: Member, form: Form) -> Row:
        """The row of an image whose size only a file tells."""
        data, tried = bytearray(), 0
        try:
            for chunk in chain(source.chunks(name, member), [b""]):
                data += chunk
                # It stands at the start of most; the others are not read anew by each piece.
                if len(data) < 2 * tried and chunk:
                    continue
                tried, size = len(data), photo_size(data, form)
                if size is not None:
                    self.sizes[image_id] = size
                    return {"id": image_id, "file_name": image_id, "height": size[0], "width": size[1]}
        except InputError as error:
            return error
        return InputError(f"{source.describe(name)} is no image that can be read")


def read_text(path: Path, most: int = 1 << 24) -> str:
    """A text file in UTF-8. InputError if it cannot be read, is longer than `most` bytes, or no such text."""
    data = bytearray()
    for chunk in Folder(path.parent).chunks(path.name):
        data += chunk
        if len(data) > most:
            raise InputError(f"{path} is larger than {most} bytes: it is no such file")
    try:
        if b"\0" in data:
            raise ValueError("a byte that is in no text")
        return data.decode("utf-8-sig")
    except ValueError as error:
        raise InputError(f"{path} is no text in UTF-8; save it as that") from error


def read_lines(path: Path) -> list[str]:
    """The lines of a list of files, without those that are empty; see `read_text`."""
    return [line.strip() for line in read_text(path, 1 << 28).splitlines() if line.strip()]


def mask_code(mask: np.ndarray) -> dict[str, Any]:
    """A mask, bool [H, W], as a row's `segmentation`."""
    code: Any = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": code["size"], "counts": code["counts"].decode()}
