"""The task and the keys by which a folder of data is read, where `data.root` alone is typed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from eomt.cli.console import note
from eomt.cli.meanings import CONFIGS
from eomt.cli.overrides import in_grammar, key_of, read
from eomt.errors import InputError

FindLayout = Callable[[Path, str | None], tuple[str, dict[str, Any]]]


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
    root = None if own or "data.root" not in typed else read(typed["data.root"]).value()
    if not isinstance(root, str):
        return [*arguments]
    what, found = find_layout(Path(root), task)
    if not what:
        return [*arguments]
    if task is not None:
        found.pop("task")
    if "data.split" in typed and read(typed["data.split"]).value() is not None:  # of one set, that of training
        training = {key.replace(".train.", ".val."): value for key, value in found.items() if ".train." in key}
        own = [f"{found[key]}" for key in training if found.get(key) != training[key] and key not in typed]
        if own:
            divided = f"{read(typed['data.split']).input_line} divides {found['data.train.images']}"
            note(f"{divided}: {own[0]} is not used; leave data.split out to validate on it")
        found |= training
    found = {key: value for key, value in found.items() if key not in typed and not (scores and key == "data.split")}
    if foreign := next((value for value in found.values() if "${" in str(value)), None):
        raise InputError(f"data.root={root}: rename {foreign}: ${{ in a name has a meaning of its own")
    added = [f"{key}={value if key == 'task' else in_grammar(value)}" for key, value in found.items()]
    if added:
        keys = " ".join(added).replace("'", "")
        note(f"data.root={root} is {what}; taken as {keys}: typed keys go over these")
    return [*added, *arguments]


def typed_task(typed: Mapping[str, str]) -> str | None:
    """The task that is typed, or that the experiment is of; None for neither.

    Args:
        typed: the typed arguments by key.
    """
    if "task" in typed:
        return str(read(typed["task"]).value())
    experiment = str(read(typed["experiment"]).value()) if "experiment" in typed else ""
    path = Path(CONFIGS, "experiment", f"{experiment}.yaml")
    defaults = yaml.safe_load(path.read_text()).get("defaults", []) if path.is_file() else []
    return next((entry["override /task"] for entry in defaults if "override /task" in entry), None)
