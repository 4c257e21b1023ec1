"""The zip format as far as reading needs it: PKWARE's APPNOTE.TXT with its zip64 extensions.

The standard library's zipfile offers no central directory as plain bytes, which key our cache, nor the
places of members, which workers need.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

STORED, DEFLATED = 0, 8

# Sections 4.3.7, 4.3.12, 4.3.16, 4.3.15, 4.3.14 (version 1) of APPNOTE.TXT.
_LOCAL = struct.Struct("<4s5H3L2H")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_LOCATOR_64 = struct.Struct("<4sLQL")
_END_64 = struct.Struct("<4sQ2H2L4Q")

LOCAL_HEADER = _LOCAL.size
"""Bytes of a local header without its name and extra field."""

MEMBER = np.dtype(
    [
        ("offset", "<u8"),
        ("packed", "<u8"),
        ("size", "<u8"),
        ("crc", "<u4"),
        ("method", "<u2"),
        ("flags", "<u2"),
    ]
)
"""A `Member` as a row of an array."""


class BadArchive(Exception):
    """What is wrong with the archive, as a clause."""


class Member(NamedTuple):
    """Where a member lies in its file; all 0 for a file of a folder.

    Attributes:
        offset: the position of its local header in the outermost file.
        packed: the number of bytes stored.
        size: the number of bytes after decompression.
        crc: the CRC-32 of those.
        method: 0 stored, 8 deflated.
        flags: the general purpose bits; bit 0 says encrypted.
    """

    offset: int
    packed: int
    size: int
    crc: int
    method: int
    flags: int


def read_directory(read: Callable[[int, int], bytes], start: int, size: int) -> tuple[bytes, int]:
    """Find the central directory of an archive.

    Args:
        read: gives up to `count` bytes of the file: read(offset, count).
        start: where the archive begins in the file.
        size: its number of bytes.

    Returns:
        The directory, and the position in the file from which its offsets count.

    Raises:
        BadArchive: if there is none, as in a cut download.
    """
    tail_size = min(size, _LOCATOR_64.size + _END.size + 0xFFFF)
    tail = read(start + size - tail_size, tail_size)
    at = tail.rfind(b"PK\5\6", 0, max(0, len(tail) - _END.size + 4))
    *_, length, offset, comment = _END.unpack_from(tail, at) if at >= 0 else (0, 0, -1)
    # A record that does not end the file is that of an archive inside, which a cut download left last.
    if at + _END.size + comment != len(tail):
        raise BadArchive("it has no central directory at its end")
    end = start + size - tail_size + at
    locator = at - _LOCATOR_64.size
    if locator >= 0 and tail.startswith(b"PK\6\7", locator):
        end -= _LOCATOR_64.size + _END_64.size
        record = read(end, _END_64.size) if end >= start else b""
        if not record.startswith(b"PK\6\6"):
            raise BadArchive("its zip64 end record is damaged")
        length, offset = _END_64.unpack(record)[8:]
    # Data before the archive (self-extracting files) shifts every offset alike.
    base = end - length - offset
    if base < start:
        raise BadArchive("its central directory is damaged")
    return read(end - length, length), base


def list_members(directory: bytes, base: int) -> Iterator[tuple[str, Member]]:
    """The name and place of every file, folders left out.

    Args:
        directory: the central directory.
        base: the position in the file from which its offsets count.

    Raises:
        BadArchive: if the directory is damaged.
    """
    at = 0
    try:
        while at < len(directory):
            entry = _ENTRY.unpack_from(directory, at)
            name_end = at + _ENTRY.size + entry[10]
            extra_end = name_end + entry[11]
            if entry[0] != b"PK\1\2":
                raise BadArchive("its central directory is damaged")
            name = directory[at + _ENTRY.size : name_end].decode("utf-8" if entry[3] & 0x800 else "cp437")
            size, packed, offset = _widen(entry[9], entry[8], entry[16], directory[name_end:extra_end])
            if not name.endswith("/"):
                yield name, Member(base + offset, packed, size, entry[7], entry[4], entry[3])
            at = extra_end + entry[12]
    except (struct.error, UnicodeDecodeError) as error:
        raise BadArchive("its central directory is damaged") from error


def local_header_size(header: bytes) -> int:
    """Bytes of a member's local header with its name and extra field, from its first LOCAL_HEADER bytes.

    Only the header itself tells: its extra field often differs from the central directory's.

    Raises:
        BadArchive: if it is none.
    """
    if not header.startswith(b"PK\3\4"):
        raise BadArchive("a local header is missing")
    return LOCAL_HEADER + sum(_LOCAL.unpack(header)[9:])


def _widen(size: int, packed: int, offset: int, extra: bytes) -> tuple[int, int, int]:
    """Replace the values that did not fit 32 bits by those of the zip64 extra field, in this order."""
    values = [size, packed, offset]
    if 0xFFFFFFFF in values:
        at = 0
        while at + 4 <= len(extra):
            tag, length = struct.unpack_from("<2H", extra, at)
            if tag == 1:
                wide = iter(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
                values = [next(wide, v) if v == 0xFFFFFFFF else v for v in values]
                break
            at += 4 + length
    return values[0], values[1], values[2]
