"""Images and their ground-truth files, matched by name, from archives or folders."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np

from datasets.files.decode import decode_rgb
from datasets.files.index import open_index
from datasets.files.source import MEMBER, Member, Source
from datasets.readers.coco_table import pack, part
from eomt.errors import InputError

log = logging.getLogger(__name__)

# Part of the index's key: raise it when the arrays or their meaning change.
_VERSION = 1


class PairedFiles:
    """Images in the order of their names, each with one file from every source of ground truth.

    An image and its ground truth have the same relative path, but for their endings. Where they lie is found
    out once and kept in an index: see `datasets.files.index`.

    Args:
        images: holds the images.
        image_endings: how their names end, as (".jpg",), whatever the case of letters.
        truths: sources of ground truth, each with the ending of its names, likewise.

    Raises:
        InputError: if there is no image, two images differ in nothing but their endings, or one lacks a file.
    """

    def __init__(self, images: Source, image_endings: Sequence[str], truths: Sequence[tuple[Source, str]]):
        self._images = images
        self._image_endings = tuple(image_endings)
        self._truths = tuple(truths)
        self._index = open_index(self._key(), self._build)

    def _key(self) -> str:
        state = blake2b(repr((self._image_endings, [ending for _, ending in self._truths])).encode(), digest_size=16)
        for source in (self._images, *(source for source, _ in self._truths)):
            state.update(source.fingerprint())
        return f"pairs-{_VERSION}-{state.hexdigest()}"

    def __len__(self) -> int:
        return len(self._index["image_member"])

    def name(self, index: int) -> str:
        """The image's path within its source."""
        return self._name("image", index)

    def image(self, index: int) -> tuple[np.ndarray, str]:
        """uint8 [H, W, 3], red, green, blue, writable; and how messages call the file.

        Raises:
            InputError: if it cannot be read.
        """
        data, where = self._read(self._images, "image", index)
        return decode_rgb(data, where), where

    def truth(self, kind: int, index: int) -> tuple[bytes, str]:
        """The contents of the image's file from the source `truths[kind]`, and how messages call it.

        Raises:
            InputError: if it cannot be read.
        """
        return self._read(self._truths[kind][0], f"truth{kind}", index)

    def files(self) -> tuple[set[str], set[str]]:
        """The files of images and ground truth that are used, and all that lie beside them."""
        used, there = set(), set()
        columns = {"image": self._images} | {f"truth{kind}": source for kind, (source, _) in enumerate(self._truths)}
        for column, source in columns.items():
            used |= {source.describe(self._name(column, index)) for index in range(len(self))}
            there |= {source.describe(name) for name in source.members()}
        return used, there

    def _read(self, source: Source, column: str, index: int) -> tuple[bytes, str]:
        name, member = self._name(column, index), Member(*self._index[f"{column}_member"][index].item())
        return source.read(name, member), source.describe(name)

    def _name(self, column: str, index: int) -> str:
        return part(self._index[f"{column}_name"], self._index[f"{column}_name_end"], index).decode()

    def _build(self) -> tuple[dict[str, np.ndarray], dict]:
        images = _by_stem(self._images, self._image_endings)
        if not images:
            patterns = " or ".join(f"*{ending}" for ending in self._image_endings)
            raise InputError(f"there are no images {self._images.describe(patterns)}")
        stems = sorted(images)
        arrays = _columns("image", [images[stem] for stem in stems])
        for kind, (source, ending) in enumerate(self._truths):
            found = _by_stem(source, (ending,))
            self._check(stems, images, source, ending, found)
            arrays |= _columns(f"truth{kind}", [found[stem] for stem in stems])
        return arrays, {}

    def _check(self, stems: list[str], images: dict, source: Source, ending: str, found: dict) -> None:
        missing = [stem for stem in stems if stem not in found]
        if missing:
            first, (image, _) = source.describe(missing[0] + ending), images[missing[0]]
            raise InputError(
                f"{len(missing)} of {len(stems)} images in {self._images.describe('')} have no ground truth: "
                f"{first} is missing, the file of {image}; complete the files, or move those images away",
                [f"{source.describe(stem + ending)} is missing, the file of {images[stem][0]}" for stem in missing],
            )
        left_over = sorted(stem for stem in found if stem not in images)
        if left_over:
            log.warning(
                "%d files of ground truth have no image and are not used, the first: %s",
                len(left_over),
                source.describe(found[left_over[0]][0]),
            )


def _by_stem(source: Source, endings: Sequence[str]) -> dict[str, tuple[str, Member]]:
    """Name and place of the files with one of the endings, by their names without it."""
    found: dict[str, tuple[str, Member]] = {}
    for name, member in source.members().items():
        ending = next((ending for ending in endings if name.lower().endswith(ending.lower())), None)
        if ending is None or _is_hidden(name):
            continue
        if not _is_text(name):
            raise InputError(f"{source.describe(ascii(name))} has a name that is no UTF-8: rename the file")
        stem = name[: -len(ending)]
        if stem in found:
            names = " and ".join(sorted((found[stem][0], name)))
            raise InputError(f"{source.describe('')} has both {names}: files are matched by name, so keep one of them")
        found[stem] = name, member
    return found


def _is_hidden(name: str) -> bool:
    """True for what systems leave behind, such as macOS's __MACOSX/._photo.jpg."""
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # what a folder gives for bytes that it cannot decode
        return False
    return True


def _columns(prefix: str, files: Iterable[tuple[str, Member]]) -> dict[str, np.ndarray]:
    names, members = zip(*files, strict=True)
    text, ends = pack(names)
    return {
        f"{prefix}_name": text,
        f"{prefix}_name_end": ends,
        f"{prefix}_member": np.array(list(members), dtype=MEMBER),
    }
