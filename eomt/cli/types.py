"""Types of values with their ranges, and the words by which messages ask for them."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

# Sizes beyond these are typing errors, and end in exhausted memory.
LARGEST_SIDE, LARGEST_COUNT = 2**16, 2**31 - 1


def key(meaning: str, **rules: Any) -> Any:
    """A field with its one-line meaning; with `default=` the key may be missing."""
    return Field(description=meaning, **rules)


def named(words: str, **schema: Any) -> WithJsonSchema:
    """The words by which messages ask for a type."""
    return WithJsonSchema({"wanted": words, **schema})


def _fraction(value: Any) -> Any:
    """Raise ValueError unless `value` is a number, or a text such as 1/6, of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("no number")
    try:
        fraction = Fraction(str(value))
    except ZeroDivisionError as error:
        raise ValueError("no number") from error
    if not 0 <= fraction <= LARGEST_COUNT:
        raise ValueError("out of range")
    return fraction


def _windows(windows: list) -> list:
    """Raise ValueError unless each window has 0 <= start <= end, both fractions or both numbers of steps."""
    if "auto" in windows[:-1]:
        raise ValueError("auto is for the blocks that are left")
    for start, end in (window for window in windows if window != "auto"):
        if start > end or (end > 1 and (start.denominator != 1 or end.denominator != 1)):
            raise ValueError("no window")
    return windows


def rising(values: list) -> list:
    if values != sorted(values):
        raise ValueError("must rise")
    return values


def _positive(value: Any) -> Any:
    if value <= 0:
        raise ValueError("must be more than 0")
    return value


Count = Annotated[int, Field(ge=1, le=LARGEST_COUNT)]
Natural = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
CountOrAll = Annotated[int, Field(ge=-1, le=LARGEST_COUNT)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
ImageSize = Side | Annotated[list[Side], Field(min_length=2, max_length=2)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Limit = Natural | Share
Text = Annotated[str, Field(min_length=1), named("a text that is not empty")]
Path = Annotated[str, Field(min_length=1), named("a path")]
Folder = Annotated[str, Field(min_length=1), named("a folder to write to")]
Paths = Path | Annotated[list[Path], Field(min_length=1)]
Names = Annotated[list[Any] | dict[Any, Any], Field(min_length=1), named("a list of names, or {value: name}")]
Values = int | list[int]
Bound = Annotated[Any, BeforeValidator(_fraction), named("a number of at least 0, or a fraction such as 1/6")]
Window = Annotated[list[Bound], Field(min_length=2, max_length=2)]
Windows = Annotated[
    list[Window | Literal["auto"]],
    AfterValidator(_windows),
    named("a list of windows [start, end], 0 <= start <= end: fractions such as 1/6, or numbers of steps"),
]
Span = Annotated[Bound, AfterValidator(_positive), named("a number of more than 0, or a fraction such as 39120/39153")]
Duration = Annotated[str, Field(pattern=r"^\d+:\d\d:\d\d:\d\d$"), named("a time DD:HH:MM:SS")]
Kind = (
    Literal["semantic", "instance", "panoptic"]
    | Annotated[str, Field(pattern=r"^\w+(\.\w+)+$"), named("the dotted name of a task")]
)
Precision = Literal[32, 16, "32", "16", "bf16"]
Options = Annotated[dict[str, Any], named("options by name, such as {depth: 8}")]


def _target(node: dict) -> dict:
    if not isinstance(node.get("_target_"), str):
        raise ValueError("must name its class")
    return node


Node = Annotated[dict[str, Any], AfterValidator(_target), named("a section that names its class by _target_")]


class Section(BaseModel):
    """A section of the configuration: every key is known, and no value is converted into another type."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class OpenSection(Section):
    """A section of a library's class, or of a task, which may have further keys and says so itself."""

    model_config = ConfigDict(extra="allow")


def wanted(schema: Mapping[str, Any]) -> str:
    """What a type's JSON schema asks for, in words."""
    if "wanted" in schema:
        return schema["wanted"]
    choices = _choices(schema)
    if choices:
        *most, last = choices
        return f"{', '.join(most)} or {last}" if most else last
    kind = schema.get("type")
    if kind in ("integer", "number"):
        name = "a whole number" if kind == "integer" else "a number"
        low, high = schema.get("minimum"), schema.get("maximum", schema.get("exclusiveMaximum"))
        more = f"of at least {low}" if low is not None else f"of more than {schema.get('exclusiveMinimum')}"
        if high is None or high == LARGEST_COUNT:
            return name if low is None and "exclusiveMinimum" not in schema else f"{name} {more}"
        if low is not None and "maximum" in schema:
            return f"{name} from {low} to {high}"
        return f"{name} {more} and {'at most' if 'maximum' in schema else 'less than'} {high}"
    if kind == "array":
        count = f"{schema['minItems']} values" if "maxItems" in schema else "values"
        return f"a list of {count}, each {wanted(schema.get('items', {}))}"
    return {"boolean": "true or false", "null": "null", "object": "a section of keys", "string": "a text"}.get(
        kind, "a section of keys"
    )


def _choices(schema: Mapping[str, Any]) -> list[str]:
    """What a type allows, if it is a union or a list of values."""
    if "anyOf" in schema:
        return list(dict.fromkeys(words for part in schema["anyOf"] for words in _choices(part) or [wanted(part)]))
    return [shown(value) for value in schema.get("enum", [schema["const"]] if "const" in schema else [])]


def shown(value: Any) -> str:
    """A value as it is typed, shortened."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, list):
        text = f"[{','.join(shown(entry) for entry in value[:10])}]"
    elif isinstance(value, Mapping):
        text = "{" + ",".join(f"{name}: {shown(entry)}" for name, entry in list(value.items())[:10]) + "}"
    else:
        text = str(value)
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:77]}..."
