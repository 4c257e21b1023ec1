"""Reading files of weights and their descriptions without running code from them.

PyTorch's files are zip archives of a pickle and of the tensors' bytes. Only plain values and tensors are unpickled.
The archive is checked before that: PyTorch reads its entries as they stand in the file, so that one that is
compressed, or claims more than the file has, would be garbage or fill the memory.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from eomt.errors import InputError

MAX_JSON = 64 * 2**20
"""Bytes of a description; those of real models stay far below one MiB."""

_AGAIN = "download or copy it again"
_OR_ANOTHER = f"{_AGAIN}, or take another checkpoint of its run, such as previous.ckpt"


def read_file(path: Path, name: str, mmap: bool = True) -> Any:
    """Read a file by its content, not by its suffix.

    Args:
        path: a file in safetensors' or PyTorch's format.
        name: what messages call it.
        mmap: leave the tensors in the file until they are used.

    Returns:
        a dict of tensors for safetensors; whatever was saved for PyTorch, of plain values and tensors alone.

    Raises:
        InputError: if the file cannot be opened, is of neither format, truncated or damaged, or would run code.
    """
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror}") from error
    if start.startswith(b"PK\x03\x04"):
        return _read_torch(path, name, mmap)
    if start[8:] == b"{":
        return _read_safetensors(path, name, mmap)
    what = "it is empty" if not start else "its content is neither safetensors' nor PyTorch's"
    raise InputError(f"{name} is no file of weights: {what}; {_AGAIN}")


def read_tensors(path: Path, name: str, mmap: bool = True) -> dict[str, Tensor]:
    """As `read_file`, for a file that holds tensors under their names and nothing else."""
    return tensors_of(read_file(path, name, mmap), name)


def tensors_of(state: Any, name: str) -> dict[str, Tensor]:
    """What is left of a state dict when it is checked to be one: dense tensors no larger than their bytes.

    Raises:
        InputError: if anything in it is something else.
    """
    if not isinstance(state, Mapping) or not state:
        raise InputError(f"{name} holds no weights by name, but {type(state).__name__}")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise InputError(f"{name} holds {type(value).__name__} under {str(key)[:80]!r}, where a weight belongs")
        dense = value.layout == torch.strided and not value.is_quantized and value.device.type == "cpu"
        # A view can repeat few bytes to any size, which the next operation would write out.
        if not dense or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise InputError(f"{name}: {key[:80]} is no plain weight: {list(value.shape)} of other bytes; {_AGAIN}")
    return dict(state)


def read_shards(folder: Path, index: str, name: str, mmap: bool = True) -> dict[str, Tensor]:
    """The tensors of all files that an index (`*.index.json`) names.

    Raises:
        InputError: if a file is missing, lies elsewhere, or lacks what the index says it holds.
    """
    places = read_json(folder / index, f"{name}/{index}").get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise InputError(f"{name}/{index} has no weight_map of names to files")
    state: dict[str, Tensor] = {}
    for file in sorted(set(places.values())):
        if Path(file).name != file:
            raise InputError(f"{name}/{index} names {file[:80]!r}, which is no file of this folder")
        if not (folder / file).is_file():
            raise InputError(f"{name} lacks {file}, which {index} names; download it too")
        state |= read_tensors(folder / file, f"{name}/{file}", mmap)
    missing = sorted(places.keys() - state.keys())
    if missing:
        raise InputError(f"{name} lacks {missing[0]} and {len(missing) - 1} more weights that {index} names; {_AGAIN}")
    return state


def read_json(path: Path, name: str) -> dict:
    """Read a JSON object of bounded size.

    Raises:
        InputError: if it is too large, no JSON, or no object.
    """
    try:
        size = path.stat().st_size
        if size > MAX_JSON:
            raise InputError(f"{name} has {size >> 20} MiB, where a description has kilobytes; {_AGAIN}")
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is no JSON ({str(error)[:80]}); {_AGAIN}") from error
    if not isinstance(value, dict):
        raise InputError(f"{name} holds {type(value).__name__}, where a JSON object belongs")
    return value


def _read_safetensors(path: Path, name: str, mmap: bool) -> dict[str, Tensor]:
    try:
        state = load_file(path)
    except Exception as error:
        # Of several kinds, for a header that is no JSON, claims more than the file, or names unknown types.
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise InputError(f"{name} is truncated or damaged ({reason}); {_AGAIN}") from error
    return state if mmap else {key: value.clone() for key, value in state.items()}


def _read_torch(path: Path, name: str, mmap: bool) -> Any:
    _check_archive(path, name)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        held = f" ({found[1]})" if found else ""
        raise InputError(
            f"{name} holds Python objects{held} beside plain values and tensors, which could run code and are not "
            "read: ask its author for the weights alone, best as safetensors"
        ) from error
    except Exception as error:
        # torch.load raises nearly anything on a damaged file.
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise InputError(f"{name} is truncated or damaged ({reason}); {_OR_ANOTHER}") from error


def _check_archive(path: Path, name: str) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"{name} is truncated or damaged ({str(error)[:80]}); {_OR_ANOTHER}") from error
    size = path.stat().st_size
    if any(e.compress_type != zipfile.ZIP_STORED or e.compress_size != e.file_size for e in entries):
        raise InputError(f"{name} is a compressed archive, which PyTorch's files are not; unpack it, or {_AGAIN}")
    if sum(e.file_size for e in entries) > size:
        raise InputError(f"{name} claims more data than its {size} bytes; {_AGAIN}")
