"""Limits of what a checkpoint may set: classes of this project by their exact names, and plain values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import HydraException

from eomt.cli.arguments import CONFIGS, parsed
from eomt.cli.check import keys_of_type, nodes
from eomt.cli.nodes import NODES
from eomt.cli.settings import SCORES
from eomt.errors import InputError

# A transform of albumentations by its class: that package's functions, which read files, start in lower case.
_TRANSFORM = re.compile(r"albumentations\.[A-Z]\w*")
_NAME = re.compile(r"[A-Za-z]\w*")
_KEY = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)*")
# A text that leads out of the folder it is joined to.
_ELSEWHERE = re.compile(r"[/\\]|^\.+$")
_SPECIAL = ("_target_", "_partial_")


def check_config(name: str, kind: str, config: Mapping[str, Any]) -> None:
    """Check that a checkpoint's configuration runs no code but this project's.

    Args:
        name: the checkpoint in messages.
        kind: the kind of segmentation, as the checkpoint names it.
        config: the settings of the run that wrote it.

    Raises:
        InputError: if it names another class, or holds an instruction to Hydra or OmegaConf.
    """
    foreign = [str(kind)] if kind not in SCORES else []
    targets = [node["_target_"] for _, node in nodes(config)]
    foreign += [str(target) for target in targets if not isinstance(target, str) or target not in NODES]
    if foreign:
        names = ", ".join(entry[:80] for entry in dict.fromkeys(foreign))
        raise InputError(f"ckpt= would run {names}: if you trust it, say so by trust_code=true")
    for entry in _instructions(config):
        raise InputError(
            f"ckpt={name} holds {entry[:80]!r}, which is no plain value: trust_code=true takes it as it is"
        )


def check_overrides(overrides: Sequence[str]) -> None:
    """Check that overrides from a checkpoint set plain values of keys that are there.

    Raises:
        InputError: if one does anything else: flags, hydra's keys, new or deleted keys, classes, interpolations,
            folders that are written to.
    """
    for override in overrides:
        if not isinstance(override, str) or not _is_plain(override):
            raise InputError(
                f"ckpt= would set {str(override)[:80]!r}: type it again if it is yours, or say trust_code=true"
            )


def _is_plain(override: str) -> bool:
    key, equals, _ = override.partition("=")
    if not (equals and _KEY.fullmatch(key)) or key.startswith("hydra"):
        return False
    try:
        (entry,) = parsed([override])
    except (HydraException, InputError):
        return False
    given = entry.value()
    entries = list(_entries(key.rpartition(".")[2], given))
    if {name for name, _ in entries} & {"filename", *keys_of_type("a folder to write to")}:
        return False
    # The run's folder is named by its task, those of loggers by what is set for them.
    if key.partition(".")[0] in ("task_name", "logger") and any(_ELSEWHERE.search(str(text)) for _, text in entries):
        return False
    if key == "kind" and str(given) not in SCORES:
        return False
    # The choice of a group names a file below configs/.
    if Path(CONFIGS, key).is_dir() and not (isinstance(given, str) and _NAME.fullmatch(given)):
        return False
    transforms = key == "data.augmentations" and all(
        _TRANSFORM.fullmatch(str(node["_target_"])) for _, node in nodes(given)
    )
    return next(_instructions(given, special=("_target_",) if transforms else ()), None) is None


def _entries(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The names of a value and of all within it, with the innermost values."""
    yield name, None if isinstance(value, Mapping) else value
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _entries(str(key), entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _entries(name, entry)


def _instructions(value: Any, special: tuple[str, ...] = _SPECIAL) -> Iterator[str]:
    """Instructions to Hydra or OmegaConf: keys such as _args_, and interpolations."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            if not isinstance(key, str | int) or (str(key).startswith("_") and key not in special) or "${" in str(key):
                yield str(key)
            yield from _instructions(entry, special)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _instructions(entry, special)
    elif isinstance(value, str) and ("${" in value or value == "???"):
        yield value
    elif not isinstance(value, str | bool | int | float | None):
        yield type(value).__name__
