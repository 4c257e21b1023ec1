"""Checks of the arguments of `Segmenter` and `Result`, which have the command line's limits."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch

from eomt.errors import InputError

# See eomt/cli/settings.py.
LARGEST_SIDE, MOST_THREADS = 2**16, 512


def device_of(device: str | torch.device | None) -> torch.device:
    """The device of that name; None for a GPU where there is one, otherwise the CPU."""
    try:
        return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, TypeError) as error:
        raise InputError(f"device={device} is no device of PyTorch: choose {devices()}") from error


def devices() -> str:
    """The devices of this machine, in words."""
    found = ["cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))]
    return " or ".join([*found, "mps"] if torch.backends.mps.is_available() else found)


def check_flag(name: str, value: object) -> None:
    """Raise InputError unless an argument is a bool."""
    # A text such as "no" would be true.
    if not isinstance(value, bool):
        raise InputError(f"{name}={value!r} must be true or false")


def check_count(name: str, value: object, least: int, most: int | None, before: str = "") -> None:
    """Raise InputError unless an argument is a whole number within limits; `before` names what else it may be."""
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    count = int(cast("int", value)) if is_whole else -1
    if count < least or (most is not None and count > most):
        limit = "" if most is None else f" and at most {most}"
        raise InputError(f"{name}={value!r} must be {before}a whole number of at least {least}{limit}")


def check_threshold(threshold: object) -> None:
    """Raise InputError unless a threshold of scores is a number from 0 to 1."""
    # True is no threshold, though Python takes it for 1.
    if isinstance(threshold, bool) or not isinstance(threshold, int | float | np.number) or not 0 <= threshold <= 1:
        raise InputError(f"threshold={threshold!r} must be a number from 0 to 1")
