"""Weights from the Hugging Face Hub, through its client's cache and offline mode."""

from __future__ import annotations

import os
import re
from pathlib import Path

from eomt.errors import InputError

# What files of weights are called; a repository's name is none of these.
SUFFIXES = (".safetensors", ".ckpt", ".bin", ".pt", ".pth")
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_DESCRIPTION = ["config.json", "preprocessor_config.json", "eomt.json"]
_SAFE = ["model.safetensors", "model-*.safetensors", "model.safetensors.index.json"]
_PICKLED = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]


def is_hub_id(source: str | Path) -> bool:
    """Whether this is `owner/name`, and no file or folder that is there."""
    text = str(source)
    return bool(_ID.fullmatch(text)) and not text.lower().endswith(SUFFIXES) and not os.path.exists(text)


def fetch(repo_id: str) -> Path:
    """Bring a repository's weights and their description into the cache of the Hub's client.

    Safetensors go before PyTorch's own files; nothing else is downloaded.

    Args:
        repo_id: such as "tue-mps/coco_panoptic_eomt_large_640".

    Returns:
        the folder of the cache that holds them.

    Raises:
        InputError: if they cannot be had; the message says why and where a downloaded copy can be given.
    """
    folder = _snapshot(repo_id, _DESCRIPTION + _SAFE)
    if folder is None or not any(folder.glob("*.safetensors")):
        folder = _snapshot(repo_id, _DESCRIPTION + _PICKLED)
    if folder is None:
        raise InputError(f"{repo_id} on the Hugging Face Hub holds neither model.safetensors nor pytorch_model.bin")
    return folder


def _snapshot(repo_id: str, patterns: list[str]) -> Path | None:
    """The folder of the cache; None if the cache, complete or not, lacks what was asked for."""
    import huggingface_hub
    from huggingface_hub import errors

    copy = "or download its files elsewhere and give their folder in its place"
    try:
        return Path(huggingface_hub.snapshot_download(repo_id, allow_patterns=patterns))
    except errors.GatedRepoError as error:
        raise InputError(
            f"{repo_id} is gated: ask for access on its page on the Hugging Face Hub, then run `hf auth login` or set "
            f"HF_TOKEN, {copy} (the DINOv3 of delta weights: its model.safetensors by delta_base=FILE)"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"{repo_id}: no such file or folder, and no such repository on the Hugging Face Hub; a private one needs "
            f"`hf auth login` or HF_TOKEN"
        ) from error
    except getattr(errors, "IncompleteSnapshotError", ()):
        return None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise InputError(f"{repo_id}: no such file or folder, not in the cache, and {_why(error)}, {copy}") from error
    except Exception as error:
        # The client's own errors, those of the network below it, and those of the disk under the cache.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise InputError(
            f"{repo_id} cannot be had from the Hugging Face Hub ({reason}): try again, {copy}; "
            "HF_HOME is where the cache lies"
        ) from error


def _why(error: Exception) -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set: run once with HF_HUB_OFFLINE=0 where there is internet, with the same HF_HOME"
    cause = error.__cause__ or error
    reason = (str(cause).strip() or type(cause).__name__).splitlines()[0][:120]
    return f"the Hugging Face Hub cannot be reached ({reason}): run once where there is internet, with the same HF_HOME"
