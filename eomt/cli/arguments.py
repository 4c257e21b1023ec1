"""Command-line arguments: paths quoted for Hydra's grammar, and eval.py's split into its own keys and a run's."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from eomt.cli.check import check_typed, keys_of_type
from eomt.errors import InputError
from eomt.weights.hub import is_hub_id

CONFIGS = str(Path(__file__).parents[2] / "configs")

GROUPS = ("task", "model", "experiment")
"""The config groups that choose under which settings weights of another source are evaluated."""

# Values of these keys are paths, whose characters Hydra's override grammar would read as its own.
_PATHS = "|".join(keys_of_type("a path") | keys_of_type("a folder to write to"))
_PATH_KEYS = re.compile(rf"^\+{{0,2}}(hydra\.(run|sweep)\.dir|(\w+\.)*({_PATHS}))$")
# A list of paths in which the user has quoted nothing.
_LIST = re.compile(r"^\[[^'\"{}$]+\]$")
# These are read from other folders later on.
_ABSOLUTE = re.compile(r"^\+{0,2}(ckpt|weights|delta_base|(\w+\.)*(root|pretrained))$")
_HUB_KEYS = re.compile(r"^\+{0,2}(ckpt|weights|delta_base)$")


def quote_paths(arguments: Sequence[str]) -> list[str]:
    """Quote paths, so that `ckpt=a=b (1).ckpt` means what it says; expand `~`; make absolute what is read later.

    Raises:
        InputError: if a path is empty.
    """
    quoted = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and _PATH_KEYS.match(key):
            if not value:
                raise InputError(f"{key}= is empty: give a path, or null for none")
            plain = (value[0] not in "'\"[{" or os.path.exists(value)) and "${" not in value
            if plain and value.lower() not in ("null", "true", "false"):
                value = os.path.expanduser(value)
                if _ABSOLUTE.match(key) and not (_HUB_KEYS.match(key) and is_hub_id(value)):
                    value = os.path.abspath(value)
                argument = f"{key}={_quoted(value)}"
            elif key == "images" and _LIST.match(value):
                entries = (os.path.expanduser(entry.strip()) for entry in value[1:-1].split(","))
                argument = f"{key}=[{','.join(map(_quoted, entries))}]"
        quoted.append(argument)
    return quoted


def split_for_eval(arguments: Sequence[str]) -> list[str]:
    """Move overrides of a run's settings into eval.py's key `settings`: they go over what the checkpoint carries.

    Raises:
        InputError: if an override is not `key=value`, or gives a value of a wrong type or range.
    """
    # Ranks are started with the arguments as they were split by the first.
    own = yaml.safe_load(Path(CONFIGS, "eval.yaml").read_text()).keys()
    kept, settings = [], []
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        mine = argument.startswith("-") or not equals or re.split("[./@]", key.lstrip("+~"))[0] in own
        (kept if mine else settings).append(argument)
    for override in parsed(settings):
        if override.key_or_group not in GROUPS:
            check_typed(override.key_or_group, override.value())
    return [*kept, f"settings=[{','.join(map(_quoted, settings))}]"] if settings else kept


def parsed(arguments: Sequence[str]) -> list[Override]:
    """Overrides as Hydra reads them.

    Raises:
        InputError: if one does not give a key one value.
    """
    overrides = OverridesParser.create().parse_overrides(list(arguments))
    for override in overrides:
        if override.is_delete() or override.is_sweep_override():
            raise InputError(f"{override.input_line}: give the key one value, as in key=value")
    return overrides


def key_of(argument: str) -> str:
    """The key of an override."""
    return argument.partition("=")[0].lstrip("+~")


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
