"""Classes of custom label files, from a text or JSON file or from the configuration."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeGuard

from eomt.classes import Classes, distinct_color, is_color, is_whole
from eomt.errors import InputError

_LARGEST = 16 << 20  # bytes of a class file

FORMS = (
    "a list of names (the k-th, from 0, has the value k), a mapping of values to names, or a list of entries with "
    "name and optionally id (the value), color ([red, green, blue]) and isthing (0 or 1)"
)


def read_classes(
    spec: str | Path | Sequence | Mapping, root: Path, need_colors: bool = False, key: str = "data.classes"
) -> Classes:
    """Read classes in the order of their ids, which are the values of a label PNG.

    Args:
        spec: one of FORMS, or the name of a file: JSON of that content, or with any other suffix than `.json`
            text, one name a line, the first line for the value 0; `labelmap.txt` may be CVAT's.
        root: the base of a relative file name.
        need_colors: every class must have a different colour.
        key: the configuration's key, for messages.

    Raises:
        InputError: if the file cannot be read, the classes are not in one of these forms, or a name or id stands
            twice; if a colour is needed and missing or stands twice.
    """
    where = key
    if isinstance(spec, str | Path):
        path = root / Path(spec).expanduser()
        where, spec = str(path), _read(path, key)
    rows = _rows(spec, where)
    bare = [row["name"] for row in rows if "color" not in row]
    if need_colors and bare:
        raise InputError(f"{where}: the class {bare[0]!r} has no color, by which data.color_labels tells classes apart")
    for key in ("id", "name", "color") if need_colors else ("id", "name"):
        value, times = Counter(str(row[key]) for row in rows).most_common(1)[0]
        if times > 1:
            raise InputError(f"{where}: the {key} {value} stands for {times} classes")
    rows.sort(key=lambda row: row["id"])
    return Classes.from_list({"color": distinct_color(k), "isthing": 0} | row for k, row in enumerate(rows))


def is_list(value: object) -> TypeGuard[Sequence]:
    """True for a list, also one of the configuration."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def _read(path: Path, key: str) -> Sequence | Mapping:
    try:
        # A checkpoint's configuration may name a device, a pipe that waits for its writer, or gigabytes.
        if path.exists() and (not path.is_file() or path.stat().st_size > _LARGEST):
            raise InputError(
                f"{key}: {path} is no file of classes: it must be a text of less than {_LARGEST >> 20} MiB"
            )
        text = path.read_text(encoding="utf-8-sig")  # some editors write a byte order mark
    except OSError as error:
        start = "data.root" if key == "data.classes" else "the current folder"
        raise InputError(f"{key}: cannot read {path}: {error.strerror}; a relative name counts from {start}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{key}: {path} is no text in UTF-8; save it as that") from error
    if path.name == "labelmap.txt" and ":" in text:  # CVAT's, of lines name:red,green,blue:parts:actions
        rows = [line.rsplit(":", 3) for line in text.splitlines() if line.strip() and not line.startswith("#")]
        try:
            return [{"name": name, "color": [int(part) for part in color.split(",")]} for name, color, *_ in rows]
        except ValueError as error:
            raise InputError(f"{path} has a line that is not name:red,green,blue:parts:actions") from error
    if path.suffix.lower() != ".json":
        return text.rstrip().splitlines()
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also of integers of thousands of digits
        raise InputError(f"{path} is no JSON: {error}") from error


def _rows(spec: object, where: str) -> list[dict]:
    """One entry per class, with id and name, in the given order."""
    if isinstance(spec, Mapping):
        rows = [{"id": _number(key), "name": name} for key, name in spec.items()]
    elif is_list(spec):
        rows = [dict(row) if isinstance(row, Mapping) else {"name": row} for row in spec]
        numbered = sum("id" in row for row in rows)
        if numbered not in (0, len(rows)):
            raise InputError(f"{where}: {numbered} of {len(rows)} classes have an id: give one to all or to none")
        rows = [{"id": k} | row for k, row in enumerate(rows)]
    else:
        rows = []
    if not rows:
        raise InputError(f"{where} holds no classes: give {FORMS}")
    return [_checked(row, where) for row in rows]


def _number(key: object) -> object:
    """A mapping's key as a number, if it is one: JSON has keys of text alone."""
    return int(key) if isinstance(key, str) and len(key) < 10 and key.strip().isdecimal() else key


def _checked(row: dict, where: str) -> dict:
    rules = {
        "id": (lambda value: is_whole(value, 0, 0xFFFF), "a whole number, 0 to 65535, the value in the label files"),
        "name": (lambda value: isinstance(value, str) and bool(value.strip()), "text; quote it if it looks otherwise"),
        "color": (is_color, "[red, green, blue], each 0 to 255"),
        "isthing": (lambda value: value in (0, 1), "0 or 1"),
    }
    unknown = [key for key in row if key not in rules]
    if unknown or "name" not in row:
        fault = f"has the unknown key {unknown[0]!r}" if unknown else "has no name"
        raise InputError(f"{where}: the class {str(row)[:200]} {fault}; give {FORMS}")
    for key, value in row.items():
        good, rule = rules[key]
        if not good(value):
            raise InputError(f"{where}: the {key} of the class {str(row)[:200]} must be {rule}")
    row["name"] = row["name"].strip()
    if "color" in row:
        row["color"] = list(row["color"])
    return row
