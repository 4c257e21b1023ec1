"""What of a run's configuration may leave the machine: how a network was trained, not where."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# Loggers and callbacks say nothing about the network, and may name accounts and hosts.
_LEFT_OUT = ("callbacks", "hydra", "logger", "run_folder")
_PLACES = re.compile(r"^(ckpt|data\.(\w+\.)*root)$")
_ABSOLUTE = re.compile(r"(^|[\s=,:'\"\[{(])(file:|[/~]|[A-Za-z]:[\\/]|\\\\)")
_ENVIRONMENT = "${oc.env:"
# Where training began: that it began somewhere decides on the licence, also where the place is left out.
_BEGINNINGS = ("weights", "ckpt")
LOCAL = "<a local file>"
"""Stands in a portable configuration for weights whose place is nobody's business."""


def portable_config(
    config: Mapping[str, Any], overrides: Sequence[str] = (), run: Path | None = None
) -> tuple[dict[str, Any], list[str]]:
    """A configuration without what belongs to the machine or the person: absolute paths, `data.root`, values
    of environment variables, loggers and callbacks.

    Args:
        config: of a training run, plain and resolved.
        overrides: what was typed to start the run.
        run: the run's folder, whose `.hydra/config.yaml` tells which values came from the environment; without
            it, only typed ones are known.

    Returns:
        The configuration, in which such values are None (within lists: left out; of `weights` and `ckpt`: LOCAL);
        and the overrides without those that name one.
    """
    typed = [override.partition("=") for override in overrides]
    secret = {key.lstrip("+~") for key, _, value in typed if _ENVIRONMENT in value}
    secret |= set(_from_environment(_written_config(run)))
    kept = {key: value for key, value in config.items() if key not in _LEFT_OUT}
    cleaned = _cleaned(kept, "", secret)
    cleaned |= {key: LOCAL for key in _BEGINNINGS if kept.get(key) and not cleaned[key]}
    return cleaned, [
        override
        for override, (key, _, value) in zip(overrides, typed, strict=True)
        if key.lstrip("+~").partition(".")[0] not in _LEFT_OUT
        and not _PLACES.match(key.lstrip("+~"))
        and not _ABSOLUTE.search(value)
        and not any(key.lstrip("+~") == name or name.startswith(f"{key.lstrip('+~')}.") for name in secret)
    ]


def _cleaned(value: Any, name: str, secret: set[str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _cleaned(entry, f"{name}.{key}".lstrip("."), secret) for key, entry in value.items()}
    if name in secret or _PLACES.match(name):
        return None
    if isinstance(value, list | tuple):
        entries = [_cleaned(entry, f"{name}.{k}", secret) for k, entry in enumerate(value)]
        return [entry for entry, given in zip(entries, value, strict=True) if entry is not None or given is None]
    return None if isinstance(value, str) and _ABSOLUTE.search(value) else value


def _written_config(run: Path | None) -> Any:
    """The configuration before its interpolations were resolved, as Hydra leaves it in a run's folder."""
    path = run and run / ".hydra" / "config.yaml"
    if path is None or not path.is_file():
        return {}
    import yaml

    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _from_environment(value: Any, name: str = "") -> Iterator[str]:
    """Dotted names of the values that an environment variable gave."""
    if isinstance(value, str) and _ENVIRONMENT in value:
        yield name
    entries = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield from _from_environment(entry, f"{name}.{key}".lstrip("."))
