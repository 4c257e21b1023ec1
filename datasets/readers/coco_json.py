"""COCO's annotation files, read element by element: they are too large to be held as Python objects."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from eomt.errors import InputError

# What reading a row that is not as COCO's format says can raise.
ROW_ERRORS = (KeyError, TypeError, ValueError, OverflowError, AttributeError)

_SPACE = re.compile(r"[ \t\n\r]*")


def stream_arrays(chunks: Iterable[bytes], names: Collection[str], where: str) -> Iterator[tuple[str, object]]:
    """Walk through a JSON object and give the elements of some of its arrays, one at a time.

    Args:
        chunks: the file's bytes in pieces.
        names: the keys whose arrays are wanted; all must be there.
        where: names the file in the message.

    Yields:
        (key, element), in the file's order.

    Raises:
        InputError: if the file is not JSON, or lacks one of the arrays.
    """
    text = _Text(chunks)
    missing = set(names)
    try:
        text.take("{")
        mark = text.take('"}', keep=True)
        while mark != "}":
            key = text.value()
            text.take(":")
            if key in missing:
                missing.discard(key)
                for element in _elements(text):
                    yield key, element
            else:
                text.value()
            mark = text.take(",}")
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise InputError(f"{where} is not valid JSON ({reason}, near byte {text.done()}); download it again") from error
    if missing:
        raise InputError(f"{where} has no {sorted(missing)[0]!r}: it is not a COCO annotation file of this kind")


def take_row(add: Callable[[Mapping], None], key: str, row: object, where: str) -> None:
    """Give an element of the array `key` to `add`.

    Raises:
        InputError: in place of ROW_ERRORS.
    """
    try:
        add(row)
    except ROW_ERRORS as error:
        raise InputError(f"{where}: an entry of {key!r} {problem(error)}: {str(row)[:200]}") from error


def problem(error: Exception) -> str:
    """One of ROW_ERRORS as a clause."""
    return f"lacks {error}" if isinstance(error, KeyError) else f"cannot be read ({error})"


def whole(row: Mapping, key: str) -> int:
    """A whole number, also where it is written as 3.0. ValueError otherwise, KeyError if it is missing."""
    value = row[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise ValueError(f"{key} must be a whole number, found {value!r}")
    return int(value)


def flag(row: Mapping, key: str) -> bool:
    """0 or 1; 0 if it is missing. ValueError for anything else."""
    value = row.get(key) or 0
    if value not in (0, 1):
        raise ValueError(f"{key} must be 0 or 1, found {value!r}")
    return bool(value)


def file_name(row: Mapping) -> str:
    """The name of a file. ValueError otherwise, KeyError if it is missing."""
    value = row["file_name"]
    if not isinstance(value, str) or not value:
        raise ValueError(f"a file name was expected, found {value!r}")
    value.encode()  # half a character, which JSON can write, raises ValueError
    return value


def _elements(text: _Text) -> Iterator[object]:
    text.take("[")
    if text.take(None, keep=True) == "]":
        text.take("]")
        return
    mark = ","
    while mark == ",":
        yield text.value()
        mark = text.take(",]")


class _Text:
    """A text that arrives in pieces, of which only the part not yet parsed is kept."""

    def __init__(self, chunks: Iterable[bytes]):
        self._chunks = iter(chunks)
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder()
        self._buffer = ""
        self._at = 0
        self._dropped = 0
        self._ended = False

    def done(self) -> int:
        """The number of characters parsed."""
        return self._dropped + self._at

    def take(self, marks: str | None, keep: bool = False) -> str:
        """The next character that is no space, which must be one of `marks`; pass over it unless `keep`."""
        self._at = _SPACE.match(self._buffer, self._at).end()
        while self._at == len(self._buffer) and not self._ended:
            self._extend()
            self._at = _SPACE.match(self._buffer, self._at).end()
        mark = self._buffer[self._at : self._at + 1]
        if marks is not None and (not mark or mark not in marks):
            expected = " or ".join(marks)
            raise json.JSONDecodeError(f"expected {expected}, found {mark or 'the end'}", self._buffer, self._at)
        self._at += not keep
        return mark

    def value(self) -> object:
        """Parse the next value."""
        self.take(None, keep=True)
        while True:
            try:
                value, end = self._json.raw_decode(self._buffer, self._at)
                # A number at the very end may go on in the next piece.
                if end < len(self._buffer) or self._ended:
                    self._at = end
                    return value
            except json.JSONDecodeError:
                if self._ended:
                    raise
            self._extend()

    def _extend(self) -> None:
        """Append at least as much as there is: a value in many pieces is tried few times."""
        pieces = [self._buffer[self._at :]]
        wanted = length = len(pieces[0])
        while length <= 2 * wanted and not self._ended:
            chunk = next(self._chunks, None)
            self._ended = chunk is None
            pieces.append(self._decoder.decode(chunk or b"", final=self._ended))
            length += len(pieces[-1])
        self._dropped, self._at, self._buffer = self._dropped + self._at, 0, "".join(pieces)
