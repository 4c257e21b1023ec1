"""Reading files of weights and their descriptions without running code from them.

PyTorch's files are zip archives of a pickle and of the tensors' bytes. Before one is unpickled, its pickle may name
nothing but plain values and dense tensors, and sizes and checksums are compared, which PyTorch does not do.
Safetensors files have no checksums; their reader compares the header with the size of the file.
"""

from __future__ import annotations

import functools
import json
import pickletools
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from eomt.errors import InputError, reason

WHOLE = ("model.safetensors", "pytorch_model.bin")
"""Names of a folder's own weights, which the folder's descriptions are about."""

GRAPHS = ("model.onnx", "model.xml", "model.engine", "model.pt2")
"""Names of exported graphs, which run without weights."""

_NO_WEIGHTS = "which runs without weights, as by examples/run_graph.py"

EXPORT, CONFIG, PROCESSOR = "eomt.json", "config.json", "preprocessor_config.json"
"""Descriptions beside the weights: eomt.json of our exports, and those of transformers' models and image processors."""

FORMAT = "eomt"
"""The key under which a checkpoint carries kind, classes, network and configuration, as eomt.json has them."""

MAX_JSON = 64 * 2**20
"""Bytes of a description; those of real models stay far below one MiB."""

_MAX_ENTRIES = 10**6  # of lists, mappings and tensors in a file
_MAX_HEADER = 2**22  # bytes of a safetensors header: a giant model's take some 100,000

# What a pickle may name. PyTorch's unpickler allows more, which it calls with any size.
_PLAIN = re.compile(
    r"collections (OrderedDict|Counter)|torch\._utils _rebuild_(tensor_v2|parameter)"
    r"|torch (Size|device|bool|b?float\d+|u?int\d+|(Double|Float|Half|BFloat16|Long|Int|Short|Char|Byte|Bool)Storage)"
)
_AGAIN = "download or copy it again, or take another checkpoint of its run, such as previous.ckpt"


@dataclass(frozen=True)
class Source:
    """A file or folder of weights as it was read, whatever it is.

    Attributes:
        content: everything in the file, tensors and plain values; for a folder, its tensors.
        state: the weights alone, dense tensors on the CPU; under "network." if the file has such keys.
        descriptions: the JSON objects beside the weights, by file name; under `EXPORT` also that within a checkpoint.
    """

    content: Mapping[str, Any]
    state: Mapping[str, Tensor]
    descriptions: Mapping[str, dict[str, Any]]


def read_source(path: Path) -> Source:
    """Read a file or folder of weights once, with the descriptions beside it.

    Args:
        path: a file in safetensors' or PyTorch's format, or a folder with one of `WHOLE` or its shards.

    Returns:
        The content; tensors stay in the file until they are used.

    Raises:
        InputError: if it is neither, cannot be read, is damaged, would run code, or holds no tensors by name.
    """
    if path.is_dir():
        folder, content = path, _read_folder(path)
    elif path.is_file():
        # Any other file in a folder is not what the folder's descriptions are about.
        folder, content = path.parent if path.name in WHOLE else None, read_file(path)
    else:
        raise InputError(f"{path}: no such file or folder")
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    state = {key.replace("_orig_mod.", ""): value for key, value in _tensors(state, path).items()}
    # Lightning modules carry buffers of the loss and the metrics beside their network.
    state = {key: value for key, value in state.items() if key.startswith("network.")} or state
    beside = [folder / name for name in (EXPORT, CONFIG, PROCESSOR)] if folder is not None else []
    descriptions = {file.name: read_json(file) for file in beside if file.is_file()}
    if FORMAT in content:
        descriptions[EXPORT] = plain(content[FORMAT], f"{path}: its description")
    return Source(content, state, descriptions)


def read_file(path: Path, mmap: bool = True) -> Any:
    """Read a file by its content, not by its suffix.

    Args:
        path: a file in safetensors' or PyTorch's format.
        mmap: leave the tensors in a PyTorch file until they are used, as those in a safetensors file always are.

    Returns:
        A dict of tensors for safetensors; for PyTorch anything that was saved, plain values and tensors alone.

    Raises:
        InputError: if the file cannot be opened, is of neither format, truncated or damaged, or would run code.
    """
    try:
        with path.open("rb") as file:
            start = file.read(9)
        if start.startswith(b"PK\x03\x04"):
            status = path.stat()
            _check_archive(path, (status.st_ino, status.st_size, status.st_mtime_ns))
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
            _check_claims(content)
            return content
        if start[8:] == b"{":
            if int.from_bytes(start[:8], "little") > _MAX_HEADER:
                raise ValueError("its header is larger than that of any model")
            return load_file(path)
        if path.name in GRAPHS:
            raise InputError(f"is an exported graph, {_NO_WEIGHTS}")
        raise ValueError("its content is neither safetensors' nor PyTorch's" if start else "it is empty")
    except InputError as error:
        raise InputError(f"{path} {error}") from None
    except Exception as error:
        # PyTorch and safetensors raise nearly anything on a damaged file.
        raise InputError(f"{path} is truncated, damaged or no file of weights ({reason(error)}); {_AGAIN}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of bounded size.

    Raises:
        InputError: if it is too large, no JSON, or no object.
    """
    try:
        if path.stat().st_size > MAX_JSON:
            raise ValueError(f"{path.stat().st_size >> 20} MiB, where a description has kilobytes")
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError(f"it holds {type(value).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON object ({reason(error)}); {_AGAIN}") from error
    return plain(value, str(path))


def plain(value: Any, name: str) -> Any:
    """Copy plain values that a file brings: mappings, lists, text, numbers, true, false and null.

    Raises:
        InputError: if there is anything else in it, or more of it than any configuration has. A file of a few bytes
            can hold a billion entries by naming the same list again and again.
    """
    left = 100_000

    def copied(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > 50:
            raise InputError(f"{name} has more entries than any configuration; {_AGAIN}")
        if isinstance(value, Mapping) and all(isinstance(key, str | int) for key in value):
            return {copied(key, depth + 1): copied(entry, depth + 1) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [copied(entry, depth + 1) for entry in value]
        if value is None or isinstance(value, str | float) or (isinstance(value, int) and abs(value) < 2**63):
            return value
        raise InputError(f"{name} holds {type(value).__name__}, where plain text and numbers belong; {_AGAIN}")

    return copied(value, 0)


def _read_folder(folder: Path) -> dict[str, Any]:
    for file in WHOLE:
        if (folder / file).is_file():
            return read_file(folder / file)
        if (folder / f"{file}.index.json").is_file():
            return _read_shards(folder / f"{file}.index.json")
    if (folder / "checkpoints").is_dir() or (folder / "config.yaml").is_file():
        raise InputError(
            f"{folder} is the folder of a run that has not saved a checkpoint yet: start it anew, and choose how often "
            "one is saved by callbacks.last.every_n_steps="
        )
    if graph := next((name for name in GRAPHS if (folder / name).is_file()), None):
        raise InputError(f"{folder} is an exported graph, {graph}, {_NO_WEIGHTS}")
    if runs := [*folder.glob("*/checkpoints"), *folder.glob("*/*/checkpoints")]:
        newest = max(runs, key=lambda place: place.stat().st_mtime).parent
        raise InputError(f"{folder} holds {len(runs)} run{'s' * (len(runs) > 1)}: give one, the newest is {newest}")
    raise InputError(f"{folder} holds no weights: a folder must have {' or '.join(WHOLE)}")


def _read_shards(index: Path) -> dict[str, Any]:
    """Read the tensors of all files in its folder that an index (`*.index.json`) names."""
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise InputError(f"{index} has no weight_map of names to files")
    state: dict[str, Any] = {}
    for file in sorted(set(files.values())):
        path = index.parent / file
        if path.name != file or not path.is_file():
            raise InputError(f"{index} names {file!r}, which is no file of its folder: download it too")
        state |= _tensors(read_file(path), path)
    return state


def _tensors(state: Any, path: Path) -> dict[str, Tensor]:
    """Check that a state dict holds nothing but tensors by name."""
    if not isinstance(state, Mapping) or not state:
        raise InputError(f"{path} holds no weights by name, but {type(state).__name__}")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise InputError(f"{path} holds {type(value).__name__} under {str(key)!r}, where a weight belongs")
    return dict(state)


def _check_claims(content: Any) -> None:
    """Raise ValueError if tensors repeat their bytes, alone or together: the next operations would write them out."""
    waiting, visits, claimed, held = [content], 0, 0, {}
    while waiting:
        value, visits = waiting.pop(), visits + 1
        if visits > _MAX_ENTRIES:
            raise ValueError("it has more entries than any model")
        if isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
        elif isinstance(value, Tensor):
            storage, size = value.untyped_storage(), value.numel() * value.element_size()
            if size > storage.nbytes():
                raise ValueError(f"a tensor of {list(value.shape)} repeats {storage.nbytes()} bytes")
            claimed, held[storage.data_ptr()] = claimed + size, storage.nbytes()
    # Weights that two parts share are saved once.
    if claimed > 2 * sum(held.values()):
        raise ValueError(f"its tensors repeat {sum(held.values())} bytes, of which they make {claimed}")


@functools.lru_cache(maxsize=16)
def _check_archive(path: Path, stamp: tuple[int, int, int]) -> None:
    """Check an archive in PyTorch's format, which reads all of it: 0.4 s per GB.

    Args:
        path: the archive.
        stamp: inode, size and time of change: a resumed run reads its checkpoint several times, and checks it once.

    Raises:
        InputError: if its pickle names objects.
        Exception: of any type, if it is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("a compressed archive, which PyTorch's files are not")
        if sum(entry.file_size for entry in entries) > stamp[1]:
            raise ValueError(f"it claims more data than its {stamp[1]} bytes")
        summed = any(entry.CRC for entry in entries)
        for entry in entries:
            if not summed:
                # torch.serialization.set_crc32_options(False) has left them out.
                entry.CRC = None  # pyright: ignore[reportAttributeAccessIssue]: zipfile then compares none
            with archive.open(entry) as file:
                # PyTorch finds its pickle by a name in any case.
                if entry.filename.lower().endswith(".pkl"):
                    _check_pickle(file.read())
                while file.read(2**22):
                    pass


def _check_pickle(content: bytes) -> None:
    for operation, named, _ in pickletools.genops(content):
        if operation.name in ("STACK_GLOBAL", "INST") or (
            operation.name == "GLOBAL" and not _PLAIN.fullmatch(str(named))
        ):
            raise InputError(
                f"holds Python objects ({named}) beside plain values and tensors, which could run code or fill the "
                "memory and are not read: ask its author for the weights alone, best as safetensors"
            )
