"""What COCO's JSONs say of segments beside their pixels: boxes, areas, and how far polygons reach."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from datasets.readers.base import Annotated
from datasets.readers.coco_files import JsonFile
from datasets.readers.coco_json import stream_arrays


def panoptic_annotated(json: JsonFile, start: np.ndarray, count: np.ndarray) -> Annotated:
    """Of a panoptic JSON, by where each image's segments begin among the JSON's (int64 [N]) and their count [N].

    Raises:
        InputError: if the JSON cannot be read any more.
    """
    rows = [
        segment
        for _, row in stream_arrays(json.chunks(), ("annotations",), json.describe())
        for segment in map(_Row, row["segments_info"])
    ]
    ends = np.cumsum(count, dtype=np.int64)
    order = np.arange(len(rows)) + np.repeat(start - (ends - count), count)
    return _table([rows[place] for place in order.tolist()], count)


def instance_annotated(json: JsonFile, ids: np.ndarray, count: np.ndarray) -> Annotated:
    """Of an instance JSON, by the images' annotation ids (int64 [S]) and how many each image has [N].

    Raises:
        InputError: if the JSON cannot be read any more.
    """
    rows = {int(row["id"]): _Row(row) for _, row in stream_arrays(json.chunks(), ("annotations",), json.describe())}
    return _table([rows[number] for number in ids.tolist()], count)


class _Row:
    """The numbers of one segment; the rest of its JSON is not kept."""

    __slots__ = ("area", "box", "outline")

    def __init__(self, row: Mapping):
        area, polygons = row.get("area"), row.get("segmentation")
        (self.area,) = _numbers(None if area is None else [area], 1)
        self.box = _numbers(row.get("bbox"), 4)
        self.outline = (np.nan,) * 4
        if isinstance(polygons, list):
            corners = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in polygons])
            self.outline = (*corners.min(axis=0).tolist(), *corners.max(axis=0).tolist())


def _numbers(values: object, count: int) -> tuple[float, ...]:
    """NaN for None, infinite for what is not that many numbers."""
    if values is None:
        return (np.nan,) * count
    try:
        numbers = tuple(map(float, values))
    except (TypeError, ValueError):
        return (np.inf,) * count
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else (np.inf,) * count


def _table(rows: list[_Row], count: np.ndarray) -> Annotated:
    return Annotated(
        start=np.concatenate([[0], np.cumsum(count, dtype=np.int64)]),
        boxes=np.array([row.box for row in rows], dtype=np.float64).reshape(-1, 4),
        areas=np.array([row.area for row in rows], dtype=np.float64),
        outlines=np.array([row.outline for row in rows], dtype=np.float64).reshape(-1, 4),
    )
