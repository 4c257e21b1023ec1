"""Folders of images and label PNGs, and tables with columns of both."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from datasets.files.table import Columns, columns
from datasets.layout.listing import MASKS, PHOTOS, DataFolder, Layout, both, split_of, words
from eomt.errors import InputError
from eomt.photo import IMAGE_SUFFIXES

_FILES = ["classes.txt", "classes.json", "labelmap.txt", "class_names.txt", "labels.txt", "codes.txt", "names.txt"]


def masks(folder: DataFolder) -> Layout | None:
    """Recognise folders of images and of label PNGs, also of several sets."""
    truths = [name for name in folder.masks if folder.holds(name, (".png",))]
    sets: dict[str | None, dict[str, str]] = {}
    for name in sorted(folder.below, key=lambda name: not words(name) & PHOTOS) if truths else ():
        split = split_of(name)
        is_named = split is not None or words(name) & PHOTOS
        of_set = [truth for truth in truths if split_of(truth) == split]
        if is_named and not words(name) & MASKS and of_set and folder.holds(name):
            sets.setdefault(split, {"images": name, "labels": of_set[0]})
    if not sets:
        return None
    unused = folder.unused_photos({*sets, *["test"] * ("val" in sets)})
    file = _class_file(folder, _FILES)
    classes = {"classes": file} if file else {}
    colors = {"color_labels": True} if file == "labelmap.txt" else {}
    readings = {"folder_semantic": {**both(sets), **classes, **colors}}
    return Layout(f"a data set of images and label PNGs{unused}", readings)


def masks_of_other_kinds(folder: DataFolder) -> str | None:
    """The folder of masks beside a folder of photos, if they are photos' files, such as JPEGs."""
    kinds = tuple(kind for kind in IMAGE_SUFFIXES if kind != ".png")
    has_photos = any(words(name) & PHOTOS and not words(name) & MASKS for name in folder.below)
    return next((name for name in folder.masks if has_photos and folder.holds(name, kinds)), None)


def tables(folder: DataFolder) -> Layout | None:
    """Recognise Hugging Face's Parquet or Arrow files with columns of images and masks."""
    sets: dict[str | None, str] = {}
    first = None
    for place in [".", *folder.below]:
        for name in folder.names(place):
            if name.endswith((".parquet", ".arrow")) and not name.startswith("cache-"):
                first = first or folder.path / place / name
                split, word = split_of(name) or split_of(place), re.match("[A-Za-z]*", name)
                sets.setdefault(split, f"{place}/{word[0] if word else ''}*{Path(name).suffix}".removeprefix("./"))
    if first is None:
        return None
    try:
        found = columns(first)
    except InputError:  # said when it is opened, unless the folder is something else
        found = Columns(["image", "label"], None)
    truths = [name for name in found.images if words(name) & MASKS]
    photos = [name for name in found.images if name not in truths[:1]]
    photos.sort(key=lambda name: not words(name) & PHOTOS)
    truths = truths or photos[1:]
    if not photos or not truths:
        return None
    keys = {split: {"images": f"{name}:{photos[0]}", "labels": f"{name}:{truths[0]}"} for split, name in sets.items()}
    classes = _class_file(folder, ("id2label.json", *_FILES)) or found.classes
    readings = {"folder_semantic": {**both(keys), **({"classes": classes} if classes else {})}}
    return Layout("a Hugging Face data set", readings)


def _class_file(folder: DataFolder, files: Sequence[str]) -> str | None:
    return next((name for name in files if folder.has_files(name)), None)
