"""Pascal VOC's layout: PNGs of classes and of objects, beside lists of the sets' images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from datasets.files.decode import color_code, decode_color_map, decode_label_map
from datasets.files.source import Folder, Member
from datasets.readers.base import check_size, listed
from datasets.readers.foreign import BadImage, Foreign, Row, mask_code, read_lines
from eomt.custom_classes import read_classes
from eomt.errors import InputError

_NAMES = """
background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant
sheep sofa train tvmonitor
"""
CLASSES = _NAMES.split()
"""The names of the values 0 to 20 (Everingham et al., The PASCAL Visual Object Classes Challenge, 2010)."""

VOID_COLORS = [[224, 224, 192], [255, 255, 255]]
"""The colours of void in PNGs of colours: VOC's palette has the first for 255."""

_VOID = 255
_BITS = 24  # of a colour


def folders(base: Path) -> tuple[Path, Path]:
    """The folders of the PNGs of classes and of objects; LabelMe's tool gives them longer names."""
    end = "" if (base / "SegmentationClass").is_dir() else "PNG"
    return base / f"SegmentationClass{end}", base / f"SegmentationObject{end}"


def class_file(base: Path) -> Path | None:
    """The file of the classes that tools write beside VOC's folders."""
    files = (base / name for name in ("labelmap.txt", "class_names.txt"))
    return next((file for file in files if file.is_file()), None)


class Voc(Foreign):
    """Objects in VOC's form, in a panoptic set with the background as stuff; a border of 255 is void.

    `path` is the list of the images' names, as `ImageSets/Segmentation/train.txt`; or the folder of the class PNGs.
    Names and sizes are those of the PNGs.

    Raises:
        InputError: if the list or the file of classes cannot be read.
    """

    def __post_init__(self):
        super().__post_init__()
        path = self.path
        base = next((parent for parent in path.parents if folders(parent)[0].is_dir()), path.parent)
        listing = sorted(file.stem for file in path.glob("*.png")) if path.is_dir() else read_lines(path)
        self._stems = [*dict.fromkeys(listing)]
        self._shown, self._objects = map(Folder, folders(base))
        self._class_file = class_file(base)
        self._colors = self._class_file is not None and self._class_file.name == "labelmap.txt"
        self._classes = read_classes(self._class_file or CLASSES, base, self._colors)
        if self._colors:
            self._values = [color_code(color) for color in self._classes.colors.tolist()]
            self._void = [color_code(color) for color in VOID_COLORS]
        else:
            self._values, self._void = self._classes.ids, [_VOID]

    def files(self) -> Iterator[Path]:
        yield from filter(None, (self.path, self._class_file))
        yield from (folder.path / f"{stem}.png" for stem in self._stems for folder in (self._shown, self._objects))

    def images(self) -> Iterator[Row]:
        file_of = {os.path.splitext(name)[0]: name for name in self.photos}
        for stem in self._stems:
            row = self.sized_row(stem, self._shown, f"{stem}.png", Member(), "stored")
            yield row if isinstance(row, InputError) else row | {"file_name": file_of.get(stem, f"{stem}.jpg")}

    def categories(self) -> Iterator[Row]:
        for label, item in enumerate(self._classes):
            if label or not self.all_things:
                yield {"id": label, "name": item.name, "isthing": int(label > 0)}

    def annotations(self) -> Iterator[Row]:
        for stem in self.sizes:
            try:
                yield from self._annotations(stem)
            except InputError as error:
                yield BadImage(stem, error)

    def _annotations(self, stem: str) -> Iterator[Row]:
        decode = decode_color_map if self._colors else decode_label_map
        name, maps = f"{stem}.png", []
        for folder in (self._shown, self._objects):
            maps.append(decode(b"".join(folder.chunks(name)), folder.describe(name)))
            check_size(maps[-1].shape, self.sizes[stem], folder.describe(name), stem)
        shown, objects = maps
        codes = np.unique(objects.astype(np.int64) << _BITS | shown)
        found = np.stack([codes >> _BITS, codes & (1 << _BITS) - 1], axis=1)
        found = found[~np.isin(found, self._void).any(axis=1)]
        numbers, times = np.unique(found[:, 0], return_counts=True)
        twice = numbers[times > 1]
        if len(twice):
            where, shown_in = self._objects.describe(name), self._shown.describe(name)
            raise InputError(f"{where}: the objects {listed(twice)} (0: none) show several classes in {shown_in}")
        for number, value in found.tolist():
            if value not in self._values:
                yield InputError(f"{self._shown.describe(name)} has the value {value}, but no class for it")
                continue
            label = self._values.index(value)
            if label or not self.all_things:
                mask = mask_code((objects == number) & (shown == value))
                yield {"id": f"{stem}:{number}", "image_id": stem, "category_id": label, "segmentation": mask}
