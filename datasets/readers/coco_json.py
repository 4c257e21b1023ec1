"""COCO's annotation files, parsed element by element: as Python objects they would take gigabytes."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from eomt.errors import InputError
from eomt.targets import ImageId, check_rle

ROW_ERRORS = (KeyError, TypeError, ValueError, OverflowError, AttributeError)
"""Errors of reading a row that breaks COCO's format."""

_LONGEST = 32 << 20  # characters of one element: it is parsed into memory as a whole
_LARGEST = 1 << 63
_LONGEST_NAME = 1000  # characters of a file name or an image id
_LONGEST_SIDE = 1 << 20  # pixels of an image
_FARTHEST = 10  # image sides between a corner and its image
_MOST_CHARACTERS = 7  # of one run length in COCO's code
_LONGEST_OUTLINE = 1 << 24  # pixels of an object: drawing takes some 80 bytes for each
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SPACE = re.compile(r"[ \t\n\r]*")


def stream_arrays(chunks: Iterable[bytes], names: Collection[str], where: str) -> Iterator[tuple[str, object]]:
    """Walk through a JSON object and yield the elements of some of its arrays, one at a time.

    Args:
        chunks: the file's bytes in pieces.
        names: the keys of these arrays; all must be there.
        where: the file's name in messages.

    Yields:
        (key, element), in the file's order.

    Raises:
        InputError: if the file is not JSON, or lacks one of the arrays or has something else in its place.
    """
    text = _Text(chunks)
    missing = set(names)
    form = "COCO's form is an object with images, annotations and categories"
    try:
        if text.peek() == "[":
            raise InputError(f"{where} is a list, such as of results: {form}")
        for _ in text.items("{", "}"):
            key = text.value()
            if not isinstance(key, str):
                raise ValueError(f"expected a key, found {str(key)[:60]}")
            text.take(":")
            wanted = key in missing
            missing.discard(key)
            if wanted and text.peek() != "[":
                raise InputError(f"{where}: {key!r} must be a list, found {json.dumps(text.value())[:60]}: {form}")
            if text.peek() == "[":
                for _ in text.items("[", "]"):
                    element = text.value()
                    if wanted:
                        yield key, element
            else:
                text.value()
    except (ValueError, RecursionError) as error:  # also for integers of thousands of digits and bytes in no UTF-8
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise InputError(
            f"{where} is not valid JSON ({reason}, near byte {text.parsed()}); download it again, or save it as UTF-8"
        ) from error
    if missing:
        raise InputError(f"{where} has no {sorted(missing)[0]!r}: {form}")


def _end_of_spaces(text: str, start: int) -> int:
    spaces = _SPACE.match(text, start)
    return start if spaces is None else spaces.end()


class _Text:
    """A text that arrives in pieces; only the part not yet parsed is kept."""

    def __init__(self, chunks: Iterable[bytes]):
        self._chunks = iter(chunks)
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder()
        self._buffer = ""
        self._at = 0
        self._dropped = 0
        self._ended = False

    def parsed(self) -> int:
        """The number of characters parsed."""
        return self._dropped + self._at

    def peek(self) -> str:
        """The next character that is no space; empty at the end."""
        self._at = _end_of_spaces(self._buffer, self._at)
        while self._at == len(self._buffer) and not self._ended:
            self._extend()
            self._at = _end_of_spaces(self._buffer, self._at)
        return self._buffer[self._at : self._at + 1]

    def take(self, marks: str) -> str:
        """Pass over the next character that is no space, which must be one of `marks`."""
        mark = self.peek()
        if not mark or mark not in marks:
            expected = " or ".join(marks)
            raise json.JSONDecodeError(f"expected {expected}, found {mark or 'the end'}", self._buffer, self._at)
        self._at += 1
        return mark

    def items(self, start: str, end: str) -> Iterator[None]:
        """Stop at each item between two brackets; the caller parses it."""
        self.take(start)
        if self.peek() == end:
            self.take(end)
            return
        yield
        while self.take("," + end) == ",":
            yield

    def value(self) -> object:
        """Parse the next value."""
        self.peek()
        while True:
            try:
                value, end = self._json.raw_decode(self._buffer, self._at)
                # A number at the very end may continue in the next piece.
                if end < len(self._buffer) or self._ended:
                    self._at = end
                    return value
            except json.JSONDecodeError:
                if self._ended:
                    raise
            if len(self._buffer) - self._at > _LONGEST:
                raise json.JSONDecodeError("an element of more than 32 MB", self._buffer, self._at)
            self._extend()

    def _extend(self) -> None:
        """Read on, to at least twice what is not parsed yet: a value in many pieces is tried few times."""
        pieces = [self._buffer[self._at :]]
        wanted = length = len(pieces[0])
        while length <= 2 * wanted and not self._ended:
            chunk = next(self._chunks, None)
            self._ended = chunk is None
            pieces.append(self._decoder.decode(chunk or b"", final=self._ended))
            length += len(pieces[-1])
        self._dropped, self._at, self._buffer = self._dropped + self._at, 0, "".join(pieces)


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


def run_lengths(segmentation: object, size: tuple[int, int]) -> dict:
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
