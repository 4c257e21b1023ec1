"""Values of a row of COCO's JSONs, checked."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from eomt.targets import ImageId, check_rle

ROW_ERRORS = (KeyError, TypeError, ValueError, OverflowError, AttributeError)
"""Errors of reading a row that breaks COCO's format."""

_LARGEST = 1 << 63
_LONGEST_NAME = 1000  # characters of a file name or an image id
_LONGEST_SIDE = 1 << 20  # pixels of an image
_FARTHEST = 10  # image sides between a corner and its image
_MOST_CHARACTERS = 7  # of one run length in COCO's code
_LONGEST_OUTLINE = 1 << 24  # pixels of an object: drawing takes some 80 bytes for each
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def whole(row: Mapping, key: str) -> int:
    """A whole number of 64 bits, also one written as 3.0 or "3". ValueError otherwise, KeyError if it is missing."""
    value = row[key]
    is_written_so = value.is_integer() if isinstance(value, float) else isinstance(value, str) and value.isdecimal()
    number = value if type(value) is int else int(value) if is_written_so else None
    if number is None or not -_LARGEST <= number < _LARGEST:
        raise ValueError(f"{key} must be a whole number, found {repr(value)[:60]}")
    return number


def image_id(row: Mapping, key: str) -> ImageId:
    """An image's id, a whole number of any size or a text, as it stands there. ValueError or KeyError otherwise."""
    value = row[key]
    is_id = type(value) in (int, str) or (type(value) is float and value.is_integer())
    if not is_id or len(json.dumps(value)) > _LONGEST_NAME:
        raise ValueError(f"{key} must be a whole number or a short text, found {repr(value)[:60]}")
    return value


def file_name(row: Mapping) -> str:
    """The name of a file. ValueError otherwise, KeyError if it is missing."""
    value = row["file_name"]
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_NAME or _CONTROL.search(value.strip()):
        raise ValueError(f"a file name was expected, found {repr(value)[:60]}")
    value.encode()  # half a character, which JSON can write, raises ValueError
    return value


def side(row: Mapping, key: str) -> int:
    """A side of an image in pixels. ValueError if it is none."""
    pixels = whole(row, key)
    if not 1 <= pixels <= _LONGEST_SIDE:
        raise ValueError(f"{key} must be at least 1 and at most {_LONGEST_SIDE}, found {pixels}")
    return pixels


def segmentation_code(segmentation: object, size: tuple[int, int]) -> dict:
    """Compressed run lengths of a mask in any of COCO's three forms, checked; one of ROW_ERRORS if it is none.

    Args:
        segmentation: polygons, or run lengths, compressed or not.
        size: (height, width) of its image.
    """
    if not segmentation:
        raise ValueError("no segmentation, and a box alone is no mask")
    if isinstance(segmentation, list):
        # A list of arrays: of lists, the first with 4 numbers, pycocotools would make boxes.
        polygons = [_polygon(polygon, size) for polygon in segmentation]
        # No side of a polygon is longer than 2 * _FARTHEST image sides: most outlines need not be measured.
        if sum(map(len, polygons)) * _FARTHEST * max(size) > _LONGEST_OUTLINE:
            outline = sum(map(_outline, polygons))
            if outline > _LONGEST_OUTLINE:
                raise ValueError(f"the outline of its polygons is {outline:.0f} pixels long")
        drawn: Any = coco_mask.frPyObjects(polygons, *size)  # pyright: ignore[reportCallIssue, reportArgumentType]
        mask: Any = drawn[0] if len(drawn) == 1 else coco_mask.merge(drawn)
        # One run: the mask may be empty.
        if len(mask["counts"]) <= _MOST_CHARACTERS and all(_is_outside(polygon, size) for polygon in polygons):
            raise ValueError(f"its polygons lie outside its image of {size[1]}x{size[0]} (width x height)")
        return mask
    if not isinstance(segmentation, Mapping):
        raise TypeError(f"its segmentation must be polygons or run lengths, found {str(segmentation)[:60]!r}")
    if segmentation["size"] != list(size):
        raise ValueError(f"its run lengths are of size {str(segmentation['size'])[:60]}, its image is of {list(size)}")
    counts, pixels = segmentation["counts"], size[0] * size[1]
    if isinstance(counts, list):
        if not set(map(type, counts)) <= {int, float} or any(number % 1 for number in counts):
            raise ValueError(f"its run lengths must be whole numbers, found {str(counts)[:60]}")
        numbers = np.array(counts, dtype=np.int64)
        if ((numbers < 0) | (numbers > pixels)).any():
            raise ValueError(f"its run lengths must lie within 0..{pixels}")
        code: Any = coco_mask.frPyObjects({"size": list(size), "counts": numbers.tolist()}, *size)
    elif isinstance(counts, str):
        code = {"size": list(size), "counts": counts.encode("ascii")}
    else:
        raise TypeError(f"its run lengths must be a list or a text, found {str(counts)[:60]}")
    check_rle(code["counts"], pixels)
    return code


def _polygon(numbers: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    """float64 [2 * corners]."""
    if not isinstance(numbers, list) or len(numbers) < 6 or len(numbers) % 2:
        raise ValueError(f"a polygon is [x1, y1, x2, y2, ...] of 3 corners or more, found {str(numbers)[:60]}")
    if not set(map(type, numbers)) <= {int, float}:
        raise ValueError(f"a corner of its polygon is no number: {str(numbers)[:60]}")
    polygon = np.array(numbers, dtype=np.float64)
    if not np.isfinite(polygon).all():
        raise ValueError(f"a corner of its polygon is NaN or infinite: {str(numbers)[:60]}")
    if np.abs(polygon).max() > _FARTHEST * max(size):
        raise ValueError(f"a corner of its polygon lies far off its image of {size[1]}x{size[0]} (width x height)")
    return polygon


def _is_outside(polygon: np.ndarray, size: tuple[int, int]) -> bool:
    xs, ys = polygon[::2], polygon[1::2]
    return xs.max() <= 0 or ys.max() <= 0 or xs.min() >= size[1] or ys.min() >= size[0]


def _outline(polygon: np.ndarray) -> float:
    """The length of an outline in pixels, of each side the longer of height and width."""
    corners = polygon.reshape(-1, 2)
    return float(np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum())


def area(value: float | None, mask: Any) -> float:
    """The area that the dataset gives, by default the pixels of the mask."""
    if value is None:
        return float(coco_mask.area(mask))
    if type(value) not in (int, float) or not 0 <= value < np.inf:
        raise ValueError(f"its area must be a number of at least 0, found {repr(value)[:60]}")
    return float(value)


def annotated_numbers(row: Mapping) -> tuple[float, ...]:
    """Box, area and outline, see `CocoInstance.annotated`."""
    area, polygons, outline = row.get("area"), row.get("segmentation"), (np.nan,) * 4
    if isinstance(polygons, list):
        with suppress(*ROW_ERRORS):  # in a panoptic JSON, where the key has no meaning
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
