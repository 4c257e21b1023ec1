"""The columns that the indices of COCO's formats share: the images, names, files, and classes."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from datasets.files.source import MEMBER, Source
from datasets.readers.coco_json import file_name, whole
from eomt.classes import Classes
from eomt.errors import Faults, InputError, raise_faults

MAX_SEGMENTS = int(np.iinfo(np.int16).max)
"""Of an image: targets number them in int16."""


class ImageTable:
    """The rows of a JSON's `images` as columns, in its order.

    Args:
        where: names the JSON in messages.

    Attributes:
        names: their file names.
        ids: their ids.
    """

    def __init__(self, where: str):
        self._where = where
        self.ids, self._sizes = array("q"), array("i")
        self.names: list[str] = []

    def add(self, row: Mapping) -> None:
        self.ids.append(whole(row, "id"))
        self._sizes.extend((_side(row, "height"), _side(row, "width")))
        self.names.append(file_name(row))

    def size(self, place: int) -> tuple[int, int]:
        """Height and width of the image at a place."""
        return self._sizes[2 * place], self._sizes[2 * place + 1]

    def places(self) -> dict[int, int]:
        """The place of each image id.

        Raises:
            InputError: if there are no images, or an id or a file name stands twice.
        """
        if not self.names:
            raise InputError(f"{self._where} names no images")
        faults = Faults()
        faults.check(self._check_unique, "image id", self.ids)
        faults.check(self._check_unique, "image file name", self.names)
        faults.end()
        return {image_id: place for place, image_id in enumerate(self.ids)}

    def arrays(self, images: Source) -> dict[str, np.ndarray]:
        """Their part of an index.

        Returns:
            `image_id` int64 [N], `size` int32 [N, 2] (height, width), `image_name` uint8 with `image_name_end`
            int64 [N + 1] (see `part`), `image_member` MEMBER [N].

        Raises:
            InputError: if a file is not there.
        """
        name, name_end = pack(self.names)
        return {
            "image_id": np.array(self.ids, dtype=np.int64),
            "size": np.array(self._sizes, dtype=np.int32).reshape(-1, 2),
            "image_name": name,
            "image_name_end": name_end,
            "image_member": locate(self.names, images, self._where),
        }

    def _check_unique(self, what: str, values: Sequence) -> None:
        twice = [
            f"{self._where}: the {what} {value} stands {times} times among the images"
            for value, times in Counter(values).most_common()
            if times > 1
        ]
        raise_faults(twice)


def read_classes(categories: Iterable[Mapping], where: str) -> Classes:
    """The classes of a JSON's `categories`.

    Raises:
        InputError: if they cannot be read; the message names the JSON.
    """
    try:
        return Classes.from_categories(categories)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{where}: an entry of 'categories' cannot be read ({error})") from error


def class_of(categories: Sequence[int], classes: Classes) -> np.ndarray:
    """int32: the class of each category id, -1 where there is none."""
    known, wanted = np.array(classes.ids, dtype=np.int64), np.array(categories, dtype=np.int64)
    order = np.argsort(known)
    place = order[np.searchsorted(known[order], wanted).clip(max=len(known) - 1)]
    return np.where(known[place] == wanted, place, -1).astype(np.int32)


def pack(names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Join names to uint8 bytes and int64 [N + 1] ends, the first 0."""
    encoded = [name.encode() for name in names]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return np.frombuffer(b"".join(encoded), dtype=np.uint8), ends


def part(joined: np.ndarray, ends: np.ndarray, index: int) -> bytes:
    """The index-th of the byte strings that were joined."""
    return joined[ends[index] : ends[index + 1]].tobytes()


def locate(names: Sequence[str], source: Source, where: str) -> np.ndarray:
    """MEMBER [N]: where the files lie.

    Raises:
        InputError: if one is not there.
    """
    members = source.members()
    missing = [name for name in names if name not in members]
    if missing:
        raise InputError(
            f"{source.describe(missing[0])} is missing, and {len(missing) - 1} more of {len(names)} files "
            f"that {where} names; download the archive again or complete it",
            [f"{source.describe(name)} is missing, which {where} names" for name in missing],
        )
    return np.array([members[name] for name in names], dtype=MEMBER)


def _side(row: Mapping, key: str) -> int:
    side = whole(row, key)
    if side < 1:
        raise ValueError(f"{key} must be at least 1, found {side}")
    return side
