"""Overrides in Hydra's grammar."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from eomt.errors import InputError


def key_of(argument: str) -> str:
    """The key of an override."""
    return argument.partition("=")[0].lstrip("+~")


def section_of(key: str) -> str:
    """The section or group of a key."""
    return re.split("[./@]", key)[0]


def read(argument: str) -> Override:
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
        ways = f"quote the value: {shlex.quote(f'{key}={quoted(value)}')}"
        try:
            _parser().parse_overrides([f"{key}={quoted(value)}"])
        except HydraException:
            ways = "arguments are key=value, as in seed=1"
    raise InputError(f"{argument} cannot be read: {ways}")


def parsed(arguments: Sequence[str]) -> list[Override]:
    """Overrides as Hydra reads them.

    Raises:
        InputError: if one does not give a key one value.
    """
    overrides = [read(argument) for argument in arguments]
    for override in overrides:
        if override.is_delete() or override.is_sweep_override():
            raise InputError(f"{override.input_line}: give the key one value, as in key=value")
    return overrides


def quoted(value: str) -> str:
    """A text in Hydra's grammar."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def in_grammar(value: Any) -> str:
    """A text, number, or list or mapping of such, in Hydra's grammar."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{in_grammar(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list):
        return f"[{','.join(map(in_grammar, value))}]"
    return quoted(value) if isinstance(value, str) else str(value)


@functools.cache
def _parser() -> OverridesParser:
    return OverridesParser.create()
