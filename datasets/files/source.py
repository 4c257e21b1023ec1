"""Files of a folder, and the interface that archives and folders share."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple, Protocol

from eomt.errors import InputError

CHUNK = 1 << 20
"""Bytes read at a time."""


class Member(NamedTuple):
    """Location of a member in its file; all 0 for a file of a folder.

    Attributes:
        offset: the position of its local header in the outermost file.
        packed: the number of bytes stored.
        size: the number of bytes after decompression, as the archive claims.
        crc: the CRC-32 of those.
        method: 0 stored, 8 deflated.
        flags: the general purpose bits; bit 0 means encrypted.
    """

    offset: int = 0
    packed: int = 0
    size: int = 0
    crc: int = 0
    method: int = zipfile.ZIP_STORED
    flags: int = 0


class Source(Protocol):
    """A zip archive or a folder. It can be pickled, and used by threads and forked processes at once."""

    def describe(self, name: str) -> str:
        """Name of a member in messages."""

    def below(self, folder: str) -> Source:
        """The files of one folder in it; names are then relative to that folder."""

    def members(self) -> dict[str, Member]:
        """All files by relative POSIX path. Slow: reads the central directory, or lists the folder."""

    def fingerprint(self) -> bytes:
        """A digest that changes when an archive's contents or a folder's file names do. Fast."""

    def digest(self, name: str) -> bytes:
        """A digest that changes when the contents of one member do."""

    def read(self, name: str, member: Member) -> bytes:
        """The contents of a member, checked against its CRC. InputError if it is missing or damaged."""

    def chunks(self, name: str, member: Member) -> Iterator[bytes]:
        """The same in pieces of about 1 MiB; the check follows the last piece."""


class Folder:
    """The files below a folder."""

    def __init__(self, path: Path):
        self.path = Path(path)

    def describe(self, name: str) -> str:
        return str(self.path / name)

    def below(self, folder: str) -> Folder:
        return Folder(self.path / folder)

    def members(self) -> dict[str, Member]:
        return {name: Member() for name in self._names()}

    def fingerprint(self) -> bytes:
        names = "\n".join(sorted(self._names()))
        return blake2b(names.encode("utf-8", "surrogateescape")).digest()

    def digest(self, name: str) -> bytes:
        state = blake2b()
        for chunk in self.chunks(name):
            state.update(chunk)
        return state.digest()

    def read(self, name: str, member: Member | None = None) -> bytes:
        return b"".join(self.chunks(name, member))

    def chunks(self, name: str, member: Member | None = None) -> Iterator[bytes]:
        try:
            with open(self.path / name, "rb") as file:
                while chunk := file.read(CHUNK):
                    yield chunk
        except OSError as error:
            raise InputError(f"cannot read {self.describe(name)}: {error.strerror}") from error

    def _names(self) -> Iterator[str]:
        for folder, _, files in os.walk(self.path):
            inside = Path(folder).relative_to(self.path).as_posix()
            yield from files if inside == "." else (f"{inside}/{file}" for file in files)
