"""Members of zip archives, read in place.

Archives are never unpacked. The central directory is listed once per dataset, by `zipfile`, and the members'
offsets go into the dataset's index; a worker then reads a member with two positional reads and parses no directory.
"""

from __future__ import annotations

import errno
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from copy import copy
from hashlib import blake2b
from logging import getLogger
from pathlib import Path

from datasets.files.index import cache_errors, cache_folder
from datasets.files.source import CHUNK, Folder, Member, Source
from eomt.errors import InputError
from eomt.files import replacing

log = getLogger(__name__)

# More of a central directory than this is not part of a fingerprint: 300,000 members.
_FINGERPRINT_BYTES = 32 << 20

# Deflate reaches 1,032 to 1, photos, PNGs and JSONs stay far below this ratio. Small members may have any.
_LARGEST_RATIO = 200
_FREE_BYTES = 64 << 20

_LOCAL_HEADER = struct.Struct("<4s22x2H")  # signature, lengths of name and extra field (PKWARE's APPNOTE.TXT, 4.3.7)
_END_RECORD, _END_SIGNATURE = 22, b"PK\5\6"  # bytes without the archive's comment (4.3.16)
_DIRECTORY_LENGTH = slice(12, 16)  # in the end record


def find_source(parent: Path, name: str) -> Source | None:
    """The archive `parent/name.zip`, else the folder `parent/name`, else None.

    Member names are relative to the folder `name` in the archive, where it has one, or to the folder itself.
    """
    archive, folder = parent / f"{name}.zip", parent / name
    if archive.is_file():
        return ZipArchive(archive, prefix=Path(name).name)
    return Folder(folder) if folder.is_dir() else None


class ZipArchive:
    """The members of a zip archive, or of one that is stored uncompressed inside another.

    Args:
        path: the outermost file.
        prefix: a folder inside the archive to which names are relative; where no member lies in it,
            names are relative to the archive's root.
        start: the archive's first byte in the file.
        size: its number of bytes, default up to the file's end.
        label: its name in messages, default the path.
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
        found = {
            info.filename: Member(
                self._start + info.header_offset,
                info.compress_size,
                info.file_size,
                info.CRC,
                info.compress_type,
                info.flag_bits,
            )
            for info in self._listed()
            if not info.is_dir()
        }
        found = _strip(found, self._prefix) or found
        return _strip(found, self._inside)

    def fingerprint(self) -> bytes:
        # The central directory ends the file and holds the CRC of every member. Where the record saturates (zip64),
        # or is missing, as in a cut download, more is taken.
        tail = self._tail(_END_RECORD + 0xFFFF)
        record = tail[max(tail.rfind(_END_SIGNATURE), 0) :]
        length = min(int.from_bytes(record[_DIRECTORY_LENGTH], "little"), _FINGERPRINT_BYTES)
        directory = self._tail(length + len(record))
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
                if total > member.size:
                    raise self._damaged(name, f"holds more than the {member.size} bytes that it claims")
                yield chunk
        except zlib.error as error:
            raise self._damaged(name, f"cannot be decompressed ({error})") from error
        if (crc, total) != (member.crc, member.size):
            raise self._damaged(name, "does not match its checksum")

    def nested(self, name: str, member: Member, prefix: str = "") -> ZipArchive:
        """Open the archive that is a member: in place where stored, else extracted to the cache once."""
        if member.method == zipfile.ZIP_STORED:
            start = self._data_offset(name, member)
            return ZipArchive(self._file.path, prefix, start, member.size, self.describe(name))
        return ZipArchive(self._extract(name, member), prefix)

    def _extract(self, name: str, member: Member) -> Path:
        key = blake2b(self.fingerprint() + name.encode(), digest_size=16).hexdigest()
        path = cache_folder() / f"{Path(name).stem}-{key}.zip"
        if path.is_file() and path.stat().st_size == member.size:
            return path
        log.info("extracting %s (%d MB) to %s, once", self.describe(name), member.size >> 20, path)
        with cache_errors(path), replacing(path) as draft, open(draft, "wb") as file:
            for chunk in self.chunks(name, member):
                file.write(chunk)
        return path

    def _listed(self) -> list[zipfile.ZipInfo]:
        try:
            with zipfile.ZipFile(_Window(self._file, self._start, self._size)) as archive:
                tail = self._tail(_END_RECORD + 0xFFFF)
                # A record that does not end the file is that of a nested archive, which a cut download left last.
                if tail.rfind(_END_SIGNATURE) + _END_RECORD + len(archive.comment) != len(tail):
                    raise zipfile.BadZipFile("it has no central directory at its end")
                if any(info.header_offset < 0 for info in archive.infolist()):
                    raise zipfile.BadZipFile("its central directory is damaged")
                return archive.infolist()
        except InputError:
            raise
        except Exception as error:  # zipfile raises nearly any kind on a damaged directory
            raise InputError(
                f"{self._label} is no complete zip archive: {error or type(error).__name__}; download it again"
            ) from error

    def _inflated(self, name: str, member: Member) -> Iterator[bytes]:
        if member.flags & 1 or member.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(
                f"{self.describe(name)} is encrypted or packed by a method other than deflate "
                f"(method {member.method}); make the archive anew without"
            )
        if member.size > max(_FREE_BYTES, _LARGEST_RATIO * member.packed):
            raise InputError(
                f"{self.describe(name)} claims to inflate from {member.packed} to {member.size} bytes, more than "
                f"{_LARGEST_RATIO} times as many; if that is right, make the archive anew without compression"
            )
        at, left = self._data_offset(name, member), member.packed
        inflater = zlib.decompressobj(-zlib.MAX_WBITS) if member.method == zipfile.ZIP_DEFLATED else None
        while left:
            data = self._bytes(at, min(left, CHUNK), name)
            at, left = at + len(data), left - len(data)
            if inflater is None:
                yield data
            while inflater and data:
                yield inflater.decompress(data, CHUNK)
                data = inflater.unconsumed_tail
        if inflater:
            yield inflater.flush()

    def _data_offset(self, name: str, member: Member) -> int:
        """Position of the member's data: the length of the local extra field is in the local header alone."""
        signature, *lengths = _LOCAL_HEADER.unpack(self._bytes(member.offset, _LOCAL_HEADER.size, name))
        if signature != b"PK\3\4":
            raise self._damaged(name, "is not where the archive's directory says")
        return member.offset + _LOCAL_HEADER.size + sum(lengths)

    def _bytes(self, offset: int, count: int, name: str) -> bytes:
        data = self._file.read(offset, count)
        if len(data) < count:
            raise self._damaged(name, "ends too early")
        return data

    def _tail(self, count: int) -> bytes:
        count = min(count, self._size)
        return self._file.read(self._start + self._size - count, count)

    def _damaged(self, name: str, what: str) -> InputError:
        return InputError(f"{self.describe(name)} {what}: the archive is damaged; download it again")


def _strip(members: dict[str, Member], folder: str) -> dict[str, Member]:
    """The members of a folder, by their names in it."""
    return {name.removeprefix(folder): member for name, member in members.items() if name.startswith(folder)}


class _Window(io.RawIOBase):
    """Bytes start..start + size of a file as a file of its own, for `zipfile`."""

    def __init__(self, file: _File, start: int, size: int):
        self._file, self._start, self._size, self._at = file, start, size, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if at < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._at = at
        return at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:
        data = self._file.read(self._start + self._at, max(min(len(buffer), self._size - self._at), 0))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


class _File:
    """Positional reads of a file through one descriptor, which threads and forked processes share."""

    def __init__(self, path: Path):
        self.path = path
        self._descriptor: int | None = None
        self.read(0, 0)

    def size(self) -> int:
        return self.path.stat().st_size

    def read(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes, fewer at the end of the file. InputError if the system gives none."""
        data = b""
        try:
            if self._descriptor is None:
                self._descriptor = os.open(self.path, os.O_RDONLY)
            while len(data) < count and (more := os.pread(self._descriptor, count - len(data), offset + len(data))):
                data += more
        except OverflowError:  # an offset of 64 bits, which only a damaged directory claims
            return b""
        except OSError as error:
            if error.errno == errno.ESTALE:
                self._close()  # a network file system that has restarted does not know it any more
            raise InputError(f"cannot read {self.path}: {error.strerror}") from error
        return data

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = None

    def __getstate__(self) -> dict:
        return {"path": self.path, "_descriptor": None}

    def __del__(self):
        if os is not None:  # when the interpreter ends, modules may be gone before this object
            self._close()
