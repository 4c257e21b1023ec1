"""The photos of a set, turned upright by EXIF or as stored, and a record of what was done."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch

from datasets.files.source import IndexedFiles
from eomt.photo import Form, read_photo

_OTHER = 16  # flag in the record, beside the orientation: not the usual form
_DONE = {"upright": "turned upright", "stored": "taken as stored"}


class Photos:
    """Photos by number.

    Args:
        files: the image files.
        exif: "upright" or "stored" decides for all photos; None takes the usual form, and the other where only that
            has the size of the photo's ground truth.
        usual: the form in which the set was annotated, as far as is known. Annotation tools show photos upright; the
            authors of published sets drew on them as stored.

    Attributes:
        record: uint8 [N], in memory that all processes share. Of each photo 0 until it is read; then its EXIF
            orientation, and 16 more if not the usual form was taken.
    """

    def __init__(self, files: IndexedFiles, exif: Form | None = None, usual: Form = "upright"):
        self.files = files
        self._exif = exif
        both: tuple[Form, Form] = ("upright", "stored") if usual == "upright" else ("stored", "upright")
        self._forms = (exif,) if exif else both
        self.record = torch.zeros(len(files), dtype=torch.uint8).share_memory_()

    def read(self, index: int, size: Callable[[], tuple[int, int] | None]) -> tuple[np.ndarray, str]:
        """Read a photo: uint8 [H, W, 3], contiguous and writable, and its name in messages.

        Args:
            index: its number.
            size: gives the (height, width) of its ground truth, or None; called if it decides between two forms.

        Raises:
            InputError: if it cannot be read.
        """
        data, where = self.files.read(index)
        photo = read_photo(io.BytesIO(data), where, self._forms, size)
        self.record[index] = photo.orientation + _OTHER * (photo.form != self._forms[0])
        done = self.exif(index)
        return photo.pixels, f"{where} (EXIF {done})" if done else where

    def exif(self, index: int) -> str:
        """The treatment of a photo that has been read, in words; empty if it has no EXIF orientation."""
        orientation, other = int(self.record[index]) % _OTHER, int(self.record[index]) // _OTHER
        if orientation <= 1:
            return ""
        reason = ": only so it has the size of its annotation" * other
        reason += f" by data.exif={self._exif}" * bool(self._exif)
        return f"orientation {orientation}, {_DONE[self._forms[other]]}{reason}"

    def note(self) -> tuple[str, frozenset[int]]:
        """The treatment of the photos that have been read so far: a line, and its kinds.

        Both are empty if there is nothing to say, as where `exif` was given.
        """
        codes = self.record.numpy()
        found = codes[codes % _OTHER > 1]
        if self._exif or not len(found):
            return "", frozenset()
        usual, other = self._forms[0], self._forms[-1]
        fitting = int((found >= _OTHER).sum())
        parts = [f"{len(found) - fitting} are {_DONE[usual]}"] * (fitting < len(found))
        parts += [
            f"{fitting} are {_DONE[other]}, as only so they have the size of their annotation"
            f" (if all were annotated so, set data.exif={other})"
        ] * (fitting > 0)
        return (
            f"{len(found)} of the {(codes > 0).sum()} photos read so far have an EXIF orientation: {', '.join(parts)}; "
            "data.exif=upright or data.exif=stored decides for all, check_data.py names them"
        ), frozenset((found // _OTHER).tolist())
