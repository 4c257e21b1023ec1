"""Faults in files of ground truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from datasets.readers.base import MOST_DETAILS, SKIP_BAD, listed
from datasets.readers.coco_values import ROW_ERRORS
from eomt.errors import InputError


class Faults:
    """Faults of a file's rows.

    Args:
        where: the file's name in messages.
        skip_bad: rows with faults are left out; otherwise they are an error.

    Attributes:
        count: their number.
        lines: the first of them.
    """

    def __init__(self, where: str, skip_bad: bool):
        self.where = where
        self.skip_bad = skip_bad
        self.count = 0
        self.lines: list[str] = []

    def add(self, line: str) -> None:
        """Note why a row is bad."""
        self.count += 1
        if len(self.lines) < MOST_DETAILS:
            self.lines.append(line)

    def take(self, add: Callable[[Mapping], None], key: str, row: object) -> None:
        """Pass an element of the array `key` to `add`, and note a fault if it breaks COCO's format."""
        try:
            if isinstance(row, InputError):
                return self.add(str(row))
            if not isinstance(row, Mapping):
                raise TypeError("it must be an object of keys and values")
            add(row)
        except ROW_ERRORS as error:
            name = row.get("id", row.get("file_name")) if isinstance(row, Mapping) else None
            what = f"the entry {repr(row)[:200]} of {key!r}" if name is None else f"{key[:-1]} {repr(name)[:200]}"
            self.add(f"{what}: {f'it lacks {error}' if isinstance(error, KeyError) else error}")

    def check(self) -> None:
        """Raise InputError if there are some, unless they are left out."""
        if self.lines and not self.skip_bad:
            count = f" has {self.count} faults, which check_data.py lists" if self.count > 1 else ""
            first = listed(self.lines, "; ", self.count)
            raise InputError(f"{self.where}{count}: {first}; {SKIP_BAD}", self._details())

    def fatal(self, what: str) -> InputError:
        """The error of a fault of the whole file, with those of rows."""
        why = f": {listed(self.lines, '; ', self.count)}" if self.lines else ""
        return InputError(f"{self.where}: {what}{why}", self._details(what))

    def _details(self, *first: str) -> list[str]:
        more = self.count - len(self.lines)
        return [f"{self.where}: {line}" for line in (*first, *self.lines)] + [f"and {more} more"] * (more > 0)
