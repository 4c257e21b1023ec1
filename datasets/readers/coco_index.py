"""From COCO's JSONs to the arrays of an index, checked for contradictions on the way.

Polygons become run lengths here, once, so that reading an image draws none. COCO's 860,000 training annotations
take some 40 seconds and 0.7 GB.
"""

from __future__ import annotations

import contextlib
import logging
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np

from datasets.files.index import Index, text_columns
from datasets.files.source import Source, file_columns
from datasets.readers.base import Annotated
from datasets.readers.coco_json import (
    ROW_ERRORS,
    area,
    file_name,
    flag,
    problem,
    run_lengths,
    side,
    stream_arrays,
    take_row,
    whole,
)
from eomt.classes import Classes
from eomt.errors import Faults, InputError, raise_faults

log = logging.getLogger(__name__)

VERSION = 2
"""Part of an index's key: raise it when the arrays or their meaning change."""

MAX_SEGMENTS = int(np.iinfo(np.int16).max)
"""Segments of an image: targets number them in int16."""

_REPORT_EVERY = 100_000  # annotations: some five seconds


def build_instance_index(
    chunks: Callable[[], Iterable[bytes]], where: str, source: Source
) -> tuple[dict[str, np.ndarray], dict]:
    """Read an instance JSON, draw its polygons, and find its images.

    Args:
        chunks: gives the JSON's bytes in pieces, from the start at each call.
        where: the JSON's name in messages.
        source: the N images.

    Returns:
        The arrays, images in the JSON's order: `image_id` int64 [N]; `size` int32 [N, 2] (height, width); the files
        "image" (see `IndexedFiles`); `segment_end` int64 [N + 1], by which an image's segments are the rows
        segment_end[i]..segment_end[i + 1] - 1 of `segment_id` int64 [S] (the annotation ids), `label` int32 [S]
        (0..C-1), `crowd` bool [S], `area` float64 [S], and of the texts "mask", COCO's compressed run lengths.
        And {"categories": Classes.to_list()}.

    Raises:
        InputError: if the JSON is damaged, lacks a value, contradicts itself, or names a missing file.
    """
    return _build(chunks, where, source, _Instances)


def build_panoptic_index(
    chunks: Callable[[], Iterable[bytes]], where: str, source: Source, masks: Source
) -> tuple[dict[str, np.ndarray], dict]:
    """Read a panoptic JSON and find its images and PNGs.

    Returns:
        As `build_instance_index`, but `segment_id` holds the ids of the PNGs (1..2^24 - 1), and in image of areas and
        run lengths there are the files "mask" and `mask_of_image` int64 [N], their numbers; -1 for an image without.
    """
    return _build(chunks, where, source, partial(_Panoptic, masks))


def _build(
    chunks: Callable[[], Iterable[bytes]], where: str, source: Source, make_table: Callable[[_Images], _Segments]
) -> tuple[dict[str, np.ndarray], dict]:
    images, faults = _Images(where), Faults()
    # A polygon cannot be drawn without its image's size, and some files name the images last: they are read first.
    for key, row in stream_arrays(chunks(), ("images", "annotations"), where):
        if key == "images":
            faults.check(take_row, images.add, key, row, where)
        elif images.names:
            break
    faults.end()
    faults.check(images.check)
    image_columns = faults.check(images.columns, source)
    table = make_table(images)
    add = {"categories": table.add_category, "annotations": table.add}
    for key, row in stream_arrays(chunks(), add, where):
        faults.check(take_row, add[key], key, row, where)
    classes = faults.check(table.classes)
    columns = faults.check(table.columns, classes) if classes else None
    faults.end()
    return image_columns | columns, {"categories": classes.to_list()}


class _Images:
    """The rows of `images` as columns, in the JSON's order."""

    def __init__(self, where: str):
        self.where = where
        self.names: list[str] = []
        self._index_of: dict[int, int] = {}
        self._ids, self._sizes = array("q"), array("i")

    def add(self, row: Mapping) -> None:
        number, sides, name = whole(row, "id"), (side(row, "height"), side(row, "width")), file_name(row)
        self._ids.append(number)
        self._sizes.extend(sides)
        self._index_of.setdefault(number, len(self.names))
        self.names.append(name)

    def index(self, row: Mapping) -> int:
        """The index of the image to which an annotation belongs."""
        number = whole(row, "image_id")
        if number not in self._index_of:
            raise ValueError(f"it belongs to the unknown image id {number}")
        return self._index_of[number]

    def size(self, image: int) -> tuple[int, int]:
        """Height and width."""
        return self._sizes[2 * image], self._sizes[2 * image + 1]

    def check(self) -> None:
        """Raise InputError if there are no images, or an id or a file name stands twice."""
        if not self.names:
            raise InputError(f"{self.where} names no images")
        raise_faults(
            [
                f"{self.where}: the {what} {value} stands {times} times among the images"
                for what, values in (("image id", self._ids), ("image file name", self.names))
                for value, times in Counter(values).most_common()
                if times > 1
            ]
        )

    def columns(self, source: Source) -> dict[str, np.ndarray]:
        return {
            "image_id": np.array(self._ids, dtype=np.int64),
            "size": np.array(self._sizes, dtype=np.int32).reshape(-1, 2),
            **_locate("image", self.names, source, self.where),
        }


class _Segments:
    """Segments as columns, in the order in which they come."""

    what = "segment"

    def __init__(self, images: _Images):
        self._images = images
        self._category_rows: list[Mapping] = []
        self._image_of, self._ids, self._categories, self._crowd = array("q"), array("q"), array("q"), array("b")

    def add_category(self, row: Mapping) -> None:
        self._category_rows.append(row)

    def classes(self) -> Classes:
        """The classes of the categories. InputError if there are none or one is malformed."""
        try:
            return Classes.from_categories(self._category_rows)
        except InputError as error:
            raise InputError(f"{self._images.where}: {error}") from error

    def _add(self, image: int, number: int, row: Mapping) -> None:
        category, crowd = whole(row, "category_id"), flag(row, "iscrowd")
        self._ids.append(number)  # may raise, as the next may: before the others, so that all stay of one length
        self._categories.append(category)
        self._image_of.append(image)
        self._crowd.append(crowd)

    def _sorted(self, classes: Classes) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The columns sorted by image, and that order, int64 [S]."""
        image_of, ids = np.array(self._image_of, dtype=np.int64), np.array(self._ids, dtype=np.int64)
        label_of = {number: label for label, number in enumerate(classes.ids)}
        labels = np.array([label_of.get(number, -1) for number in self._categories], dtype=np.int32)
        counts = np.bincount(image_of, minlength=len(self._images.names))
        lines = [
            self._line(s, f"has the category id {self._categories[s]}, which is not in 'categories'")
            for s in np.flatnonzero(labels < 0)
        ]
        lines += [
            f"{self._images.where}: the image {self._images.names[image]} has {counts[image]} {self.what}s, more than "
            f"{MAX_SEGMENTS}"
            for image in np.flatnonzero(counts > MAX_SEGMENTS)
        ]
        raise_faults(lines)
        order = np.argsort(image_of, kind="stable")
        columns = {
            "segment_end": np.concatenate([[0], np.cumsum(counts)]),
            "segment_id": ids[order],
            "label": labels[order],
            "crowd": np.array(self._crowd, dtype=bool)[order],
        }
        return columns, order

    def _line(self, segment: int, fault: str) -> str:
        name = self._images.names[self._image_of[segment]]
        return f"{self._images.where}: {self.what} {self._ids[segment]} of the image {name} {fault}"


class _Instances(_Segments):
    what = "annotation"

    def __init__(self, images: _Images):
        super().__init__(images)
        self._areas, self._masks = array("d"), []

    def add_category(self, row: Mapping) -> None:
        # All are things, even in a JSON made from a panoptic one.
        super().add_category({**row, "isthing": 1})

    def add(self, row: Mapping) -> None:
        number = whole(row, "id")
        try:
            image = self._images.index(row)
            mask = run_lengths(row.get("segmentation"), self._images.size(image))
            size = area(row.get("area"), mask)
            self._add(image, number, row)
        except ROW_ERRORS as error:
            fault = f"{self._images.where}: annotation {number} {problem(error)}; mend or remove it"
            raise InputError(fault) from error
        self._areas.append(size)
        self._masks.append(mask["counts"])
        if len(self._ids) % _REPORT_EVERY == 0:
            log.info("%d annotations of %s read", len(self._ids), self._images.where)

    def columns(self, classes: Classes) -> dict[str, np.ndarray]:
        faults = Faults()
        sorted_ = faults.check(self._sorted, classes)
        ids, times = np.unique(np.array(self._ids, dtype=np.int64), return_counts=True)
        where = self._images.where
        twice = [f"{where}: the annotation id {number} stands more than once" for number in ids[times > 1]]
        faults.check(raise_faults, twice)
        faults.end()
        columns, order = sorted_
        columns["area"] = np.array(self._areas, dtype=np.float64)[order]
        return columns | text_columns("mask", (self._masks[segment] for segment in order.tolist()))


class _Panoptic(_Segments):
    def __init__(self, masks: Source, images: _Images):
        super().__init__(images)
        self._source = masks
        self._mask_names: list[str] = []
        self._mask_of: dict[int, int] = {}

    def add(self, row: Mapping) -> None:
        name = file_name(row)
        self._mask_names.append(name)
        try:
            image = self._images.index(row)
            if image in self._mask_of:
                raise ValueError(f"the image {self._images.names[image]} has more than one annotation")
            self._mask_of[image] = len(self._mask_names) - 1
            self._add_segments(image, row["segments_info"])
        except ROW_ERRORS as error:
            raise InputError(f"{self._images.where}: the annotation {name} {problem(error)}; mend it") from error

    def _add_segments(self, image: int, rows: Sequence[Mapping]) -> None:
        seen: set[int] = set()
        for row in rows:
            number = whole(row, "id")
            if number in seen or not 0 < number < 1 << 24:
                twice = number in seen
                fault = "stands more than once in this image" if twice else "no PNG colour stands for (0 is void)"
                name = self._images.names[image]
                raise ValueError(f"segment {number} of the image {name} has an id that {fault}")
            seen.add(number)
            self._add(image, number, row)

    def columns(self, classes: Classes) -> dict[str, np.ndarray]:
        faults = Faults()
        sorted_ = faults.check(self._sorted, classes)
        files = faults.check(_locate, "mask", self._mask_names, self._source, self._images.where)
        faults.end()
        mask_of = np.full(len(self._images.names), -1, dtype=np.int64)
        mask_of[list(self._mask_of)] = list(self._mask_of.values())
        return sorted_[0] | files | {"mask_of_image": mask_of}


def annotated(chunks: Iterable[bytes], where: str, index: Index) -> Annotated:
    """Boxes, areas and outlines of the segments of an index, read from its JSON anew.

    Raises:
        InputError: if the JSON cannot be read any more.
    """
    numbers, row_of = array("d"), {}
    for _, row in stream_arrays(chunks, ("annotations",), where):
        for segment in row.get("segments_info", [row]):
            row_of[row["image_id"], segment["id"]] = len(row_of)
            numbers.extend(_annotated_numbers(segment))
    ends, segment_ids = index.column("segment_end"), index.column("segment_id")
    image_ids = np.repeat(index.column("image_id"), np.diff(ends))
    order = [row_of[key] for key in zip(image_ids.tolist(), segment_ids.tolist(), strict=True)]
    table = np.array(numbers, dtype=np.float64).reshape(-1, 9)[order]
    return Annotated(ends, table[:, :4], table[:, 4], table[:, 5:])


def _annotated_numbers(row: Mapping) -> tuple[float, ...]:
    """Box, area and outline; see `Annotated`."""
    area, polygons, outline = row.get("area"), row.get("segmentation"), (np.nan,) * 4
    if isinstance(polygons, list):
        with contextlib.suppress(*ROW_ERRORS):  # in a panoptic JSON, where the key has no meaning
            corners = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in polygons])
            outline = (*corners.min(axis=0).tolist(), *corners.max(axis=0).tolist())
    return *_numbers(row.get("bbox"), 4), *_numbers(None if area is None else [area], 1), *outline


def _numbers(values: object, count: int) -> tuple[float, ...]:
    """NaN for None, infinite for anything but that many numbers."""
    if values is None:
        return (np.nan,) * count
    try:
        numbers = tuple(map(float, values))
    except ROW_ERRORS:
        return (np.inf,) * count
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else (np.inf,) * count


def _locate(column: str, names: Sequence[str], source: Source, where: str) -> dict[str, np.ndarray]:
    """Files as columns (see `IndexedFiles`). InputError if one is not there."""
    members = source.members()
    missing = [name for name in names if name not in members]
    if missing:
        raise InputError(
            f"{source.describe(missing[0])} is missing, and {len(missing) - 1} more of {len(names)} files "
            f"that {where} names; download the archive again or complete it",
            [f"{source.describe(name)} is missing, which {where} names" for name in missing],
        )
    return file_columns(column, ((name, members[name]) for name in names))
