"""The page of `--help` of a command."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path

from eomt.cli.meanings import CONFIGS, GROUPS, keys_of
from eomt.cli.meant import FOLDER, PEERS
from eomt.cli.settings import WITHOUT_RUN, Scored

# Files of a group that the short page of `--help` names one by one.
_MANY = 12


def help_of(command: str, about: str, words: str = "") -> str:
    """The page of `--help`: what a command does, examples, the groups of its configuration, and its keys.

    Args:
        command: its name, such as "train".
        about: what it does, and examples: the docstring of its script.
        words: "" shows the keys that are most used, "all" all, and any other word the keys whose names have it.
    """
    own = keys_of(command)
    shown = {k.name: k for k in own.values() if _is_shown(k.name, command, words)}
    if not shown:
        return f"no key of {command}.py has {words} in its name"
    rows = list(_rows({f"{key.name}={key.default}": key.meaning for key in shown.values()}))
    if words not in ("", "all"):
        return "\n".join(rows)
    lines = [about.strip(), ""]
    if command in ("train", "check_data"):
        lines += ["Choices, as in task=coco_panoptic:", *_rows({f"{g}=": _options(g, words) for g in GROUPS}), ""]
    part = f"The {len(shown)} most used of {len(own)} keys" if len(shown) < len(own) else "Keys"
    lines += [f"{part} and their defaults:", *rows]
    if len(shown) < len(own):
        lines.append("--help all shows all keys, --help WORD those with WORD in their names, as --help lora.")
    if command == "check_data":
        lines.append("and the keys of train.py: python train.py --help")
    if command == "eval":
        sections = ", ".join(name for name in Scored.model_fields)
        lines.append(f"and these of train.py, which go over the checkpoint's: {sections}; python train.py --help")
    if command not in WITHOUT_RUN:
        lines.append(f"{FOLDER}=DIR writes into DIR instead of below runs/.")
    lines += ["", "--cfg job prints all settings instead of running; --multirun runs each of key=a,b in turn."]
    return "\n".join(lines)


def _is_shown(name: str, command: str, words: str) -> bool:
    """True if a page of `--help` has a key: of train.py's many, the short page has those that other tools have, too."""
    return words == "all" or (words in name if words else command != "train" or name in PEERS)


def _options(group: str, words: str) -> str:
    """The purpose of a group, and its files; of many, the short page has the first."""
    names = sorted(path.stem for path in Path(CONFIGS, group).glob("*.yaml"))
    if words != "all" and len(names) > _MANY:
        names = [*names[:3], f"and {len(names) - 3} more"]
    return f"{GROUPS[group]}: {', '.join(names)}"


def _rows(rows: dict[str, str]) -> Iterator[str]:
    """Lines of a name and its meaning, wrapped to the terminal."""
    width = max(60, shutil.get_terminal_size((120, 0)).columns)
    indent = min(40, 4 + max(map(len, rows)))
    for name, meaning in rows.items():
        start = f"  {name}".ljust(indent - 2) + "  "
        yield textwrap.fill(start + meaning, width, subsequent_indent=" " * indent, break_on_hyphens=False)
