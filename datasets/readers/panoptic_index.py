"""From a COCO panoptic JSON to the arrays of an index, checked for contradictions on the way."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from datasets.files.source import MEMBER, Source
from datasets.readers.coco_json import file_name, flag, stream_arrays, take_row, whole
from datasets.readers.coco_table import MAX_SEGMENTS, ImageTable, class_of, locate, pack, read_classes
from eomt.classes import Classes
from eomt.errors import Faults, raise_faults

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
    faults = Faults()
    for key, row in stream_arrays(chunks, add, where):
        faults.check(take_row, add[key], key, row, where)
    faults.end()
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
        counts = np.array(self._counts, dtype=np.int64)
        labels = class_of(self._categories, classes)
        faults = Faults()
        row_of = faults.check(self.images.places)
        faults.check(self._check_owners)
        faults.check(self._check_labels, labels)
        faults.check(self._check_segments, counts)
        image_columns = faults.check(self.images.arrays, images)
        members = faults.check(locate, self._mask_names, masks, self._where)
        faults.end()

        number = len(self.images.names)
        rows = np.array([row_of[owner] for owner in self._owners], dtype=np.int64)
        mask_names = [""] * number
        for row, name in zip(rows.tolist(), self._mask_names, strict=True):
            mask_names[row] = name
        segment_start, segment_count = np.zeros(number, dtype=np.int64), np.zeros(number, dtype=np.int32)
        has_mask = np.zeros(number, dtype=bool)
        mask_member = np.zeros(number, dtype=MEMBER)
        segment_start[rows], segment_count[rows] = np.cumsum(counts) - counts, counts
        mask_member[rows], has_mask[rows] = members, True
        mask_name, mask_name_end = pack(mask_names)
        return {
            **image_columns,
            "mask_name": mask_name,
            "mask_name_end": mask_name_end,
            "mask_member": mask_member,
            "has_mask": has_mask,
            "segment_start": segment_start,
            "segment_count": segment_count,
            "segment_id": np.array(self._ids, dtype=np.int32),
            "segment_label": labels,
            "segment_crowd": np.array(self._crowd, dtype=bool),
        }

    def _file_of(self) -> dict[int, str]:
        """Image id to file name, also where an id stands twice."""
        return dict(zip(self.images.ids, self.images.names, strict=True))

    def _check_owners(self) -> None:
        """InputError unless each annotation belongs to an image, and no two to the same."""
        wrong: list[str] = []
        seen: set[int] = set()
        file_of = self._file_of()
        for owner, name in zip(self._owners, self._mask_names, strict=True):
            if owner not in file_of:
                wrong.append(f"{self._where}: the annotation {name} belongs to the unknown image id {owner}")
            elif owner in seen:
                file = file_of[owner]
                wrong.append(f"{self._where}: the image {file} (id {owner}) has more than one annotation")
            seen.add(owner)
        raise_faults(wrong)

    def _check_labels(self, labels: np.ndarray) -> None:
        places = np.flatnonzero(labels < 0).tolist()
        raise_faults(
            self._of_segments(places, lambda s: f"the category id {self._categories[s]}, which is not in 'categories'")
        )

    def _check_segments(self, counts: np.ndarray) -> None:
        ids = np.array(self._ids, dtype=np.int64)
        wrong = np.flatnonzero((ids < 1) | (ids >= 1 << 24)).tolist()
        colors = "an id that no PNG colour stands for (1 to 16777215; 0 is void)"
        owner = np.repeat(np.arange(len(counts)), counts)
        order = np.lexsort((ids, owner))
        twice = order[1:][(np.diff(ids[order]) == 0) & (np.diff(owner[order]) == 0)].tolist()
        many = np.flatnonzero(counts > MAX_SEGMENTS).tolist()
        raise_faults(
            [
                *self._of_segments(wrong, lambda s: colors),
                *self._of_segments(twice, lambda s: "an id that stands more than once in this image"),
                *(
                    f"{self._where}: {self._mask_names[a]} has {counts[a]} segments, more than {MAX_SEGMENTS}"
                    for a in many
                ),
            ]
        )

    def _of_segments(self, places: Sequence[int], what: Callable[[int], str]) -> list[str]:
        """What is wrong with the segments at these places, a line each."""
        annotations = np.searchsorted(np.cumsum(self._counts), places, side="right").tolist()
        file_of = self._file_of() if places else {}
        lines = []
        for place, annotation in zip(places, annotations, strict=True):
            image = file_of.get(self._owners[annotation], self._mask_names[annotation])
            lines.append(f"{self._where}: segment {self._ids[place]} of the image {image} has {what(place)}")
        return lines
