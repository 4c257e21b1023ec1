"""Columns of images in Parquet and Arrow files, as Hugging Face writes data sets.

Reading one row of such a file takes its whole group: a column is unpacked into an archive in the cache, once. The
library that writes them, called `datasets` as this package is, is not needed, and no code of a data set is run.
"""

from __future__ import annotations

import glob
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZipFile, ZipInfo

from datasets.files.index import cache_errors, cache_folder
from datasets.files.source import FREE_BYTES, LARGEST_RATIO, stat_digest
from eomt.errors import InputError
from eomt.files import replacing

COLUMN = re.compile(r"(.+\.(?:parquet|arrow)):([^/:]+)")
"""A pattern of files, `*` for any text, and a column: such as `data/train*.parquet:image`."""

_VERSION = 1  # part of an archive's name: raise it when what stands there changes
_ROWS = 32  # read at a time
_TOO_LARGE = f"{{}} unpacks to more than {LARGEST_RATIO} times its size: it holds no images"
_ROW_BYTES = 128  # of an archive's member without data: empty cells are not free

log = logging.getLogger(__name__)


class Columns(NamedTuple):
    """The columns of a table that matter here.

    Attributes:
        images: the columns of images.
        classes: the names of the only column of classes, the lists among them first; None if there is none.
    """

    images: list[str]
    classes: list[str] | None


def columns(file: Path) -> Columns:
    """The columns of a Parquet or Arrow file. InputError if it cannot be read."""
    with _opened(file) as (schema, _):
        images = [field.name for field in schema if _holds_bytes(field.type)]
        single, lists = [], []
        try:
            features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
            images = [name for name in images if features[name]["_type"] == "Image"]
            for feature in features.values():
                inner = feature[0] if isinstance(feature, list) else feature.get("feature", feature)
                if inner.get("_type") == "ClassLabel" and inner.get("names"):
                    (single if inner is feature else lists).append([str(name) for name in inner["names"]])
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError):  # another tool's
            single, lists = [], []
    found = lists or single
    return Columns(images, found[0] if len(found) == 1 else None)


def column_archive(parent: Path, pattern: str, column: str) -> Path:
    """The archive of a column's images, `FILE/ROW NAME.png` whatever their kind; NAME is the image's, if it has one.

    Args:
        parent: the folder to which the pattern of the files is relative.

    Raises:
        InputError: if no file fits the pattern, one is damaged or lacks the column, or the cache cannot be written.
    """
    literal = glob.escape(pattern).replace("[*]", "*")
    files = sorted(map(Path, glob.glob(os.path.join(glob.escape(str(parent)), literal))))
    if not files:
        raise InputError(f"there is no file {parent / pattern}")
    names = [os.path.relpath(file, parent) for file in files]
    path = cache_folder() / f"table-{_VERSION}-{stat_digest(files, '|'.join([column, *names]))}.zip"
    if not path.is_file():
        log.info("unpacking the column %s of %d files %s to %s (once)", column, len(files), parent / pattern, path)
        with cache_errors(path), replacing(path) as draft, ZipFile(draft, "w") as archive:
            for file, name in zip(files, names, strict=True):
                for row, (image, data) in enumerate(_cells(file, column)):
                    if data is not None:
                        # Without the time: processes that unpack it at once make equal archives.
                        archive.writestr(ZipInfo(f"{os.path.splitext(name)[0]}/{row:08d}{image}.png"), data)
    return path


def _cells(file: Path, column: str) -> Iterator[tuple[str, bytes | None]]:
    """The name of each row's image, with a space before it or empty, and the bytes in a column; None without any."""
    with _opened(file, column) as (schema, batches):
        if column not in schema.names or not _holds_bytes(schema.field(column).type):
            raise InputError(f"{file} has no column {column!r} of images; its columns are {', '.join(schema.names)}")
        first, left = _first_image(schema), _limit(file)
        for batch in batches:
            batch.validate(full=True)  # the memory of a damaged one may end before its images do
            # One by one: a dictionary's cells may be one large text, named again and again.
            for row in range(batch.num_rows):
                cell, name = batch.column(column)[row].as_py(), batch.column(first)[row].as_py() if first else None
                stem = Path(str((name or {}).get("path") or "")).stem[:100]
                # It is the same in all columns, and may hold anything.
                clean = re.sub(r"[^\w.+-]", " ", stem.encode(errors="ignore").decode()).strip()
                data = cell["bytes"] if isinstance(cell, dict) else cell
                left -= len(data or b"") + _ROW_BYTES
                if left < 0:
                    raise InputError(_TOO_LARGE.format(file))
                yield f" {clean}".rstrip(), data


def _limit(file: Path) -> int:
    return max(FREE_BYTES, LARGEST_RATIO * file.stat().st_size)


def _first_image(schema: Any) -> str | None:
    """The first column of images that have names."""
    from pyarrow import types

    images = (f for f in schema if _holds_bytes(f.type) and types.is_struct(f.type))
    return next((f.name for f in images if f.type.get_field_index("path") >= 0), None)


@contextmanager
def _opened(file: Path, column: str | None = None) -> Iterator[tuple[Any, Iterator[Any]]]:
    """The schema of a file, and its batches of rows."""
    try:
        import pyarrow
        from pyarrow import ipc, parquet
    except ImportError as error:
        raise InputError(f"reading {file} needs pyarrow: pip install 'eomt[hf]'") from error
    if not file.is_file():
        raise InputError(f"{file} cannot be read: it is no file of data")
    try:
        if file.suffix == ".parquet":
            with parquet.ParquetFile(file) as table:
                first, metadata = _first_image(table.schema_arrow), table.metadata
                leaves = [leaf.path for leaf in table.schema]
            # Cells stay numbers of a dictionary where the file has one: each may name the same large text.
            wanted = (column, f"{column}.bytes", f"{first}.bytes", f"{first}.path")
            repeated = [leaf for leaf in leaves if column and leaf in wanted]
            groups = map(metadata.row_group, range(metadata.num_row_groups) if repeated else ())
            chunks = (group.column(k) for group in groups for k, leaf in enumerate(leaves) if leaf in repeated)
            # A page is unpacked whole.
            if sum(chunk.total_uncompressed_size for chunk in chunks) > _limit(file):
                raise InputError(_TOO_LARGE.format(file))
            with parquet.ParquetFile(file, read_dictionary=repeated) as table:
                schema = table.schema_arrow
                needed = [column, *(f"{name}.path" for name in [first] if name not in (None, column))]
                yield schema, table.iter_batches(_ROWS, columns=needed)
        else:
            with pyarrow.memory_map(str(file)) as source:
                try:
                    reader = ipc.open_stream(source)
                except pyarrow.ArrowInvalid:
                    whole = ipc.open_file(source)
                    yield whole.schema, map(whole.get_batch, range(whole.num_record_batches))
                else:
                    yield reader.schema, iter(reader)
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:  # a KeyError for columns of one name
        raise InputError(f"{file} cannot be read: {' '.join(str(error).split())[:200]}") from error


def _holds_bytes(kind: Any) -> bool:
    """True for binary, and for a structure with `bytes` of it."""
    from pyarrow import types

    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_binary(kind) or types.is_large_binary(kind)
