"""Checkpoints of training runs: reading them whole to resume from, and comparing them with the run that resumes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from eomt.classes import Classes
from eomt.errors import InputError
from eomt.weights.safe_load import FORMAT, plain, read_file
from eomt.weights.validate import check_same_classes

log = logging.getLogger("eomt")

CONTINUATION = "continuation"
"""The key under which `last.ckpt` names its SLURM job and its logs."""

TRAINED = "current_model_state"
"""The key of the weights that the optimizer trains, in a checkpoint whose own weights are averages."""

PREVIOUS = "previous.ckpt"
"""The name of the checkpoint before `last.ckpt`, beside it."""


def read_checkpoint(path: str | Path, mmap: bool = False) -> dict:
    """Read a checkpoint of ours, all of which is compared with its checksums (0.4 s per GB).

    Args:
        path: the file.
        mmap: leave the tensors in the file until they are used, which saves memory but no reading.

    Raises:
        InputError: if there is no such file, it is truncated or damaged, holds anything but plain values and
            tensors, or was not written by us.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"ckpt={path}: no such file")
    try:
        checkpoint = read_file(path, path.name, mmap)
    except InputError as error:
        raise InputError(
            f"ckpt={path} cannot be read ({str(error).partition(';')[0][:160]}); take another, such as best.ckpt, "
            f"last.ckpt or {PREVIOUS} of the same folder"
        ) from None
    if not isinstance(checkpoint, dict) or FORMAT not in checkpoint:
        raise InputError(f"ckpt={path} is no checkpoint of this project: it lacks the part {FORMAT!r}")
    for key in (FORMAT, CONTINUATION):
        part = checkpoint[key] = plain(checkpoint.get(key, {}), f"ckpt={path}: its part {key!r}")
        if not isinstance(part, dict):
            raise InputError(f"ckpt={path}: its part {key!r} is damaged; take another, such as {PREVIOUS} beside it")
    return checkpoint


def intact(path: str | Path) -> Path:
    """The checkpoint if it can be read, otherwise the previous one of its run.

    Args:
        path: `last.ckpt`, which has a `previous.ckpt` beside it, or any other checkpoint.

    Raises:
        InputError: if neither can be read.
    """
    path = Path(path)
    try:
        read_checkpoint(path, mmap=True)
        return path
    except InputError:
        previous = path.with_name(PREVIOUS)
        if path.name != "last.ckpt" or not previous.is_file():
            raise
        step = read_checkpoint(previous, mmap=True)["global_step"]
        fault = "is truncated or damaged" if path.is_file() else "is missing"
        log.warning("%s %s: resumes from the one before, %s, step %d", path, fault, PREVIOUS, step)
        return previous


def check_same_model(checkpoint: Mapping, kind: str, classes: Classes, spec: Mapping) -> None:
    """Raise InputError unless a checkpoint has this task, these classes and this network."""
    saved = checkpoint.get(FORMAT, {})
    if saved.get("kind") != kind:
        raise InputError(f"ckpt= is of a {saved.get('kind')} model, this run is {kind}: choose its task")
    check_same_classes(Classes.from_list(saved["classes"]), classes)
    for key, value in spec.items():
        if saved["network"].get(key) != value:
            raise InputError(
                f"ckpt= is of another model: {key} is {saved['network'].get(key)} there and {value} here; "
                "choose its model"
            )


def check_same_training(checkpoint: Mapping, learns: Mapping, averages: bool) -> None:
    """Raise InputError unless a run with these trained parts, and with averages or without, can resume a checkpoint.

    Args:
        checkpoint: the saved state of a run.
        learns: `freeze_backbone` and `lora` of the run that resumes.
        averages: whether that run averages its weights.
    """
    saved = checkpoint.get(FORMAT, {}).get("learns", {})
    for key, value in learns.items():
        there, here = saved.get(key) or None, value or None
        # True is all blocks, and equals 1, which is one.
        if there != here or isinstance(there, bool) != isinstance(here, bool):
            raise InputError(
                f"ckpt= is of a run with model.{key}={saved.get(key)}, this one has {value}: start another by weights="
            )
    if TRAINED in checkpoint and not averages:
        raise InputError("ckpt= is of a run that averages its weights: set callbacks.ema.decay, or start by weights=")
