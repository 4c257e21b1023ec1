"""The meaning of every key, from the comments in configs/: behind a key, or on the lines right above it."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

CONFIGS = str(Path(__file__).parents[2] / "configs")

GROUPS = {
    "task": "data and recipe",
    "model": "the network",
    "experiment": "a published recipe, or small_set for your own data",
    "logger": "where numbers are logged",
    "debug": "a short run that tests the set-up",
}
"""The groups of train.py's configuration from which a file is chosen, and what for."""

# The groups of train.py's keys, and the section that each fills.
_SECTIONS = {"trainer": "trainer", "callbacks": "callbacks", "logger": "logger", "model": "model", "task": ""}


@dataclass(frozen=True)
class Key:
    """A key of the configuration.

    Attributes:
        name: as it is typed, such as `data.batch_size`.
        default: its value, as the file has it; where files differ, the group that sets it.
        meaning: what it does, with its unit; empty where no comment says it.
    """

    name: str
    default: str
    meaning: str


@functools.cache
def keys_of(command: str) -> dict[str, Key]:
    """The keys of a command by name; those that check_data.py shares with train.py are in train.py's alone.

    `data.val.*` is left out: its keys are those of `data.train.*`.
    """
    found = {key.name: key for key in _read(Path(CONFIGS, f"{command}.yaml"), "")}
    shared = {} if command == "train" else keys_of("train")
    groups = _SECTIONS if command == "train" else {}
    for group, section in groups.items():
        earlier = set(found)
        for path in sorted(Path(CONFIGS, group).glob("*.yaml")):
            for key in _read(path, section):
                known = found.setdefault(key.name, key)
                differs = key.name not in earlier and known.default != key.default
                default = f"the {group}'s" if differs else known.default
                found[key.name] = replace(known, default=default, meaning=known.meaning or key.meaning)
    # Options within an option, such as a backbone's, are a library's own.
    inner = {name for name in found for other in found if name.startswith(f"{other}.")}
    return {
        name: replace(key, meaning=key.meaning or _implied(name, key.default, shared))
        for name, key in found.items()
        if name not in inner and not name.startswith("data.val.")
    }


def _implied(name: str, default: str, shared: dict[str, Key]) -> str:
    """The meaning of a key that has none of its own: train.py's of this name, or that of the key it refers to."""
    if name in shared:
        return shared[name].meaning
    refers = re.fullmatch(r"\$\{([\w.]+)\}(.*)", default)
    return f"follows {refers[1]}" if refers and not refers[2] else f"below {refers[1]}" if refers else ""


def _read(path: Path, section: str) -> Iterator[Key]:
    """The keys of a file, without sections."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    waiting = [(section, yaml.compose(text))]
    for prefix, node in waiting:
        for key, value in node.value:
            name = f"{prefix}.{key.value}".removeprefix(".")
            if key.value.startswith("_") or key.value in ("defaults", "hydra"):
                continue
            if isinstance(value, yaml.MappingNode) and value.value:
                waiting.append((name, value))
            else:
                default = " ".join(text[value.start_mark.index : value.end_mark.index].split())
                yield Key(name, default, _comment(lines, key.start_mark.line))


def _comment(lines: list[str], number: int) -> str:
    """The comment behind a key or above it; one at the top of a file is the file's."""
    behind = lines[number].partition(" # ")[2]
    if behind:
        return behind.strip()
    first = number
    while first and lines[first - 1].lstrip().startswith("# "):
        first -= 1
    return "" if first == 0 else " ".join(line.strip().removeprefix("# ") for line in lines[first:number])
