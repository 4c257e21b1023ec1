"""Cityscapes, semantic segmentation (Cordts et al., arXiv 1604.01685)."""

from __future__ import annotations

from pathlib import Path

from datasets.files.archive import ZipArchive
from datasets.files.source import Folder, Source
from datasets.readers.base import open_root
from datasets.readers.label_maps import VOID, LabelMaps, LabelTable, PairedFiles
from eomt.errors import InputError
from eomt.known_classes import CITYSCAPES

_IMAGES, _LABELS = "leftImg8bit", "gtFine"


class CityscapesSemantic(LabelMaps):
    """Fine annotations, 19 classes, from the archives as downloaded or the same trees extracted.

    `root` holds `leftImg8bit_trainvaltest.zip` or `leftImg8bit/`, and `gtFine_trainvaltest.zip` or `gtFine/`, with
    `{split}/CITY/*_leftImg8bit.png` and `{split}/CITY/*_gtFine_labelIds.png`. An archive goes before a folder. All
    ids of labels but those of the 19 classes are void.

    Args:
        root: the folder with the archives.
        split: "train" or "val".

    Raises:
        InputError: if no folder is given, or if a file is missing or damaged.
    """

    def __init__(self, root: str | Path | None, split: str = "train"):
        if split not in ("train", "val"):
            raise InputError(f"Cityscapes has the splits train and val, not {split!r}")
        images, labels = _find(open_root(root, f"{_archive(_IMAGES)} and {_archive(_LABELS)}"))
        files = PairedFiles(
            images.below(split), [f"_{_IMAGES}.png"], [(labels.below(split), f"_{_LABELS}_labelIds.png")]
        )
        class_of = dict.fromkeys(range(256), VOID) | {label_id: k for k, label_id in enumerate(CITYSCAPES.ids)}
        super().__init__(files, CITYSCAPES, LabelTable(class_of, "download the archive again"))


def _archive(name: str) -> str:
    return f"{name}_trainvaltest.zip"


def _find(root: Path) -> list[Source]:
    """Find the sources of images and labels."""
    found, missing = [], []
    for name in (_IMAGES, _LABELS):
        if (root / _archive(name)).is_file():
            found.append(ZipArchive(root / _archive(name), name))
        elif (root / name).is_dir():
            found.append(Folder(root / name))
        else:
            missing.append(f"{_archive(name)} or {name}/")
    if missing:
        raise InputError(f"data.root: {root} lacks {' and '.join(missing)}; download it, no need to unpack it")
    return found
