"""Writing a folder whole or not at all, and never over anything but an export."""

from __future__ import annotations

import io
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from eomt.errors import InputError

# Files of exports; a folder that holds anything else is not replaced.
_FILES = {
    "README.md",
    "config.json",
    "eomt.json",
    "model.onnx",
    "model.onnx.data",
    "model.pt2",
    "model.safetensors",
    "preprocessor_config.json",
    "pytorch_model.bin",
}


def check_out(out: str | Path, overwrite: bool) -> Path:
    """The folder to write, as an absolute path.

    Raises:
        InputError: if it is a file, or holds anything but an export, or holds one and `overwrite` is not set.
    """
    # Links are followed: renaming would otherwise replace the link.
    path = Path(out).expanduser().resolve()
    if not path.exists():
        return path
    if not path.is_dir():
        raise InputError(f"out={out} is a file: give a folder")
    names = sorted(entry.name for entry in path.iterdir())
    foreign = [name for name in names if name not in _FILES]
    if foreign:
        raise InputError(f"out={out} holds {foreign[0]}, which no export wrote: choose another folder")
    if names and overwrite is not True:
        raise InputError(f"out={out} has an export already: choose another folder, or set overwrite=true")
    return path


@contextmanager
def replacing_folder(out: Path) -> Iterator[Path]:
    """Give a temporary folder beside `out`, which takes its place once the block has succeeded.

    Raises:
        InputError: if the disk is full or cannot be written; a previous `out` then stays as it was.
    """
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        mode = temporary.stat().st_mode & 0o666
        for path in temporary.iterdir():
            path.chmod(mode)  # safetensors lets the owner alone read what it writes
            with path.open("rb") as file:
                os.fsync(file.fileno())
        _swap(temporary, out)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"out={out} cannot be written ({reason}): free some space or choose another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        if self._failure is not None:
            raise self._failure


def _swap(temporary: Path, out: Path) -> None:
    old = out.with_name(f"{temporary.name}.old")
    if out.exists():
        out.rename(old)
    try:
        temporary.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
