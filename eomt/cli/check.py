"""The check of a configuration against the types of all its keys."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from eomt.cli.settings import COMMANDS, NODES, SCORES, Data, Loss
from eomt.cli.types import Section, shown, wanted
from eomt.errors import InputError


def check_typed(command: str, name: str, value: Any) -> None:
    """Check one value of a command's configuration, as far as its type does not depend on other values.

    Raises:
        InputError: if it is of a wrong type or out of range.
    """
    section: type[Section] | None = COMMANDS[command]
    *sections, last = name.split(".")
    for part in sections:
        section = _subsection(section, part) or {"data": Data, "loss": Loss}.get(part) if section else None
    if section is None or last not in section.model_fields:
        return
    try:
        section.__pydantic_validator__.validate_assignment(section.model_construct(), last, value)
    except ValidationError:
        raise InputError(f"{name}={shown(value)} must be {wanted(_properties(section)[last])}") from None


def path_names() -> set[str]:
    """The names of all keys whose values are paths."""
    return {name for words in ("a path", "a folder to write to") for name in _names_of(words)}


def write_names() -> set[str]:
    """The names of all keys that say where files are written."""
    return _names_of("a folder to write to") | {"filename"}


def check_settings(command: str, settings: Mapping[str, Any]) -> None:
    """Check every value of a command's configuration.

    Args:
        command: a key of COMMANDS.
        settings: the composed configuration as plain, resolved values.

    Raises:
        InputError: if a key is missing or unknown, or a value is of a wrong type or out of range; names the key, the
            value and what is wanted. `details` has all of them.
    """
    lines = list(_faults(COMMANDS[command], settings, ()))
    for path, node in nodes(settings):
        if isinstance(node["_target_"], str) and node["_target_"] in NODES:
            lines += _faults(NODES[node["_target_"]], node, path)
    lines = lines or list(_unknown_scores(settings))
    if lines:
        raise InputError(lines[0], lines)


def nodes(values: Any, path: tuple = ()) -> Iterator[tuple[tuple, Mapping[str, Any]]]:
    """All sections with a `_target_`, at any depth, with their paths."""
    if isinstance(values, Mapping):
        if "_target_" in values:
            yield path, values
        for name, value in values.items():
            yield from nodes(value, (*path, name))
    elif isinstance(values, list):
        for index, value in enumerate(values):
            yield from nodes(value, (*path, index))


@functools.cache
def _properties(section: type[Section]) -> dict[str, Any]:
    """The JSON schema of each key of a section."""
    return section.model_json_schema(by_alias=True)["properties"]


def _names_of(words: str) -> set[str]:
    """The names of all keys whose type is called so."""
    return {n for section in _sections() for n, schema in _properties(section).items() if words in wanted(schema)}


def _sections(parent: type[Section] = Section) -> Iterator[type[Section]]:
    for section in parent.__subclasses__():
        yield section
        yield from _sections(section)


def _faults(model: type[Section], values: Any, path: tuple) -> Iterator[str]:
    """A line for each key of a section that is missing, unknown, or has no value of its type."""
    try:
        model.model_validate(values)
        return
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False)
    seen = set()
    for error in errors:
        location, value, section = [], values, model
        # Beyond keys of sections a location names members of unions and entries of lists.
        for part in error["loc"]:
            known = isinstance(value, Mapping) and part in value
            if error["type"] != "missing" and not known:
                break
            location.append(part)
            if not known:
                break
            fields = _properties(section) if section else {}
            schema, value = fields.get(part, {}), value[part]
            section = _subsection(section, part)
        name = ".".join(str(part) for part in (*path, *location))
        if name in seen:
            continue
        seen.add(name)
        if error["type"] == "missing":
            yield f"{name} is missing in the configuration"
        elif error["type"] == "extra_forbidden":
            yield f"{name} is no key of the configuration"
        elif value is None and "examples" in schema:
            yield f"{name} is not set: give {wanted(schema)}, as in {name}={schema['examples'][0]}"
        else:
            yield f"{name}={shown(value)} must be {wanted(schema)}"


def _subsection(section: type[Section] | None, name: str) -> type[Section] | None:
    """The section under a key, if that is one."""
    for field_name, field in section.model_fields.items() if section else ():
        if name == (field.alias or field_name) and isinstance(field.annotation, type):
            return field.annotation if issubclass(field.annotation, Section) else None
    return None


def _unknown_scores(settings: Mapping[str, Any]) -> Iterator[str]:
    """A line for each callback that monitors a score which this kind of segmentation has not."""
    scores = SCORES.get(settings.get("kind"), ())
    for name, node in (settings.get("callbacks") or {}).items():
        monitor = (node or {}).get("monitor")
        if scores and monitor is not None and monitor not in scores and not monitor.startswith("train/"):
            yield f"callbacks.{name}.monitor={shown(monitor)} must be {', '.join(scores)} or null"
