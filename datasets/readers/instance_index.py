"""From a COCO instance JSON to the arrays of an index, checked for contradictions on the way.

Polygons become run lengths here, once, so that reading an image draws none. COCO's 860,000 training annotations
take some 40 seconds and 0.7 GB.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from pycocotools import mask as coco_mask

from datasets.files.source import Source
from datasets.readers.coco_json import ROW_ERRORS, flag, problem, stream_arrays, take_row, whole
from datasets.readers.coco_table import MAX_SEGMENTS, ImageTable, class_of, read_classes
from eomt.classes import Classes
from eomt.errors import Faults, InputError, raise_faults
from eomt.rle import runs_of_rles

log = logging.getLogger(__name__)

VERSION = 1
"""Part of the index's key: raise it when the arrays or their meaning change."""

_REPORT_EVERY = 100_000  # annotations: some five seconds
_FARTHEST = 10  # image sides that a corner may lie off: drawing an outline takes memory by its length


def build_instance_index(
    chunks: Callable[[], Iterable[bytes]], where: str, images: Source
) -> tuple[dict[str, np.ndarray], dict]:
    """Read an instance JSON, draw its polygons, and find its images.

    Args:
        chunks: gives the JSON's bytes in pieces, from the start at each call.
        where: names the JSON in messages.
        images: holds the N images.

    Returns:
        The arrays, images in the JSON's order: those of `ImageTable`; `start` int64 [N] and `count` int32 [N], which
        give an image's part of `annotation_id` int64 [A], `label` int32 [A] (0..C-1), `crowd` bool [A], `area`
        float64 [A], and of the masks, COCO's compressed run lengths: `mask` uint8 with `mask_end` int64 [A + 1] (see
        `coco_table.part`). And {"categories": Classes.to_list()}.

    Raises:
        InputError: if the JSON is damaged, lacks a value, contradicts itself, or names a missing file.
    """
    table, faults = ImageTable(where), Faults()
    # A polygon cannot be drawn without its image's size, and some files name the images last: they are read first.
    for key, row in stream_arrays(chunks(), ("images", "annotations"), where):
        if key == "images":
            faults.check(take_row, table.add, key, row, where)
        elif table.names:
            break
    faults.end()
    annotations = faults.check(_Annotations, table, where)
    image_columns = faults.check(table.arrays, images)
    if annotations is None:
        faults.end()
    categories: list[Mapping] = []
    for key, row in stream_arrays(chunks(), ("categories", "annotations"), where):
        # All are things, whatever a file made from a panoptic one may say.
        add = annotations.add if key == "annotations" else lambda row: categories.append({**row, "isthing": 1})
        faults.check(take_row, add, key, row, where)
    classes = faults.check(read_classes, categories, where)
    columns = faults.check(annotations.arrays, classes) if classes else None
    faults.end()
    return image_columns | columns, {"categories": classes.to_list()}


class _Annotations:
    """The rows of `annotations` as columns, in the order in which they come."""

    def __init__(self, images: ImageTable, where: str):
        self._images, self._where = images, where
        self._place_of = images.places()
        self._places, self._ids, self._categories = array("q"), array("q"), array("q")
        self._crowd, self._areas = array("b"), array("d")
        self._masks, self._mask_ends = bytearray(), array("q", [0])

    def add(self, row: Mapping) -> None:
        number = whole(row, "id")
        try:
            image = whole(row, "image_id")
            if image not in self._place_of:
                raise InputError(f"{self._where}: annotation {number} belongs to the unknown image id {image}")
            place = self._place_of[image]
            category, crowd = whole(row, "category_id"), flag(row, "iscrowd")
            mask = _run_lengths(row.get("segmentation"), self._images.size(place))
            area = _area(row.get("area"), mask)
        except ROW_ERRORS as error:
            raise InputError(f"{self._where}: annotation {number} {problem(error)}; mend or remove it") from error
        self._ids.append(number)
        self._places.append(place)
        self._categories.append(category)
        self._crowd.append(crowd)
        self._areas.append(area)
        self._masks += mask["counts"]
        self._mask_ends.append(len(self._masks))
        if len(self._ids) % _REPORT_EVERY == 0:
            log.info("%d annotations of %s read", len(self._ids), self._where)

    def arrays(self, classes: Classes) -> dict[str, np.ndarray]:
        """Check the columns against each other; the index's arrays."""
        ids, places = np.array(self._ids, dtype=np.int64), np.array(self._places, dtype=np.int64)
        labels = class_of(self._categories, classes)
        counts = np.bincount(places, minlength=len(self._images.names))
        self._check(ids, labels, counts)
        order = np.argsort(places, kind="stable")
        mask, mask_end = self._joined(order)
        return {
            "start": np.cumsum(counts) - counts,
            "count": counts.astype(np.int32),
            "annotation_id": ids[order],
            "label": labels[order],
            "crowd": np.array(self._crowd, dtype=bool)[order],
            "area": np.array(self._areas, dtype=np.float64)[order],
            "mask": mask,
            "mask_end": mask_end,
        }

    def _joined(self, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The masks in that order, and their ends."""
        masks, ends = np.frombuffer(self._masks, dtype=np.uint8), np.array(self._mask_ends, dtype=np.int64)
        new_ends = np.concatenate([[0], np.cumsum(np.diff(ends)[order])])
        joined = np.empty_like(masks)
        for old, start, end in zip(order.tolist(), new_ends[:-1].tolist(), new_ends[1:].tolist(), strict=True):
            joined[start:end] = masks[ends[old] : ends[old + 1]]
        return joined, new_ends

    def _check(self, ids: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> None:
        ordered = np.sort(ids)
        twice = np.unique(ordered[1:][np.diff(ordered) == 0])
        lines = [
            f"annotation {ids[a]} has the category id {self._categories[a]}, which is not in 'categories'"
            for a in np.flatnonzero(labels < 0)
        ]
        lines += [f"the annotation id {number} stands more than once" for number in twice]
        lines += [
            f"the image {self._images.names[place]} has {counts[place]} annotations, more than {MAX_SEGMENTS}"
            for place in np.flatnonzero(counts > MAX_SEGMENTS)
        ]
        raise_faults([f"{self._where}: {line}" for line in lines])


def _run_lengths(segmentation: object, size: tuple[int, int]) -> dict:
    """A mask in any of COCO's three forms as compressed run lengths, checked. One of ROW_ERRORS if it is none."""
    if not segmentation:
        raise ValueError("it has no segmentation, and a box alone is no mask")
    if isinstance(segmentation, list):
        # A list of arrays: of lists, the first with 4 numbers, pycocotools would make boxes.
        drawn = coco_mask.frPyObjects([_polygon(polygon, size) for polygon in segmentation], *size)
        return drawn[0] if len(drawn) == 1 else coco_mask.merge(drawn)
    if not isinstance(segmentation, Mapping):
        raise TypeError(f"its segmentation must be polygons or run lengths, found {str(segmentation)[:60]!r}")
    if list(segmentation["size"]) != list(size):
        raise ValueError(f"its run lengths are of size {segmentation['size']}, its image is of {list(size)}")
    counts, pixels = segmentation["counts"], size[0] * size[1]
    if isinstance(counts, list):
        numbers = np.array(counts, dtype=np.int64)
        if ((numbers < 0) | (numbers > pixels)).any():
            raise ValueError(f"its run lengths must lie within 0..{pixels}")
        code = coco_mask.frPyObjects({"size": list(size), "counts": numbers.tolist()}, *size)
    else:
        code = {"size": list(size), "counts": counts.encode("ascii")}
    runs_of_rles([code["counts"]], pixels)
    return code


def _polygon(numbers: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    """float64 [2 * corners]."""
    polygon = np.array(numbers, dtype=np.float64)
    if polygon.ndim != 1 or len(polygon) < 6 or len(polygon) % 2:
        raise ValueError(f"a polygon is [x1, y1, x2, y2, ...] of 3 corners or more, found {str(numbers)[:60]}")
    # So put that it finds NaN, too.
    if not np.abs(polygon).max() <= _FARTHEST * max(size):
        raise ValueError(f"a corner of its polygon lies far off its image of {size[1]}x{size[0]} (width x height)")
    return polygon


def _area(value: float | None, mask: dict) -> float:
    """As the dataset gives it, by default the pixels of the mask."""
    area = float(coco_mask.area(mask) if value is None else value)
    if not 0 <= area < np.inf:
        raise ValueError(f"its area must be a number of at least 0, found {area}")
    return area
