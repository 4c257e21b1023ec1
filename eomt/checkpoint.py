"""Checkpoints: written whole or not at all, read without running code from the file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from eomt.classes import Classes
from eomt.errors import InputError

FORMAT = "eomt"
"""The key under which a checkpoint carries kind, classes, network and configuration."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its target and renames it there; reads plain values and tensors only."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write all of it to a temporary file in the same folder, flush it to disk, and rename it.

        Raises:
            InputError: if the disk is full or cannot be written; what was at `path` stays whole.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in path.parent.glob(f".{path.name}.*.tmp"):
            leftover.unlink(missing_ok=True)
        temporary = None
        try:
            with tempfile.NamedTemporaryFile(
                dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False
            ) as file:
                temporary = Path(file.name)
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except (OSError, RuntimeError) as error:
            if temporary is not None:
                temporary.unlink(missing_ok=True)
            raise InputError(
                f"{path} cannot be written ({error}): free some space or choose another folder by "
                "hydra.run.dir=; the checkpoint written before is whole"
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict:
        """Read a checkpoint; `weights_only` is always on, whatever is asked for."""
        return read_checkpoint(path, map_location)


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict:
    """Read a checkpoint of ours.

    Raises:
        InputError: if there is no such file, it is truncated, holds anything but plain values and tensors,
            or was not written by us.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"ckpt={path}: no such file")
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:
        # torch.load raises nearly anything on a damaged file.
        raise InputError(
            f"ckpt={path} cannot be read: it is truncated or no checkpoint; take another, such as best.ckpt "
            "or last.ckpt of the same folder"
        ) from error
    if not isinstance(checkpoint, dict) or FORMAT not in checkpoint:
        raise InputError(f"ckpt={path} is no checkpoint of this project: it lacks the part {FORMAT!r}")
    return checkpoint


def check_same_model(checkpoint: Mapping, kind: str, classes: Classes, spec: Mapping) -> None:
    """Raise InputError unless a checkpoint is of this task, these classes and this network."""
    saved = checkpoint.get(FORMAT, {})
    if saved.get("kind") != kind:
        raise InputError(f"ckpt= is of a {saved.get('kind')} model, this run is {kind}: choose its task")
    if [c["id"] for c in saved["classes"]] != classes.ids:
        raise InputError(
            f"ckpt= was trained on {len(saved['classes'])} other classes than the {len(classes)} of this "
            "data: choose its task and data"
        )
    for key, value in spec.items():
        if saved["network"].get(key) != value:
            raise InputError(
                f"ckpt= is of another model: {key} is {saved['network'].get(key)} there and {value} here; "
                "choose its model"
            )
