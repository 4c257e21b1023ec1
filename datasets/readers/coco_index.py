"""The arrays of an index from COCO's JSONs, checked for contradictions on the way.

Polygons become run lengths here, once, so that reading an image draws none. COCO's 860,000 training annotations
take some 40 seconds and 0.7 GB.
"""

from __future__ import annotations

import json
import logging
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType

import numpy as np

from datasets.files.index import text_columns
from datasets.files.source import Member, Source, file_columns
from datasets.readers.base import listed
from datasets.readers.coco_images import CocoImages
from datasets.readers.coco_values import annotated_numbers, area, file_name, image_id, segmentation_code, whole
from datasets.readers.faults import Faults
from datasets.readers.foreign import BadImage
from eomt.classes import Classes, flag
from eomt.errors import InputError
from eomt.targets import ImageId

log = logging.getLogger(__name__)

VERSION = 9
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
    faults = Faults(where, skip_bad)
    shown = CocoImages(faults, folders)
    # A polygon cannot be drawn without its image's size, and some files name the images last: they are read first.
    for key, row in rows_of(("images", "annotations")):
        if key == "images":
            faults.take(shown.add, key, row)
        elif shown.names:
            break
    if not shown.names:
        raise faults.fatal("it names no images")
    faults.check()
    shown.check_names()
    files = shown.find_files(images, dict(enumerate(shown.names)))

    segments = _Segments(shown, all_things)
    add = {"categories": segments.add_category, "annotations": segments.add if masks is None else segments.add_panoptic}
    for key, row in rows_of(add):
        if key == "annotations" and (other := _other_kind(row, masks is not None)):
            raise faults.fatal(other)
        if isinstance(row, BadImage) and row.image_id in shown.index_of:
            shown.leave_out(shown.index_of[row.image_id], str(row))
        else:
            faults.take(add[key], key, row)
    remarks = _without_root(segments.categories, segments.category_of)
    try:
        classes = Classes.from_categories(segments.categories)
    except InputError as error:
        raise faults.fatal(str(error)) from None
    arrays = segments.columns(classes, files, masks)
    if not all_things:
        remarks += _isthing_remarks(segments.categories, classes)
    meta = {"categories": classes.to_list(), "left_out": faults.count, "remarks": [*shown.remarks, *remarks]}
    return arrays, meta


class _Segments:
    """The segments of a JSON as columns, in the order in which they come, and its categories.

    Args:
        images: the JSON's images.
        all_things: see `build_index`.
    """

    def __init__(self, images: CocoImages, all_things: bool):
        self.images = images
        self.all_things = all_things
        self.categories: list[dict] = []
        self.image_of, self.category_of, self.crowd = array("q"), array("q"), array("b")
        self.ids: list[ImageId] = []
        self.annotated = array("d")
        self.areas, self.codes = array("d"), []
        self.mask_of: dict[int, str | None] = {}

    def add_category(self, row: Mapping) -> None:
        number = row.get("id")
        number = int(number) if isinstance(number, str) and number.isdecimal() else number
        self.categories.append({**row, "id": number, **({"isthing": 1} if self.all_things else {})})

    def add(self, row: Mapping) -> None:
        """Take an annotation of an instance JSON; one of ROW_ERRORS if it breaks the format."""
        number, image = image_id(row, "id"), self.images.of(row)
        mask = segmentation_code(row.get("segmentation"), self.images.sizes[image])
        size = area(row.get("area"), mask)
        self._add(image, number, row)
        self.areas.append(size)
        self.codes.append(mask["counts"])
        if len(self.ids) % _REPORT_EVERY == 0:
            log.info("%d annotations of %s read", len(self.ids), self.images.faults.where)

    def add_panoptic(self, row: Mapping) -> None:
        """Take an annotation of a panoptic JSON, likewise."""
        image = self.images.of(row)
        whose = f"the image {self.images.names[image]}"
        if image in self.mask_of:
            raise ValueError(f"{whose} has more than one annotation")
        self.mask_of[image] = None  # until it is read: an image of unknown ground truth is left out
        name = file_name(row)
        seen: set[int] = set()
        if not isinstance(row["segments_info"], list):
            raise TypeError(f"segments_info must be a list, found {repr(row['segments_info'])[:60]}")
        for segment in row["segments_info"]:
            number = whole(segment, "id")
            if number in seen or not 0 < number < 1 << 24:
                fault = "stands more than once in this image" if number in seen else "no PNG colour stands for"
                raise ValueError(f"segment {number} of {whose} has an id that {fault}")
            seen.add(number)
            self._add(image, number, segment)
        self.mask_of[image] = name

    def _add(self, image: int, number: ImageId, row: Mapping) -> None:
        category, crowd = whole(row, "category_id"), flag(row, "iscrowd")
        self.image_of.append(image)
        self.ids.append(number)
        self.category_of.append(category)
        self.crowd.append(crowd)
        self.annotated.extend(annotated_numbers(row))

    def columns(
        self, classes: Classes, files: Mapping[int, tuple[str, Member]], masks: Source | None
    ) -> dict[str, np.ndarray]:
        """The index's arrays, without what is bad; see `build_index`."""
        images, faults = self.images, self.images.faults
        what = "annotation" if masks is None else "segment"
        image_of = np.array(self.image_of)
        label_of = {number: label for label, number in enumerate(classes.ids)}
        labels = np.array([label_of.get(number, -1) for number in self.category_of], dtype=np.int32)
        for s in np.flatnonzero(labels < 0):
            name = f"{what} {self.ids[s]!r} of the image {images.names[image_of[s]]}"
            faults.add(f"{name} has the category id {self.category_of[s]}, which is not in 'categories'")
        good = labels >= 0
        if masks is None:
            seen = set()
            for s, number in enumerate(self.ids):
                if number in seen:
                    good[s] = False
                    faults.add(f"the annotation id {number!r} stands more than once")
                seen.add(number)
        for image, count in enumerate(np.bincount(image_of, minlength=len(images.names))):
            if count > MAX_SEGMENTS:
                line = f"the image {images.names[image]} has {count} {what}s, more than {MAX_SEGMENTS}"
                images.leave_out(image, line)
        pngs = {}
        if masks is not None:
            # An image of unknown ground truth is left out.
            images.bad |= {image for image, name in self.mask_of.items() if name is None}
            pngs = images.find_files(masks, {image: name for image, name in self.mask_of.items() if name is not None})
        kept = np.setdiff1d(np.arange(len(images.names)), list(images.bad))
        if not len(kept):
            raise faults.fatal("no image is left that has its file and its ground truth")
        faults.check()

        good &= np.isin(image_of, kept)
        order = np.flatnonzero(good)[np.argsort(image_of[good], kind="stable")]
        counts = np.bincount(image_of[order], minlength=len(images.names))[kept]
        columns = {
            **text_columns("image_id", (json.dumps(images.ids[i]).encode() for i in kept)),
            "size": np.array(images.sizes, dtype=np.int32)[kept],
            **file_columns("image", (files[i] for i in kept)),
            "segment_end": np.concatenate([[0], np.cumsum(counts)]),
            "label": labels[order],
            "crowd": np.array(self.crowd, dtype=bool)[order],
            "annotated": np.array(self.annotated).reshape(-1, 9)[order],
            **text_columns("left_out", (line.encode() for line in faults.lines)),
        }
        if masks is None:
            codes = (self.codes[s] for s in order.tolist())
            return columns | {"area": np.array(self.areas)[order], **text_columns("mask", codes)}
        has_png = np.isin(kept, list(pngs))
        return columns | {
            "segment_id": np.array(self.ids, dtype=np.int64)[order],
            "mask_of_image": np.where(has_png, np.cumsum(has_png) - 1, -1),
            **file_columns("mask", (pngs[i] for i in kept[has_png])),
        }


def _without_root(categories: list[dict], used: Collection[int]) -> list[str]:
    """Leave out the category that Roboflow adds: of no supercategory, that of all others, and without a mask.

    Returns:
        Remarks: a line if there was one.
    """
    roots = [row for row in categories if row.get("supercategory") == "none"]
    name = roots[0].get("name") if len(roots) == 1 else None
    parents = {str(row.get("supercategory")) for row in categories if row not in roots}
    # What lacks a name is a fault, which `Classes` names.
    if name is None or parents != {str(name)} or roots[0]["id"] in used:
        return []
    categories.remove(roots[0])
    return [f"the category {str(name)[:60]!r} is left out: the root of others, without an annotation"]


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
