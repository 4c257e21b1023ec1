"""Some of a reader's classes, and several as one."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from datasets.readers.base import Reader, listed
from eomt.classes import Classes, SegmentClass
from eomt.errors import InputError
from eomt.targets import ImageTargets


class ChosenClasses:
    """A reader with chosen and merged classes, itself a reader.

    Segments of other classes, and their crowds, are left out: their pixels are in no segment. A merged class stands in
    the place of its first, with that one's id and colour. Its things stay apart, and its stuff in an image is one
    segment; where the reader has `one_per_class`, so are its things.

    Args:
        reader: the whole set.
        only: names of the classes to keep, merged ones by their new name; None keeps all.
        merge: by the name of each merged class those that it joins; None merges none.

    Raises:
        InputError: if there is no class of a name; if a class is in two merged ones, a merged one has the name of
            another class, or joins things and stuff.
    """

    def __init__(
        self,
        reader: Reader,
        only: Sequence[object] | None = None,
        merge: Mapping[object, Sequence[object]] | None = None,
    ):
        self._reader: Any = reader  # see `Reader` for what one may have
        self._one_per_class = getattr(reader, "one_per_class", False)
        joined = {str(name): list(map(str, names)) for name, names in (merge or {}).items()}
        names = _new_names(reader.classes.names, joined)
        kept = set(map(str, only or ())) or {*names}
        for name in sorted(kept - {*names}):
            if name in reader.classes.names:
                merged = names[reader.classes.names.index(name)]
                raise InputError(f"data.only: data.merge makes {name!r} a part of {merged!r}: name that")
            raise _unknown("data.only", name, names)
        rows: dict[str | int, SegmentClass] = {}
        label_of = []
        for k, (item, name) in enumerate(zip(reader.classes, names, strict=True)):
            key = name if name in joined else k
            if name in kept:
                first = rows.setdefault(key, replace(item, name=name))
                if first.is_thing != item.is_thing and not self._one_per_class:
                    kind = "a thing" if item.is_thing else "stuff"
                    raise InputError(f"data.merge: {name!r} joins things and stuff: {item.name!r} is {kind}")
            label_of.append([*rows].index(key) if name in kept else -1)
        self.classes = Classes(tuple(rows.values()))
        self._label_of = np.array(label_of)
        self._united = np.array([key in joined and (self._one_per_class or not rows[key].is_thing) for key in rows])
        self.name, self.image_id = reader.name, reader.image_id
        for method in ("files", "left_out", "photos"):
            if hasattr(reader, method):
                setattr(self, method, getattr(reader, method))
        if hasattr(reader, "annotated"):
            self.annotated = self._annotated

    def __len__(self) -> int:
        return len(self._reader)

    def has_targets(self) -> np.ndarray:
        """bool [N]: as the reader's; exact where it has `segments`."""
        found = self._reader.has_targets()
        if hasattr(self._reader, "segments"):
            images, labels, crowd = self._reader.segments()
            found &= np.bincount(images[(self._label_of[labels] >= 0) & ~crowd], minlength=len(self)) > 0
        return found

    def remarks(self) -> list[str]:
        """The reader's, and what has become of its classes."""
        lines = list(self._reader.remarks()) if hasattr(self._reader, "remarks") else []
        gone = [item.name for item, label in zip(self._reader.classes, self._label_of, strict=True) if label < 0]
        line = f"data.only and data.merge make {len(self.classes)} of {len(self._label_of)} classes"
        if gone:
            line += f"; {len(gone)} are left out, their pixels are in no segment: {listed(gone)}"
            if hasattr(self._reader, "segments"):
                images, labels, _ = self._reader.segments()
                images = images[self._label_of[labels] < 0]
                line += f" ({len(images)} segments in {len(np.unique(images))} images)"
        return [*lines, line]

    def read(self, index: int) -> tuple[np.ndarray, ImageTargets]:
        image, targets = self._reader.read(index)
        kept, numbers = self._choose(targets.labels.numpy(), targets.crowd.numpy(), targets.planes.numpy())
        planes, place = np.unique(targets.planes.numpy()[kept], return_inverse=True)
        # A segment's own area and run lengths are not those of several.
        alone = len(kept) == np.count_nonzero(numbers)
        chosen = targets._replace(
            ids=torch.from_numpy(np.append(0, numbers).astype(np.int16))[
                targets.ids[planes if len(planes) else [0]].long()
            ],
            labels=torch.from_numpy(self._label_of)[targets.labels[kept]],
            planes=torch.from_numpy(place),
            crowd=targets.crowd[kept],
            areas=targets.areas[kept] if targets.areas is not None and alone else None,
            rles=tuple(targets.rles[k] for k in kept) if targets.rles is not None and alone else None,
        )
        return image, chosen

    def _annotated(self, index: int) -> tuple[np.ndarray, ...]:
        """Areas and boxes as `CocoInstance.annotated` gives them; NaN for segments that became one."""
        _, labels, crowd = self._reader.segments(index)
        kept, numbers = self._choose(labels, crowd, np.zeros(len(labels)))
        several = np.bincount(numbers, minlength=len(kept) + 1)[1:] > 1
        tables = [table[kept] for table in self._reader.annotated(index)]
        for table in tables:
            table[several] = np.nan
        return tuple(tables)

    def _choose(self, labels: np.ndarray, crowd: np.ndarray, planes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """An image's segments that are kept, of several that become one the first; and the new number, from 1, of each
        that there was, 0 for those that are left out."""
        new, numbers, kept = self._label_of[labels], np.zeros(len(labels), dtype=np.int64), {}
        for k in np.argsort(new, kind="stable") if self._one_per_class else range(len(new)):
            if new[k] >= 0:
                key = (new[k], crowd[k], planes[k]) if self._united[new[k]] else k
                numbers[k] = kept.setdefault(key, (len(kept) + 1, k))[0]
        return np.array([k for _, k in kept.values()], dtype=np.int64), numbers


def _new_names(names: Sequence[str], joined: Mapping[str, Sequence[str]]) -> list[str]:
    """The name of each class after merging."""
    new: dict[str, str] = {}
    for merged, parts in joined.items():
        for name in parts:
            if name not in names:
                raise _unknown("data.merge", name, names)
            if new.setdefault(name, merged) != merged:
                raise InputError(f"data.merge: {name!r} is in {new[name]!r} and in {merged!r}: choose one")
    for merged in joined:
        if merged in names and merged not in new:
            raise InputError(f"data.merge: there is a class {merged!r} already: merge it, too, or choose another name")
    return [new.get(name, name) for name in names]


def _unknown(key: str, name: str, names: Collection[str]) -> InputError:
    nearest = difflib.get_close_matches(name, names, 1, 0)
    return InputError(
        f"{key}: there is no class {name!r}; the nearest is {nearest[0]!r} of {listed(dict.fromkeys(names))}"
    )
