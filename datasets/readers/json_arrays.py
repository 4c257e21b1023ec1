"""COCO's annotation files, parsed element by element: as Python objects they would take gigabytes."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Collection, Iterable, Iterator

from eomt.errors import InputError

_LONGEST = 32 << 20  # characters of one element: it is parsed into memory as a whole
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
