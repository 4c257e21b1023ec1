"""Custom data for semantic segmentation: a folder of images and a folder of label PNGs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.files.archive import find_source
from datasets.files.decode import color_code
from datasets.files.source import IndexedFiles, Source
from datasets.readers.base import NAMED, listed, open_root
from datasets.readers.foreign import read_lines
from datasets.readers.label_maps import VOID, LabelMaps, LabelTable, pair_files
from eomt.classes import Classes, is_color, is_whole
from eomt.custom_classes import FORMS, is_list, read_classes
from eomt.errors import InputError
from eomt.photo import IMAGE_SUFFIXES, Form
from eomt.targets import runs

# Label files to look into when the classes are not given.
_SAMPLE = 64

# Label files to look into for classes that are never seen, and their pixels together: some seconds at most.
_LOOKED_AT, _MOST_PIXELS = 64, 1 << 28


class FolderSemantic(LabelMaps):
    """Images with label PNGs of the same names: `images/a/1.jpg` belongs to `labels/a/1.png`.

    A label PNG is grey of up to 16 bits or of a palette, and its values stand for classes; or, with
    `color_labels`, its colours do.

    Args:
        root: the folder of images and labels.
        images: the folder with the images below `root`, or the archive of that name with `.zip`.
        labels: the folder or archive with the label PNGs, likewise.
        classes: a file below `root`, or plain values: see `custom_classes.read_classes`. The network's outputs are in
            the order of the values. With `color_labels` every class has a colour, and values do not matter.
        ignore: the void value, several, or None. With `color_labels` a colour [red, green, blue], several, or the
            level of a grey: 255 is white, 0 black. "auto": 255, unless a class has it.
        color_labels: the colours of the label PNGs stand for classes.
        exif: see `Photos`.
        skip_bad: leave out images without a label PNG.
        names: a text file below `root` with the images that are taken, a relative path without ending a line.

    Raises:
        InputError: if a value is missing or not of these forms, a file is missing or damaged, an image has no label
            PNG, or a class is also void. Label PNGs without an image are left out.
    """

    def __init__(
        self,
        root: str | Path | None,
        images: str,
        labels: str,
        classes: str | Path | Sequence | Mapping | None,
        ignore: int | str | Sequence | None = "auto",
        color_labels: bool = False,
        exif: Form | None = None,
        skip_bad: bool = False,
        names: str | None = None,
    ):
        root = open_root(root, "folders or archives of images and of label PNGs")
        photos, truth = _find(root, "images", images), _find(root, "labels", labels)
        only = None if names is None else read_lines(root / names)
        if only == []:
            raise InputError(f"{root}/{names} names no images")
        files = pair_files(photos, IMAGE_SUFFIXES, [(truth, ".png")], skip_bad, only)
        if classes is None:
            raise InputError(_ask_for_classes(files[1][0], color_labels))
        read = read_classes(classes, root, color_labels)
        self._ignore = ignore
        super().__init__(*files, read, _table(read, ignore, color_labels), exif)

    def remarks(self) -> list[str]:
        """Remarks on the set, which a run says: files that are left out, and void and classes of some label files."""
        lines, looked_at, bare = super().remarks(), 0, 0
        pixels, void = np.zeros(1 + len(self.classes)), set()
        for index in np.random.default_rng(0).permutation(len(self))[:_LOOKED_AT]:
            if pixels.sum() > _MOST_PIXELS:
                break
            try:
                data, where = self._truths[0].read(index)
                values, lengths = runs(self._table.decode(data, where))
                classes = self._table.classes(values, where)
            except InputError:  # training and `check_data.py` name it
                continue
            looked_at += 1
            pixels += np.bincount(classes - VOID, lengths, len(pixels))
            void |= set(values[classes == VOID].tolist())
            bare += bool((classes == VOID).all())
        label_files = f"{looked_at} label files looked at (of {len(self)})"
        if bare:
            lines.append(
                f"{bare} of {label_files} show nothing but void: they are scored, but left out of training unless "
                "data.keep_empty=true"
            )
        unseen = [k for k in range(len(self.classes)) if not pixels[1 + k]]
        if unseen and (void or looked_at == len(self)):
            names = listed([self.classes[k].name for k in unseen])
            lines.append(f"{label_files} show no pixel of {names}")
            if void:
                share = 100 * pixels[0] / pixels.sum()
                lines[-1] += f", and {share:.1f} % of their pixels are void: {self._remedy(unseen[0], min(void))}"
        return lines

    def _remedy(self, label: int, value: int) -> str:
        """The way to make a void value that of a class."""
        name = self.classes[label].name
        ignore = "" if self._ignore == "auto" else " data.ignore=null"
        if self._table.colors or len(self.classes) > NAMED:
            what = "color" if self._table.colors else "value"
            return (
                f"{self._table.describe([value])} is void; if it is {name}, make it its {what} in data.classes{ignore}"
            )
        rows = ", ".join(f"{value if k == label else item.id}: {item.name}" for k, item in enumerate(self.classes))
        return f"{value} is void; if it is {name}, 'data.classes={{{rows}}}'{ignore} reads it"


def _find(root: Path, key: str, name: str) -> Source:
    if name is None:
        raise InputError(f"{key} of data.train or data.val is not set: name the folder or archive below data.root")
    name = str(name).removesuffix(".zip")
    found = find_source(root, name)
    if found is None:
        raise InputError(f"{key}: there is neither a folder {root / name} nor an archive of that name with .zip")
    return found


def _table(classes: Classes, ignore: int | str | Sequence | None, color_labels: bool) -> LabelTable:
    auto = ignore == "auto"
    remedy = "add what it stands for to data.classes, or it to data.ignore if it is void"
    if color_labels:
        values = [color_code(item.color) for item in classes]
        void = [color_code(color) for color in _void_colors(255 if auto else ignore)]
    else:
        values, void = classes.ids, _void_values(255 if auto else ignore)
    if auto:
        void = [value for value in void if value not in values]
    both = [k for k, value in enumerate(values) if value in void]
    if both:
        raise InputError(
            f"data.ignore={ignore} is also the {'colour' if color_labels else 'value'} of the class "
            f"{classes[both[0]].name!r}: set data.ignore to what is void in the label files, or to null"
        )
    return LabelTable(dict.fromkeys(void, VOID) | {value: k for k, value in enumerate(values)}, remedy, color_labels)


def _void_values(ignore: Any) -> list[int]:
    values = [] if ignore is None else list(ignore) if is_list(ignore) else [ignore]
    if not all(is_whole(value, 0, 0xFFFF) for value in values):
        raise InputError(f"data.ignore={ignore} must be a value of the label files, 0 to 65535, or a list of them")
    return values


def _void_colors(ignore: Any) -> list[Sequence[int]]:
    if is_whole(ignore, 0, 255):
        return [[ignore] * 3]
    colors = [] if ignore is None else list(ignore) if is_list(ignore) and not is_color(ignore) else [ignore]
    if not all(is_color(color) for color in colors):
        raise InputError(
            f"data.ignore={ignore} must be a colour [red, green, blue], each 0 to 255, a list of colours, or the level "
            "of a grey: data.color_labels is set"
        )
    return colors


def _ask_for_classes(labels: IndexedFiles, color_labels: bool) -> str:
    """Message for missing classes, with the values of the first label files."""
    table = LabelTable({}, "", color_labels)
    count = min(len(labels), _SAMPLE)
    found = np.unique(np.concatenate([runs(table.decode(*labels.read(k)))[0] for k in range(count)]))
    first = [int(value) for value in found[:2]]
    if color_labels:
        colors = [[value & 255, value >> 8 & 255, value >> 16] for value in first]
        example = json.dumps([{"name": f"name {k}", "color": color} for k, color in enumerate(colors)])
    else:
        example = json.dumps({str(value): f"name of {value}" for value in first})
    what = "colours" if color_labels else "values"
    return (
        f"data.classes is not set: the first {count} of {len(labels)} label files hold the {what} "
        f"{table.describe(found, 30)}; give data.classes={FORMS}, or a file of that, as classes.json with {example}, "
        "or classes.txt with one name a line"
    )
