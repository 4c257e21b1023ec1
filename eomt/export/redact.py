"""The part of a run's configuration that may leave the machine: how a network was trained, not where."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from eomt.errors import InputError, reason
from eomt.weights.safe_load import plain

# Loggers and callbacks say nothing about the network, and may name accounts and hosts.
_DROPPED = ("callbacks", "hydra", "logger", "run_folder")
_PATH_KEYS = re.compile(r"^(ckpt|data\.(\w+\.)*root)$")
_ABSOLUTE = re.compile(r"(^|[\s=,:'\"\[{(])(file:|[/~]|[A-Za-z]:[\\/]|\\\\)")
_ENVIRONMENT = "${oc.env:"

LOCAL = "<a local file>"
"""Stands for weights that training started from: the licence depends on there being some, wherever they are."""


def redact(
    config: Mapping[str, Any], overrides: Sequence[str] = (), run: Path | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Take out what belongs to the machine or the person: absolute paths, `data.root`, values of environment
    variables, loggers and callbacks.

    Args:
        config: the configuration of a training run, plain and resolved.
        overrides: the command-line overrides of that run.
        run: the run's folder, whose `.hydra/config.yaml` tells which values came from the environment; without
            it, only typed ones are known.

    Returns:
        The configuration, in which such values are None (within lists: left out; `weights` and `ckpt`: LOCAL);
        and the overrides without those that name one.

    Raises:
        InputError: if the run's configuration cannot be read.
    """
    parts = (override.partition("=") for override in overrides)
    typed = [(f"{name}{sign}{value}", name.lstrip("+~"), value) for name, sign, value in parts]
    secret = {key for _, key, value in typed if _ENVIRONMENT in value} | set(_from_environment(_written_config(run)))
    kept = {key: value for key, value in config.items() if key not in _DROPPED}
    cleaned = _cleaned(kept, "", secret)
    cleaned |= {key: LOCAL for key in ("weights", "ckpt") if kept.get(key) and not cleaned[key]}
    return cleaned, [
        override
        for override, key, value in typed
        if key.partition(".")[0] not in _DROPPED
        and not _PATH_KEYS.match(key)
        and not _ABSOLUTE.search(value)
        and not any(key == name or name.startswith(f"{key}.") for name in secret)
    ]


def _cleaned(value: Any, name: str, secret: set[str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _cleaned(entry, f"{name}.{key}".lstrip("."), secret) for key, entry in value.items()}
    if name in secret or _PATH_KEYS.match(name):
        return None
    if isinstance(value, list | tuple):
        entries = [_cleaned(entry, f"{name}.{k}", secret) for k, entry in enumerate(value)]
        return [entry for entry, given in zip(entries, value, strict=True) if entry is not None or given is None]
    return None if isinstance(value, str) and _ABSOLUTE.search(value) else value


def _written_config(run: Path | None) -> Any:
    """The configuration with its interpolations, as Hydra leaves it in a run's folder."""
    path = run and run / ".hydra" / "config.yaml"
    if path is None or not path.is_file():
        return {}
    try:
        return plain(yaml.safe_load(path.read_text(encoding="utf-8")), str(path))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(
            f"{path} cannot be read ({reason(error)}): it tells which settings came from the "
            "environment, and are not exported"
        ) from error


def _from_environment(value: Any, name: str = "") -> Iterator[str]:
    """Dotted names of the values that an environment variable gave."""
    if isinstance(value, str) and _ENVIRONMENT in value:
        yield name
    entries = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield from _from_environment(entry, f"{name}.{key}".lstrip("."))
