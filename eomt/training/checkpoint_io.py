"""Checkpoints for Lightning: written whole or not at all, read without running code from the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from eomt.errors import InputError
from eomt.files import replacing
from eomt.weights.checkpoint import read_checkpoint


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its target and renames it there; reads plain values and tensors only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write all of it to a temporary file in the same folder, flush it to disk, and rename it.

        Raises:
            InputError: if the disk is full or cannot be written; what was at `path` stays whole.
        """
        path = Path(path)
        try:
            # What killed runs left half-written.
            for leftover in path.parent.glob(f".{path.stem}.*{path.suffix}"):
                leftover.unlink(missing_ok=True)
            with replacing(path) as temporary:
                torch.save(checkpoint, temporary)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"no checkpoint can be written to {path.parent} ({_reason(error)}): free some space, then go on by "
                f"python train.py ckpt={path.parent}/last.ckpt; what was written before is whole"
            ) from error

    def load_checkpoint(self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True) -> dict:
        """Read a checkpoint; `weights_only` is always on, whatever is asked for."""
        return read_checkpoint(path)


def _reason(error: OSError | RuntimeError) -> str:
    """PyTorch says of a full disk at which byte it failed."""
    if isinstance(error, OSError):
        return str(error)
    return f"the disk is full or a quota used up; {str(error).splitlines()[0][:100]}"
