"""The arrays of an index from COCO's JSONs, checked for contradictions on the way.

Polygons become run lengths here, once, so that reading an image draws none. COCO's 860,000 training annotations
take some 40 seconds and 0.7 GB.
"""

from __future__ import annotations

import contextlib
import json
import logging
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np

from datasets.files.finder import FileFinder
from datasets.files.index import text_columns
from datasets.files.source import Member, Source, file_columns
from datasets.readers.base import MOST_DETAILS, SKIP_BAD, listed
from datasets.readers.coco_json import ROW_ERRORS, area, file_name, image_id, run_lengths, side, whole
from datasets.readers.foreign import BadImage
from eomt.classes import Classes, flag
from eomt.errors import InputError
from eomt.targets import ImageId

log = logging.getLogger(__name__)

VERSION = 8
"""Part of an index's key: raise it when the arrays or their meaning change."""

MAX_SEGMENTS = int(np.iinfo(np.int16).max)
"""Segments of an image: targets number them in int16."""

_REPORT_EVERY = 100_000  # annotations: some five seconds


def build_index(
    rows_of: Callable[[Collection[str]], Iterable[tuple[str, object]]],
    where: str,
    images: Source,
    masks: Source | None = None,
    folders: Sequence[Path] = (),
    skip_bad: bool = False,
    all_things: bool = False,
) -> tuple[dict[str, np.ndarray], dict]:
    """Read an instance or a panoptic JSON, draw its polygons, and find its images and PNGs.

    Args:
        rows_of: gives the elements of some arrays of the JSON, or of another format's rows, by the arrays' names,
            from the start at each call: see `stream_arrays` and `Foreign.rows`.
        where: the JSON's name in messages.
        images: the N images.
        masks: the PNGs of a panoptic JSON; None for an instance JSON.
        folders: the data set's folders, to which file names may be relative.
        skip_bad: leave out annotations that break the format, and images without a file or whose panoptic annotation
            breaks it; images of several names with one id; of images of one name, and annotations of one id, all but
            the first.
        all_things: all classes are things, even in a JSON made from a panoptic one.

    Returns:
        The arrays, images in the JSON's order: the texts "image_id", as JSON; `size` int32 [N, 2] (height, width); the
        files "image" (see `IndexedFiles`); `segment_end` int64 [N + 1], by which an image's segments are the rows
        segment_end[i]..segment_end[i + 1] - 1 of `label` int32 [S] (0..C-1), `crowd` bool [S] and `annotated` float64
        [S, 9] (box, area and outline, see `CocoInstance.annotated`). Of an instance JSON also `area` float64 [S] and
        the texts "mask", COCO's compressed run lengths; of a panoptic JSON `segment_id` int64 [S] (the PNGs' ids, 1
        to 2^24 - 1), the files "mask" and `mask_of_image` int64 [N], their numbers, -1 for an image without. The texts
        "left_out" are the faults of what is left out. And {"categories": Classes.to_list(), "left_out": the number of
        faults, "remarks": what was taken for granted}.

    Raises:
        InputError: if the JSON is damaged; if it lacks a value, contradicts itself, or names a missing file, unless
            `skip_bad`; its details are all faults.
    """
    rows = _Rows(where, folders, skip_bad)
    # A polygon cannot be drawn without its image's size, and some files name the images last: they are read first.
    for key, row in rows_of(("images", "annotations")):
        if key == "images":
            rows.take(rows.add_image, key, row)
        elif rows.names:
            break
    rows.check("" if rows.names else "it names no images")
    rows.find_images(images)

    add = {"categories": rows.add_category, "annotations": rows.add_instance if masks is None else rows.add_panoptic}
    if all_things:
        add["categories"] = lambda row: rows.add_category({**row, "isthing": 1})
    for key, row in rows_of(add):
        if key == "annotations" and (other := _other_kind(row, masks is not None)):
            rows.check(other)
        rows.take(add[key], key, row)
    rows.drop_root()
    try:
        classes = Classes.from_categories(rows.categories)
    except InputError as error:
        rows.check(str(error))
    arrays = rows.columns(classes, masks)
    if not all_things:
        rows.remarks += _isthing_remarks(rows.categories, classes)
    return arrays, {"categories": classes.to_list(), "left_out": rows.num_faults, "remarks": rows.remarks}


class _Rows:
    """The rows of a JSON as columns, in the order in which they come, and its faults."""

    def __init__(self, where: str, folders: Sequence[Path], skip_bad: bool):
        self.where = where
        self.folders = folders
        self.remarks: list[str] = []
        self.skip_bad = skip_bad
        self.faults: list[str] = []
        self.num_faults = 0
        self.names: list[str] = []
        self.sizes: list[tuple[int, int]] = []
        self.image_ids: list[ImageId] = []
        self.index_of: dict[ImageId, int] = {}
        self.files: dict[int, tuple[str, Member]] = {}
        self.bad_images: set[int] = set()
        self.categories: list[Mapping] = []
        self.image_of, self.category_of, self.crowd = array("q"), array("q"), array("b")
        self.segment_ids: list[ImageId] = []
        self.annotated = array("d")
        self.areas, self.masks = array("d"), []
        self.mask_of: dict[int, str | None] = {}

    def fault(self, line: str) -> None:
        """Note why a row is bad."""
        self.num_faults += 1
        if len(self.faults) < MOST_DETAILS:
            self.faults.append(line)

    def bad_image(self, image: int, line: str) -> None:
        """Note why an image is bad."""
        self.fault(line)
        self.bad_images.add(image)

    def check(self, fatal: str = "") -> None:
        """Raise InputError for a fault of the whole file, and for those of rows unless they are left out."""
        if not fatal and (self.skip_bad or not self.faults):
            return
        details = [f"{self.where}: {line}" for line in [fatal] * bool(fatal) + self.faults]
        if more := self.num_faults - len(self.faults):
            details.append(f"and {more} more")
        if fatal:
            why = f": {listed(self.faults, '; ', self.num_faults)}" if self.faults else ""
            raise InputError(f"{self.where}: {fatal}{why}", details)
        count = f" has {self.num_faults} faults, which check_data.py lists" if self.num_faults > 1 else ""
        raise InputError(f"{self.where}{count}: {listed(self.faults, '; ', self.num_faults)}; {SKIP_BAD}", details)

    def take(self, add: Callable[[Mapping], None], key: str, row: object) -> None:
        """Pass an element of the array `key` to `add`, and note a fault if it breaks COCO's format."""
        try:
            if isinstance(row, BadImage):
                return self.bad_image(self.index_of[row.image_id], str(row))
            if isinstance(row, InputError):
                return self.fault(str(row))
            if not isinstance(row, Mapping):
                raise TypeError("it must be an object of keys and values")
            add(row)
        except ROW_ERRORS as error:
            name = row.get("id", row.get("file_name")) if isinstance(row, Mapping) else None
            what = f"the entry {repr(row)[:200]} of {key!r}" if name is None else f"{key[:-1]} {repr(name)[:200]}"
            self.fault(f"{what}: {f'it lacks {error}' if isinstance(error, KeyError) else error}")

    def add_category(self, row: Mapping) -> None:
        number = row.get("id")
        number = int(number) if isinstance(number, str) and number.isdecimal() else number
        self.categories.append({**row, "id": number})

    def drop_root(self) -> None:
        """Leave out the category that Roboflow adds: of no supercategory, that of all others, and without a mask."""
        roots = [row for row in self.categories if row.get("supercategory") == "none"]
        parents = {str(row.get("supercategory")) for row in self.categories if row not in roots}
        used = set(map(str, set(self.category_of)))
        if len(roots) == 1 and parents == {str(roots[0].get("name"))} and str(roots[0].get("id")) not in used:
            self.categories.remove(roots[0])
            name = repr(str(roots[0]["name"])[:60])
            self.remarks.append(f"the category {name} is left out: the root of others, without an annotation")

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
        image = self._image(row)
        if image in self.mask_of:
            raise ValueError(f"the image {self.names[image]} has more than one annotation")
        self.mask_of[image] = None  # until it is read: an image of unknown ground truth is left out
        name = file_name(row)
        seen: set[int] = set()
        if not isinstance(row["segments_info"], list):
            raise TypeError(f"segments_info must be a list, found {repr(row['segments_info'])[:60]}")
        for segment in row["segments_info"]:
            number = whole(segment, "id")
            if number in seen or not 0 < number < 1 << 24:
                fault = "stands more than once in this image" if number in seen else "no PNG colour stands for"
                raise ValueError(f"segment {number} of the image {self.names[image]} has an id that {fault}")
            seen.add(number)
            self._add_segment(image, number, segment)
        self.mask_of[image] = name

    def _image(self, row: Mapping) -> int:
        """The index of the image to which an annotation belongs."""
        number = image_id(row, "image_id")
        for written in (number, str(number), int(number) if str(number).isdecimal() else number):
            if written in self.index_of:
                return self.index_of[written]
        first = repr(next(iter(self.index_of)))[:60]
        raise ValueError(f"it belongs to the unknown image id {number!r}; the first image has the id {first}")

    def _add_segment(self, image: int, number: ImageId, row: Mapping) -> None:
        category, crowd = whole(row, "category_id"), flag(row, "iscrowd")
        self.image_of.append(image)
        self.segment_ids.append(number)
        self.category_of.append(category)
        self.crowd.append(crowd)
        self.annotated.extend(_annotated_numbers(row))

    def find_images(self, source: Source) -> None:
        """Find the images' files; an image whose id, name or file is an earlier one's, or that has no file, is bad, and
        so is the earlier one of two images of one id."""
        for what, values in (("id", self.image_ids), ("file name", self.names)):
            first: dict[ImageId, int] = {}
            for image, value in enumerate(values):
                earlier = first.setdefault(value, image)
                if earlier != image and image not in self.bad_images:
                    self.bad_image(image, f"the image {what} {value!r} stands more than once among the images")
                if self.names[earlier] != self.names[image] and earlier not in self.bad_images:
                    both = f"{self.names[earlier]} and {self.names[image]}"
                    self.bad_image(earlier, f"the image id {value!r} is that of {both}: annotations may be of either")
        self.files = self._find_files(source, dict(enumerate(self.names)))

    def columns(self, classes: Classes, masks: Source | None) -> dict[str, np.ndarray]:
        """The index's arrays, without what is bad; see `build_index`."""
        what = "annotation" if masks is None else "segment"
        image_of = np.array(self.image_of)
        label_of = {number: label for label, number in enumerate(classes.ids)}
        labels = np.array([label_of.get(number, -1) for number in self.category_of], dtype=np.int32)
        for s in np.flatnonzero(labels < 0):
            name = f"{what} {self.segment_ids[s]!r} of the image {self.names[image_of[s]]}"
            self.fault(f"{name} has the category id {self.category_of[s]}, which is not in 'categories'")
        good = labels >= 0
        if masks is None:
            seen = set()
            for s, number in enumerate(self.segment_ids):
                if number in seen:
                    good[s] = False
                    self.fault(f"the annotation id {number!r} stands more than once")
                seen.add(number)
        for image, count in enumerate(np.bincount(image_of, minlength=len(self.names))):
            if count > MAX_SEGMENTS:
                self.bad_image(image, f"the image {self.names[image]} has {count} {what}s, more than {MAX_SEGMENTS}")
        # An image of unknown ground truth is left out.
        self.bad_images |= {image for image, name in self.mask_of.items() if name is None}
        if masks is not None:
            pngs = self._find_files(masks, {image: name for image, name in self.mask_of.items() if name is not None})
        images = np.setdiff1d(np.arange(len(self.names)), list(self.bad_images))
        self.check("" if len(images) else "no image is left that has its file and its ground truth")

        good &= np.isin(image_of, images)
        order = np.flatnonzero(good)[np.argsort(image_of[good], kind="stable")]
        counts = np.bincount(image_of[order], minlength=len(self.names))[images]
        columns = {
            **text_columns("image_id", (json.dumps(self.image_ids[i]).encode() for i in images)),
            "size": np.array(self.sizes, dtype=np.int32)[images],
            **file_columns("image", (self.files[i] for i in images)),
            "segment_end": np.concatenate([[0], np.cumsum(counts)]),
            "label": labels[order],
            "crowd": np.array(self.crowd, dtype=bool)[order],
            "annotated": np.array(self.annotated).reshape(-1, 9)[order],
            **text_columns("left_out", (line.encode() for line in self.faults)),
        }
        if masks is None:
            codes = (self.masks[s] for s in order.tolist())
            return columns | {"area": np.array(self.areas)[order], **text_columns("mask", codes)}
        has_png = np.isin(images, list(pngs))
        return columns | {
            "segment_id": np.array(self.segment_ids, dtype=np.int64)[order],
            "mask_of_image": np.where(has_png, np.cumsum(has_png) - 1, -1),
            **file_columns("mask", (pngs[i] for i in images[has_png])),
        }

    def _find_files(self, source: Source, names: Mapping[int, str]) -> dict[int, tuple[str, Member]]:
        """Path and location of the files that images name; an image is bad if it has none, or an earlier one's."""
        finder, files, name_of = FileFinder(source, self.folders), {}, {}
        for image, name in names.items():
            try:
                found = finder.find(name)
            except ValueError as error:
                self.bad_image(image, str(error))
                continue
            if name_of.setdefault(found, name) != name:
                self.bad_image(image, f"{name_of[found]!r} and {name!r} are both the file {source.describe(found)}")
            files[image] = found, finder.members[found]
        if finder.guessed:
            name, found = next(iter(finder.guessed.items()))
            self.remarks.append(
                f"{len(finder.guessed)} of {len(names)} files are found by names like theirs, the first: {found} for "
                f"{name!r}; if that is wrong, write the files' own names into the JSON"
            )
        return files


def _other_kind(row: object, panoptic: bool) -> str:
    """The reason why an annotation is of the other kind of JSON, and what reads it; empty if it is not."""
    if isinstance(row, Mapping) and panoptic != ("segments_info" in row):
        if not panoptic:
            return "it is a panoptic JSON, whose annotations have segments_info: task=coco_panoptic reads it"
        if "segmentation" in row:
            return "it is an instance JSON, whose annotations have no segments_info: task=coco_instance reads it"
    return ""


def _isthing_remarks(categories: Sequence[Mapping], classes: Classes) -> Iterator[str]:
    """Remarks on what was taken for an `isthing` that is missing, or is not written as a number."""
    unsaid = [str(row["name"]) for row in categories if row.get("isthing") is None]
    if unsaid:
        yield (
            f"{len(unsaid)} of {len(classes)} categories do not say whether they are things, and are taken as things: "
            f'{listed(unsaid)}; give stuff "isthing": 0 in the JSON'
        )
    if any(type(row.get("isthing", 1)) not in (int, NoneType) for row in categories):
        groups = [
            f"{listed([c.name for c in classes if c.is_thing == thing]) or 'none'} as {what}"
            for thing, what in ((True, "things"), (False, "stuff"))
        ]
        yield f"isthing is not always written as a number 0 or 1: read {' and '.join(groups)}"


def _annotated_numbers(row: Mapping) -> tuple[float, ...]:
    """Box, area and outline; see `build_index`."""
    area, polygons, outline = row.get("area"), row.get("segmentation"), (np.nan,) * 4
    if isinstance(polygons, list):
        with contextlib.suppress(*ROW_ERRORS):  # in a panoptic JSON, where the key has no meaning
            xs, ys = ([number for polygon in polygons for number in polygon[k::2]] for k in (0, 1))
            outline = tuple(map(float, (min(xs), min(ys), max(xs), max(ys))))
    return *_numbers(row.get("bbox"), 4), *_numbers(None if area is None else [area], 1), *outline


def _numbers(values: Any, count: int) -> tuple[float, ...]:
    """NaN for None, infinite for anything but that many numbers."""
    if values is None:
        return (np.nan,) * count
    try:
        numbers = tuple(map(float, values))
    except ROW_ERRORS:
        return (np.inf,) * count
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else (np.inf,) * count
