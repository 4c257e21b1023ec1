"""Arrays computed once from a dataset's files, kept on disk and memory-mapped by all who read them.

Parsing the annotations of 118,000 images takes seconds and memory in every process that does it. An
`Index` is the outcome as plain arrays: opening it costs milliseconds, and the operating system keeps
one copy of its pages for all workers of all ranks on a machine.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from eomt.errors import InputError

log = logging.getLogger(__name__)

_META = "meta.json"


def cache_folder() -> Path:
    """Where computed files are kept: `$EOMT_CACHE`, else `$XDG_CACHE_HOME/eomt`, else `~/.cache/eomt`.

    Raises:
        InputError: if the folder is not there and cannot be made.
    """
    chosen = os.environ.get("EOMT_CACHE")
    folder = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "eomt")
    with cache_errors(folder):
        folder = folder.expanduser().absolute()
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def cache_errors(path: Path) -> Iterator[None]:
    """Turn a failure to write below the cache folder (read-only, full) into an InputError."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # RuntimeError: `~` without a home folder
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot write the cache {path}: {reason}; set EOMT_CACHE to a folder with room for you to write"
        ) from error


class Index:
    """A folder of named arrays, memory-mapped read-only, and a few plain values.

    Pickling (spawned workers) sends the folder's name alone: the receiver maps the same files.

    Attributes:
        meta: the plain values, as JSON gives them back.
    """

    def __init__(self, folder: Path):
        """Open a complete index.

        Raises:
            OSError, ValueError: if it is not there, incomplete or damaged.
        """
        self._folder = folder
        stored = json.loads((folder / _META).read_text(encoding="utf-8"))
        self.meta: dict = stored["meta"]
        # A plain array over the mapped pages: slicing an np.memmap costs several times as much.
        self._arrays = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r").view(np.ndarray) for name in stored["arrays"]
        }

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __getstate__(self) -> Path:
        return self._folder

    def __setstate__(self, folder: Path) -> None:
        self.__init__(folder)


def open_index(key: str, build: Callable[[], tuple[Mapping[str, np.ndarray], Mapping]]) -> Index:
    """Open the index of that key from the cache; build it first where it is missing or damaged.

    Processes that build the same index at once do not disturb each other: each writes a folder of its
    own, one of them gets the final name, and all read that one.

    Args:
        key: names the index, fit for a folder's name; different contents need different keys.
        build: makes the arrays and the plain values; called at most once.

    Raises:
        InputError: if the cache cannot be written, or as `build` does.
    """
    folder = cache_folder() / key
    index = _try_open(folder)
    if index is not None:
        return index
    log.info("building the index %s (once for these files)", folder)
    arrays, meta = build()
    draft = folder.with_name(f".{key}.{uuid.uuid4().hex}")
    try:
        with cache_errors(folder):
            _write(draft, arrays, meta)
            return _publish(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _try_open(folder: Path) -> Index | None:
    try:
        return Index(folder)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        log.warning("the index %s is damaged and is built anew (%s)", folder, error)
        return None


def _write(folder: Path, arrays: Mapping[str, np.ndarray], meta: Mapping) -> None:
    """Write a complete index and force it to disk, so that no power cut leaves a whole-looking empty file."""
    folder.mkdir()
    for name, array in arrays.items():
        with open(folder / f"{name}.npy", "wb") as file:
            np.save(file, array, allow_pickle=False)
            _force(file)
    with open(folder / _META, "w", encoding="utf-8") as file:
        json.dump({"arrays": list(arrays), "meta": dict(meta)}, file)
        _force(file)


def _force(file) -> None:
    file.flush()
    os.fsync(file.fileno())


def _publish(draft: Path, folder: Path) -> Index:
    """Give the draft its final name, unless another process has put a sound index there meanwhile."""
    while True:
        try:
            os.rename(draft, folder)
            return Index(folder)
        except OSError:
            index = _try_open(folder)
            if index is not None:
                return index
            if not folder.exists():
                raise
            # Someone's damaged index is in the way. Renamed first, so that nobody opens it half deleted.
            broken = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
            os.rename(folder, broken)
            shutil.rmtree(broken, ignore_errors=True)
