"""Panoptic segmentation in COCO's format: COCO 2017 itself, or any dataset laid out like it."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.archive import Folder, Source, ZipArchive, find_source
from datasets.decode import decode_id_map, decode_rgb
from datasets.index import open_index
from datasets.panoptic_index import VERSION, build_panoptic_index, name_at
from datasets.zip_format import Member
from eomt.classes import Classes
from eomt.errors import InputError
from eomt.targets import ImageTargets, targets_from_id_map

_ARCHIVE = "panoptic_annotations_trainval2017.zip"


class CocoPanoptic:
    """Images with COCO panoptic ground truth, from the archives as downloaded or the same tree extracted.

    `root` holds the images as `train2017.zip` or `train2017/`, and the annotations as
    `panoptic_annotations_trainval2017.zip` (in it `annotations/panoptic_train2017.json` and
    `annotations/panoptic_train2017.zip`), or as `annotations/panoptic_train2017.json` beside
    `annotations/panoptic_train2017.zip` or `annotations/panoptic_train2017/`. An archive goes before a folder
    of the same name. It is a `datasets.reader.Reader`.

    A pixel of a panoptic PNG belongs to the segment with the id R + 256 * G + 65536 * B; 0 is void. Classes
    are the JSON's categories, things before stuff, each by category id. The JSON is parsed once: see
    `datasets.index`.

    Args:
        root: the folder with the archives.
        split: "train" or "val"; chooses the default names.
        images: the images' archive or folder without `.zip`, default `{split}2017`.
        annotations: the name of the JSON and of its PNGs without suffix, default `panoptic_{split}2017`.

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
        if root is None:
            raise InputError("data.root is not set: give the folder that holds the dataset, as in data.root=DIR")
        files = _find(
            Path(root).expanduser().absolute(),
            images or f"{split}2017",
            annotations or f"panoptic_{split}2017",
        )
        self._images, self._masks = files.images, files.masks
        self._index = open_index(files.key(), files.build)
        self.classes = Classes.from_list(self._index.meta["categories"])

    def __len__(self) -> int:
        return len(self._index["image_id"])

    def has_targets(self) -> np.ndarray:
        return self._index["segment_count"] > 0

    def name(self, index: int) -> str:
        return name_at(self._index["image_name"], self._index["image_name_end"], index)

    def image_id(self, index: int) -> int:
        return int(self._index["image_id"][index])

    def size(self, index: int) -> tuple[int, int]:
        height, width = self._index["size"][index].tolist()
        return height, width

    def read(self, index: int) -> tuple[np.ndarray, ImageTargets]:
        name = self.name(index)
        where = self._images.describe(name)
        member = Member(*self._index["image_member"][index].item())
        image = decode_rgb(self._images.read(name, member), where)
        if image.shape[:2] != self.size(index):
            raise InputError(f"{where} is {_by(image.shape)}, but its JSON says {_by(self.size(index))}")
        return image, self._targets(index, where)

    def _targets(self, index: int, image: str) -> ImageTargets:
        start, count = int(self._index["segment_start"][index]), int(self._index["segment_count"][index])
        ids, labels, crowd = (
            self._index[column][start : start + count] for column in ("segment_id", "segment_label", "segment_crowd")
        )
        if not self._index["has_mask"][index]:
            return targets_from_id_map(np.zeros(self.size(index), dtype=np.uint32), ids, labels, crowd)
        name = name_at(self._index["mask_name"], self._index["mask_name_end"], index)
        where = f"{self._masks.describe(name)} (ground truth of {image})"
        id_map = decode_id_map(self._masks.read(name, Member(*self._index["mask_member"][index].item())), where)
        if id_map.shape != self.size(index):
            raise InputError(f"{where} is {_by(id_map.shape)}, but its image is {_by(self.size(index))}")
        targets = targets_from_id_map(id_map, ids, labels, crowd)
        _check_ids(id_map, targets.ids[0].numpy(), ids, where)
        return targets


def _check_ids(id_map: np.ndarray, numbers: np.ndarray, segment_ids: np.ndarray, where: str) -> None:
    """The PNG and its JSON must name the same segments, as panopticapi demands."""
    unknown = id_map[(numbers == 0) & (id_map != 0)]
    if unknown.size:
        raise InputError(f"{where} has the id {unknown[0]} on {unknown.size} pixels, but its JSON has no such segment")
    pixels = np.bincount(numbers.ravel(), minlength=len(segment_ids) + 1)[1:]
    if not pixels.all():
        raise InputError(f"{where} has no pixel with the id {segment_ids[pixels == 0][0]}, a segment of its JSON")


def _by(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]} (width x height)"


class _Files(NamedTuple):
    """What makes up one split, found but not yet read."""

    images: Source
    annotations: Source
    json_name: str
    json_member: Member
    masks: Source

    def key(self) -> str:
        state = blake2b(digest_size=16)
        for part in (
            self.annotations.digest(self.json_name),
            self.images.fingerprint(),
            self.masks.fingerprint(),
        ):
            state.update(part)
        return f"panoptic-{VERSION}-{Path(self.json_name).stem}-{state.hexdigest()}"

    def build(self) -> tuple[dict[str, np.ndarray], dict]:
        chunks = self.annotations.chunks(self.json_name, self.json_member)
        return build_panoptic_index(chunks, self.annotations.describe(self.json_name), self.images, self.masks)


def _find(root: Path, images: str, annotations: str) -> _Files:
    if not root.is_dir():
        raise InputError(f"data.root: {root} is no folder; it must hold {images}.zip and {_ARCHIVE}, as downloaded")
    found_images, found_annotations = find_source(root, images), _find_annotations(root, annotations)
    missing = []
    if found_images is None:
        missing.append(f"{images}.zip or {images}/")
    if found_annotations is None:
        missing.append(
            f"{_ARCHIVE} with annotations/{annotations}.json and .zip (or that JSON with its PNGs extracted)"
        )
    if missing:
        raise InputError(f"data.root: {root} lacks {' and '.join(missing)}; download it, no need to unpack it")
    return _Files(found_images, *found_annotations)


def _find_annotations(root: Path, name: str) -> tuple[Source, str, Member, Source] | None:
    """The source of the JSON, its name and place there, and the source of the PNGs."""
    json_name, zip_name = f"{name}.json", f"{name}.zip"
    if (root / _ARCHIVE).is_file():
        outer = ZipArchive(root / _ARCHIVE, "annotations")
        members = outer.members()
        if json_name in members and zip_name in members:
            return outer, json_name, members[json_name], outer.nested(zip_name, members[zip_name], name)
    folder = Folder(root / "annotations")
    masks = find_source(folder.path, name)
    if masks is not None and (folder.path / json_name).is_file():
        return folder, json_name, Member(0, 0, 0, 0, 0, 0), masks
    return None
