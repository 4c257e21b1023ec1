"""Reading our checkpoints, without running code from the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from eomt.classes import Classes, difference
from eomt.errors import InputError

FORMAT = "eomt"
"""The key under which a checkpoint carries kind, classes, network and configuration."""

# Dotted names that begin so are of this project, or of the trainer it is built on.
OWN_CODE = ("eomt.", "datasets.", "lightning.pytorch.")


def read_checkpoint(path: str | Path, map_location: Any = "cpu", mmap: bool = False) -> dict:
    """Read a checkpoint of ours.

    Args:
        path: the file.
        map_location: as for `torch.load`.
        mmap: leave the tensors in the file until they are used, to look at the plain values alone.

    Raises:
        InputError: if there is no such file, it is truncated, holds anything but plain values and tensors,
            or was not written by us.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"ckpt={path}: no such file")
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except Exception as error:
        # torch.load raises nearly anything on a damaged file.
        raise InputError(
            f"ckpt={path} cannot be read: it is truncated or no checkpoint; take another, such as best.ckpt "
            "or last.ckpt of the same folder"
        ) from error
    if not isinstance(checkpoint, dict) or FORMAT not in checkpoint:
        raise InputError(f"ckpt={path} is no checkpoint of this project: it lacks the part {FORMAT!r}")
    return checkpoint


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


def check_same_classes(trained: Classes, given: Classes) -> None:
    """Raise InputError unless a checkpoint's classes are those of the data: id, name, thing or stuff."""
    found = difference(trained, given)
    if found is not None:
        there, here = found
        raise InputError(
            f"ckpt= was trained on other classes, {there} where the data has {here}: choose its task and data"
        )
