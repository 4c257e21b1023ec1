"""Cityscapes: semantic, panoptic and instance segmentation (Cordts et al., arXiv 1604.01685)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from datasets.files.archive import ZipArchive
from datasets.files.source import Folder, Source
from datasets.readers.base import check_size, open_root
from datasets.readers.label_maps import VOID, LabelMaps, LabelTable, pair_files
from eomt.classes import Classes
from eomt.errors import InputError
from eomt.photo import Form
from eomt.published_classes import CITYSCAPES
from eomt.targets import ImageTargets, runs, targets_from_id_map

_OBJECTS = 1000  # from this value on one object each
_NAMES = ("leftImg8bit", "gtFine")


class CityscapesSemantic(LabelMaps):
    """Fine annotations, 19 classes, from the archives as downloaded or the same trees extracted.

    `root` holds `leftImg8bit_trainvaltest.zip` or `leftImg8bit/`, and `gtFine_trainvaltest.zip` or `gtFine/`, with
    `{split}/CITY/*_leftImg8bit.png` and `{split}/CITY/*_gtFine_labelIds.png`. An archive goes before a folder. All
    ids of labels but those of the 19 classes are void.

    Args:
        root: the folder with the archives.
        split: "train" or "val".
        exif: see `Photos`; photos are usually taken as stored.

    Raises:
        InputError: if no folder is given, or if a file is missing or damaged.
    """

    kind = "labelIds"
    shown = CITYSCAPES

    def __init__(self, root: str | Path | None, split: str = "train", exif: Form | None = None):
        if split not in ("train", "val"):
            raise InputError(f"Cityscapes has the splits train and val, not {split!r}")
        root = open_root(root, " and ".join(map(_archive, _NAMES)))
        found = [_find(root, name) for name in _NAMES]
        missing = [f"{_archive(name)} or {name}/" for name, source in zip(_NAMES, found, strict=True) if source is None]
        if missing:
            raise InputError(f"data.root: {root} lacks {' and '.join(missing)}; download it, no need to unpack it")
        images, labels = (source.below(split) for source in found if source is not None)
        files = pair_files(images, ["_leftImg8bit.png"], [(labels, f"_gtFine_{self.kind}.png")])
        class_of = dict.fromkeys(range(256), VOID) | {label_id: k for k, label_id in enumerate(self.shown.ids)}
        super().__init__(*files, self.shown, LabelTable(class_of, "download the archive again"), exif, "stored")


class CityscapesPanoptic(CityscapesSemantic):
    """Fine annotations as panoptic segments, from `*_gtFine_instanceIds.png` of the same trees; otherwise the same.

    A value of at least 1000 is an object of the label id value // 1000, a smaller one all stuff of a label id; or, of a
    class of things, a group of objects that were not drawn apart: a crowd. So has the official script
    `createPanopticImgs.py`, whose JSONs `CocoPanoptic` reads.
    """

    kind = "instanceIds"
    one_per_class = False

    def _targets(self, index: int, size: tuple[int, int], image: str) -> ImageTargets:
        data, where = self._truths[0].read(index)
        pixels = self._table.decode(data, where)
        check_size(pixels.shape, size, where, image)
        values = np.unique(runs(pixels)[0])
        labels = self._table.classes(np.where(values < _OBJECTS, values, values // _OBJECTS), where)
        values, labels = values[labels != VOID], labels[labels != VOID]
        crowd = (values < _OBJECTS) & np.array(self.classes.is_thing)[labels]
        return targets_from_id_map(pixels, values, labels, crowd)


class CityscapesInstance(CityscapesPanoptic):
    """The objects of `CityscapesPanoptic`, of 8 classes. Scores are COCO's, not those of the official script."""

    shown = Classes(tuple(item for item in CITYSCAPES if item.is_thing))


def _archive(name: str) -> str:
    return f"{name}_trainvaltest.zip"


def _find(root: Path, name: str) -> Source | None:
    if (root / _archive(name)).is_file():
        return ZipArchive(root / _archive(name), name)
    return Folder(root / name) if (root / name).is_dir() else None
