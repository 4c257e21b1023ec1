"""Classes of a dataset: id, name, colour, thing or stuff."""

from __future__ import annotations

import colorsys
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eomt.errors import InputError

_NO_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_FLAGS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}


@dataclass(frozen=True)
class SegmentClass:
    """One class.

    Attributes:
        id: the id in the dataset's own files (COCO's category id).
        name: the class's name.
        color: red, green and blue, 0..255.
        is_thing: True for countable objects, False for stuff.
    """

    id: int
    name: str
    color: tuple[int, int, int]
    is_thing: bool


@dataclass(frozen=True)
class Classes:
    """Classes of a dataset in the order of the network's outputs: class k is output k.

    The network has one output more, the last, which stands for "no object".
    """

    items: tuple[SegmentClass, ...]

    def __post_init__(self):
        if not self.items:
            raise InputError("a dataset needs at least one class, found none in its categories")
        number, times = Counter(self.ids).most_common(1)[0]
        if times > 1:
            raise InputError(f"category id {number} stands more than once in the dataset's categories")

    @classmethod
    def from_categories(cls, categories: Iterable[Mapping]) -> Classes:
        """Read COCO's `categories`: things first, then stuff, each by category id.

        Args:
            categories: mappings with `id` and `name`, optionally `isthing` (see `flag`, default 1) and
                `color` ([red, green, blue], 0..255, default: a fixed colour for the position).

        Raises:
            InputError: if there is none, one lacks its id or name or has a value of another form, or an id stands
                twice.
        """
        return cls.from_list(sorted(map(_checked, categories), key=lambda row: (not row["isthing"], row["id"])))

    def to_list(self) -> list[dict[str, Any]]:
        """Plain values in COCO's `categories` form, fit for JSON and for a checkpoint."""
        return [{"id": c.id, "name": c.name, "color": list(c.color), "isthing": int(c.is_thing)} for c in self.items]

    @classmethod
    def from_list(cls, rows: Iterable[Mapping]) -> Classes:
        """The inverse of `to_list`: the order of the rows is kept. InputError as `from_categories`."""
        return cls(
            tuple(
                SegmentClass(row["id"], row["name"], row["color"] or distinct_color(k), row["isthing"])
                for k, row in enumerate(map(_checked, rows))
            )
        )

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[SegmentClass]:
        return iter(self.items)

    def __getitem__(self, index: int) -> SegmentClass:
        return self.items[index]

    @property
    def names(self) -> list[str]:
        return [c.name for c in self.items]

    @property
    def ids(self) -> list[int]:
        """The dataset's own id of each class."""
        return [c.id for c in self.items]

    @property
    def is_thing(self) -> list[bool]:
        return [c.is_thing for c in self.items]

    @property
    def colors(self) -> np.ndarray:
        """uint8 [C, 3]."""
        return np.array([c.color for c in self.items], dtype=np.uint8)


def difference(one: Classes, other: Classes, *, ids: bool = True) -> tuple[str, str] | None:
    """The first difference between two lists in words: the one's class, and the other's in its place.

    None if networks' outputs mean the same: name, thing or stuff, in one order, and with `ids` the id. Colours may
    differ.
    """
    if len(one) != len(other):
        mine, theirs = (f"{len(classes)} class{'es' * (len(classes) > 1)}" for classes in (one, other))
        return mine, theirs
    for k, pair in enumerate(zip(one, other, strict=True)):
        mine, theirs = (f"{c.name!r} (id {c.id}, {'thing' if c.is_thing else 'stuff'})" for c in pair)
        same_output = (pair[0].name, pair[0].is_thing) == (pair[1].name, pair[1].is_thing)
        if mine != theirs and (ids or not same_output):
            return f"class {k} as {mine}", f"class {k} as {theirs}"
    return None


def distinct_color(index: int) -> tuple[int, int, int]:
    """A colour for the index-th class: hues a golden ratio apart, so that neighbours differ."""
    hue = (index * 0.61803398875) % 1.0
    # Hues come near each other again 13, 21, 34 classes apart; the tone then differs.
    saturation, value = ((0.75, 0.95), (0.9, 0.6), (0.45, 0.95), (0.6, 0.75))[index % 4]
    red, green, blue = (round(255 * c) for c in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue


def is_whole(value: object, least: int, most: int) -> bool:
    """True for a whole number in least..most; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def flag(row: Mapping, key: str, missing: bool = False) -> bool:
    """0 or 1, also written as true, 0.0 or a text of these; `missing` if there is none. ValueError otherwise."""
    value = row.get(key)
    if value is None:
        return missing
    text = str(value).strip().lower() if isinstance(value, str | int | float) else ""
    if text not in _FLAGS:
        raise ValueError(f"{key} must be 0 or 1, found {repr(value)[:60]}")
    return _FLAGS[text]


def is_color(value: object) -> bool:
    """True for [red, green, blue], each 0..255."""
    return isinstance(value, Sequence) and len(value) == 3 and all(is_whole(part, 0, 255) for part in value)


def _checked(row: Mapping) -> dict:
    """Id, name, color (None where it has none) and isthing of a category. InputError if one has another form."""
    if not isinstance(row, Mapping) or "id" not in row or "name" not in row:
        raise InputError(f"a category needs an id and a name, found {str(row)[:200]}")
    number, name, color = row["id"], row["name"], row.get("color") or None
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if not is_whole(number, -(1 << 63), (1 << 63) - 1):
        raise InputError(f"the id of the category {str(row)[:200]} must be a whole number")
    if color is not None and not is_color(color):
        raise InputError(f"the color of the category {str(row)[:200]} must be [red, green, blue], each 0 to 255")
    if isinstance(name, bool) or not isinstance(name, str | int | float):
        raise InputError(f"the name of the category {str(row)[:200]} must be a text")
    if _NO_TEXT.search(str(name)):
        raise InputError(f"the name of the category {repr(row)[:200]} holds what controls a terminal, or is no text")
    try:
        is_thing = flag(row, "isthing", missing=True)
    except ValueError as error:
        raise InputError(f"the category {str(row)[:200]}: {error}") from error
    return {"id": number, "name": str(name), "color": color and tuple(color), "isthing": is_thing}
