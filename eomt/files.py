"""Files and folders: listing them, and writing them whole or not at all, by one process at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import os
import shutil
import socket
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eomt.errors import InputError

_MOST_VISITS = 100  # of one folder, to which several links lead
_DEEPEST = 500  # folders in one another, links followed


def walk(folder: str | Path, hidden: bool = True) -> Iterator[tuple[str, list[str]]]:
    """Walk through a folder, all below it and all folders that are linked into it.

    A link to a folder that contains the link is passed over.

    Args:
        folder: the folder; one that is not there has no files.
        hidden: also enter folders whose names begin with a dot.

    Yields:
        The path of each folder, and the names of the files in it.

    Raises:
        InputError: if a folder cannot be read, lies more than 500 deep, or links lead to it in more than 100 ways.
    """

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise InputError(f"{error.filename}: {error.strerror}") from error

    # The real paths of a folder and of those above it.
    above: dict[str, tuple[str, ...]] = {str(folder): (os.path.realpath(folder),)}
    visits: Counter[str] = Counter()
    for parent, folders, names in os.walk(str(folder), onerror=fail, followlinks=True):
        chain = above.pop(parent)
        if len(chain) > _DEEPEST:
            raise InputError(f"folders below {folder} lie more than {_DEEPEST} deep: move them up, or away")
        for name in list(folders):
            path = os.path.join(parent, name)
            real = os.path.realpath(path) if os.path.islink(path) else os.path.join(chain[-1], name)
            if real in chain or (name.startswith(".") and not hidden):
                folders.remove(name)
                continue
            above[path] = (*chain, real)
            visits[real] += 1
            if visits[real] > _MOST_VISITS:
                raise InputError(f"links below {folder} lead to {real} in more than {_MOST_VISITS} ways: remove some")
        yield parent, names


def cache_path() -> Path:
    """Folder of computed files: `$EOMT_CACHE`, else `$XDG_CACHE_HOME/eomt`, else `~/.cache/eomt`."""
    chosen = os.environ.get("EOMT_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "eomt")


@contextlib.contextmanager
def replacing(path: str | Path, synced: bool = True) -> Iterator[Path]:
    """Give a temporary path beside `path`, which takes the place of `path` once the block has succeeded.

    The temporary name keeps the suffix, which tells writers of pictures the format. The content is on the disk before
    the name changes, so that no power cut leaves a whole-looking empty file; without `synced`, for one of very many
    files that can be made again, the disk is not waited for.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}{path.suffix}")
    try:
        yield temporary
        if synced:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if synced:
            sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """Give a temporary folder beside `out`, which takes the place of `out` once the block has succeeded.

    Its files are then on the disk, and as readable as the folder. Where the block fails, `out` stays as it was; so it
    does, by an OSError, where it has files by then and they are not to be overwritten.
    """
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    old = temporary.with_name(f"{temporary.name}.old")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        mode = temporary.stat().st_mode & 0o666
        for path in temporary.iterdir():
            path.chmod(mode)  # safetensors lets the owner alone read what it writes
            with path.open("rb") as file:
                os.fsync(file.fileno())
        if overwrite and out.exists():
            out.rename(old)
        try:
            temporary.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: str | Path, patience: float = 0) -> Iterator[None]:
    """Hold the lock of a folder, `.lock` in it, within the block. However the process ends, the system frees it.

    Forks do not hold it. Where the file system has no locks, none is held.

    Args:
        folder: the folder, made if it is not there, and then removed if nothing has come into it.
        patience: seconds to wait for another process.

    Raises:
        InputError: if another process holds it, which is named.
    """
    path, deadline = Path(folder, ".lock"), time.monotonic() + patience
    made = not path.parent.exists()
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    if time.monotonic() < deadline:
                        time.sleep(1)
                        continue
                    file.seek(0)
                    who = file.read(100).strip()
                    raise InputError(
                        f"{folder} is being written by another command ({who}): wait for its end, or choose another "
                        "folder"
                    ) from error
            # The one that held it may have removed the file, or the folder, in between.
            if not (path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())):
                continue
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
                if made:
                    with contextlib.suppress(OSError):  # of a folder that is not empty
                        path.parent.rmdir()
            return


def sync_folder(folder: str | Path) -> None:
    """Make new names in a folder outlast a power cut, where the file system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: str | Path, value: Any) -> None:
    """Write an indented JSON file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


class ArchiveFile(io.FileIO):
    """A file for PyTorch's writer of archives, which would end the process where a write fails.

    Used in a `with` statement, at whose end the failure is raised.

    Raises:
        OSError: if the disk is full or a quota used up.
    """

    def __init__(self, path: Path):
        super().__init__(path, "wb")
        self._failure: OSError | None = None

    def write(self, data: bytes) -> int:
        """Write all of it, unless an earlier write has failed."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while self._failure is None and rest:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self._failure = error
        return size

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        if self._failure is not None:
            raise self._failure
