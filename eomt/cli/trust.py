"""Limits of what a checkpoint may set: classes of this project by their exact names, and plain values."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from eomt.cli.check import keys_of_type, nodes, registered, walk
from eomt.cli.nodes import NODES, Callback, Data, Logger, Loss, Optim, Reader
from eomt.cli.settings import SCORES
from eomt.errors import InputError

FOLDERS = keys_of_type("a folder to write to")
"""The keys, in any section, that name folders to write to."""

# A transform of albumentations by its class: that package's functions, which read files, start in lower case.
_TRANSFORM = re.compile(r"albumentations\.[A-Z]\w*")
# A text that leads out of the folder it is joined to.
_ELSEWHERE = re.compile(r"[/\\]|^\.+$")
# What is made of which class: loggers take any key, some of which name folders.
_PLACES = {
    ("data",): Data,
    ("data", "train"): Reader,
    ("data", "val"): Reader,
    ("loss",): Loss,
    ("optim",): Optim,
    ("callbacks", "*"): Callback,
    ("logger", "*"): Logger,
}
_SPECIAL = ("_target_", "_partial_")


def check_config(name: str, kind: str, config: Mapping[str, Any]) -> None:
    """Check that a checkpoint's configuration runs no code but this project's.

    Args:
        name: the checkpoint in messages.
        kind: the kind of segmentation, as the checkpoint names it.
        config: the settings of the run that wrote it.

    Raises:
        InputError: if it names another class, or one where it does not belong; holds an instruction to Hydra or
            OmegaConf; or has loggers or a task whose names lead to another folder.
    """
    foreign = [str(kind)] if kind not in SCORES else []
    foreign += [str(node["_target_"]) for path, node in nodes(config) if not _is_ours(path, node["_target_"])]
    if foreign:
        names = ", ".join(entry[:80] for entry in dict.fromkeys(foreign))
        raise InputError(f"ckpt= would run {names}: if you trust it, say so by trust_code=true")
    for entry in _instructions(config):
        raise InputError(
            f"ckpt={name} holds {entry[:80]!r}, which is no plain value: trust_code=true takes it as it is"
        )
    for path, node in nodes(config.get("logger")):
        for key in node.keys() - {*NODES[node["_target_"]].model_fields, *_SPECIAL}:
            raise InputError(f"ckpt= sets logger.{'.'.join(path)}.{key}: if you trust it, say so by trust_code=true")
    named = {key: config[key] for key in ("task_name", "logger") if key in config}
    for key, text in _entries("", named):
        if key not in FOLDERS and _ELSEWHERE.search(str(text)) and key != "_target_":
            raise _outside(key, text)


def inside(config: Any, run_folder: Any, trusted: bool, key: str = "") -> Any:
    """Move the folders that a checkpoint's configuration writes to into the folder of the run that takes it.

    Args:
        config: the settings, or a part of them.
        run_folder: the run folder in them.
        trusted: leave those that lie elsewhere as they are.
        key: the name of that part.

    Raises:
        InputError: if one lies elsewhere, unless it is trusted.
    """
    if isinstance(config, Mapping):
        return {name: inside(value, run_folder, trusted, name) for name, value in config.items()}
    if isinstance(config, list):
        return [inside(value, run_folder, trusted, key) for value in config]
    if key not in FOLDERS or config is None:
        return config
    path = os.path.relpath(str(config), str(run_folder))
    if path.startswith(os.pardir):
        if trusted:
            return config
        raise _outside(key, config)
    return "${run_folder}" if path == os.curdir else f"${{run_folder}}/{path}"


def _outside(key: str, value: Any) -> InputError:
    return InputError(
        f"ckpt= would write elsewhere than into its run's folder, {key}={str(value)[:80]}: if you trust it, say so by "
        "trust_code=true"
    )


def _is_ours(path: tuple, target: Any) -> bool:
    """True for a class of the registry where it belongs, and for a transform of the data's augmentations."""
    if path[:2] == ("data", "augmentations"):
        return isinstance(target, str) and bool(_TRANSFORM.fullmatch(target))
    section = registered(target)
    place = (path[0], "*") if len(path) == 2 and path[0] in ("callbacks", "logger") else path
    return section is not None and issubclass(section, _PLACES.get(place, ()))


def _entries(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The innermost values with their names."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _entries(str(key), entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _entries(name, entry)
    else:
        yield name, value


def _instructions(config: Any) -> Iterator[str]:
    """Instructions to Hydra or OmegaConf: keys such as _args_, and interpolations."""
    for path, value in walk(config):
        key = path[-1] if path else ""
        if not isinstance(key, str | int) or (str(key).startswith("_") and key not in _SPECIAL) or "${" in str(key):
            yield str(key)
        if isinstance(value, str) and ("${" in value or value == "???"):
            yield value
        elif not isinstance(value, Mapping | list | tuple | str | bool | int | float | None):
            yield type(value).__name__
