"""Our own files of weights: a run's checkpoint, an exported folder, a bare state dict."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from eomt.classes import Classes
from eomt.errors import InputError
from eomt.model.lora import merged
from eomt.weights.safe_load import EXPORT, FORMAT, Source, plain, read_file
from eomt.weights.spec import Weights

log = logging.getLogger("eomt")

CONTINUATION = "continuation"
"""The key under which `last.ckpt` names its SLURM job and its logs."""

TRAINED = "current_model_state"
"""The key of the weights that the optimizer trains, in a checkpoint whose own weights are averages."""

PREVIOUS = "previous.ckpt"
"""The name of the checkpoint before `last.ckpt`, beside it."""


def read_checkpoint(path: str | Path, mmap: bool = False) -> dict:
    """Read a checkpoint of ours, all of which is compared with its checksums at the first time (0.4 s per GB).

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
    checkpoint = read_file(path, mmap)
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
        step = read_checkpoint(previous, mmap=True).get("global_step")
        fault = "is truncated or damaged" if path.is_file() else "is missing"
        log.warning("%s %s: resumes from the one before, %s, step %s", path, fault, PREVIOUS, step)
        return previous


def read_run(source: Source) -> Weights:
    """Read a training run's checkpoint; low-rank changes are merged into the weights."""
    content, part = source.content, source.descriptions[EXPORT]
    learns, step = part.get("learns") or {}, content.get("global_step")
    known = description(part | {"step": step if isinstance(step, int) and 0 <= step < 2**63 else 0})
    return Weights(
        "checkpoint",
        merged(_own_keys(source.state), learns.get("lora")),
        **known,
        mask_probabilities=content["state_dict"].get("mask_probabilities"),
        resumable=bool(content.get("optimizer_states")),
    )


def read_exported(source: Source) -> Weights:
    """Read an exported folder."""
    return Weights("exported folder", _own_keys(source.state), **description(source.descriptions[EXPORT]))


def read_bare(source: Source) -> Weights:
    """Read a state dict of `EoMT` that comes without a description."""
    return Weights("weights", _own_keys(source.state))


def description(part: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of `Weights` from the plain values that stand beside ours.

    Args:
        part: the values under "eomt" in a checkpoint, or those of eomt.json.

    Raises:
        InputError: if one is missing or of another type.
    """
    try:
        config = dict(part.get("config") or {})
        if not isinstance(part["kind"], str) or not isinstance(config.get("postprocess") or {}, Mapping):
            raise TypeError("kind is no text, or config.postprocess no mapping")
        return {
            "network": dict(part["network"]),
            "kind": part["kind"],
            "classes": Classes.from_list(part["classes"]),
            "config": config,
            "environment": tuple(str(name) for name in part.get("environment") or ()),
            "step": max(0, int(part.get("step") or 0)),
        }
    except (AttributeError, KeyError, TypeError, ValueError, InputError) as error:
        raise InputError(f"its description lacks or garbles a part ({error})") from None


def _own_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the network's own keys, without the name that a Lightning module has for it."""
    return {key.removeprefix("network."): value for key, value in state.items()}
