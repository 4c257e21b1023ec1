"""What the readers of COCO's formats share: the images, by the rows of an index."""

from __future__ import annotations

import numpy as np

from datasets.files.decode import decode_rgb
from datasets.files.index import Index
from datasets.files.source import Member, Source
from datasets.readers.coco_files import JsonFile
from datasets.readers.coco_table import part
from eomt.classes import Classes
from eomt.errors import InputError


class CocoReader:
    """The image half of a `datasets.readers.base.Reader`.

    Args:
        images: holds the images.
        index: has the arrays of `coco_table.ImageTable` and the classes as "categories".
        json: the annotations.

    Attributes:
        classes: what the targets' labels count.
    """

    def __init__(self, images: Source, index: Index, json: JsonFile):
        self._images = images
        self._index = index
        self._json = json
        self.classes = Classes.from_list(index.meta["categories"])

    def __len__(self) -> int:
        return len(self._index["image_id"])

    def name(self, index: int) -> str:
        return self._name("image", index)

    def image_id(self, index: int) -> int:
        return int(self._index["image_id"][index])

    def files(self) -> tuple[set[str], set[str]]:
        """The images that the JSON names, and all files beside them."""
        used = {self._images.describe(self.name(index)) for index in range(len(self))}
        return used, {self._images.describe(name) for name in self._images.members()}

    def _name(self, kind: str, index: int) -> str:
        return part(self._index[f"{kind}_name"], self._index[f"{kind}_name_end"], index).decode()

    def _file(self, source: Source, kind: str, index: int) -> tuple[bytes, str]:
        """The contents of the index-th file of that kind, and how messages call it."""
        name, member = self._name(kind, index), Member(*self._index[f"{kind}_member"][index].item())
        return source.read(name, member), source.describe(name)

    def _size(self, index: int) -> tuple[int, int]:
        height, width = self._index["size"][index].tolist()
        return height, width

    def _image(self, index: int) -> tuple[np.ndarray, str]:
        """uint8 [H, W, 3], and how messages call it. InputError if it cannot be read or has not the JSON's size."""
        data, where = self._file(self._images, "image", index)
        image = decode_rgb(data, where)
        if image.shape[:2] != self._size(index):
            raise InputError(f"{where} is {by(image.shape)}, but its JSON says {by(self._size(index))}")
        return image, where


def by(shape: tuple[int, ...]) -> str:
    """A size for messages."""
    return f"{shape[1]}x{shape[0]} (width x height)"
