"""The names in a folder of data, and what their words say."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from eomt.photo import IMAGE_SUFFIXES

_MOST_NAMES = 10_000  # of one folder
_MOST_FOLDERS, _MOST_INSIDE = 200, 50
_FEW = 1000  # names beside which a folder is looked into, too
_SPLITS = {
    "train": {"train", "training", "trn"},
    "val": {"val", "valid", "validation", "dev"},
    "test": {"test", "testing"},
}
SPLITS = tuple(_SPLITS)
# Words in the names of folders.
PHOTOS = {"images", "image", "imgs", "img", "photos", "photo", "jpegimages", "rgb", "inputs"}
MASKS = {"masks", "mask", "labels", "label", "annotations", "annotation", "annot", "annots", "ann", "anns", "gt"}
MASKS |= {"segmentation", "segmentations", "seg", "segs", "targets", "target", "segmentationclass"}
ID_MAPS = {"panoptic", "instance", "instances"}
SHARE = 0.9
"""The part of the images that is trained on where nothing is set aside for validation."""


class Layout(NamedTuple):
    """A form of data that a folder has.

    Attributes:
        what: in words.
        readings: for each task that can be trained the values of keys of `data`, such as `train.images`, paths below
            the folder. The first is chosen unless `task=` is typed.
    """

    what: str
    readings: Mapping[str, Mapping[str, Any]]


def both(splits: Mapping[Any, Mapping[str, Any]]) -> dict[str, Any]:
    """The keys of both sets from those of one set each, as `{"train": {"images": ...}}`.

    Where there is nothing to validate on but a test set, that is taken; where there is one set alone, it is divided.
    """
    train = splits.get("train") or splits.get(None) or splits.get("val") or splits["test"]
    val = splits.get("val") or splits.get("test") or train
    keys = {f"{split}.{key}": value for split, of in (("train", train), ("val", val)) for key, value in of.items()}
    return keys | ({"split": SHARE} if val is train else {})


def split_of(name: str) -> str | None:
    """The set for which a file or folder is, "train", "val" or "test", by the words in its name."""
    found = words(name)
    return next((split for split, of_split in _SPLITS.items() if found & of_split), None)


def words(name: str) -> set[str]:
    """The words of a name; CamVid's trainannot are two."""
    return set(re.findall("[a-z]+", re.sub("annots?(?=$|[^a-z])", " annot", name.lower())))


class DataFolder:
    """A folder of data, of which single folders are listed, and of each the first thousands of names.

    `place` is a folder below it, as `images/train`.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path):
        self.path = path

    @cached_property
    def below(self) -> list[str]:
        """Folders in the folder and in these, some hundred at most, and archives without their `.zip`."""
        top = self._folders_in("")
        return [*top, *(f"{name}/{inner}" for name in top for inner in self._folders_in(name))][:_MOST_FOLDERS]

    @property
    def masks(self) -> list[str]:
        """The folders that are named as those of masks of classes."""
        return [name for name in self.below if words(name) & MASKS and not words(name) & ID_MAPS]

    def names(self, place: str = "") -> list[str]:
        """The first names in a folder, sorted; none if it is no folder that can be read."""
        return [entry.name for entry in self._entries(place)]

    def has(self, *places: str) -> bool:
        """True if one of these is a folder, or there is an archive of its name."""
        return any((self.path / place).is_dir() or (self.path / f"{place}.zip").is_file() for place in places)

    def has_files(self, *names: str) -> bool:
        """True if all of these are files."""
        return all((self.path / name).is_file() for name in names)

    def holds(self, place: str, endings: tuple[str, ...] = IMAGE_SUFFIXES, deeper: bool = True) -> bool:
        """True if files of these endings are in a folder or, if `deeper`, in the first one in it."""
        inside = self._entries(place)
        found = [entry.name for entry in inside]
        if deeper and len(inside) < _FEW and not any(name.lower().endswith(endings) for name in found):
            inner = next((entry.name for entry in inside if _is_folder(entry)), None)
            found = self.names(f"{place}/{inner}") if inner else []
        return any(name.lower().endswith(endings) for name in found)

    def unused_photos(self, has: Collection[str | None]) -> str:
        """The folders of photos that seem to be of a set without ground truth, in words with a comma before them."""
        said = []
        for place in self.below if None not in has else ():
            if split_of(place) not in (None, *has) and not words(place) & (MASKS | ID_MAPS):
                photos = [name for name in self.names(place) if name.lower().endswith(IMAGE_SUFFIXES)]
                said += [f"{place} ({len(photos)} photos)"] * bool(photos)
        return f", but none for the photos in {' and '.join(said)}, which are not used" if said else ""

    def _entries(self, place: str) -> list[os.DirEntry[str]]:
        """The first printable names in a folder, sorted; asking what a link leads to takes a look at the disk each."""
        with suppress(OSError), os.scandir(self.path / place) as entries:
            first = [entry for entry in islice(entries, _MOST_NAMES) if entry.name.isprintable()]
            return sorted(first, key=lambda entry: entry.name)
        return []

    def _folders_in(self, place: str) -> list[str]:
        shown = (entry for entry in self._entries(place) if entry.name[0] != ".")
        found = (entry.name for entry in shown if entry.name.endswith(".zip") or _is_folder(entry))
        return sorted(name.removesuffix(".zip") for name in found)[:_MOST_INSIDE]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    with suppress(OSError):  # a link that leads to itself
        return entry.is_dir()
    return False
