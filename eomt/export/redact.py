"""The part of a run's configuration that may leave the machine: how a network was trained, not where."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

# Loggers and callbacks say nothing about the network, and may name accounts and hosts.
_DROPPED = ("callbacks", "hydra", "logger", "run_folder")
_PATH_KEYS = re.compile(r"^(ckpt|data\.(\w+\.)*root)$")
_ABSOLUTE = re.compile(r"(^|[\s=,:'\"\[{(])(file:|[/~]|[A-Za-z]:[\\/]|\\\\)")

LOCAL = "<a local file>"
"""Stands for weights that training started from: the licence depends on there being some, wherever they are."""


def redact(
    config: Mapping[str, Any], environment: Collection[str] = (), dropped: Collection[str] = _DROPPED
) -> dict[str, Any]:
    """Take out what belongs to the machine or the person: absolute paths, `data.root`, values of environment
    variables, and some sections.

    Args:
        config: the configuration of a training run, plain and resolved.
        environment: dotted names of the values in it that came from environment variables.
        dropped: keys that are left out; by default loggers and callbacks among them.

    Returns:
        The configuration, in which such values are None (within lists: left out; `weights` and `ckpt`: LOCAL).
    """
    kept = {key: value for key, value in config.items() if key not in dropped}
    cleaned = _cleaned(kept, "", environment)
    return cleaned | {key: LOCAL for key in ("weights", "ckpt") if kept.get(key) and not cleaned[key]}


def _cleaned(value: Any, name: str, environment: Collection[str]) -> Any:
    if name in environment or _PATH_KEYS.match(name):
        return None
    if isinstance(value, Mapping):
        return {key: _cleaned(entry, f"{name}.{key}".lstrip("."), environment) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        entries = [_cleaned(entry, f"{name}.{k}", environment) for k, entry in enumerate(value)]
        return [entry for entry, given in zip(entries, value, strict=True) if entry is not None or given is None]
    return None if isinstance(value, str) and _ABSOLUTE.search(value) else value
