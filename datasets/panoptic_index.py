"""From a COCO panoptic JSON to the arrays of an index, checked for contradictions on the way."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from datasets.archive import Source
from datasets.coco_json import stream_arrays
from datasets.zip_format import MEMBER, Member
from eomt.classes import Classes
from eomt.errors import InputError

VERSION = 1
"""Part of the index's key: raise it when the arrays or their meaning change."""

_MAX_SEGMENTS = np.iinfo(np.int16).max  # of an image: targets number them in int16


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
        The arrays, images in the JSON's order: `image_id` int64 [N], `size` int32 [N, 2] (height, width),
        `image_member` and `mask_member` MEMBER [N], `image_name` and `mask_name` uint8 with
        `image_name_end` and `mask_name_end` int64 [N + 1] (see `name_at`), `has_mask` bool [N];
        `segment_start` int64 [N] and `segment_count` int32 [N], which give an image's part of
        `segment_id` int32 [S] (1..2^24 - 1), `segment_label` int32 [S] (0..C-1) and `segment_crowd` bool [S].
        And {"categories": Classes.to_list()}.

    Raises:
        InputError: if the JSON is damaged, lacks a value, contradicts itself, or names a missing file.
    """
    categories: list[Mapping] = []
    table = _Table(where)
    add = {"categories": categories.append, "images": table.add_image, "annotations": table.add_annotation}
    for key, row in stream_arrays(chunks, add, where):
        try:
            add[key](row)
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            what = f"lacks {error}" if isinstance(error, KeyError) else f"cannot be read ({error})"
            raise InputError(f"{where}: an entry of {key!r} {what}: {str(row)[:200]}") from error
    classes = _classes(categories, where)
    return table.arrays(classes, images, masks), {"categories": classes.to_list()}


def name_at(text: np.ndarray, ends: np.ndarray, index: int) -> str:
    """The index-th of the names that `_pack` joined."""
    return text[ends[index] : ends[index + 1]].tobytes().decode()


class _Table:
    """The JSON's rows as columns, in the order in which they come."""

    def __init__(self, where: str):
        self._where = where
        self._image_ids, self._sizes = array("q"), array("i")
        self._image_names: list[str] = []
        self._owners, self._counts = array("q"), array("q")
        self._mask_names: list[str] = []
        self._ids, self._categories = array("q"), array("q")
        self._crowd = array("b")

    def add_image(self, row: Mapping) -> None:
        self._image_ids.append(row["id"])
        self._sizes.extend((row["height"], row["width"]))
        self._image_names.append(_text(row["file_name"]))

    def add_annotation(self, row: Mapping) -> None:
        segments = row["segments_info"]
        self._owners.append(row["image_id"])
        self._mask_names.append(_text(row["file_name"]))
        self._counts.append(len(segments))
        for segment in segments:
            self._ids.append(segment["id"])
            self._categories.append(segment["category_id"])
            self._crowd.append(bool(segment.get("iscrowd", 0)))

    def arrays(self, classes: Classes, images: Source, masks: Source) -> dict[str, np.ndarray]:
        """Check the columns against each other and against the files; the index's arrays."""
        if not self._image_names:
            raise InputError(f"{self._where} names no images")
        self._check_unique("image id", self._image_ids)
        self._check_unique("image file name", self._image_names)
        rows = self._owner_rows()
        counts = np.array(self._counts, dtype=np.int64)
        starts = np.cumsum(counts) - counts
        labels = self._labels(classes)
        self._check_segments(counts)

        number = len(self._image_names)
        mask_names = [""] * number
        for row, name in zip(rows.tolist(), self._mask_names, strict=True):
            mask_names[row] = name
        segment_start, segment_count = np.zeros(number, dtype=np.int64), np.zeros(number, dtype=np.int32)
        has_mask = np.zeros(number, dtype=bool)
        segment_start[rows], segment_count[rows], has_mask[rows] = starts, counts, True
        image_name, image_name_end = _pack(self._image_names)
        mask_name, mask_name_end = _pack(mask_names)
        return {
            "image_id": np.array(self._image_ids, dtype=np.int64),
            "size": np.array(self._sizes, dtype=np.int32).reshape(number, 2),
            "image_name": image_name,
            "image_name_end": image_name_end,
            "image_member": _locate(self._image_names, images, self._where),
            "mask_name": mask_name,
            "mask_name_end": mask_name_end,
            "mask_member": _locate(mask_names, masks, self._where),
            "has_mask": has_mask,
            "segment_start": segment_start,
            "segment_count": segment_count,
            "segment_id": np.array(self._ids, dtype=np.int32),
            "segment_label": labels,
            "segment_crowd": np.array(self._crowd, dtype=bool),
        }

    def _check_unique(self, what: str, values: Sequence) -> None:
        value, times = Counter(values).most_common(1)[0]
        if times > 1:
            raise InputError(f"{self._where}: the {what} {value} stands {times} times among the images")

    def _owner_rows(self) -> np.ndarray:
        """int64 [A]: the image of each annotation, as its place among the images."""
        row_of = {image_id: row for row, image_id in enumerate(self._image_ids)}
        seen: set[int] = set()
        for owner, name in zip(self._owners, self._mask_names, strict=True):
            if owner not in row_of:
                raise InputError(f"{self._where}: the annotation {name} belongs to the unknown image id {owner}")
            if owner in seen:
                file = self._image_names[row_of[owner]]
                raise InputError(f"{self._where}: the image {file} (id {owner}) has more than one annotation")
            seen.add(owner)
        return np.array([row_of[owner] for owner in self._owners], dtype=np.int64)

    def _labels(self, classes: Classes) -> np.ndarray:
        """int32 [S]: the class of each segment."""
        known = np.array(classes.ids, dtype=np.int64)
        order = np.argsort(known)
        wanted = np.array(self._categories, dtype=np.int64)
        place = order[np.searchsorted(known[order], wanted).clip(max=len(known) - 1)]
        wrong = np.flatnonzero(known[place] != wanted)
        if len(wrong):
            raise self._bad_segment(wrong[0], f"the category id {wanted[wrong[0]]}, which is not in 'categories'")
        return place.astype(np.int32)

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
        many = np.flatnonzero(counts > _MAX_SEGMENTS)
        if len(many):
            name = self._mask_names[many[0]]
            raise InputError(f"{self._where}: {name} has {counts[many[0]]} segments, more than {_MAX_SEGMENTS}")

    def _bad_segment(self, place: int, what: str) -> InputError:
        annotation = int(np.searchsorted(np.cumsum(self._counts), place, side="right"))
        image = self._image_names[self._image_ids.index(self._owners[annotation])]
        return InputError(f"{self._where}: segment {self._ids[place]} of the image {image} has {what}")


def _classes(categories: Sequence[Mapping], where: str) -> Classes:
    try:
        return Classes.from_categories(categories)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{where}: an entry of 'categories' cannot be read ({error})") from error


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(f"a file name was expected, found {value!r}")
    return value


def _pack(names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Join names to uint8 bytes and int64 [N + 1] ends, the first 0."""
    encoded = [name.encode() for name in names]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return np.frombuffer(b"".join(encoded), dtype=np.uint8), ends


def _locate(names: Sequence[str], source: Source, where: str) -> np.ndarray:
    """MEMBER [N]: where the files lie; zeros for an empty name."""
    members = source.members()
    missing = [name for name in names if name and name not in members]
    if missing:
        raise InputError(
            f"{source.describe(missing[0])} is missing, and {len(missing) - 1} more of {len(names)} files "
            f"that {where} names; download the archive again or complete it"
        )
    nowhere = Member(0, 0, 0, 0, 0, 0)
    return np.array([members[name] if name else nowhere for name in names], dtype=MEMBER)
