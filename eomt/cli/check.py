"""The check of a configuration against the types of all its keys."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any, cast

from omegaconf import OmegaConf
from pydantic import ValidationError

from eomt.cli.meanings import keys_of
from eomt.cli.meant import unknown
from eomt.cli.nodes import NODES, Data, FolderReader, Loss, Optim, Reader, SplitReader
from eomt.cli.settings import COMMANDS, LARGEST_COUNT, SCORES, WITHOUT_RUN, Section
from eomt.errors import InputError
from eomt.export import ONNX_FORMATS

# The sections of train.py that a class fills: the one that does so unless another is chosen.
_USUAL = {"data": Data, "loss": Loss, "optim": Optim}


def check_settings(command: str, settings: Mapping[str, Any]) -> None:
    """Check every value of a command's configuration.

    Args:
        command: a key of COMMANDS.
        settings: the composed configuration as plain, resolved values.

    Raises:
        InputError: if a key is missing or unknown, or a value is of a wrong type or out of range; names the key, the
            value and what is wanted. `details` has all of them.
    """
    section, command = COMMANDS[command], "eval" if command == "scored" else command
    lines = list(_faults(command, section, settings))
    for path, node in nodes(settings):
        if section := registered(node["_target_"]):
            keys = {key: value for key, value in node.items() if key not in ("_target_", "_partial_")}
            lines += _faults(command, section, keys, path)
            # Readers are made by the data module, all else at once.
            partial = issubclass(section, Reader)
            if "_partial_" in node and path != ("data",) and node["_partial_"] is not partial:
                lines.append(f"{_dotted(*path, '_partial_')} must be {_shown(partial)}")
    lines = lines or [*_unknown_scores(settings), *_misfits(command, settings)]
    if lines:
        raise InputError(lines[0], lines)


def plain(cfg: Any, resolve: bool = True) -> dict[str, Any]:
    """A configuration, or a section of one, as plain values."""
    return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=resolve))


def check_typed(command: str, name: str, value: Any) -> None:
    """Check a key of a command and its value, as far as neither depends on other values.

    Raises:
        InputError: if there is no such key, or the value is of a wrong type or out of range.
    """
    *path, key = name.split(".")
    first, section = name.partition(".")[0], COMMANDS[command]
    if command == "eval" and first not in section.model_fields:
        section = COMMANDS["train" if first == "model" else "scored"]
    for part in path:
        if part not in section.model_fields and _is_closed(section):
            raise InputError(unknown(name, command))
        inner = _subsection(section, part) or _USUAL.get(part)
        if inner is None:
            return
        section = inner
    if isinstance(value, Mapping):
        return  # it goes over a part of the section
    if key not in section.model_fields:
        if _is_closed(section):
            raise InputError(unknown(name, command))
        return
    known = keys_of(command) if command in WITHOUT_RUN else keys_of("train") | keys_of(command)
    keys = [other for other in known if other.startswith(f"{name}.")]
    if keys and value is not None:
        raise InputError(f"{name}={_shown(value)}: {name} is a section: give its keys, such as {' or '.join(keys[:3])}")
    for line in _value_faults(section, key, value, tuple(path)):
        raise InputError(line)


def check_roots(settings: Mapping[str, Any]) -> None:
    """Raise InputError if a data set is to be read that is not built in, and its folder is not given."""
    for _, node in nodes(settings):
        reader = registered(node["_target_"])
        if reader and issubclass(reader, SplitReader | FolderReader) and node.get("root") is None:
            raise InputError("data.root is not set: give the folder that holds the dataset, as in data.root=DIR")


def nodes(values: Any) -> Iterator[tuple[tuple, Mapping[str, Any]]]:
    """All sections with a `_target_`, at any depth, with their paths."""
    return ((path, value) for path, value in walk(values) if isinstance(value, Mapping) and "_target_" in value)


def walk(value: Any, path: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    """All values at any depth with their paths, a section or list before what is in it."""
    yield path, value
    if isinstance(value, Mapping | list | tuple):
        for key, entry in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from walk(entry, (*path, key))


def registered(target: Any) -> type[Section] | None:
    """The keys of a class of this project by its dotted name; None for any other."""
    return NODES.get(target) if isinstance(target, str) else None


def keys_of_type(words: str, parent: type[Section] = Section) -> set[str]:
    """The names of all keys, in any section, whose type is called so in messages."""
    found = set()
    for section in parent.__subclasses__():
        found |= {key for key, schema in _properties(section).items() if words in _wanted(schema)}
        found |= keys_of_type(words, section)
    return found


def _subsection(section: type[Section], key: str) -> type[Section] | None:
    """The section under a key, if it is one."""
    annotation = section.model_fields[key].annotation if key in section.model_fields else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def _is_closed(section: type[Section]) -> bool:
    """True if a section has no other keys than those that it names; a custom class may have any."""
    return section.model_config.get("extra") == "forbid" and section not in _USUAL.values()


def _faults(command: str, section: type[Section], values: Mapping[str, Any], path: tuple = ()) -> Iterator[str]:
    """A line for each key of a section that is missing, unknown, or has no value of its type."""
    for key, value in values.items():
        inner = _subsection(section, key)
        if inner and isinstance(value, Mapping):
            yield from _faults(command, inner, value, (*path, key))
        elif key in section.model_fields:
            yield from _value_faults(section, key, value, path)
        elif section.model_config.get("extra") == "forbid":
            yield unknown(_dotted(*path, key), command)
    for key, field in section.model_fields.items():
        if field.is_required() and key not in values:
            yield f"{_dotted(*path, key)} is missing in the configuration"


def _value_faults(section: type[Section], key: str, value: Any, path: tuple = ()) -> Iterator[str]:
    """A line if a key of a section has no value of its type."""
    try:
        setattr(section.model_construct(), key, value)
    except ValidationError as error:
        schema, name = _properties(section)[key], _dotted(*path, key)
        entry = (*error.errors()[0]["loc"], None)[1]
        if value is None and "examples" in schema:
            yield f"{name} is not set: give {_wanted(schema)}, as in {name}={schema['examples'][0]}"
        elif "_target_" in str(schema) and isinstance(value, Mapping) and entry in value:
            # A section of nodes, such as callbacks: the one that is wrong is named.
            yield f"{name}.{entry}={_shown(value[entry])} must be a section that names its class by _target_, or null"
        else:
            yield f"{name}={_shown(value)} must be {_wanted(schema)}"


@functools.cache
def _properties(section: type[Section]) -> dict[str, Any]:
    """The JSON schema of each key of a section."""
    return section.model_json_schema()["properties"]


def _wanted(schema: Mapping[str, Any]) -> str:
    """The values that a type's JSON schema asks for, in words."""
    if "description" in schema:
        return schema["description"]
    choices = _choices(schema)
    if choices:
        *most, last = choices
        return f"{', '.join(most)} or {last}" if most else last
    if schema.get("type") == "array":
        count = f"{schema['minItems']} values" if "maxItems" in schema else "values"
        return f"a list of {count}, each {_wanted(schema.get('items', {}))}"
    names = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "null": "null"}
    limits = {
        "minimum": "of at least",
        "exclusiveMinimum": "of more than",
        "maximum": "at most",
        "exclusiveMaximum": "less than",
    }
    bounds = [
        f"{words} {schema[key]}" for key, words in limits.items() if schema.get(key, LARGEST_COUNT) != LARGEST_COUNT
    ]
    return " ".join([names.get(schema.get("type", ""), "a section of keys"), " and ".join(bounds)]).strip()


def _shown(value: Any) -> str:
    """A value as it is typed, shortened."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, list):
        text = f"[{','.join(_shown(entry) for entry in value[:10])}]"
    elif isinstance(value, Mapping):
        text = "{" + ",".join(f"{name}: {_shown(entry)}" for name, entry in list(value.items())[:10]) + "}"
    else:
        text = str(value)
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _choices(schema: Mapping[str, Any]) -> list[str]:
    """The alternatives of a type that is a union or a list of values."""
    if "anyOf" in schema:
        return list(dict.fromkeys(words for part in schema["anyOf"] for words in _choices(part) or [_wanted(part)]))
    return [_shown(value) for value in schema.get("enum", [schema["const"]] if "const" in schema else [])]


def _dotted(*path: Any) -> str:
    return ".".join(map(str, path))


def _unknown_scores(settings: Mapping[str, Any]) -> Iterator[str]:
    """A line for each callback that monitors a score which this kind of segmentation has not."""
    scores = SCORES.get(settings.get("kind", ""), ())
    for name, node in (settings.get("callbacks") or {}).items():
        monitor = (node or {}).get("monitor")
        if scores and monitor is not None and monitor not in scores and not monitor.startswith("train/"):
            yield f"callbacks.{name}.monitor={_shown(monitor)} must be {', '.join(scores)} or null"


def _misfits(command: str, settings: Mapping[str, Any]) -> Iterator[str]:
    """A line for each value that does not fit another one, which would be said only once PyTorch is imported."""
    if command == "train" and registered(settings["data"]["_target_"]) is Data:
        size, patch = settings["data"]["image_size"], settings["model"]["patch_size"]
        side = next((side for side in (size if isinstance(size, list) else [size]) if side % patch), None)
        if side is not None:
            lower = max(1, side // patch) * patch
            line = f"data.image_size={_shown(size)} is no multiple of the patch size {patch}: choose for example"
            yield f"{line} {lower} or {lower + patch}"
    if command == "export" and settings["postprocess"] and settings["format"] not in ONNX_FORMATS:
        yield f"postprocess=true is for format={', '.join(ONNX_FORMATS)}, not {settings['format']}"
