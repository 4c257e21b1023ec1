"""Datasets' files as downloaded: one way to read a member of a zip archive or a file of a folder.

Archives are never unpacked. Where each member lies is read from the central directory once, by the
main process, into an array (`zip_format.MEMBER`) that a dataset keeps in its index; a worker then reads
a member with two positional reads on its own file descriptor and parses no directory.
"""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
import zlib
from collections.abc import Iterator
from copy import copy
from hashlib import blake2b
from logging import getLogger
from pathlib import Path
from typing import Protocol

from datasets.files.index import cache_errors, cache_folder
from datasets.files.zip_format import (
    DEFLATED,
    LOCAL_HEADER,
    STORED,
    BadArchive,
    Member,
    list_members,
    local_header_size,
    read_directory,
)
from eomt.errors import InputError

log = getLogger(__name__)

_CHUNK = 1 << 20


class Source(Protocol):
    """A zip archive or a folder. It can be pickled and used by threads and forked processes at once."""

    def describe(self, name: str) -> str:
        """How messages call a member."""

    def below(self, folder: str) -> Source:
        """The files of a folder in it; names are then relative to that folder."""

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


def find_source(parent: Path, name: str) -> Source | None:
    """The archive `parent/name.zip`, else the folder `parent/name`, else None.

    Member names are relative to the folder `name` in the archive, where it has one, or to the folder itself.
    """
    archive, folder = parent / f"{name}.zip", parent / name
    if archive.is_file():
        return ZipArchive(archive, prefix=Path(name).name)
    return Folder(folder) if folder.is_dir() else None


class Folder:
    """The files below a folder."""

    def __init__(self, path: Path):
        self.path = Path(path)

    def describe(self, name: str) -> str:
        return str(self.path / name)

    def below(self, folder: str) -> Folder:
        return Folder(self.path / folder)

    def members(self) -> dict[str, Member]:
        return {name: Member(0, 0, 0, 0, STORED, 0) for name in self._names()}

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
                while chunk := file.read(_CHUNK):
                    yield chunk
        except OSError as error:
            raise InputError(f"cannot read {self.describe(name)}: {error.strerror}") from error

    def _names(self) -> Iterator[str]:
        for folder, _, files in os.walk(self.path):
            inside = Path(folder).relative_to(self.path).as_posix()
            yield from files if inside == "." else (f"{inside}/{file}" for file in files)


class ZipArchive:
    """The members of a zip archive, or of one that is stored uncompressed inside another.

    Args:
        path: the outermost file.
        prefix: a folder inside the archive to which names are relative; where no member lies in it,
            names are relative to the archive's root.
        start: where the archive begins in the file.
        size: its number of bytes, default up to the file's end.
        label: how messages call it, default the path.
    """

    def __init__(self, path: Path, prefix: str = "", start: int = 0, size: int | None = None, label: str | None = None):
        self._file = _File(Path(path))
        self._label = label or str(path)
        self._prefix = f"{prefix}/" if prefix else ""
        self._inside = ""
        self._start = start
        self._size = self._file.size() if size is None else size

    def describe(self, name: str) -> str:
        return f"{self._label}: {self._inside}{name}"

    def below(self, folder: str) -> ZipArchive:
        archive = copy(self)
        archive._inside = f"{self._inside}{folder}/"
        return archive

    def members(self) -> dict[str, Member]:
        try:
            found = dict(list_members(*self._directory()))
        except BadArchive as error:
            raise self._broken(error) from error
        found = _strip(found, self._prefix) or found
        return _strip(found, self._inside)

    def fingerprint(self) -> bytes:
        # The directory holds the CRC of every member.
        directory, _ = self._directory()
        return blake2b(self._size.to_bytes(8, "little") + directory + self._inside.encode()).digest()

    def digest(self, name: str) -> bytes:
        return self.fingerprint()

    def read(self, name: str, member: Member) -> bytes:
        return b"".join(self.chunks(name, member))

    def chunks(self, name: str, member: Member) -> Iterator[bytes]:
        crc = total = 0
        try:
            for chunk in self._inflated(name, member):
                crc, total = zlib.crc32(chunk, crc), total + len(chunk)
                yield chunk
        except zlib.error as error:
            raise self._damaged(name, f"cannot be decompressed ({error})") from error
        if (crc, total) != (member.crc, member.size):
            raise self._damaged(name, "does not match its checksum")

    def nested(self, name: str, member: Member, prefix: str = "") -> ZipArchive:
        """The archive that is the member: read in place where stored, else extracted to the cache, once."""
        if member.method == STORED:
            start = self._data_offset(name, member)
            return ZipArchive(self._file.path, prefix, start, member.size, self.describe(name))
        return ZipArchive(self._extract(name, member), prefix)

    def _extract(self, name: str, member: Member) -> Path:
        key = blake2b(self.fingerprint() + name.encode(), digest_size=16).hexdigest()
        path = cache_folder() / f"{Path(name).stem}-{key}.zip"
        if path.is_file() and path.stat().st_size == member.size:
            return path
        log.info("extracting %s (%d MB) to %s, once", self.describe(name), member.size >> 20, path)
        draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            with cache_errors(path), open(draft, "wb") as file:
                for chunk in self.chunks(name, member):
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            with cache_errors(path):
                os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)
        return path

    def _inflated(self, name: str, member: Member) -> Iterator[bytes]:
        if member.flags & 1 or member.method not in (STORED, DEFLATED):
            raise InputError(
                f"{self.describe(name)} is encrypted or packed by a method other than deflate "
                f"(method {member.method}); make the archive anew without"
            )
        at, left = self._data_offset(name, member), member.packed
        inflater = zlib.decompressobj(-zlib.MAX_WBITS) if member.method == DEFLATED else None
        while left:
            chunk = self._bytes(at, min(left, _CHUNK), name)
            at, left = at + len(chunk), left - len(chunk)
            yield inflater.decompress(chunk) if inflater else chunk
        if inflater:
            yield inflater.flush()

    def _data_offset(self, name: str, member: Member) -> int:
        try:
            return member.offset + local_header_size(self._bytes(member.offset, LOCAL_HEADER, name))
        except BadArchive as error:
            raise self._damaged(name, "is not where the archive's directory says") from error

    def _bytes(self, offset: int, count: int, name: str) -> bytes:
        data = self._file.read(offset, count)
        if len(data) < count:
            raise self._damaged(name, "ends too early")
        return data

    def _directory(self) -> tuple[bytes, int]:
        try:
            return read_directory(self._file.read, self._start, self._size)
        except BadArchive as error:
            raise self._broken(error) from error

    def _broken(self, what: BadArchive) -> InputError:
        return InputError(f"{self._label} is no complete zip archive: {what}; download it again")

    def _damaged(self, name: str, what: str) -> InputError:
        return InputError(f"{self.describe(name)} {what}: the archive is damaged; download it again")


def _strip(members: dict[str, Member], folder: str) -> dict[str, Member]:
    """The members of a folder, by their names in it."""
    return {name.removeprefix(folder): member for name, member in members.items() if name.startswith(folder)}


class _File:
    """Positional reads of a file through one descriptor per process, opened at the first read."""

    def __init__(self, path: Path):
        self.path = path
        self._descriptors: dict[int, int] = {}

    def size(self) -> int:
        return self.path.stat().st_size

    def read(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes, fewer at the end of the file."""
        try:
            data = os.pread(self._descriptor(), count, offset)
            while len(data) < count:
                more = os.pread(self._descriptor(), count - len(data), offset + len(data))
                if not more:
                    break
                data += more
            return data
        except OSError as error:
            if error.errno == errno.ESTALE:
                self._close()  # a network file system that has come back knows it no more
            raise InputError(f"cannot read {self.path}: {error.strerror}") from error

    def _close(self) -> None:
        descriptor = self._descriptors.pop(os.getpid(), None)
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def _descriptor(self) -> int:
        pid = os.getpid()
        if pid not in self._descriptors:
            opened = os.open(self.path, os.O_RDONLY)
            # No lock, which a fork could leave locked: of two threads the later closes its own again.
            if self._descriptors.setdefault(pid, opened) != opened:
                os.close(opened)
        return self._descriptors[pid]

    def __getstate__(self) -> Path:
        return self.path

    def __setstate__(self, path: Path) -> None:
        self.__init__(path)

    def __del__(self):
        # When the interpreter ends, modules may be gone before this object.
        if os and contextlib:
            self._close()
