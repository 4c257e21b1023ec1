"""Command-line arguments on their way to Hydra."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from eomt.cli.check import check_typed
from eomt.cli.console import note
from eomt.cli.layout import FindLayout, with_layout
from eomt.cli.meanings import CONFIGS
from eomt.cli.meant import fault_of, flag_fault, is_flag
from eomt.cli.overrides import key_of, quoted, read, section_of
from eomt.cli.paths import existing, quote_paths
from eomt.cli.settings import CHOICES, WITHOUT_RUN, Eval, Run, Scored
from eomt.errors import InputError

# eval.py's own keys.
_EVAL = {*Eval.model_fields, "hydra"}


def prepared(command: str, arguments: Sequence[str], find_layout: FindLayout | None = None) -> list[str]:
    """Arguments for Hydra: checked as far as they can be without the configuration, each key once, paths quoted.

    Args:
        command: "train", "eval", ...
        arguments: as they are typed.
        find_layout: see `with_layout`.

    Raises:
        InputError: if one is no flag and not key=value, or cannot be read; if its key is unknown, its value of a wrong
            type or range, or a path that does not exist.
    """
    arguments = quote_paths(_once(command, arguments))
    sweep = bool({"-m", "--multirun"} & {*arguments})
    chosen = bool({*CHOICES} & {*map(key_of, arguments)})
    ready = [
        word if is_flag(word, before) else _with_options(_checked(command, word, sweep, chosen))
        for before, word in pairwise(["", *arguments])
    ]
    if find_layout is not None and not sweep:
        ready = with_layout(ready, find_layout, command == "eval")
    if command == "check_data" and "hydra.run.dir" not in map(key_of, ready):
        # Not in its configuration: OmegaConf would have train.py's folder made as it goes over its name.
        ready.append("hydra.run.dir=runs/check/${run_id:runs/check}")
    return split_for_eval(ready) if command == "eval" else ready


def _once(command: str, arguments: Sequence[str]) -> list[str]:
    """Hydra's flags and `key=value`, each key once: the last one counts, and a line says so.

    Raises:
        InputError: if an argument is neither.
    """
    last: dict[str, int] = {}
    again: set[str] = set()
    for number, (before, word) in enumerate(pairwise(["", *arguments])):
        flag, rest = is_flag(word, before), arguments[number + 1 :]
        if fault := flag_fault(word, rest) if flag else fault_of(command, word, rest):
            raise InputError(fault)
        # Ranks are started with a folder of their own behind what was typed, which Hydra takes.
        key = f"{number}" if flag or key_of(word).startswith("hydra.") else key_of(word)
        if key in last and arguments[last[key]] != word:
            again.add(key)
        last[key] = number
    for key in sorted(again):
        note(f"{key} is typed more than once: {arguments[last[key]]} counts")
    return [arguments[number] for number in sorted(last.values())]


def _with_options(argument: str) -> str:
    """Options of a backbone, which go over those of the model's file; none at all, `{}`, take their place."""
    key, _, value = argument.partition("=")
    if key != "model.backbone_options" or not value.startswith("{"):
        return argument
    return f"{key}=null" if not value.strip("{} ") else f"++{argument}"


def _checked(command: str, argument: str, sweep: bool, chosen: bool) -> str:
    """Check an override, and put a run's checkpoint in the place of its folder.

    Args:
        command: "train", "eval", ...
        argument: the override, with quoted paths.
        sweep: whether a key may have several values, one for each run.
        chosen: whether the settings of an evaluation are chosen, not the checkpoint's.
    """
    override = read(argument)
    key, section = override.key_or_group, section_of(override.key_or_group)
    if override.is_sweep_override() and not sweep:
        raise InputError(f"{argument}: a list is typed as {key}=[{argument.partition('=')[2]}], a sweep as --multirun")
    if override.is_choice_sweep():
        for value in override.sweep_string_iterator():
            _checked(command, f"{override.get_key_element()}={value}", sweep, chosen)
    special = override.is_sweep_override() or override.is_delete() or override.is_add() or "${" in argument
    if special or section == "hydra" or re.search("[/@]", argument.partition("=")[0]):
        return argument
    value = override.value()
    inherited = command == "eval" and section not in _EVAL
    scored = {*Scored.model_fields, *CHOICES} if chosen else Scored.model_fields
    if inherited and section in (*Run.model_fields, "debug") and section not in scored:
        raise InputError(f"{key} is a key of training, which eval.py has not")
    if key == section and Path(CONFIGS, key).is_dir() and command not in WITHOUT_RUN:
        options = sorted(path.stem for path in Path(CONFIGS, key).glob("*.yaml"))
        if not ((isinstance(value, str) and value) or (value is None and key in ("experiment", "debug"))):
            raise InputError(f"{argument} must be {', '.join(options)}")
        return argument
    check_typed(command, key, value)
    return existing(command, argument, key, value)


def split_for_eval(arguments: Sequence[str]) -> list[str]:
    """Move overrides of a run's settings into eval.py's key `settings`: they go over what the checkpoint carries."""
    # Ranks are started with the arguments as they were split by the first.
    kept, settings = [], []
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        mine = argument.startswith("-") or not equals or section_of(key.lstrip("+~")) in _EVAL
        (kept if mine else settings).append(argument)
    return [*kept, f"settings=[{','.join(map(quoted, settings))}]"] if settings else kept
