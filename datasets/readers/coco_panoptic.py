"""Panoptic segmentation in COCO's format: COCO 2017 itself, or any dataset laid out like it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from datasets.files.archive import find_source
from datasets.files.decode import decode_id_map
from datasets.files.index import open_index
from datasets.readers.base import Annotated
from datasets.readers.coco_annotated import panoptic_annotated
from datasets.readers.coco_files import find_json, index_key, is_path, open_root, require
from datasets.readers.coco_reader import CocoReader, by
from datasets.readers.label_maps import one_plane, runs
from datasets.readers.panoptic_index import VERSION, build_panoptic_index
from eomt.errors import InputError
from eomt.targets import ImageTargets, targets_from_id_map

_ARCHIVE = "panoptic_annotations_trainval2017.zip"


class CocoPanoptic(CocoReader):
    """Images with COCO panoptic ground truth, from the archives as downloaded or the same tree extracted.

    `root` holds the images as `train2017.zip` or `train2017/`, and the annotations as
    `panoptic_annotations_trainval2017.zip` (in it `annotations/panoptic_train2017.json` and
    `annotations/panoptic_train2017.zip`), or as `annotations/panoptic_train2017.json` beside
    `annotations/panoptic_train2017.zip` or `annotations/panoptic_train2017/`. An archive goes before a folder
    of the same name. It is a `datasets.readers.base.Reader`.

    A pixel of a panoptic PNG belongs to the segment with the id R + 256 * G + 65536 * B; 0 is void. Classes
    are the JSON's categories, things before stuff, each by category id. The JSON is parsed once: see
    `datasets.files.index`.

    Args:
        root: the folder with the archives.
        split: "train" or "val"; chooses the default names.
        images: the images' archive or folder without `.zip`, default `{split}2017`.
        annotations: the name of the JSON and of its PNGs without suffix, default `panoptic_{split}2017`; or the path
            of a JSON of one's own, absolute or below `root`, ending in `.json`: its PNGs are then in the archive or
            folder of the same name beside it.

    Raises:
        InputError: if no folder is given; if a file is missing or damaged; if the JSON names an image or PNG
            that is not there, an image id or file name twice, an unknown image or category id, or a segment
            id twice in an image.
    """

    def __init__(
        self,
        root: str | Path | None,
        split: str = "train",
        images: str | None = None,
        annotations: str | None = None,
    ):
        images, annotations = images or f"{split}2017", annotations or f"panoptic_{split}2017"
        own = is_path(annotations)
        path = open_root(root, f"{images}.zip and {annotations if own else _ARCHIVE}")
        found = find_source(path, images)
        places = ((json, json.beside()) for json in find_json(path, annotations, _ARCHIVE))
        truth = next((place for place in places if place[1]), None)
        stem = annotations.removesuffix(".json")
        needs = (
            f"{annotations} with its PNGs in {stem}.zip or {stem}/"
            if own
            else f"{_ARCHIVE} with annotations/{stem}.json and .zip (or that JSON with its PNGs extracted)"
        )
        require(path, {f"{images}.zip or {images}/": found, needs: truth})
        json, self._masks = truth
        index = open_index(
            index_key(f"panoptic-{VERSION}", json, found, self._masks),
            lambda: build_panoptic_index(json.chunks(), json.describe(), found, self._masks),
        )
        super().__init__(found, index, json)

    def has_targets(self) -> np.ndarray:
        return self._index["segment_count"] > 0

    def read(self, index: int) -> tuple[np.ndarray, ImageTargets]:
        image, where = self._image(index)
        return image, self._targets(index, where)

    def annotated(self) -> Annotated:
        """Boxes and areas of the segments. Reads the JSON anew."""
        start, count = (self._index[f"segment_{column}"] for column in ("start", "count"))
        return panoptic_annotated(self._json, start, count)

    def _targets(self, index: int, image: str) -> ImageTargets:
        start, count = int(self._index["segment_start"][index]), int(self._index["segment_count"][index])
        ids, labels, crowd = (
            self._index[column][start : start + count] for column in ("segment_id", "segment_label", "segment_crowd")
        )
        if not self._index["has_mask"][index]:
            return targets_from_id_map(np.zeros(self._size(index), dtype=np.uint32), ids, labels, crowd)
        data, name = self._file(self._masks, "mask", index)
        where = f"{name} (ground truth of {image})"
        id_map = decode_id_map(data, where)
        if id_map.shape != self._size(index):
            raise InputError(f"{where} is {by(id_map.shape)}, but its image is {by(self._size(index))}")
        values, lengths = runs(id_map)
        numbers = _numbers(values, lengths, ids, where)
        return one_plane(np.repeat(numbers, lengths).reshape(id_map.shape), labels, crowd)


def _numbers(values: np.ndarray, lengths: np.ndarray, segment_ids: np.ndarray, where: str) -> np.ndarray:
    """For runs of pixels with ids and lengths, the segments' numbers from 1, 0 for void: int16.

    The PNG and its JSON must name the same segments, as panopticapi demands.
    """
    # The last place is void's.
    order = np.append(np.argsort(segment_ids), len(segment_ids))
    known = np.append(segment_ids[order[:-1]], np.iinfo(np.int64).max)
    place = np.searchsorted(known, values)
    found = known[place] == values
    unknown = ~found & (values != 0)
    if unknown.any():
        first = values[unknown][0]
        raise InputError(
            f"{where} has the id {first} on {lengths[unknown].sum()} pixels, but its JSON has no such segment"
        )
    numbers = np.where(found, order[place] + 1, 0).astype(np.int16)
    missing = ~np.isin(np.arange(1, len(segment_ids) + 1), numbers)
    if missing.any():
        raise InputError(f"{where} has no pixel with the id {segment_ids[missing][0]}, a segment of its JSON")
    return numbers
