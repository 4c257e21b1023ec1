"""Folders with JSONs of COCO's form, as tools put them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from pathlib import Path

from datasets.files.source import Folder
from datasets.layout.listing import ID_MAPS, MASKS, PHOTOS, DataFolder, Layout, both, split_of, words
from datasets.layout.published import coco_2017
from datasets.readers.coco_values import ROW_ERRORS, file_name
from datasets.readers.json_arrays import stream_arrays
from datasets.readers.labelme import is_labelme
from eomt.errors import InputError

MOST_JSONS = 24
"""JSONs of one folder that are looked into."""

_LOOKED_AT = 64  # MiB at a JSON's start, in which its first image is looked for
_COCO_WORDS = {"instances", "panoptic", "coco", "annotations", "result"}
_OTHER_JSONS = ("captions", "person_keypoints", "image_info", "stuff")  # of COCO


def coco(folder: DataFolder) -> Layout | None:
    """Recognise COCO 2017, or JSONs of its form; see `_jsons` for where they are looked for.

    Raises:
        InputError: if one that stands where a set is expected is damaged.
    """
    if published := coco_2017(folder):
        return published
    found: dict[str, dict[str | None, dict[str, str]]] = {}
    several: set[str] = set()
    strays: list[tuple[str | None, Path, InputError]] = []
    for path in _jsons(folder):
        below = path.relative_to(folder.path)
        split = split_of(path.stem) or split_of(below.parent.as_posix())
        try:
            seen = _peek(path)
        except InputError as error:
            strays.append((split, path, error))
            continue
        if seen is None:
            continue
        first, panoptic = seen
        task = f"coco_{'panoptic' if panoptic else 'instance'}"
        sets = found.setdefault(task, {})
        if split is None and split in sets:
            several.add(task)
        sets.setdefault(split, {"images": _photos_of(below, first, folder, split), "annotations": below.as_posix()})
    has = {split for sets in found.values() for split in sets}
    if "val" in has:
        has.add("test")  # not used then
    for split, path, error in strays:
        if _is_expected(path, split, has):
            raise InputError(f"{error}; repair it, move it away, or name the files by keys") from error
    readings = {
        task: both(sets)
        for task, sets in sorted(found.items(), reverse=True)
        if {*sets} - {None} or task not in several
    }
    return Layout(f"a data set with JSONs of COCO's form{folder.unused_photos(has)}", readings) if readings else None


def _jsons(folder: DataFolder) -> Iterator[Path]:
    """JSONs that may be of COCO's form: in `annotations/`, in the folder, and in those of its sets."""
    splits = [name for name in folder.below if split_of(name) and "/" not in name]
    for place in ("annotations", "", *splits):
        jsons = {name for name in folder.names(place) if name.endswith(".json")}
        if (folder.path / place / "_annotations.coco.json").is_file():  # beyond the first names, too
            jsons.add("_annotations.coco.json")
        own = [name for name in jsons if not name.startswith((".", *_OTHER_JSONS))]
        own.sort(key=lambda name: ("coco" not in name, name))
        yield from (folder.path / place / name for name in own[:MOST_JSONS])


def _peek(path: Path) -> tuple[str, bool] | None:
    """The name of the first image of a JSON of COCO's form, and whether it is panoptic; None if it is none.

    The name is empty if it lies far back, or the JSON is damaged: the reader says so.

    Raises:
        InputError: if it is JSON, but names no images.
    """
    has_pngs, of_name = DataFolder(path.parent).has(path.stem), words(path.stem)
    image, panoptic = None, has_pngs and "panoptic" in of_name
    try:
        chunks = islice(Folder(path.parent).chunks(path.name), _LOOKED_AT)
        keys = ("images", "annotations") if has_pngs else ("images",)
        for key, row in stream_arrays(chunks, keys, str(path)):
            if not isinstance(row, Mapping):
                raise TypeError
            if key == "images" and image is None:
                image = file_name(row)
            elif key == "annotations":
                panoptic = "segments_info" in row
            if image is not None and (key == "annotations" or not has_pngs):
                break
    except InputError as error:
        is_cut = error.__cause__ is not None  # not for a JSON without images
        if image is None and not is_cut:
            raise
        if image is None and (split_of(path.stem) or of_name & _COCO_WORDS):
            image = ""
    except ROW_ERRORS:
        image = image or ""
    else:
        if image is None:
            raise InputError(f"{path} names no images")
    return None if image is None else (image, panoptic)


def _photos_of(below: Path, name: str, folder: DataFolder, split: str | None) -> str:
    """The place, or the archive without its `.zip`, with the images of the JSON `below`, `name` the first of them."""
    inner = [place for place in folder.below if not words(place) & (MASKS | ID_MAPS)]
    inner.sort(key=lambda place: (split_of(place) != split, not words(place) & PHOTOS, place.count("/")))
    own = below.parent.as_posix()
    slashed = name.strip().replace("\\", "/")
    for part in (slashed, slashed.rpartition("/")[2]) if name else ():
        for place in (own, *inner, "."):  # a name such as images/train/1.jpg counts from above
            if (folder.path / place / part).is_file():
                return place
    return next((place for place in inner if not (folder.path / place).is_dir() or folder.holds(place)), own)


def _is_expected(path: Path, split: str | None, has: Collection[str | None]) -> bool:
    """True for a JSON that is not of COCO's form, but stands where that of a set is expected which has no other."""
    is_named = bool(words(path.stem) & {"coco", "instances", "panoptic"})
    is_named |= split is not None and path.parent.name == "annotations"
    # Lists and statistics lie beside JSONs of COCO's form, too.
    needed = split not in has and None not in has and (split is not None or not has)
    return needed and (is_named or bool(has)) and not is_labelme(path)
