"""Command-line arguments: what is mistyped, paths quoted for Hydra's grammar, and what of eval.py's is a run's."""

from __future__ import annotations

import difflib
import functools
import glob
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from eomt.cli.check import check_typed, keys_of_type
from eomt.cli.help import nearest
from eomt.cli.meanings import CONFIGS, keys_of
from eomt.cli.settings import WITHOUT_RUN, Eval, Run, Scored
from eomt.errors import InputError
from eomt.training.slurm import first_rank
from eomt.weights.hub import BEST_FIRST, LAST_FIRST, SUFFIXES, dataset_path, is_hub_id, run_checkpoint

NOTES: list[str] = []
"""What has been said of how `data.root` is read, until the command's log has it."""

GROUPS = ("task", "model", "experiment")
"""The config groups that choose under which settings weights of another source are evaluated."""

# Values of these keys are paths, whose characters Hydra's override grammar would read as its own.
_PATHS = "|".join(keys_of_type("a path") | keys_of_type("a folder to write to"))
_PATH_KEYS = re.compile(rf"^\+{{0,2}}(hydra\.(run|sweep)\.dir|(\w+\.)*({_PATHS}))$")
FindLayout = Callable[[Path, str | None], tuple[str, dict[str, Any]]]

# A list of paths in which the user has quoted nothing.
_LIST = re.compile(r"^\[[^'\"{}$]+\]$")
# These are read from other folders later on.
_ABSOLUTE = re.compile(r"^\+{0,2}(ckpt|weights|delta_base|(\w+\.)*(root|pretrained))$")
_HUB_KEYS = re.compile(r"^\+{0,2}(ckpt|weights|delta_base)$")
_ROOT = re.compile(r"^data\.((train|val)\.)?root$")
# eval.py's own keys.
_EVAL = {*Eval.model_fields, "hydra"}
# Hydra's flags, and those that take a value.
_FLAGS = ("--hydra-help", "--version", "--resolve", "--run", "-r", "--multirun", "-m", "--shell-completion", "-sc")
_VALUE_FLAGS = ("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd")
_VALUE_FLAGS += ("--experimental-rerun", "--info", "-i")


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
    chosen = bool({*GROUPS} & {*map(key_of, arguments)})
    ready: list[str] = []
    for argument in arguments:
        if not (argument.startswith("-") or (ready and ready[-1] in _VALUE_FLAGS)):
            argument = _with_options(_checked(command, argument, sweep, chosen))
        ready.append(argument)
    ready = ready if find_layout is None or sweep else with_layout(ready, find_layout, command == "eval")
    return split_for_eval(ready) if command == "eval" else ready


def with_layout(arguments: Sequence[str], find_layout: FindLayout, scores: bool = False) -> list[str]:
    """Put the task and the keys by which `data.root` is read in front of what is typed, which goes over them.

    That is left alone where a run's own settings are taken, or the annotations of both sets are typed.

    Args:
        arguments: checked, with quoted paths.
        find_layout: from the folder and the task that is typed, or None, what the folder is in words, and the keys.
        scores: the folder is to be scored whole, not divided.

    Raises:
        InputError: if the folder is nothing that is known, or a name in it holds what Hydra would resolve.
    """
    typed = {key_of(argument): argument for argument in arguments if "=" in argument and argument[0] != "-"}
    truths = [f"data.{split}.{key}" for key in ("annotations", "labels") for split in ("train", "val")]
    task = typed_task(typed)
    own = ("ckpt" in typed and task is None) or {*truths[:2]} <= typed.keys() or {*truths[2:]} <= typed.keys()
    root = None if own or "data.root" not in typed else _read(typed["data.root"]).value()
    if not isinstance(root, str):
        return [*arguments]
    what, found = find_layout(Path(root), task)
    if not what:
        return [*arguments]
    if task is not None:
        found.pop("task")
    if "data.split" in typed and _read(typed["data.split"]).value() is not None:  # of one set, that of training
        training = {key.replace(".train.", ".val."): value for key, value in found.items() if ".train." in key}
        own = [f"{found[key]}" for key in training if found.get(key) != training[key] and key not in typed]
        if own and first_rank():
            divided = f"{_read(typed['data.split']).input_line} divides {found['data.train.images']}"
            note(f"{divided}: {own[0]} is not used; leave data.split out to validate on it")
        found |= training
    found = {key: value for key, value in found.items() if key not in typed and not (scores and key == "data.split")}
    if foreign := next((value for value in found.values() if "${" in str(value)), None):
        raise InputError(f"data.root={root}: rename {foreign}: ${{ in a name has a meaning of its own")
    added = [f"{key}={value if key == 'task' else _in_grammar(value)}" for key, value in found.items()]
    if first_rank() and added:
        keys = "".join(mark if mark.isprintable() else "?" for mark in " ".join(added)).replace("'", "")
        note(f"data.root={root} is {what}; taken as {keys}: typed keys go over these")
    return [*added, *arguments]


def note(text: str) -> None:
    """Say something before there is a log, and keep it for that, in `NOTES`."""
    print(f"note: {text}", file=sys.stderr)
    NOTES.append(f"note: {text}")


def typed_task(typed: Mapping[str, str]) -> str | None:
    """The task that is typed, or that the experiment is of; None for neither.

    Args:
        typed: the typed arguments by key.
    """
    if "task" in typed:
        return str(_read(typed["task"]).value())
    experiment = str(_read(typed["experiment"]).value()) if "experiment" in typed else ""
    path = Path(CONFIGS, "experiment", f"{experiment}.yaml")
    defaults = yaml.safe_load(path.read_text()).get("defaults", []) if path.is_file() else []
    return next((entry["override /task"] for entry in defaults if "override /task" in entry), None)


def _with_options(argument: str) -> str:
    """Options of a backbone, which go over those of the model's file; none at all, `{}`, take their place."""
    key, _, value = argument.partition("=")
    if key != "model.backbone_options" or not value.startswith("{"):
        return argument
    return f"{key}=null" if not value.strip("{} ") else f"++{argument}"


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
                if _ABSOLUTE.match(key) and not ((_HUB_KEYS.match(key) or _ROOT.match(key)) and is_hub_id(value)):
                    value = os.path.abspath(value)
                argument = f"{key}={_quoted(value)}"
            elif key == "images" and _LIST.match(value):
                entries = (os.path.expanduser(entry.strip()) for entry in value[1:-1].split(","))
                argument = f"{key}=[{','.join(map(_quoted, entries))}]"
        quoted.append(argument)
    return quoted


def split_for_eval(arguments: Sequence[str]) -> list[str]:
    """Move overrides of a run's settings into eval.py's key `settings`: they go over what the checkpoint carries."""
    # Ranks are started with the arguments as they were split by the first.
    kept, settings = [], []
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        mine = argument.startswith("-") or not equals or _section(key.lstrip("+~")) in _EVAL
        (kept if mine else settings).append(argument)
    return [*kept, f"settings=[{','.join(map(_quoted, settings))}]"] if settings else kept


def parsed(arguments: Sequence[str]) -> list[Override]:
    """Overrides as Hydra reads them.

    Raises:
        InputError: if one does not give a key one value.
    """
    overrides = [_read(argument) for argument in arguments]
    for override in overrides:
        if override.is_delete() or override.is_sweep_override():
            raise InputError(f"{override.input_line}: give the key one value, as in key=value")
    return overrides


def key_of(argument: str) -> str:
    """The key of an override."""
    return argument.partition("=")[0].lstrip("+~")


def _once(command: str, arguments: Sequence[str]) -> list[str]:
    """Hydra's flags and `key=value`, each key once: the last one counts, and a line says so.

    Raises:
        InputError: if an argument is neither.
    """
    kept: dict[str, str] = {}
    for number, word in enumerate(arguments):
        key, before = key_of(word), arguments[number - 1] if number else ""
        if word in _FLAGS or word.partition("=")[0] in _VALUE_FLAGS or before in _VALUE_FLAGS:
            kept[f"{number}"] = word
            fault = _flag_fault(word, arguments[number + 1 :])
        else:
            fault = _fault(command, word, arguments[number + 1 :])
        if fault:
            raise InputError(fault)
        if key.startswith("hydra.") or f"{number}" in kept:
            # Ranks are started with a folder of their own behind what was typed.
            key = f"{number}"
        elif kept.pop(key, word) != word and first_rank():
            print(f"note: {key} is typed twice: {word} counts", file=sys.stderr)
        kept[key] = word
    return list(kept.values())


def _flag_fault(flag: str, rest: Sequence[str]) -> str:
    """The fault of a flag of Hydra's, or of its value; "" if nothing is."""
    if flag in ("--cfg", "-c") and rest[:1] not in (["job"], ["hydra"], ["all"]):
        return f"{flag} takes what is to be printed: --cfg job, the settings; or hydra, or all"
    return f"{flag} takes a value" if flag in _VALUE_FLAGS[:-2] and not rest else ""


def _fault(command: str, word: str, rest: Sequence[str]) -> str:
    """The fault of an argument that is not key=value, and the way to type it; "" if nothing is."""
    key, equals, value = word.partition("=")
    following = rest[0] if rest else ""
    separate = bool(following) and not following.startswith("-") and "=" not in following
    if word.startswith("-"):
        return f"{word}: keys are typed without dashes: {_typed(command, key, value or following * separate)}"
    if not equals and following.startswith("="):
        joined = word + "".join(rest[: 2 if following == "=" else 1])
    elif equals and not value and separate:
        joined = word + following
    else:
        joined = re.sub(r"\s*=\s*", "=", word, count=1)
    if joined != word:
        return f"{joined.replace('=', ' = ', 1)}: type it without spaces: {shlex.quote(joined)}"
    if separate and _is_open(value):
        end = next((n for n in range(1, len(rest) + 1) if not _is_open(" ".join([value, *rest[:n]]))), len(rest))
        return f"{word}: a space ends an argument, quote it: {shlex.quote(' '.join([word, *rest[:end]]))}"
    return "" if (equals and key) or word.startswith("~") else f"{word or repr(word)}: {_meant(command, word)}"


def _is_open(value: str) -> bool:
    """True if brackets are opened that are not closed."""
    return any(value.count(a) > value.count(b) for a, b in ("[]", "{}"))


def _typed(command: str, key: str, value: str) -> str:
    """The way to type a key that is called so, with its value if there is one."""
    key = key.lstrip("-").replace("-", "_")
    known = keys_of(command) | keys_of("train")
    key = key if key in (*known, *GROUPS) else [*nearest(key, command), key][0]
    switch = key in known and known[key].default in ("true", "false")
    return shlex.quote(f"{key}={value}") if value else f"{key}={'true' if switch else 'VALUE'}"


def _meant(command: str, word: str) -> str:
    """The way to type a word that has no key."""
    options = [group for group in (*GROUPS, "logger", "debug") if os.path.isfile(f"{CONFIGS}/{group}/{word}.yaml")]
    if word in keys_of(command):
        typed = _typed(command, word, "")
    elif options and command not in WITHOUT_RUN:
        typed = f"{options[0]}={word}"
    elif word.endswith(SUFFIXES) or run_checkpoint(Path(word)) != Path(word):
        typed = shlex.quote(f"ckpt={word}")
    elif command == "predict" and (os.path.exists(word) or "." in word):
        typed = shlex.quote(f"images={word}")
    elif command != "export" and os.path.isdir(word):
        typed = shlex.quote(f"data.root={word}")
    else:
        return "arguments are key=value; --help all lists the keys"
    return f"arguments are key=value: {typed}?"


def _checked(command: str, argument: str, sweep: bool, chosen: bool) -> str:
    """Check an override, and put a run's checkpoint in the place of its folder.

    Args:
        command: "train", "eval", ...
        argument: the override, with quoted paths.
        sweep: whether a key may have several values, one for each run.
        chosen: whether the settings of an evaluation are chosen, not the checkpoint's.
    """
    override = _read(argument)
    key, section = override.key_or_group, _section(override.key_or_group)
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
    scored = {*Scored.model_fields, *GROUPS} if chosen else Scored.model_fields
    if inherited and section in (*Run.model_fields, "debug") and section not in scored:
        raise InputError(f"{key} is a key of training, which eval.py has not")
    if key == section and Path(CONFIGS, key).is_dir() and command not in WITHOUT_RUN:
        options = sorted(path.stem for path in Path(CONFIGS, key).glob("*.yaml"))
        if not ((isinstance(value, str) and value) or (value is None and key in ("experiment", "debug"))):
            raise InputError(f"{argument} must be {', '.join(options)}")
        return argument
    check_typed(command, key, value)
    return _existing(command, argument, key, value)


def _existing(command: str, argument: str, key: str, value: Any) -> str:
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
        return argument if str(path) == value else f"{key}={_quoted(str(path))}"
    to_read = key in ("images", "model.pretrained") and not glob.has_magic(value)
    if to_read and not os.path.exists(value):
        raise InputError(f"{key}={value}: no such file or folder")
    if _ROOT.match(key) and not os.path.isdir(value):
        if os.path.exists(value):
            raise InputError(f"{key}={value} is a file: give the folder that holds it and the images")
        if not is_hub_id(value):
            raise InputError(f"{key}={value}: no such folder")
        try:
            return f"{key}={_quoted(str(dataset_path(value)))}"
        except InputError as error:
            raise InputError(f"{key}={value}: no such folder; as a data set, {error}") from error
    return argument


def _section(key: str) -> str:
    return re.split("[./@]", key)[0]


@functools.cache
def _parser() -> OverridesParser:
    return OverridesParser.create()


def _read(argument: str) -> Override:
    """An override as Hydra reads it.

    Raises:
        InputError: if it does not follow Hydra's grammar.
    """
    try:
        return _parser().parse_overrides([argument])[0]
    except HydraException:
        key, _, value = argument.partition("=")
    if value[:1] in ("[", "{"):
        ways = f"a list is typed as '{key}=[a,b]', a mapping as '{key}={{a: 1}}'"
    else:
        ways = f"quote the value: {shlex.quote(f'{key}={_quoted(value)}')}"
        try:
            _parser().parse_overrides([f"{key}={_quoted(value)}"])
        except HydraException:
            ways = "arguments are key=value, as in seed=1"
    raise InputError(f"{argument} cannot be read: {ways}")


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _in_grammar(value: Any) -> str:
    """A text, number, or list or mapping of such, in Hydra's grammar."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_in_grammar(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list):
        return f"[{','.join(map(_in_grammar, value))}]"
    return _quoted(value) if isinstance(value, str) else str(value)
