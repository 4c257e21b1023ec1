"""Checks that a checkpoint holds what a run needs to resume from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from eomt.classes import Classes
from eomt.errors import InputError
from eomt.weights.checkpoint import TRAINED
from eomt.weights.safe_load import FORMAT
from eomt.weights.spec import check_same_classes


def check_state(checkpoint: Mapping[str, Any]) -> None:
    """Raise ValueError unless the state of loops and schedules in a checkpoint is of numbers and tensors."""
    waiting = [(key, checkpoint.get(key)) for key in ("loops", "lr_schedulers", "nonfinite")]
    for name, value in waiting:
        if isinstance(value, Mapping):
            waiting += value.items()
        elif isinstance(value, list | tuple):
            waiting += [(name, entry) for entry in value]
        elif not isinstance(value, bool | int | float | Tensor | None):
            raise ValueError(f"{name} is {str(value)[:60]!r}, where numbers belong")
    # A schedule takes every name as an attribute, also in place of its methods.
    for name in {name for schedule in checkpoint.get("lr_schedulers") or () for name in schedule}:
        if callable(getattr(LambdaLR, str(name), None)):
            raise ValueError(f"its schedule has an entry {name!r}")


def check_same_run(checkpoint: Mapping, description: Mapping, averages: bool) -> None:
    """Raise InputError unless a run has the task, classes, network and trained part of a checkpoint.

    Args:
        checkpoint: the saved state of a run.
        description: that of the `EoMTModule` which resumes it.
        averages: whether the run that resumes it averages its weights.
    """
    saved = checkpoint[FORMAT]
    if saved.get("kind") != description["kind"]:
        raise InputError(
            f"ckpt= is of {saved.get('kind')} segmentation, this run of {description['kind']}: type its task=, too "
            "(model= and experiment= replace the run's configuration)"
        )
    check_same_classes(*(Classes.from_list(part["classes"]) for part in (saved, description)))
    for key, value in description["network"].items():
        there = saved["network"].get(key)
        if there != value and (there or value):  # no options are {} or None
            name = f"{'data' if key == 'image_size' else 'model'}.{key}"
            raise InputError(
                f"ckpt= is of another model: {name} is {there} there and {value} here, which cannot change within a "
                "run; start another from its weights by weights="
            )
    for key, value in description["learns"].items():
        there = (saved.get("learns") or {}).get(key)
        # True is all blocks, and equals 1, which is one.
        if (there or None) != (value or None) or isinstance(there or None, bool) != isinstance(value or None, bool):
            raise InputError(
                f"ckpt= is of a run with model.{key}={there}, this one has {value}: start another by weights="
            )
    if TRAINED in checkpoint and not averages:
        raise InputError("ckpt= is of a run that averages its weights: set callbacks.ema.decay, or start by weights=")


def check_same_rates(checkpoint: Mapping, optim: Mapping[str, Any]) -> None:
    """Raise InputError if settings differ that the optimizer's saved state holds; all others take effect.

    Args:
        checkpoint: the saved state of a run.
        optim: the recipe's settings of the run that resumes it.
    """
    config = checkpoint[FORMAT].get("config")
    saved = config.get("optim") if isinstance(config, Mapping) else None
    for key in ("_target_", "lr", "weight_decay", "layer_decay", "decay_masked_blocks"):
        now = optim.get(key)  # a custom recipe may have other keys
        if isinstance(saved, Mapping) and saved.get(key, now) != now:
            raise InputError(
                f"optim.{key}={now}: the run that ckpt= resumes has {saved[key]}, which cannot change "
                "within a run; start another from its weights by weights="
            )
