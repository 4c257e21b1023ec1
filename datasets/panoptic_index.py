"""From a COCO panoptic JSON to the arrays of an index, checked for contradictions on the way."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping

import numpy as np

from datasets.archive import Source
from datasets.coco_json import file_name, flag, stream_arrays, take_row, whole
from datasets.coco_table import MAX_SEGMENTS, ImageTable, class_of, locate, pack, read_classes
from eomt.classes import Classes
from eomt.errors import InputError

VERSION = 1
"""Part of the index's key: raise it when the arrays or their meaning change."""


def build_panoptic_index(
    chunks: Iterable[bytes], where: str, images: Source, masks: Source
) -> tuple[dict[str, np.ndarray], dict]:
    """Read a panoptic JSON and find its files.

    Args:
        chunks: the JSON's bytes in pieces.
        where: names the JSON in messages.
        images: holds the N images.
        masks: holds the panoptic PNGs.

    Returns:
        The arrays, images in the JSON's order: those of `ImageTable`; `mask_member` MEMBER [N], `mask_name` uint8
        with `mask_name_end` int64 [N + 1], `has_mask` bool [N]; `segment_start` int64 [N] and `segment_count`
        int32 [N], which give an image's part of `segment_id` int32 [S] (1..2^24 - 1), `segment_label` int32 [S]
        (0..C-1) and `segment_crowd` bool [S]. And {"categories": Classes.to_list()}.

    Raises:
        InputError: if the JSON is damaged, lacks a value, contradicts itself, or names a missing file.
    """
    categories: list[Mapping] = []
    table = _Table(where)
    add = {"categories": categories.append, "images": table.images.add, "annotations": table.add_annotation}
    for key, row in stream_arrays(chunks, add, where):
        take_row(add[key], key, row, where)
    classes = read_classes(categories, where)
    return table.arrays(classes, images, masks), {"categories": classes.to_list()}


class _Table:
    """The JSON's rows as columns, in the order in which they come."""

    def __init__(self, where: str):
        self._where = where
        self.images = ImageTable(where)
        self._owners, self._counts = array("q"), array("q")
        self._mask_names: list[str] = []
        self._ids, self._categories = array("q"), array("q")
        self._crowd = array("b")

    def add_annotation(self, row: Mapping) -> None:
        segments = row["segments_info"]
        self._owners.append(whole(row, "image_id"))
        self._mask_names.append(file_name(row))
        self._counts.append(len(segments))
        for segment in segments:
            self._ids.append(whole(segment, "id"))
            self._categories.append(whole(segment, "category_id"))
            self._crowd.append(flag(segment, "iscrowd"))

    def arrays(self, classes: Classes, images: Source, masks: Source) -> dict[str, np.ndarray]:
        """Check the columns against each other and against the files; the index's arrays."""
        rows = self._owner_rows()
        counts = np.array(self._counts, dtype=np.int64)
        starts = np.cumsum(counts) - counts
        labels = self._labels(classes)
        self._check_segments(counts)

        number = len(self.images.names)
        mask_names = [""] * number
        for row, name in zip(rows.tolist(), self._mask_names, strict=True):
            mask_names[row] = name
        segment_start, segment_count = np.zeros(number, dtype=np.int64), np.zeros(number, dtype=np.int32)
        has_mask = np.zeros(number, dtype=bool)
        segment_start[rows], segment_count[rows], has_mask[rows] = starts, counts, True
        mask_name, mask_name_end = pack(mask_names)
        return {
            **self.images.arrays(images),
            "mask_name": mask_name,
            "mask_name_end": mask_name_end,
            "mask_member": locate(mask_names, masks, self._where),
            "has_mask": has_mask,
            "segment_start": segment_start,
            "segment_count": segment_count,
            "segment_id": np.array(self._ids, dtype=np.int32),
            "segment_label": labels,
            "segment_crowd": np.array(self._crowd, dtype=bool),
        }

    def _owner_rows(self) -> np.ndarray:
        """int64 [A]: the image of each annotation, as its place among the images."""
        row_of = self.images.places()
        seen: set[int] = set()
        for owner, name in zip(self._owners, self._mask_names, strict=True):
            if owner not in row_of:
                raise InputError(f"{self._where}: the annotation {name} belongs to the unknown image id {owner}")
            if owner in seen:
                file = self.images.names[row_of[owner]]
                raise InputError(f"{self._where}: the image {file} (id {owner}) has more than one annotation")
            seen.add(owner)
        return np.array([row_of[owner] for owner in self._owners], dtype=np.int64)

    def _labels(self, classes: Classes) -> np.ndarray:
        """int32 [S]: the class of each segment."""
        labels = class_of(self._categories, classes)
        wrong = np.flatnonzero(labels < 0)
        if len(wrong):
            category = self._categories[wrong[0]]
            raise self._bad_segment(wrong[0], f"the category id {category}, which is not in 'categories'")
        return labels

    def _check_segments(self, counts: np.ndarray) -> None:
        ids = np.array(self._ids, dtype=np.int64)
        wrong = np.flatnonzero((ids < 1) | (ids >= 1 << 24))
        if len(wrong):
            raise self._bad_segment(wrong[0], "an id that no PNG colour stands for (1 to 16777215; 0 is void)")
        order = np.argsort((np.repeat(np.arange(len(counts)), counts) << 24) + ids, kind="stable")
        owner = np.repeat(np.arange(len(counts)), counts)[order]
        twice = np.flatnonzero((np.diff(ids[order]) == 0) & (np.diff(owner) == 0))
        if len(twice):
            raise self._bad_segment(order[twice[0] + 1], "an id that stands more than once in this image")
        many = np.flatnonzero(counts > MAX_SEGMENTS)
        if len(many):
            name = self._mask_names[many[0]]
            raise InputError(f"{self._where}: {name} has {counts[many[0]]} segments, more than {MAX_SEGMENTS}")

    def _bad_segment(self, place: int, what: str) -> InputError:
        annotation = int(np.searchsorted(np.cumsum(self._counts), place, side="right"))
        image = self.images.names[self.images.ids.index(self._owners[annotation])]
        return InputError(f"{self._where}: segment {self._ids[place]} of the image {image} has {what}")
