"""YOLO segmentation: a YAML file that names classes and folders, and a text file of polygons for each image."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from datasets.files.finder import FileFinder
from datasets.files.source import is_hidden
from datasets.readers.base import listed
from datasets.readers.foreign import BadImage, Foreign, Row, read_lines, read_text
from eomt.errors import InputError

_LARGEST = 1 << 17  # bytes of a YAML file, of which a second reads some
_ELSEWHERE = re.compile("/|[A-Za-z]:/")
_INSTEAD = {"train": ("train", "val", "test"), "val": ("val", "test", "train")}  # as `datasets.layout.listing.both`


def description(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The entries of a data.yaml, none of a text file of names, and the classes as categories.

    Raises:
        InputError: if it cannot be read, is no YAML of plain values, or lacks names.
    """
    text = read_text(path, _LARGEST)
    try:
        entries = {"names": text.rstrip().splitlines()} if path.suffix == ".txt" else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError) as error:
        raise InputError(f"{path} is no YAML of plain values: {' '.join(str(error).split())[:200]}") from error
    # Values are not repeated in messages: aliases make some of any length.
    names = entries.get("names") if isinstance(entries, dict) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names:
        raise InputError(f"{path} has no 'names': YOLO's form is names, a list or {{number: name}}, and train and val")
    for number, name in names.items():
        # Python writes no numbers of thousands of digits, which YAML has in other bases.
        huge = any(type(value) is int and value.bit_length() > 64 for value in (number, name))
        if huge or type(number) is not int or type(name) not in (str, int, float):
            raise InputError(f"{path}: names must be texts by number: quote those that YAML takes for something else")
    return entries, [{"id": number, "name": str(name)} for number, name in names.items()]


def places(path: Path, entries: Mapping[str, Any], split: str) -> list[Path]:
    """The folders and lists of images that a data.yaml names for "train", "val" or "test"; those that are there."""
    named = entries.get(split) or (entries.get("valid") if split == "val" else None)
    named = [entry for entry in (named if isinstance(named, list) else [named]) if isinstance(entry, str)]
    base = entries.get("path")
    base = base if isinstance(base, str) else ""
    found = []
    for entry in (entry.strip().replace("\\", "/") for entry in named):
        ways = [path.parent / base / entry, path.parent / entry]
        # Roboflow writes ../train/images for the folder beside the file, other tools the path on another machine.
        parts = entry.split("/")
        foreign = range(len(parts)) if _ELSEWHERE.match(entry) else range(parts[:1] == [".."], min(2, len(parts)))
        ways += [path.parent.joinpath(*parts[k:]) for k in foreign]
        found += [Path(os.path.normpath(way)) for way in ways if os.path.exists(way)][:1]
    return found


def folders(path: Path, entries: Mapping[str, Any], split: str) -> str | None:
    """The folder of a set's images, from that of its data.yaml: the folder itself where there are several or lists."""
    found = places(path, entries, split)
    if len(found) == 1 and found[0].is_dir():
        return os.path.relpath(found[0], path.parent)
    return "." if found else None


class Yolo(Foreign):
    """A set in YOLO's form, from its data.yaml or a text file of names.

    The label file of `a/images/b/1.jpg` is `a/labels/b/1.txt`, or lies beside it; a row is a class and the corners of
    its polygon, in parts of the image's width and height. An image without a label file has no object. Where the
    data.yaml names lists or several folders for the set, images of no other are taken. All classes are things.
    """

    def __post_init__(self):
        super().__post_init__()
        entries, self._categories = description(self.path)
        self._names = {row["id"]: row["name"] for row in self._categories}
        self._faults: list[Row] = []
        labels = {name: _label_file(str(self.image_file(name))) for name in self.photos}
        self._left_over = _without_image({*labels.values()})
        self.photos = self._chosen(
            next(filter(None, (places(self.path, entries, s) for s in _INSTEAD[self.split])), [])
        )
        self._labels = {name: labels[name] for name in self.photos}

        nc, count = entries.get("nc"), len(self._names)
        if type(nc) is int and 0 <= nc < 1 << 32 and nc != count:
            self.remarks.append(f"{self.path.name} says nc: {nc}, but has {count} names, which are the classes")
        if self._left_over:
            files = listed(map(self._below, self._left_over))
            self.remarks.append(f"{len(self._left_over)} label files have no image and are not used: {files}")
        if missing := sum(not file.exists() for file in self._labels.values()):
            self.remarks.append(f"{missing} of {len(self._labels)} images have no label file: taken to show no object")

    def files(self) -> Iterable[Path]:
        return [self.path, *map(self.image_file, self.photos), *self._labels.values(), *self._left_over]

    def images(self) -> Iterable[Row]:
        return chain(self._faults, map(self.photo_row, self.photos))

    def categories(self) -> Iterable[Row]:
        return self._categories

    def annotations(self) -> Iterator[Row]:
        known = listed([f"{number}: {name[:40]}" for number, name in self._names.items()], most=5)
        for name, size in self.sizes.items():
            file = self._labels[name]
            try:
                lines = read_text(file).splitlines() if file.exists() else []
            except InputError as error:  # an image of unknown ground truth is none without objects
                yield BadImage(name, error)
                continue
            for number, line in enumerate(lines, 1):
                if line.strip():
                    where = f"{self._below(file)}:{number}"
                    row = _row(where, name, line.split(), size)
                    if isinstance(row, dict) and row["category_id"] not in self._names:
                        unknown = f"{row['category_id']}"[:20]
                        fault = f"class {unknown} is not among the names of {self.path.name}: {known}"
                        row = InputError(f"{where}: {fault}")
                    yield row

    def _below(self, file: Path) -> str:
        return os.path.relpath(file, self.path.parent)

    def _chosen(self, named: list[Path]) -> list[str]:
        """The photos in the folders and lists that a data.yaml names; all where that is one folder."""
        lists = [place for place in named if not place.is_dir()]
        if len(named) <= 1 and not lists:
            return self.photos
        inside = tuple(os.path.join(place, "") for place in named if place not in lists)
        taken = {name for name in self.photos if inside and str(self.image_file(name)).startswith(inside)}
        finder = FileFinder(self.source, [self.path.parent])
        for file in lists:
            for entry in read_lines(file):
                try:
                    taken.add(finder.find(os.path.join(file.parent, entry[2:]) if entry.startswith("./") else entry))
                except ValueError as error:
                    self._faults.append(InputError(f"{file.name}: {error}"))
        return [name for name in self.photos if name in taken]


def _without_image(labels: Collection[Path]) -> list[Path]:
    """The label files that lie beside those of images, in folders of their own."""
    folders = {file.parent for file in labels if "labels" in file.parent.parts}
    files = (file for folder in folders for file in folder.glob("*.txt") if not is_hidden(file.name))
    return sorted(file for file in files if file not in labels and file.name != "classes.txt")


def _label_file(image: str) -> Path:
    stem = os.path.splitext(image)[0]
    folder, separator, name = stem.rpartition("/images/")
    usual, beside = Path(f"{folder}/labels/{name}.txt"), Path(f"{stem}.txt")
    return usual if separator and (usual.exists() or not beside.exists()) else beside


def _row(where: str, image: str, words: list[str], size: tuple[int, int]) -> Row:
    try:
        category, *numbers = float(words[0]), *map(float, words[1:])
        if not category.is_integer():
            raise ValueError("no class")
    except (ValueError, OverflowError):
        return InputError(f"{where}: expected a class and the corners of a polygon, found {' '.join(words)[:60]!r}")
    scale = (size[1], size[0]) * (len(numbers) // 2 + 1)
    corners = [number * side for number, side in zip(numbers, scale, strict=False)]
    # Four numbers are a box.
    polygons = [corners] if len(numbers) != 4 else None
    return {"id": where, "image_id": image, "category_id": int(category), "segmentation": polygons}
