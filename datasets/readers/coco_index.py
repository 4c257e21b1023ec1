"""From COCO's JSONs to the arrays of an index, checked for contradictions on the way.

Polygons become run lengths here, once, so that reading an image draws none. COCO's 860,000 training annotations
take some 40 seconds and 0.7 GB.
"""

from __future__ import annotations

import contextlib
import json
import logging
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from datasets.files.finder import FileFinder
from datasets.files.index import text_columns
from datasets.files.source import Source, file_columns
from datasets.readers.coco_json import (
    ROW_ERRORS,
    area,
    file_name,
    flag,
    image_id,
    run_lengths,
    side,
    stream_arrays,
    whole,
)
from eomt.classes import Classes
from eomt.errors import InputError
from eomt.targets import ImageId

log = logging.getLogger(__name__)

VERSION = 4
"""Part of an index's key: raise it when the arrays or their meaning change."""

MAX_SEGMENTS = int(np.iinfo(np.int16).max)
"""Segments of an image: targets number them in int16."""

MOST_DETAILS = 10_000
"""Faults that are kept: a file of another kind has one in every row."""

_REPORT_EVERY = 100_000  # annotations: some five seconds


def build_index(
    chunks: Callable[[], Iterable[bytes]],
    where: str,
    images: Source,
    masks: Source | None = None,
    folders: Sequence[Path] = (),
) -> tuple[dict[str, np.ndarray], dict]:
    """Read an instance or a panoptic JSON, draw its polygons, and find its images and PNGs.

    Args:
        chunks: gives the JSON's bytes in pieces, from the start at each call.
        where: the JSON's name in messages.
        images: the N images.
        masks: the PNGs of a panoptic JSON; None for an instance JSON.
        folders: the data set's folders, to which file names may be relative.

    Returns:
        The arrays, images in the JSON's order: the texts "image_id", as JSON; `size` int32 [N, 2] (height, width); the
        files "image" (see `IndexedFiles`); `segment_end` int64 [N + 1], by which an image's segments are the rows
        segment_end[i]..segment_end[i + 1] - 1 of `label` int32 [S] (0..C-1), `crowd` bool [S] and `annotated` float64
        [S, 9] (box, area and outline, see `CocoInstance.annotated`). Of an instance JSON also `area` float64 [S] and
        the texts "mask", COCO's compressed run lengths; of a panoptic JSON `segment_id` int64 [S] (the PNGs' ids, 1
        to 2^24 - 1), the files "mask" and `mask_of_image` int64 [N], their numbers, -1 for an image without. And
        {"categories": Classes.to_list(), "notes": lines to be said when the data set is opened}.

    Raises:
        InputError: if the JSON is damaged, lacks a value, contradicts itself, or names a missing file; its details
            are all faults.
    """
    rows = _Rows(where, folders)
    # A polygon cannot be drawn without its image's size, and some files name the images last: they are read first.
    for key, row in stream_arrays(chunks(), ("images", "annotations"), where):
        if key == "images":
            rows.take(rows.add_image, key, row)
        elif rows.names:
            break
    rows.raise_faults()
    arrays = rows.image_columns(images)

    add_category = rows.categories.append
    if masks is None:  # all are things, even in a JSON made from a panoptic one
        add = {"categories": lambda row: add_category({**row, "isthing": 1}), "annotations": rows.add_instance}
    else:
        add = {"categories": add_category, "annotations": rows.add_panoptic}
    for key, row in stream_arrays(chunks(), add, where):
        rows.take(add[key], key, row)
    try:
        classes = Classes.from_categories(rows.categories)
    except InputError as error:
        rows.fault(str(error))
        rows.raise_faults()
    order, columns = rows.segment_columns(classes, "segment" if masks else "annotation")
    arrays |= columns | (rows.instance_columns(order) if masks is None else rows.panoptic_columns(order, masks))
    rows.raise_faults()
    return arrays, {"categories": classes.to_list(), "notes": rows.notes}


class _Rows:
    """The rows of a JSON as columns, in the order in which they come, and its faults."""

    def __init__(self, where: str, folders: Sequence[Path]):
        self.where = where
        self.folders = folders
        self.notes: list[str] = []
        self.faults: list[str] = []
        self.more_faults = 0
        self.names: list[str] = []
        self.sizes: list[tuple[int, int]] = []
        self.image_ids: list[ImageId] = []
        self.index_of: dict[ImageId, int] = {}
        self.categories: list[Mapping] = []
        self.image_of, self.category_of, self.crowd = array("q"), array("q"), array("b")
        self.segment_ids: list[ImageId] = []
        self.annotated = array("d")
        self.areas, self.masks = array("d"), []
        self.mask_names: list[str] = []
        self.mask_of: dict[int, int] = {}

    def fault(self, line: str) -> None:
        if len(self.faults) < MOST_DETAILS:
            self.faults.append(f"{self.where}: {line}")
        else:
            self.more_faults += 1

    def raise_faults(self) -> None:
        """Raise InputError if there were any faults."""
        if self.faults:
            more = len(self.faults) + self.more_faults - 1
            message = self.faults[0] + (f" (and {more} more faults, which check_data.py lists)" if more else "")
            raise InputError(message, [*self.faults, *[f"and {self.more_faults} more"] * bool(self.more_faults)])

    def take(self, add: Callable[[Mapping], None], key: str, row: object) -> None:
        """Pass an element of the array `key` to `add`, and note a fault if it breaks COCO's format."""
        try:
            add(row)
        except ROW_ERRORS as error:
            name = row.get("id", row.get("file_name")) if key == "annotations" and isinstance(row, Mapping) else None
            what = f"the entry {repr(row)[:200]} of {key!r}" if name is None else f"annotation {repr(name)[:200]}"
            reason = f"lacks {error}" if isinstance(error, KeyError) else f"cannot be read ({error})"
            self.fault(f"{what} {reason}; mend or remove it")

    def add_image(self, row: Mapping) -> None:
        number, size, name = image_id(row, "id"), (side(row, "height"), side(row, "width")), file_name(row)
        self.index_of.setdefault(number, len(self.names))
        self.image_ids.append(number)
        self.sizes.append(size)
        self.names.append(name)

    def add_instance(self, row: Mapping) -> None:
        number, image = image_id(row, "id"), self._image(row)
        mask = run_lengths(row.get("segmentation"), self.sizes[image])
        size = area(row.get("area"), mask)
        self._add_segment(image, number, row)
        self.areas.append(size)
        self.masks.append(mask["counts"])
        if len(self.segment_ids) % _REPORT_EVERY == 0:
            log.info("%d annotations of %s read", len(self.segment_ids), self.where)

    def add_panoptic(self, row: Mapping) -> None:
        self.mask_names.append(file_name(row))
        image = self._image(row)
        if image in self.mask_of:
            raise ValueError(f"the image {self.names[image]} has more than one annotation")
        self.mask_of[image] = len(self.mask_names) - 1
        seen: set[int] = set()
        for segment in row["segments_info"]:
            number = whole(segment, "id")
            if number in seen or not 0 < number < 1 << 24:
                fault = "stands more than once in this image" if number in seen else "no PNG colour stands for"
                raise ValueError(f"segment {number} of the image {self.names[image]} has an id that {fault}")
            seen.add(number)
            self._add_segment(image, number, segment)

    def _image(self, row: Mapping) -> int:
        """The index of the image to which an annotation belongs."""
        number = image_id(row, "image_id")
        if number not in self.index_of:
            raise ValueError(f"it belongs to the unknown image id {number!r}")
        return self.index_of[number]

    def _add_segment(self, image: int, number: ImageId, row: Mapping) -> None:
        category, crowd = whole(row, "category_id"), flag(row, "iscrowd")
        self.image_of.append(image)
        self.segment_ids.append(number)
        self.category_of.append(category)
        self.crowd.append(crowd)
        self.annotated.extend(_annotated_numbers(row))

    def image_columns(self, source: Source) -> dict[str, np.ndarray]:
        if not self.names:
            self.fault("it names no images")
        for what, values in (("image id", self.image_ids), ("image file name", self.names)):
            for value, times in Counter(values).items():
                if times > 1:
                    self.fault(f"the {what} {value!r} stands {times} times among the images")
        sizes = np.array(self.sizes, dtype=np.int32).reshape(-1, 2)
        ids = text_columns("image_id", (json.dumps(value).encode() for value in self.image_ids))
        return {**ids, "size": sizes, **self._located("image", self.names, source)}

    def segment_columns(self, classes: Classes, what: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The order of the segments by image, int64 [S], and their columns in that order."""
        image_of = np.array(self.image_of)
        label_of = {number: label for label, number in enumerate(classes.ids)}
        labels = np.array([label_of.get(number, -1) for number in self.category_of], dtype=np.int32)
        for s in np.flatnonzero(labels < 0):
            name = f"{what} {self.segment_ids[s]!r} of the image {self.names[image_of[s]]}"
            self.fault(f"{name} has the category id {self.category_of[s]}, which is not in 'categories'")
        counts = np.bincount(image_of, minlength=len(self.names))
        for image in np.flatnonzero(counts > MAX_SEGMENTS):
            self.fault(f"the image {self.names[image]} has {counts[image]} {what}s, more than {MAX_SEGMENTS}")
        order = np.argsort(image_of, kind="stable")
        return order, {
            "segment_end": np.concatenate([[0], np.cumsum(counts)]),
            "label": labels[order],
            "crowd": np.array(self.crowd, dtype=bool)[order],
            "annotated": np.array(self.annotated).reshape(-1, 9)[order],
        }

    def instance_columns(self, order: np.ndarray) -> dict[str, np.ndarray]:
        for number, times in Counter(self.segment_ids).items():
            if times > 1:
                self.fault(f"the annotation id {number!r} stands more than once")
        return {"area": np.array(self.areas)[order], **text_columns("mask", (self.masks[s] for s in order.tolist()))}

    def panoptic_columns(self, order: np.ndarray, source: Source) -> dict[str, np.ndarray]:
        mask_of = np.full(len(self.names), -1, dtype=np.int64)
        mask_of[list(self.mask_of)] = list(self.mask_of.values())
        ids = np.array(self.segment_ids, dtype=np.int64)[order]
        return {"segment_id": ids, "mask_of_image": mask_of, **self._located("mask", self.mask_names, source)}

    def _located(self, column: str, names: Sequence[str], source: Source) -> dict[str, np.ndarray]:
        """Files as columns; see `IndexedFiles`."""
        finder, files, name_of = FileFinder(source, self.folders), [], {}
        for name in names:
            try:
                found = finder.find(name)
            except ValueError as error:
                self.fault(str(error))
                continue
            if name_of.setdefault(found, name) != name:
                self.fault(f"{name_of[found]!r} and {name!r} are both the file {source.describe(found)}")
            files.append((found, finder.members[found]))
        if finder.guessed:
            name, found = next(iter(finder.guessed.items()))
            self.notes.append(
                f"{self.where}: {len(finder.guessed)} of {len(names)} files are found by names like theirs, the first: "
                f"{found} for {name!r}; if that is wrong, write the files' own names into the JSON"
            )
        return file_columns(column, files)


def _annotated_numbers(row: Mapping) -> tuple[float, ...]:
    """Box, area and outline; see `build_index`."""
    area, polygons, outline = row.get("area"), row.get("segmentation"), (np.nan,) * 4
    if isinstance(polygons, list):
        with contextlib.suppress(*ROW_ERRORS):  # in a panoptic JSON, where the key has no meaning
            xs, ys = ([number for polygon in polygons for number in polygon[k::2]] for k in (0, 1))
            outline = tuple(map(float, (min(xs), min(ys), max(xs), max(ys))))
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
