"""Reading our checkpoints, without running code from the file."""

from __future__ import annotations

import logging
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from eomt.classes import Classes, difference
from eomt.errors import InputError
from eomt.weights.safe_load import read_file

log = logging.getLogger("eomt")

FORMAT = "eomt"
"""The key under which a checkpoint carries kind, classes, network and configuration."""

CONTINUATION = "continuation"
"""The key under which `last.ckpt` says whose it is: the SLURM job, the logs, and whether a validation comes next."""

TRAINED = "trained_weights"
"""The key under which a checkpoint whose weights are averages carries those that the optimizer goes on with."""

PREVIOUS = "previous.ckpt"
"""The name of the checkpoint before `last.ckpt`, beside it."""

CHUNK = 2**22

# Dotted names that begin so are of this project, or of the trainer it is built on.
OWN_CODE = ("eomt.", "datasets.", "lightning.pytorch.")


def read_checkpoint(path: str | Path, mmap: bool = False, every_byte: bool = False) -> dict:
    """Read a checkpoint of ours.

    Args:
        path: the file.
        mmap: leave the tensors in the file until they are used, to look at the plain values alone.
        every_byte: compare the tensors with their sums in the file, too, which reads all of it; plain values are
            always compared.

    Raises:
        InputError: if there is no such file, it is truncated or damaged, holds anything but plain values and
            tensors, or was not written by us.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"ckpt={path}: no such file")
    try:
        _check_sums(path, every_byte)
        checkpoint = read_file(path, path.name, mmap)
    except (InputError, zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError, zlib.error) as error:
        # NotImplementedError, for a method of compression that nobody has, is a RuntimeError.
        raise InputError(
            f"ckpt={path} cannot be read: it is truncated or damaged, or no checkpoint ({str(error)[:120]}); take "
            f"another, such as best.ckpt, last.ckpt or {PREVIOUS} of the same folder"
        ) from error
    if not isinstance(checkpoint, dict) or FORMAT not in checkpoint:
        raise InputError(f"ckpt={path} is no checkpoint of this project: it lacks the part {FORMAT!r}")
    return checkpoint


def intact(path: str | Path) -> Path:
    """The checkpoint if it can be read, otherwise the one that was kept from before it.

    Args:
        path: `last.ckpt`, which has a `previous.ckpt` beside it, or any other checkpoint.

    Raises:
        InputError: if neither can be read.
    """
    path = Path(path)
    try:
        read_checkpoint(path, mmap=True, every_byte=True)
        return path
    except InputError:
        previous = path.with_name(PREVIOUS)
        if path.name != "last.ckpt" or not previous.is_file():
            raise
        step = read_checkpoint(previous, mmap=True, every_byte=True)["global_step"]
        fault = "is truncated or damaged" if path.is_file() else "is missing"
        log.warning("%s %s: goes on from the one before, %s, step %d", path, fault, PREVIOUS, step)
        return previous


def _check_sums(path: Path, every_byte: bool) -> None:
    """Read what a file in PyTorch's format holds, which compares it with its sums; PyTorch itself does not."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if "/data/" in entry.filename and not every_byte:
                continue
            with archive.open(entry) as file:
                while file.read(CHUNK):
                    pass


def foreign_code(kind: str, config: Mapping) -> list[str]:
    """What weights would have us import and run beyond this project: a task or a reader of someone's own.

    Args:
        kind: of segmentation, as they name it.
        config: of the run that they are from; may be empty.
    """
    names = [kind] if "." in kind else []
    entries: list = [config]
    while entries:
        entry = entries.pop()
        if isinstance(entry, Mapping):
            names += [entry["_target_"]] if "_target_" in entry else []
            entries += entry.values()
        elif isinstance(entry, list):
            entries += entry
    return [name for name in dict.fromkeys(names) if not str(name).startswith(OWN_CODE)]


def check_same_model(checkpoint: Mapping, kind: str, classes: Classes, spec: Mapping) -> None:
    """Raise InputError unless a checkpoint is of this task, these classes and this network."""
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
    """Raise InputError unless a run can go on from a checkpoint with what learns in it, and with averages or without.

    Args:
        checkpoint: that was saved by a run.
        learns: `freeze_backbone` and `lora` of the run that goes on.
        averages: whether that averages its weights.
    """
    saved = checkpoint.get(FORMAT, {}).get("learns", {})
    for key, value in learns.items():
        there, here = saved.get(key) or None, value or None
        # True is all blocks, and equals 1, which is one.
        if there != here or isinstance(there, bool) != isinstance(here, bool):
            raise InputError(
                f"ckpt= is of a run with model.{key}={saved.get(key)}, this one has {value}: begin another by weights="
            )
    if TRAINED in checkpoint and not averages:
        raise InputError("ckpt= is of a run that averages its weights: set callbacks.ema.decay, or begin by weights=")


def check_same_classes(trained: Classes, given: Classes) -> None:
    """Raise InputError unless a checkpoint's classes are those of the data: id, name, thing or stuff."""
    found = difference(trained, given)
    if found is not None:
        there, here = found
        raise InputError(
            f"ckpt= was trained on other classes, {there} where the data has {here}: choose its task and data"
        )
