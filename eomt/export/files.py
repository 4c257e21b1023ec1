"""Writing a folder whole or not at all, and never over anything but an export."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eomt.errors import InputError

# What exports write; a folder that holds anything else is not replaced.
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
    if names and not overwrite:
        raise InputError(f"out={out} has an export already: choose another folder, or set overwrite=true")
    return path


@contextmanager
def replacing_folder(out: Path) -> Iterator[Path]:
    """Give a temporary folder beside `out`, which takes its place once the block has succeeded."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    temporary.mkdir()
    try:
        yield temporary
        mode = temporary.stat().st_mode & 0o666
        for path in temporary.iterdir():
            path.chmod(mode)  # safetensors lets the owner alone read what it writes
            with path.open("rb") as file:
                os.fsync(file.fileno())
        _swap(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
