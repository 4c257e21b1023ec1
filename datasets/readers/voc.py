"""Pascal VOC's layout: PNGs of classes and of objects, beside lists of the sets' images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from datasets.files.decode import color_code, decode_color_map, decode_label_map
from datasets.files.source import Folder, Member, Source
from datasets.readers.base import check_size, listed
from datasets.readers.foreign import BadImage, Foreign, Row, mask_code, read_lines, sized_row
from eomt.custom_classes import read_classes
from eomt.errors import InputError
from eomt.photo import IMAGE_SUFFIXES, Form

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


def open_voc(path: Path, images: Source, split: str, things: bool, form: Form | None) -> Foreign:
    """Objects in VOC's form, in a panoptic set with the background as stuff; a border of 255 is void.

    Args:
        path: the list of the images' names, as `ImageSets/Segmentation/train.txt`; or the folder of the class PNGs.
        images: the source of images.
        split, form: not used: names and sizes are those of the PNGs.
        things: leave out the background.

    Raises:
        InputError: if the list or the file of classes cannot be read.
    """
    base = next((parent for parent in path.parents if folders(parent)[0].is_dir()), path.parent)
    stems = sorted(file.stem for file in path.glob("*.png")) if path.is_dir() else [*dict.fromkeys(read_lines(path))]
    class_folder, object_folder = map(Folder, folders(base))
    file = class_file(base)
    colors = file is not None and file.name == "labelmap.txt"
    classes = read_classes(CLASSES if file is None else file, base, colors)
    decode = decode_color_map if colors else decode_label_map
    if colors:
        values, void = ([color_code(color) for color in found] for found in (classes.colors.tolist(), VOID_COLORS))
    else:
        values, void = classes.ids, [_VOID]
    photos = {name[: name.rindex(".")]: name for name in images.members() if name.lower().endswith(IMAGE_SUFFIXES)}
    sizes: dict[str, tuple[int, int]] = {}

    def image(stem: str) -> Row:
        try:
            row = sized_row(class_folder, f"{stem}.png", Member(), "stored")
        except InputError as error:
            return error
        if isinstance(row, dict):
            sizes[stem] = row["height"], row["width"]
            row |= {"id": stem, "file_name": photos.get(stem, f"{stem}.jpg")}
        return row

    def annotations(stem: str) -> Iterator[Row]:
        name, maps = f"{stem}.png", []
        for folder in (class_folder, object_folder):
            maps.append(decode(b"".join(folder.chunks(name, Member())), folder.describe(name)))
            check_size(maps[-1].shape, sizes[stem], folder.describe(name), stem)
        shown, objects = maps
        codes = np.unique(objects.astype(np.int64) << _BITS | shown)
        found = np.stack([codes >> _BITS, codes & (1 << _BITS) - 1], axis=1)
        found = found[~np.isin(found, void).any(axis=1)]
        numbers, times = np.unique(found[:, 0], return_counts=True)
        twice = numbers[times > 1]
        if len(twice):
            where, shown_in = object_folder.describe(name), class_folder.describe(name)
            raise InputError(f"{where}: the objects {listed(twice)} (0: none) show several classes in {shown_in}")
        for number, value in found.tolist():
            label = values.index(value) if value in values else None
            mask = (objects == number) & (shown == value)
            if label is None:
                yield InputError(f"{class_folder.describe(name)} has the value {value}, but no class for it")
            elif label or not things:
                identity = f"{stem}:{number}"
                yield {"id": identity, "image_id": stem, "category_id": label, "segmentation": mask_code(mask)}

    def all_annotations() -> Iterator[Row]:
        for stem in sizes:
            try:
                yield from annotations(stem)
            except InputError as error:
                yield BadImage(stem, error)

    return Foreign(
        lambda: [
            *filter(None, (path, file)),
            *(folder.path / f"{stem}.png" for stem in stems for folder in (class_folder, object_folder)),
        ],
        lambda: map(image, stems),
        lambda: [
            {"id": label, "name": item.name, "isthing": int(label > 0)}
            for label, item in enumerate(classes)
            if label or not things
        ],
        all_annotations,
    )
