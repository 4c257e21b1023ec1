"""Run lengths of true masks, taken from layered id maps without making the masks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from eomt.targets import ImageTargets


class RunLengths(NamedTuple):
    """The masks of T segments as runs, down the columns of the image, one column after the other.

    Attributes:
        size: height and width of the image.
        starts, ends: int64 [R], the first pixel of each run and the one past its last, counted down the
            columns. Those of a segment are in ascending order and do not touch.
        bounds: int64 [T + 1], segment t has the runs from bounds[t] up to bounds[t + 1].
    """

    size: tuple[int, int]
    starts: np.ndarray
    ends: np.ndarray
    bounds: np.ndarray

    @property
    def areas(self) -> np.ndarray:
        """Pixels of each segment, int64 [T]."""
        before = np.concatenate([[0], np.cumsum(self.ends - self.starts)])
        return np.diff(before[self.bounds])

    def encode(self, segments: np.ndarray) -> list[dict]:
        """COCO's compressed form of some segments' masks: {"size": [H, W], "counts": bytes}."""
        if not len(segments):
            return []
        height, width = self.size
        first, end = self.bounds[:-1], self.bounds[1:]
        # A mask is told as the length of a gap, of a run, of the next gap and so on up to the last pixel:
        # two numbers for each run and one more for what is left at the end of each segment.
        before = np.append(0, self.ends[:-1])
        before[first[first < end]] = 0
        owner = np.repeat(np.arange(len(first)), end - first)
        place = 2 * np.arange(len(owner)) + owner
        counts = np.full(2 * len(owner) + len(first), height * width, dtype=np.uint32)
        counts[place] = self.starts - before
        counts[place + 1] = self.ends - self.starts
        filled = first < end
        rest = 2 * end + np.arange(len(end))
        counts[rest[filled]] -= self.ends[end[filled] - 1].astype(np.uint32)
        begin, stop = rest - 2 * (end - first), rest + (counts[rest] > 0)
        plain = [
            {"size": [height, width], "counts": counts[i:j]}
            for i, j in zip(begin[segments].tolist(), stop[segments].tolist(), strict=True)
        ]
        return coco_mask.frPyObjects(plain, height, width)


class Codes(NamedTuple):
    """The masks of T segments in COCO's compressed form, with the interface of `RunLengths`.

    Attributes:
        size: height and width of the image.
        counts: T codes.
    """

    size: tuple[int, int]
    counts: tuple[bytes, ...]

    @property
    def areas(self) -> np.ndarray:
        """Pixels of each segment, int64 [T]."""
        return coco_mask.area(self.encode(np.arange(len(self.counts)))).astype(np.int64)

    def encode(self, segments: np.ndarray) -> list[dict]:
        """{"size": [H, W], "counts": bytes} of some segments."""
        return [{"size": list(self.size), "counts": self.counts[k]} for k in segments.tolist()]


def run_lengths(targets: ImageTargets) -> RunLengths | Codes:
    """The runs of all segments of an image: the dataset's own codes where the targets hold them."""
    if targets.rles is not None:
        return Codes(tuple(targets.ids.shape[1:]), targets.rles)
    ids = np.ascontiguousarray(targets.ids.numpy(force=True))
    _, height, width = ids.shape
    # Few pixels differ from the one above them. There a segment's run ends and another's starts, as
    # they do at the ends of the columns. Going by these costs a tenth of making a mask per segment.
    flat, pixels = ids.ravel(), _edges(ids)
    rows = pixels // width
    columns = pixels - rows * width
    rows %= height
    top, bottom = (ids[:, row].ravel() for row in (0, -1))
    heads, feet = top.nonzero()[0], bottom.nonzero()[0]
    segment, starts = _by_segment(
        np.append(top[heads], flat[pixels]), np.append(heads % width, columns), np.append(0 * heads, rows), height
    )
    _, ends = _by_segment(
        np.append(flat[pixels - width], bottom[feet]),
        np.append(columns, feet % width),
        np.append(rows, 0 * feet + height),
        height,
    )
    # A run that ends at the foot of a column goes on at the head of the next one.
    apart = (starts[1:] != ends[:-1]) | (segment[1:] != segment[:-1])
    first, last = np.append(True, apart)[: len(starts)], np.append(apart, True)[: len(starts)]
    bounds = np.searchsorted(segment[first], np.arange(1, len(targets.labels) + 2))
    return RunLengths((height, width), starts[first], ends[last], bounds)


def _edges(ids: np.ndarray) -> np.ndarray:
    """The pixels of maps [K, H, W] that differ from the one above, as places in the flat array, ascending."""
    planes, height, width = ids.shape
    found = []
    for plane in range(planes):
        flat = ids[plane].ravel()
        above, below = flat[:-width], flat[width:]
        # Four int16 are compared in one step.
        whole = len(below) // 4 * 4
        words = np.flatnonzero(above[:whole].view(np.uint64) != below[:whole].view(np.uint64))
        first = plane * height * width + width
        found += [(4 * words[:, None] + (first + np.arange(4))).ravel(), np.arange(whole, len(below)) + first]
    near = np.concatenate(found)
    flat = ids.ravel()
    return near[flat[near] != flat[near - width]]


def _by_segment(
    values: np.ndarray, columns: np.ndarray, rows: np.ndarray, height: int
) -> tuple[np.ndarray, np.ndarray]:
    """Starts or ends of runs, sorted by segment and then down the columns: segment + 1 and place of each.

    Those of one column are given from top to bottom.
    """
    held = values.nonzero()[0]
    # NumPy sorts 16 bits in linear time, and stably.
    order = held[np.lexsort((columns[held].astype(np.uint16), values[held]))]
    return values[order], columns[order] * height + rows[order]
