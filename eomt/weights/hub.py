"""The places of weights: a file, an exported folder, a checkpoint of a run's folder, or the Hugging Face Hub."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eomt.errors import InputError, reason

# Suffixes of weight files, which no repository's name has.
SUFFIXES = (".safetensors", ".ckpt", ".bin", ".pt", ".pth")
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_DESCRIPTIONS = ["config.json", "preprocessor_config.json", "eomt.json"]
_SAFE = ["model.safetensors", "model-*.safetensors", "model.safetensors.index.json"]
_PICKLED = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]

BEST_FIRST = ("best.ckpt", "last.ckpt", "previous.ckpt")
LAST_FIRST = ("last.ckpt", "previous.ckpt", "best.ckpt")
"""The checkpoints of a run's folder, in the order in which they are evaluated, and in which a run is resumed."""


def is_hub_id(source: str | Path) -> bool:
    """True for `owner/name` that is neither an existing file nor an existing folder."""
    text = str(source)
    return bool(_ID.fullmatch(text)) and not text.lower().endswith(SUFFIXES) and not os.path.exists(text)


def run_checkpoint(path: Path, names: Sequence[str] = BEST_FIRST) -> Path:
    """The checkpoint of a run's folder, or of the folder `checkpoints` in it: the first of `names` that is there.

    Any other path is returned as it is.
    """
    places = [path / "checkpoints", path] if os.path.isdir(path) else []
    return next((folder / name for folder in places for name in names if (folder / name).is_file()), path)


def local_path(source: str | Path) -> Path:
    """The path of a file or folder, or of the Hub's cache once it holds a repository's weights and descriptions.

    Of a run's folder it is that of the best checkpoint.

    Only what is needed is downloaded: safetensors, or PyTorch's own files where there are none.

    Args:
        source: a path, or a repository such as "tue-mps/coco_panoptic_eomt_large_640".

    Raises:
        InputError: if a repository cannot be had; the message says why, and where a downloaded copy can be given.
    """
    if not is_hub_id(source):
        return run_checkpoint(Path(source).expanduser())
    folder = _snapshot(str(source), _DESCRIPTIONS + _SAFE)
    if folder is None or not any(folder.glob("*.safetensors")):
        folder = _snapshot(str(source), _DESCRIPTIONS + _PICKLED)
    if folder is None:
        raise InputError(f"{source} on the Hugging Face Hub holds neither model.safetensors nor pytorch_model.bin")
    return folder


def dataset_path(source: str) -> Path:
    """The folder in the Hub's cache of a data set's Parquet files: its own, or those that the Hub has made of it.

    Raises:
        InputError: if it cannot be had, or has none.
    """
    for revision in (None, "refs/convert/parquet"):
        folder = _snapshot(source, ["*.parquet", "id2label.json"], repo_type="dataset", revision=revision)
        if folder is not None and next(folder.rglob("*.parquet"), None):
            return folder
    raise InputError(f"{source} on the Hugging Face Hub holds no Parquet files; download it, and give its folder")


def _snapshot(repo_id: str, patterns: list[str], **options: Any) -> Path | None:
    """The folder in the cache; None if the cache lacks the files that were asked for."""
    import huggingface_hub
    from huggingface_hub import constants, errors

    try:
        return Path(huggingface_hub.snapshot_download(repo_id, allow_patterns=patterns, **options))
    except getattr(errors, "IncompleteSnapshotError", ()):
        return None
    except Exception as error:
        # The client's own errors, those of the network below it, and those of the disk under the cache.
        if isinstance(error, errors.RevisionNotFoundError):
            return None
        if isinstance(error, errors.GatedRepoError):
            fault = "it is gated: ask for access on its page there, then run `hf auth login` or set HF_TOKEN"
        elif isinstance(error, errors.RepositoryNotFoundError):
            fault = "no such repository; a private one needs `hf auth login` or HF_TOKEN"
        elif constants.HF_HUB_OFFLINE:
            fault = "HF_HUB_OFFLINE is set: run once with HF_HUB_OFFLINE=0, where there is internet, with this HF_HOME"
        else:
            fault = f"{reason(error.__cause__ or error)}: try again where there is internet, with this HF_HOME"
        raise InputError(
            f"{repo_id} is no file or folder here, and cannot be had from the Hugging Face Hub ({fault}), or download "
            "its files elsewhere and give their folder (the DINOv3 of delta weights: by delta_base=)"
        ) from error
