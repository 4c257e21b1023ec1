"""LabelMe's JSONs: one beside each image, of shapes (labelme 5 and before)."""

from __future__ import annotations

import base64
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from datasets.files.decode import decode_label_map
from datasets.files.source import Folder, is_hidden
from datasets.readers.base import listed
from datasets.readers.coco_values import ROW_ERRORS, segmentation_code
from datasets.readers.foreign import BadImage, Foreign, Row, mask_code, read_text
from eomt.errors import InputError
from eomt.photo import HEIF_SUFFIXES, photo_size

_LARGEST = 1 << 28  # bytes of a JSON: it may hold its image
_HEAD = 1 << 16
_NO_CLASS = ("__ignore__", "_background_")  # labels by which LabelMe's own tools know void and background
_NO_AREA = ("line", "linestrip", "point", "points")
_SAGITTA = 0.1  # pixels between a circle and its polygon
_MOST_CORNERS = 720


def is_labelme(path: Path) -> bool:
    """True if a JSON begins as LabelMe's do."""
    try:
        head = next(Folder(path.parent).chunks(path.name), b"")[:_HEAD]
    except InputError:
        return False
    return re.search(rb'"shapes"\s*:\s*\[', head) is not None


class LabelMe(Foreign):
    """A set of LabelMe's JSONs, from the folder of all; those whose image is not among the images are of another set.

    Polygons, rectangles, circles and masks are objects, those of one label and `group_id` one together; all labels of
    all JSONs are classes, by name. Lines, points and the labels `__ignore__` and `_background_` are left out.

    Raises:
        InputError: for a panoptic set: shapes may overlap.
    """

    def __post_init__(self):
        if not self.all_things:
            raise InputError(f"{self.path} holds LabelMe's shapes, which may overlap: task=coco_instance reads them")
        super().__post_init__()
        jsons = (name for name in sorted(Folder(self.path).members()) if name.endswith(".json"))
        self._jsons = [self.path / name for name in jsons if not is_hidden(name)]
        self._photos_of_stem: dict[str, list[str]] = {}
        for name in self.photos:
            self._photos_of_stem.setdefault(Path(name).stem, []).append(name)
        self._json_of: dict[str, Path] = {}
        self._labels: set[str] = set()
        self._guessed: dict[str, str] = {}

    def files(self) -> Iterable[Path]:
        return [*self._jsons, *map(self.image_file, self.photos)]  # sizes are those of the photos

    def images(self) -> Iterator[Row]:
        others = 0
        for file in self._jsons:
            try:
                document = _document(file)
                if document is None:
                    others += 1
                    continue
                self._labels.update(shape["label"] for shape in document["shapes"] if _is_object(shape))
                row = self._image(file, document["imagePath"])
            except InputError as error:
                row = error
            if row is not None:
                yield row
        if others:
            self.remarks.append(f"{others} JSONs in {self.path} are none of LabelMe's")
        if self._guessed:
            found, name = next(iter(self._guessed.items()))
            count = len(self._guessed)
            self.remarks.append(f"{count} images are found by their JSONs' names, the first: {found} for {name!r}")
        if bare := sorted({*self.photos} - {*self._json_of}):
            self.remarks.append(f"{len(bare)} images have no JSON and are not used: {listed(bare)}")

    def categories(self) -> list[Row]:
        return [{"id": number, "name": name} for number, name in enumerate(sorted(self._labels), 1)]

    def annotations(self) -> Iterator[Row]:
        number, left_out = {name: k for k, name in enumerate(sorted(self._labels), 1)}, Counter()
        for name, size in self.sizes.items():
            file = self._json_of[name]
            try:
                shapes = (_document(file) or {"shapes": []})["shapes"]
            except InputError as error:
                yield BadImage(name, error)
                continue
            left_out.update(filter(None, map(_left_out, shapes)))
            for row in _objects(shapes, os.path.relpath(file, self.path), size):
                if isinstance(row, dict):
                    row |= {"image_id": name, "category_id": number[row["label"]]}
                yield row
        if left_out:
            what = ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()))
            self.remarks.append(f"{left_out.total()} shapes are no objects and left out: {what}")

    def _image(self, file: Path, name: object) -> Row | None:
        """The row of a JSON's image; None if it is of another set."""
        if not isinstance(name, str):
            return InputError(f"{file}: imagePath must be a text, found {repr(name)[:60]}")
        slashed, inside = name.replace("\\", "/"), os.path.join(os.path.normpath(self.source.path), "")
        for way in (slashed, os.path.basename(slashed)):
            place = os.path.normpath(file.parent / way)
            found = place.removeprefix(inside) if place.startswith(inside) else None
            if found in self.members:
                break
            if os.path.exists(place):
                return None
        else:
            alike = self._photos_of_stem.get(file.stem, [])
            alike = [name for name in alike if not name.lower().endswith(HEIF_SUFFIXES)] or alike
            if len(alike) != 1:
                is_own = os.path.join(os.path.normpath(file.parent), "").startswith(inside)
                return InputError(f"{file}: its image {name!r} is missing") if is_own else None
            found = alike[0]
            self._guessed[found] = name
        if found in self._json_of:
            return InputError(f"{file} and {self._json_of[found]} are both of the image {found}: keep one")
        row = self.photo_row(found)
        if isinstance(row, dict):
            self._json_of[found] = file
        return row


def _document(file: Path) -> dict[str, Any] | None:
    """A JSON of LabelMe's, None for one of another kind. InputError if it is no JSON, or its shapes are no list."""
    try:
        document = json.loads(read_text(file, _LARGEST))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is no JSON: {error}") from error
    if not isinstance(document, dict) or "shapes" not in document or "imagePath" not in document:
        return None
    if not isinstance(document["shapes"], list):
        raise InputError(f"{file}: shapes must be a list, found {repr(document['shapes'])[:60]}")
    return document


def _left_out(shape: object) -> str:
    """The reason why a shape is no object, in words; empty for an object, and for what is none of LabelMe's shapes."""
    label, kind = (shape.get("label"), shape.get("shape_type")) if isinstance(shape, Mapping) else (None, None)
    if label in _NO_CLASS:
        return f"of the label {label}"
    return f"of the type {kind}" if kind in _NO_AREA else ""


def _is_object(shape: object) -> bool:
    return isinstance(shape, Mapping) and isinstance(shape.get("label"), str) and not _left_out(shape)


def _objects(shapes: list[Any], file: str, size: tuple[int, int]) -> Iterator[Row]:
    """A row for each object, without its image and category but with its label."""
    objects: dict[object, tuple[dict[str, Any], list]] = {}
    for number, shape in enumerate(shapes, 1):
        if _left_out(shape):
            continue
        where = f"{file}: shape {number}"
        try:
            if not _is_object(shape):
                raise TypeError("it must be an object with a label, a text")
            group = shape.get("group_id")
            key = number if group is None else (shape["label"], json.dumps(group))
            objects.setdefault(key, ({"id": where, "label": shape["label"]}, []))[1].append(_part(shape, where, size))
        except InputError as error:
            yield error
        except ROW_ERRORS as error:
            yield InputError(f"{where}: {f'it lacks {error}' if isinstance(error, KeyError) else error}")
    for row, parts in objects.values():
        if any(isinstance(part, np.ndarray) for part in parts):
            mask = np.logical_or.reduce([p if isinstance(p, np.ndarray) else _drawn(p, size) for p in parts])
            parts = mask_code(mask)
        if parts:
            yield row | {"segmentation": parts}


def _part(shape: Mapping[str, Any], where: str, size: tuple[int, int]) -> list[float] | np.ndarray:
    """A shape's polygon, checked, or its mask, bool [H, W]."""
    kind, points = shape.get("shape_type") or "polygon", shape["points"]
    if not isinstance(points, list) or any(not isinstance(point, list) or len(point) != 2 for point in points):
        raise ValueError(f"its points must be a list of [x, y], found {repr(points)[:60]}")
    if kind == "mask":
        return _mask(shape["mask"], [round(value) for point in points[:2] for value in point], where, size)
    if kind in ("rectangle", "circle") and len(points) == 2:
        (x, y), (u, v) = points
        if kind == "rectangle":
            points = [(x, y), (u, y), (u, v), (x, v)]
        else:
            radius = math.hypot(u - x, v - y)
            corners = math.ceil(min(max(math.pi * math.sqrt(radius / (2 * _SAGITTA)), 12), _MOST_CORNERS))
            turns = (2 * math.pi * k / corners for k in range(corners))
            points = [(x + radius * math.cos(turn), y + radius * math.sin(turn)) for turn in turns]
    elif kind not in ("polygon", "rectangle", "oriented_rectangle"):
        raise ValueError(f"the type {repr(kind)[:60]} of {len(points)} points is none that is read")
    polygon = [value for point in points for value in point]
    segmentation_code([polygon], size)
    return polygon


def _mask(code: str, box: list[int], where: str, size: tuple[int, int]) -> np.ndarray:
    left, top, right, bottom = box
    height, width = bottom - top + 1, right - left + 1
    if not (0 <= top <= bottom < size[0] and 0 <= left <= right < size[1]):
        raise ValueError(f"its box {box} is not within its image of {size[1]}x{size[0]} (width x height)")
    data = base64.b64decode(code, validate=True)
    if photo_size(data, "stored") != (height, width):
        raise ValueError(f"its mask is no PNG of {width}x{height} (width x height), the size of its box")
    mask = np.zeros(size, dtype=bool)
    mask[top : bottom + 1, left : right + 1] = decode_label_map(data, where) > 0
    return mask


def _drawn(polygon: list[float], size: tuple[int, int]) -> np.ndarray:
    code: Any = segmentation_code([polygon], size)
    return coco_mask.decode(code) > 0
