"""ADE20K, the scene-parsing benchmark with 150 classes: semantic and panoptic segmentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from datasets.files.archive import find_source
from datasets.files.decode import decode_id_map
from datasets.files.index import Index
from datasets.files.source import Folder, IndexedFiles
from datasets.readers.base import check_size, open_root
from datasets.readers.label_maps import VOID, LabelMaps, LabelTable, pair_files, targets_from_runs
from eomt.errors import InputError
from eomt.photo import Form
from eomt.published_classes import ADE20K
from eomt.targets import ImageTargets, runs

_NAME, _INSTANCES = "ADEChallengeData2016", "annotations_instance"
_FOLDERS = {"train": "training", "val": "validation"}

_TABLE = LabelTable(
    {0: VOID} | {value: k for k, value in enumerate(ADE20K.ids)},
    f"a semantic PNG of ADE20K holds 0 (void) to {len(ADE20K)}; download {_NAME}.zip again",
)
_IS_STUFF = ~np.array(ADE20K.is_thing)
_THINGS = np.flatnonzero(ADE20K.is_thing)


class Ade20kSemantic(LabelMaps):
    """Semantic segmentation: class k is the value k + 1 of a PNG; 0 is void.

    `root` holds `ADEChallengeData2016.zip` as downloaded, or `ADEChallengeData2016/`, or is that folder. In it
    are `images/{training,validation}/*.jpg` and `annotations/{training,validation}/*.png`.

    Args:
        root: the folder.
        split: "train" or "val".
        exif: see `Photos`; photos are usually taken as stored.

    Raises:
        InputError: if no folder is given, or if a file is missing or damaged.
    """

    def __init__(self, root: str | Path | None, split: str = "train", exif: Form | None = None):
        super().__init__(*_paired(root, split), ADE20K, _TABLE, exif, "stored")


class Ade20kPanoptic(LabelMaps):
    """Panoptic segmentation: the same 150 classes in the same order, 100 of them things.

    Beside the files of `Ade20kSemantic`, `root` (or the folder `ADEChallengeData2016/` in it) holds the instance
    annotations as `annotations_instance.zip` or `annotations_instance/`, with `{training,validation}/*.png` in it.
    They are published as a tar: pack it anew as zip, or extract it.

    Segments are the stuff classes of the semantic PNG, by class, and after them the things of the instance PNG, by
    instance id: red is the thing's class as 1..100, the k-th that is not stuff, green its id, 0 for none. An
    instance hides stuff. A pixel of a thing's class without an instance is void. There are no crowds.

    Args:
        root: the folder.
        split: "train" or "val".
        exif: see `Photos`; photos are usually taken as stored.

    Raises:
        InputError: if no folder is given, or if a file is missing or damaged.
    """

    one_per_class = False

    def __init__(self, root: str | Path | None, split: str = "train", exif: Form | None = None):
        super().__init__(*_paired(root, split, instances=True), ADE20K, _TABLE, exif, "stored")

    def _targets(self, index: int, size: tuple[int, int], image: str) -> ImageTargets:
        (semantic, where), (instances, where_instances) = (files.read(index) for files in self._truths)
        semantic, instances = self._table.decode(semantic, where), decode_id_map(instances, where_instances)
        check_size(semantic.shape, size, where, image)
        check_size(instances.shape, size, where_instances, image)

        # One integer a pixel: green, red, value.
        pixels, lengths = runs((instances & 0xFFFF) << 16 | semantic)
        green, red, values = pixels >> 24, pixels >> 16 & 255, pixels & 0xFFFF
        classes = self._table.classes(values, where)
        is_thing = green > 0
        if (is_thing & ((red < 1) | (red > len(_THINGS)))).any():
            raise InputError(
                f"{where_instances} has instances (green) of a category (red) that is none of 1 to {len(_THINGS)}: "
                "it is damaged or no instance annotation of ADE20K; fetch it again"
            )
        stuff = np.where(_IS_STUFF[classes], classes, VOID)
        labels = np.where(is_thing, _THINGS[np.where(is_thing, red - 1, 0)], stuff)
        instances = len(ADE20K) + (green << 8 | red)
        return targets_from_runs(np.where(is_thing, instances, stuff), labels, lengths, size)


def _paired(
    root: str | Path | None, split: str, instances: bool = False
) -> tuple[IndexedFiles, list[IndexedFiles], Index]:
    """Pair images with their semantic PNGs and, if wanted, their instance PNGs."""
    if split not in _FOLDERS:
        raise InputError(f"ADE20K has the splits train and val, not {split!r}")
    folder, root = _FOLDERS[split], open_root(root, f"{_NAME}.zip")
    challenge = find_source(root, _NAME)
    if challenge is None and all((root / name).is_dir() for name in ("images", "annotations")):
        challenge = Folder(root)
    if challenge is None:
        raise InputError(f"data.root: {root} lacks {_NAME}.zip or {_NAME}/; download it, no need to unpack it")
    truths = [(challenge.below(f"annotations/{folder}"), ".png")]
    if instances:
        found = find_source(root, _INSTANCES) or find_source(root / _NAME, _INSTANCES)
        if found is None:
            raise InputError(
                f"data.root: {root} lacks {_INSTANCES}.zip or {_INSTANCES}/: download {_INSTANCES}.tar of the "
                "scene-parsing benchmark and extract it, or pack its folder as a zip"
            )
        truths.append((found.below(folder), ".png"))
    return pair_files(challenge.below(f"images/{folder}"), [".jpg"], truths)
