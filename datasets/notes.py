"""A run's notes on the images that it has read."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from datasets.readers.base import NOTES, Reader, listed

log = logging.getLogger("eomt.data")


class ImageNotes:
    """Remarks on what was done with the images that have been read, in a line of each kind.

    Args:
        reader: their set; custom readers need not have `photos`.
        name: the set's name in messages.
    """

    def __init__(self, reader: Reader, name: str):
        self._photos = getattr(reader, "photos", None)
        self._name = name
        self._names: dict[str, dict[str, None]] = {}
        self._said: dict[str, int] = {}
        self._said_of_photos: frozenset[int] = frozenset()

    def add(self, notes: Iterable[tuple[str, str]]) -> None:
        """Take pairs of a key of `datasets.readers.base.NOTES` and an image's name."""
        for kind, name in notes:
            self._names.setdefault(kind, {})[name] = None

    def say(self) -> None:
        """Log each kind of which there are more images than before, and each new kind of EXIF orientations."""
        for kind, names in self._names.items():
            if len(names) > self._said.get(kind, 0):
                self._said[kind] = len(names)
                log.warning("%s: %d %s: %s", self._name, len(names), NOTES[kind], listed(names))
        note, kinds = self._photos.note() if self._photos else ("", frozenset())
        if kinds - self._said_of_photos:
            self._said_of_photos |= kinds
            log.info("%s: %s", self._name, note)
