"""Sources of files: the interface that folders and archives share, folders, and files by number."""

from __future__ import annotations

import errno
import os
import stat
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from unicodedata import normalize

import numpy as np

from datasets.files.index import Index, text_columns
from eomt.errors import InputError
from eomt.files import walk
from eomt.photo import HEIF_SUFFIXES

CHUNK = 1 << 20
"""Bytes read at a time."""

PAUSES = (0.5, 2.0, 8.0)
"""Seconds before each further attempt to read."""

LARGEST_RATIO, FREE_BYTES = 200, 64 << 20
"""The largest ratio of unpacked to packed bytes, and the unpacked bytes that may be of any: deflate reaches 1,032 to 1,
photos, JSONs and label PNGs stay far below."""

# Other errors of network file systems and overloaded disks may pass.
_LASTING = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG}


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
    """A zip archive or a folder. It can be pickled, and used by threads and forked processes at once.

    Attributes:
        path: the folder; of an archive, the one that unpacking it in its place would make.
    """

    path: Path

    def describe(self, name: str) -> str:
        """Name of a member in messages."""
        ...

    def below(self, folder: str) -> Source:
        """The files of one folder in it; names are then relative to that folder."""
        ...

    def members(self) -> dict[str, Member]:
        """All files by relative POSIX path. Slow: reads the central directory, or lists the folder."""
        ...

    def fingerprint(self) -> bytes:
        """A digest that changes when an archive's contents or a folder's file names do. Fast."""
        ...

    def digest(self, name: str) -> bytes:
        """A digest that changes when the contents of one member do."""
        ...

    def chunks(self, name: str, member: Member) -> Iterator[bytes]:
        """A member in pieces of about 1 MiB, then checked against its CRC. InputError if it is missing or damaged."""
        ...


class Folder:
    """The files below a folder, links followed."""

    def __init__(self, path: Path):
        self.path = Path(path)

    def describe(self, name: str) -> str:
        return str(self.path / name)

    def below(self, folder: str) -> Folder:
        return Folder(self.path / folder)

    def members(self) -> dict[str, Member]:
        start = len(os.path.join(self.path, ""))
        return {os.path.join(folder, name)[start:]: Member() for folder, names in walk(self.path) for name in names}

    def fingerprint(self) -> bytes:
        return blake2b("\n".join(sorted(self.members())).encode("utf-8", "surrogateescape")).digest()

    def digest(self, name: str) -> bytes:
        state = blake2b()
        for chunk in self.chunks(name):
            state.update(chunk)
        return state.digest()

    def chunks(self, name: str, member: Member | None = None) -> Iterator[bytes]:
        try:
            with open(self.path / name, "rb", opener=_without_waiting) as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise InputError(f"cannot read {self.describe(name)}: it is no file of data")
                while chunk := file.read(CHUNK):
                    yield chunk
        except OSError as error:
            is_link = isinstance(error, FileNotFoundError) and os.path.islink(self.path / name)
            target = os.path.realpath(self.path / name) if is_link else ""
            why = f"it is a link to {target}, which is not there" if is_link else error.strerror
            raise InputError(f"cannot read {self.describe(name)}: {why}") from error


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; a pipe would wait for its writer."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def stat_digest(files: Iterable[Path], text: str = "") -> str:
    """A digest of a text that changes when one of some files does, as far as its name, size and time tell."""
    state = blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16)
    for path in files:
        try:
            found = path.stat()
            state.update(os.fsencode(f"{path.name} {found.st_size} {found.st_mtime_ns}\n"))
        except OSError:
            state.update(b"-")
    return state.hexdigest()


def is_hidden(name: str) -> bool:
    """True for files that systems leave behind, such as macOS's ._photo.jpg and all below .Trash."""
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


def without_heic_twins(photos: Iterable[str]) -> list[str]:
    """Paths of photos, without HEIC files beside another photo of the same name.

    Phones and sync tools leave such pairs: a set is the same where pillow-heif is installed and where it is not.
    """
    photos = list(photos)
    heic = {name for name in photos if name.lower().endswith(HEIF_SUFFIXES)}
    others = {_stem(name) for name in photos if name not in heic} if heic else set()
    return [name for name in photos if name not in heic or _stem(name) not in others]


def _stem(name: str) -> str:
    return normalize("NFC", os.path.splitext(name)[0])  # systems write accents in two ways


def file_columns(name: str, files: Iterable[tuple[str, Member]]) -> dict[str, np.ndarray]:
    """Names and locations of files as arrays of an index, for `IndexedFiles`."""
    files = list(files)
    members = np.array([member for _, member in files], dtype=np.uint64).reshape(-1, len(Member._fields))
    return text_columns(f"{name}_name", (file.encode() for file, _ in files)) | {f"{name}_member": members}


class IndexedFiles:
    """Files of a source by number, as an index lists them.

    Args:
        source: the archive or folder.
        index: has the arrays that `file_columns` made.
        name: their name there.
    """

    def __init__(self, source: Source, index: Index, name: str):
        self.source = source
        self._index = index
        self._column = name
        self._count = len(index.column(f"{name}_member"))

    def __len__(self) -> int:
        return self._count

    def name(self, number: int) -> str:
        """The file's path within the source."""
        return self._index.texts(f"{self._column}_name", number, number + 1)[0].decode()

    def read(self, number: int) -> tuple[bytes, str]:
        """The file's contents, and its name in messages. InputError if it cannot be read."""
        name = self.name(number)
        (member,) = self._index.rows(f"{self._column}_member", number, number + 1).tolist()
        return b"".join(self.source.chunks(name, Member(*member))), self.source.describe(name)

    def compared(self) -> tuple[set[str], set[str]]:
        """Names in messages of these files, and of all that the source holds."""
        used = {self.source.describe(self.name(number)) for number in range(len(self))}
        return used, {self.source.describe(name) for name in self.source.members()}


def read_with_retry(read: Callable[[int], Any], index: int) -> Any:
    """Return `read(index)`, attempted again after each of PAUSES if the operating system's error may pass.

    Raises:
        InputError: the last attempt's; one of another cause at once.
    """
    for pause in PAUSES:
        try:
            return read(index)
        except InputError as error:
            number = getattr(error.__cause__, "errno", None)  # Pillow's OSErrors have none
            if number is None or number in _LASTING:
                raise
        time.sleep(pause)
    return read(index)
