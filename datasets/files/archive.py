"""Members of zip archives, read in place.

Archives are never unpacked. `zipfile` lists the central directory once per dataset, and the members' offsets go into
the dataset's index; a worker then reads a member without parsing the directory.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import copy
from hashlib import blake2b
from logging import getLogger
from pathlib import Path
from typing import BinaryIO

from datasets.files.index import cache_errors, cache_folder
from datasets.files.source import CHUNK, FREE_BYTES, LARGEST_RATIO, Folder, Member, Source
from datasets.files.table import COLUMN, column_archive
from eomt.errors import InputError
from eomt.files import replacing

log = getLogger(__name__)

_FINGERPRINT_BYTES = 32 << 20  # the central directory ends an archive: 300,000 members

_LOCAL_HEADER = struct.Struct("<4s22x2H")  # signature, lengths of name and extra field (PKWARE's APPNOTE.TXT, 4.3.7)
_UTF8 = 1 << 11  # flag of a member (4.4.4)
_END_RECORD, _END_SIGNATURE = 22, b"PK\5\6"  # bytes without the archive's comment (4.3.16)


def find_source(parent: Path, name: str) -> Source | None:
    """The archive `parent/name.zip`, else the folder `parent/name`, else None; `name` may end in `.zip` or `/`.

    Or the images of a table's column, where `name` fits `datasets.files.table.COLUMN`.

    Member names are relative to the folder `name` in the archive, where it has one, or to the folder itself.
    """
    if column := COLUMN.fullmatch(name):
        return ZipArchive(column_archive(parent, *column.groups()), label=str(parent / name))
    name = name.rstrip("/").removesuffix(".zip")
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
        end: the position behind the archive in the file, default the file's end. Other data may come before it.
        label: its name in messages, default the path.
    """

    def __init__(self, path: Path, prefix: str = "", end: int | None = None, label: str | None = None):
        self._path = Path(path)
        self.path = self._path.with_suffix("")
        self._label = label or str(path)
        self._prefix = f"{prefix}/" if prefix else ""
        self._inside = ""
        with self._opened() as file:
            size = file.seek(0, io.SEEK_END)
        self._end = size if end is None else min(end, size)

    def describe(self, name: str) -> str:
        return f"{self._label}: {self._inside}{name}"

    def below(self, folder: str) -> ZipArchive:
        archive = copy(self)
        archive._inside = f"{self._inside}{folder}/"
        archive.path = self.path / folder
        return archive

    def members(self) -> dict[str, Member]:
        found = {
            name: Member(
                info.header_offset, info.compress_size, info.file_size, info.CRC, info.compress_type, info.flag_bits
            )
            for info in self._listed()
            if not (name := _member_name(info)).endswith("/") and not name.startswith("__MACOSX/")
        }
        found = _strip(found, self._prefix) or found
        return _strip(found, self._inside)

    def fingerprint(self) -> bytes:
        # The central directory holds the CRC of every member.
        parts = (self._end.to_bytes(8, "little"), self._tail(_FINGERPRINT_BYTES), self._inside.encode())
        return blake2b(b"".join(parts)).digest()

    def digest(self, name: str) -> bytes:
        return self.fingerprint()

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
            with self._opened() as file:
                self._seek_data(file, name, member)
                return ZipArchive(self._path, prefix, file.tell() + member.size, self.describe(name))
        key = blake2b(self.fingerprint() + name.encode(), digest_size=16).hexdigest()
        path = cache_folder() / f"{Path(name).stem}-{key}.zip"
        if not path.is_file() or path.stat().st_size != member.size:
            log.info("extracting %s (%d MB) to %s, once", self.describe(name), member.size >> 20, path)
            with cache_errors(path), replacing(path) as draft, open(draft, "wb") as file:
                file.writelines(self.chunks(name, member))
        return ZipArchive(path, prefix)

    def _listed(self) -> list[zipfile.ZipInfo]:
        try:
            with _Head(self._path, self._end) as file, zipfile.ZipFile(file) as archive:
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
        if member.size > max(FREE_BYTES, LARGEST_RATIO * member.packed):
            raise InputError(
                f"{self.describe(name)} claims to inflate from {member.packed} to {member.size} bytes, more than "
                f"{LARGEST_RATIO} times as many; if that is right, make the archive anew without compression"
            )
        left = member.packed
        inflater = zlib.decompressobj(-zlib.MAX_WBITS) if member.method == zipfile.ZIP_DEFLATED else None
        with self._opened() as file:
            self._seek_data(file, name, member)
            while left:
                data = file.read(min(left, CHUNK))
                if not data:
                    raise self._damaged(name, "ends too early")
                left -= len(data)
                if inflater is None:
                    yield data
                while inflater and data:
                    yield inflater.decompress(data, CHUNK)
                    data = inflater.unconsumed_tail
        if inflater:
            yield inflater.flush()

    def _seek_data(self, file: BinaryIO, name: str, member: Member) -> None:
        """Go to the member's data: the length of the local extra field is in the local header alone."""
        try:
            file.seek(member.offset)
        except (OverflowError, ValueError) as error:  # 64 bits, which only a damaged directory claims
            raise self._damaged(name, "is not in the archive") from error
        header = file.read(_LOCAL_HEADER.size)
        if len(header) < _LOCAL_HEADER.size:
            raise self._damaged(name, "ends too early")
        signature, *lengths = _LOCAL_HEADER.unpack(header)
        if signature != b"PK\3\4":
            raise self._damaged(name, "is not where the archive's directory says")
        file.seek(sum(lengths), io.SEEK_CUR)

    def _tail(self, count: int) -> bytes:
        """The archive's last bytes."""
        with self._opened() as file:
            file.seek(max(self._end - count, 0))
            return file.read(min(count, self._end))

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        try:
            with open(self._path, "rb") as file:
                yield file
        except OSError as error:
            raise InputError(f"cannot read {self._path}: {error.strerror}") from error

    def _damaged(self, name: str, what: str) -> InputError:
        return InputError(f"{self.describe(name)} {what}: the archive is damaged; download it again")


def _member_name(info: zipfile.ZipInfo) -> str:
    """A member's path, as all systems write it: some use backslashes, or start at `./`, or do not say UTF-8."""
    name = info.filename
    if not info.flag_bits & _UTF8:
        with suppress(UnicodeError):
            name = name.encode("cp437").decode()  # zipfile has read it as cp437
    return name.replace("\\", "/").removeprefix("./").lstrip("/")


def _strip(members: dict[str, Member], folder: str) -> dict[str, Member]:
    """The members of a folder, by their names in it."""
    return {name.removeprefix(folder): member for name, member in members.items() if name.startswith(folder)}


class _Head(io.FileIO):
    """The first `end` bytes of a file, for `zipfile`, which finds an archive behind other data."""

    def __init__(self, path: Path, end: int):
        super().__init__(path)
        self._end = end

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return super().seek(self._end + offset) if whence == io.SEEK_END else super().seek(offset, whence)

    def read(self, count: int = -1) -> bytes:
        left = max(self._end - self.tell(), 0)
        return super().read(left if count < 0 else min(count, left))
