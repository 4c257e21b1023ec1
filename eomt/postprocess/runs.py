"""Masks and maps of large images in parts: COCO's run lengths of a mask by its box, and blocks of rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pycocotools.mask

from eomt.targets import run_lengths

coco_mask: Any = pycocotools.mask
"""pycocotools' masks as run lengths; the types that others wrote for it lack lists of them."""

_BLOCK = 2**24  # pixels


def row_blocks(ids: np.ndarray) -> Iterator[np.ndarray]:
    """Views of some rows of a map [H, W] at a time."""
    rows = max(1, _BLOCK // ids.shape[1])
    return (ids[top : top + rows] for top in range(0, len(ids), rows))


def encode_at(mask: np.ndarray, top: int, left: int, size: tuple[int, int]) -> dict[str, Any]:
    """Encode a mask bool [h, w] that lies at (top, left) in an image of `size`, zeros elsewhere."""
    height, width = size
    padded = np.pad(mask.T, ((0, 0), (1, 1)))
    columns, rows = np.nonzero(padded[:, 1:] != padded[:, :-1])
    ends = (left + columns) * height + top + rows  # of runs, starts and ends in turn
    # A run to the foot of a column and one from the head of the next are one.
    apart = np.repeat(ends[1:-1:2] != ends[2::2], 2)
    ends = ends[np.concatenate([[True], apart, [True]])] if len(ends) else ends
    counts = np.diff(ends, prepend=0, append=height * width)
    return coco_mask.frPyObjects([{"size": [height, width], "counts": counts}], height, width)[0]


def decode_box(rle: dict[str, Any]) -> tuple[np.ndarray, int, int]:
    """The mask inside its box, bool [h, w], and the box's top and left; the inverse of `encode_at`."""
    left, top, width, height = coco_mask.toBbox(rle).astype(int).tolist()
    rows, counts = rle["size"][0], run_lengths(rle["counts"])
    ends = counts.cumsum().clip(left * rows, (left + width) * rows)
    lengths = np.diff(ends, prepend=left * rows)
    columns = np.repeat(np.arange(len(counts)) % 2 == 1, lengths).reshape(width, rows)
    return columns[:, top : top + height].T, top, left
