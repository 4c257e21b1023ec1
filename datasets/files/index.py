"""Arrays computed once from a dataset's files, kept on disk and memory-mapped by every process.

Parsing the annotations of 118,000 images takes seconds and memory in every process that does it. An `Index` is
the result as one safetensors file: opening it costs a millisecond, and the operating system keeps one copy of its
pages for all workers of all ranks on a machine.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from eomt.errors import InputError
from eomt.files import cache_path, replacing

log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Folder of computed files, see `cache_path`.

    Raises:
        InputError: if the folder is not there and cannot be made.
    """
    folder = cache_path()
    with cache_errors(folder):
        folder = folder.expanduser().absolute()
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def cache_errors(path: Path) -> Iterator[None]:
    """Turn a failure to write below the cache folder (read-only, full) into an InputError."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # RuntimeError: `~` without a home folder
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot write the cache {path}: {reason}; set EOMT_CACHE to a folder with room for you to write"
        ) from error


class Index:
    """Named arrays of a file, memory-mapped, and a few plain values.

    Pickling (spawned workers) sends the file's name alone: the receiver maps the same file.

    Attributes:
        meta: the plain values, as JSON gives them back.
    """

    def __init__(self, path: Path):
        """Open a complete index.

        Raises:
            FileNotFoundError: if it is not there.
            SafetensorError, ValueError, KeyError, TypeError: if it is incomplete or damaged.
        """
        self._path = path
        self._file = safe_open(path, framework="numpy")
        self.meta: dict = json.loads(self._file.metadata()["meta"])
        self._columns = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118

    def column(self, name: str) -> np.ndarray:
        """A copy of the whole array."""
        return self._file.get_tensor(name)

    def rows(self, name: str, start: int, end: int) -> np.ndarray:
        """A copy of rows start..end - 1."""
        column = self._columns[name]
        # safetensors takes no slice that starts at the end.
        return column[start:end] if start < column.get_shape()[0] else self.column(name)[:0]

    def texts(self, name: str, start: int, end: int) -> list[bytes]:
        """Byte strings start..end - 1 of a column that `text_columns` made."""
        ends = self.rows(f"{name}_end", start, end + 1).tolist()
        data = self.rows(name, ends[0], ends[-1]).tobytes()
        return [data[first - ends[0] : last - ends[0]] for first, last in pairwise(ends)]

    def __reduce__(self) -> tuple:
        return Index, (self._path,)


def text_columns(name: str, texts: Iterable[bytes]) -> dict[str, np.ndarray]:
    """Byte strings as two arrays of an index: `name` uint8, all of them joined, and `name_end` int64 [N + 1]."""
    texts = list(texts)
    ends = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    return {name: np.frombuffer(b"".join(texts), dtype=np.uint8), f"{name}_end": ends}


def open_index(key: str, build: Callable[[], tuple[Mapping[str, np.ndarray], Mapping]]) -> Index:
    """Open the index of that key from the cache; build it first if it is missing or damaged.

    Processes that build the same index at once do not disturb each other: each writes a file of its own, and
    renaming it is one step.

    Args:
        key: names the index, fit for a file name; different contents need different keys.
        build: makes the arrays and the plain values; called at most once.

    Raises:
        InputError: if the cache cannot be written, or as `build` does.
    """
    path = cache_folder() / f"{key}.safetensors"
    try:
        return Index(path)
    except FileNotFoundError:
        log.info("building the index %s (once for these files)", path)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        log.warning("the index %s is damaged and is built anew (%s)", path, error)
    arrays, meta = build()
    with cache_errors(path), replacing(path) as draft:
        # It writes the memory of an array as it lies there, whatever the strides.
        dense = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        save_file(dense, draft, metadata={"meta": json.dumps(dict(meta))})
        draft.chmod(path.parent.stat().st_mode & 0o666)  # safetensors lets the owner alone read what it writes
    return Index(path)
