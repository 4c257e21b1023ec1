"""Instance segmentation in COCO's format: COCO 2017 itself, or any dataset with a JSON like it."""

from __future__ import annotations

from itertools import compress, pairwise
from pathlib import Path

import numpy as np

from datasets.crops import RunTargets, run_targets
from datasets.files.archive import find_source
from datasets.files.index import open_index
from datasets.readers.base import Annotated
from datasets.readers.coco_annotated import instance_annotated
from datasets.readers.coco_files import find_json, index_key, is_path, open_root, require
from datasets.readers.coco_reader import CocoReader
from datasets.readers.instance_index import VERSION, build_instance_index
from eomt.targets import ImageTargets, targets_from_rles

_ARCHIVE = "annotations_trainval2017.zip"


class CocoInstance(CocoReader):
    """Images with COCO instance ground truth, from the archives as downloaded or the same tree extracted.

    `root` holds the images as `train2017.zip` or `train2017/`, and the annotations as
    `annotations_trainval2017.zip` (in it `annotations/instances_train2017.json`) or as
    `annotations/instances_train2017.json`. An archive goes before a folder of the same name. It is a
    `datasets.readers.base.Reader`.

    Classes are the JSON's categories by category id, all of them things. Masks may be polygons, drawn as
    pycocotools draws them, or run lengths, compressed or not. The JSON is parsed once: see `datasets.files.index`.
    Where an annotation has no `iscrowd` it is no crowd, and where it has no `area` that is its mask's. Everything
    else that COCO's format demands must be there.

    Args:
        root: the folder with the archives.
        split: "train" or "val"; chooses the default names.
        images: the images' archive or folder without `.zip`, default `{split}2017`.
        annotations: the name of the JSON without suffix, default `instances_{split}2017`; or the path of a JSON of
            one's own, absolute or below `root`, ending in `.json`.

    Raises:
        InputError: if no folder is given; if a file is missing or damaged; if the JSON names an image that is not
            there, an image id, annotation id or file name twice, an unknown image or category id; if an annotation
            has no mask, a polygon of fewer than 3 corners, or run lengths of another size than its image.
    """

    def __init__(
        self,
        root: str | Path | None,
        split: str = "train",
        images: str | None = None,
        annotations: str | None = None,
    ):
        images, annotations = images or f"{split}2017", annotations or f"instances_{split}2017"
        own = is_path(annotations)
        path = open_root(root, f"{images}.zip and {annotations if own else _ARCHIVE}")
        found = find_source(path, images)
        json = next(find_json(path, annotations, _ARCHIVE), None)
        needs = annotations if own else f"{_ARCHIVE} with annotations/{annotations}.json (or that JSON extracted)"
        require(path, {f"{images}.zip or {images}/": found, needs: json})
        index = open_index(
            index_key(f"instance-{VERSION}", json, found),
            lambda: build_instance_index(json.chunks, json.describe(), found),
        )
        super().__init__(found, index, json)

    def has_targets(self) -> np.ndarray:
        """bool [N]: the image has an object that is no crowd."""
        image = np.repeat(np.arange(len(self)), self._index["count"])
        return np.bincount(image[~self._index["crowd"]], minlength=len(self)) > 0

    def annotated(self) -> Annotated:
        """Boxes, areas and outlines of the objects. Reads the JSON anew."""
        return instance_annotated(self._json, self._index["annotation_id"], self._index["count"])

    def read(self, index: int) -> tuple[np.ndarray, ImageTargets]:
        image, _ = self._image(index)
        label, crowd, area = (self._rows(column, index) for column in ("label", "crowd", "area"))
        return image, targets_from_rles(self._codes(index), self._size(index), label, crowd, area)

    def read_for_training(self, index: int) -> tuple[np.ndarray, RunTargets]:
        """As `read`, but no mask is drawn, and crowds are left out."""
        image, _ = self._image(index)
        wanted = ~self._rows("crowd", index)
        codes = list(compress(self._codes(index), wanted))
        return image, run_targets(codes, self._size(index), self._rows("label", index)[wanted])

    def _rows(self, column: str, index: int) -> np.ndarray:
        start, count = int(self._index["start"][index]), int(self._index["count"][index])
        return self._index[column][start : start + count]

    def _codes(self, index: int) -> list[bytes]:
        """The masks of an image as COCO's compressed run lengths."""
        start, count = int(self._index["start"][index]), int(self._index["count"][index])
        ends = self._index["mask_end"][start : start + count + 1].tolist()
        masks = self._index["mask"][ends[0] : ends[-1]].tobytes()
        return [masks[first - ends[0] : last - ends[0]] for first, last in pairwise(ends)]
