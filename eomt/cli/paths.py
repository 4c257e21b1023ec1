"""Paths among the arguments: quoted for Hydra's grammar, and looked for."""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eomt.cli.check import keys_of_type
from eomt.cli.overrides import quoted
from eomt.errors import InputError
from eomt.weights.hub import BEST_FIRST, LAST_FIRST, dataset_path, is_hub_id, run_checkpoint

# Values of these keys are paths, whose characters Hydra's override grammar would read as its own.
_PATHS = "|".join(keys_of_type("a path") | keys_of_type("a folder to write to"))
_PATH_KEYS = re.compile(rf"^\+{{0,2}}(hydra\.(run|sweep)\.dir|(\w+\.)*({_PATHS}))$")
# A list of paths in which the user has quoted nothing.
_LIST = re.compile(r"^\[[^'\"{}$]+\]$")
# These are read from other folders later on.
_ABSOLUTE = re.compile(r"^\+{0,2}(ckpt|weights|delta_base|(\w+\.)*(root|pretrained))$")
_HUB_KEYS = re.compile(r"^\+{0,2}(ckpt|weights|delta_base)$")
_ROOT = re.compile(r"^data\.((train|val)\.)?root$")


def quote_paths(arguments: Sequence[str]) -> list[str]:
    """Quote paths, so that `ckpt=a=b (1).ckpt` means what it says; expand `~`; make absolute what is read later.

    Raises:
        InputError: if a path is empty.
    """
    ready = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and _PATH_KEYS.match(key):
            if not value:
                raise InputError(f"{key}= is empty: give a path, or null for none")
            plain = (value[0] not in "'\"[{" or os.path.exists(value)) and "${" not in value
            if plain and value.lower() not in ("null", "true", "false"):
                value = os.path.expanduser(value)
                if _ABSOLUTE.match(key) and not ((_HUB_KEYS.match(key) or _ROOT.match(key)) and is_hub_id(value)):
                    value = os.path.abspath(value)
                argument = f"{key}={quoted(value)}"
            elif key == "images" and _LIST.match(value):
                entries = (os.path.expanduser(entry.strip()) for entry in value[1:-1].split(","))
                argument = f"{key}=[{','.join(map(quoted, entries))}]"
        ready.append(argument)
    return ready


def existing(command: str, argument: str, key: str, value: Any) -> str:
    """The override, with a run's checkpoint in the place of its folder, and the folder of a data set on the Hub.

    Raises:
        InputError: if its value is a path to be read that does not exist.
    """
    if not isinstance(value, str):
        return argument
    if _HUB_KEYS.match(key) and not is_hub_id(value):
        resumes = key == "ckpt" and command == "train"
        path = run_checkpoint(Path(value), LAST_FIRST if resumes else BEST_FIRST)
        # A run is resumed from the checkpoint before one that was lost.
        lost = resumes and path.name == "last.ckpt" and os.path.exists(path.with_name("previous.ckpt"))
        if not os.path.exists(path) and not lost:
            near = difflib.get_close_matches(path.name, os.listdir(path.parent) if path.parent.is_dir() else ())
            hint = f"; did you mean {path.parent / near[0]}?" if near else ""
            raise InputError(f"{key}={value}: no such file or folder{hint}")
        return argument if str(path) == value else f"{key}={quoted(str(path))}"
    to_read = key in ("images", "model.pretrained") and not glob.has_magic(value)
    if to_read and not os.path.exists(value):
        raise InputError(f"{key}={value}: no such file or folder")
    if _ROOT.match(key) and not os.path.isdir(value):
        if os.path.exists(value):
            raise InputError(f"{key}={value} is a file: give the folder that holds it and the images")
        if not is_hub_id(value):
            raise InputError(f"{key}={value}: no such folder")
        try:
            return f"{key}={quoted(str(dataset_path(value)))}"
        except InputError as error:
            raise InputError(f"{key}={value}: no such folder; as a data set, {error}") from error
    return argument
