"""COCO's formats, instance and panoptic: COCO 2017 itself, or any dataset with a JSON like it."""

from __future__ import annotations

import json
import logging
from hashlib import blake2b
from pathlib import Path

import numpy as np

from datasets.files.archive import ZipArchive, find_source
from datasets.files.decode import decode_id_map
from datasets.files.index import open_index
from datasets.files.photos import Photos
from datasets.files.source import Folder, IndexedFiles, Member, Source
from datasets.readers.base import check_size, open_root
from datasets.readers.coco_index import VERSION, build_index
from eomt.classes import Classes
from eomt.errors import InputError
from eomt.photo import Form
from eomt.targets import ImageId, ImageTargets, runs, targets_from_id_map, targets_from_rles

log = logging.getLogger("eomt.data")

_PUBLISHED = ("train2017", "val2017")  # folders and archives of COCO's own photos


class _CocoReader:
    """Images and segments by the rows of an index; see `CocoInstance`."""

    kind: str
    archive: str

    def __init__(
        self,
        root: str | Path | None,
        split: str = "train",
        images: str | None = None,
        annotations: str | None = None,
        exif: Form | None = None,
    ):
        annotations = annotations or f"{self.kind}_{split}2017"
        images = images or f"{split}2017"
        source, truth, name, masks = _find(root, images, annotations, self.archive, self.kind == "panoptic")
        state = blake2b(truth.digest(name) + source.fingerprint(), digest_size=16)
        if masks:
            state.update(masks.fingerprint())

        def build() -> tuple[dict[str, np.ndarray], dict]:
            member = Member() if isinstance(truth, Folder) else truth.members()[name]
            folders = (truth.path, open_root(root, ""))
            return build_index(lambda: truth.chunks(name, member), truth.describe(name), source, masks, folders)

        key = f"{self.kind}-{VERSION}-{name.removesuffix('.json')[:80]}-{state.hexdigest()}"
        self._index = open_index(key, build)
        self._images = IndexedFiles(source, self._index, "image")
        # COCO's own annotations were drawn on the photos as stored.
        self.photos = Photos(self._images, exif, "stored" if Path(images).name in _PUBLISHED else "upright")
        self._masks = IndexedFiles(masks, self._index, "mask") if masks else None
        self.classes = Classes.from_list(self._index.meta["categories"])
        for note in self._index.meta["notes"]:
            log.info("%s", note)

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        return self._images.name(index)

    def image_id(self, index: int) -> ImageId:
        return json.loads(self._index.texts("image_id", index, index + 1)[0])

    def files(self) -> tuple[set[str], set[str]]:
        """The images that the JSON names, and all files beside them."""
        return self._images.compared()

    def annotated(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Annotations of an image's T segments beside their pixels, for `check_data.py`. Training uses none of it.

        Returns:
            float64 in pixels, NaN where there is none, infinite where it is not such numbers: boxes [T, 4] (left, top,
            width, height), areas [T], and outlines of the polygons [T, 4] (left, top, right, bottom).
        """
        (table,) = self._segments(index, "annotated")
        return table[:, :4], table[:, 4], table[:, 5:]

    def _size(self, index: int) -> tuple[int, int]:
        height, width = self._index.rows("size", index, index + 1)[0].tolist()
        return height, width

    def _image(self, index: int) -> tuple[np.ndarray, str]:
        """uint8 [H, W, 3], and its name in messages. InputError if it cannot be read or its size is not the JSON's."""
        height, width = self._size(index)
        image, where = self.photos.read(index, lambda: (height, width))
        if image.shape[:2] != (height, width):
            found = f"{image.shape[1]}x{image.shape[0]}"
            raise InputError(f"{where} is {found} (width x height), but its JSON says {width}x{height}")
        return image, where

    def _segments(self, index: int, *columns: str) -> list[np.ndarray]:
        """Rows of an image's segments."""
        return [self._index.rows(column, *self._span(index)) for column in columns]

    def _span(self, index: int) -> tuple[int, int]:
        start, end = self._index.rows("segment_end", index, index + 2).tolist()
        return start, end


class CocoInstance(_CocoReader):
    """Images with COCO instance ground truth, from the archives as downloaded or the same tree extracted.

    `root` holds the images as `train2017.zip` or `train2017/`, and the annotations as
    `annotations_trainval2017.zip` (in it `annotations/instances_train2017.json`) or as
    `annotations/instances_train2017.json`. An archive goes before a folder of the same name. It is a
    `datasets.readers.base.Reader`.

    Classes are the JSON's categories by category id, all of them things. Masks may be polygons, drawn as
    pycocotools draws them, or run lengths, compressed or not. The JSON is parsed once: see `datasets.files.index`.
    An annotation without `iscrowd` is no crowd, and the default of `area` is the mask's. Everything else that COCO's
    format demands must be there.

    Args:
        root: the folder with the archives.
        split: "train" or "val"; chooses the default names.
        images: the images' archive or folder without `.zip`, default `{split}2017`.
        annotations: the name of the JSON without suffix, default `instances_{split}2017`; or the path of a custom
            JSON, absolute or below `root`, ending in `.json`.
        exif: see `Photos`; photos in `train2017` and `val2017` are usually taken as stored, others upright.

    Raises:
        InputError: if no folder is given; if a file is missing or damaged; if the JSON names an image that is not
            there, an image id, annotation id or file name twice, an unknown image or category id; if an annotation
            has no mask, a polygon of fewer than 3 corners, or run lengths of another size than its image.
    """

    kind, archive = "instances", "annotations_trainval2017.zip"

    def has_targets(self) -> np.ndarray:
        """bool [N]: the image has an object that is no crowd."""
        objects = np.cumsum(~self._index.column("crowd"))
        return np.diff(np.append(0, objects)[self._index.column("segment_end")]) > 0

    def read(self, index: int) -> tuple[np.ndarray, ImageTargets]:
        image, _ = self._image(index)
        codes = self._index.texts("mask", *self._span(index))
        return image, targets_from_rles(codes, self._size(index), *self._segments(index, "label", "crowd", "area"))


class CocoPanoptic(_CocoReader):
    """Images with COCO panoptic ground truth, from the archives as downloaded or the same tree extracted.

    `root` holds the images as for `CocoInstance`, and the annotations as `panoptic_annotations_trainval2017.zip` (in it
    `annotations/panoptic_train2017.json` and `annotations/panoptic_train2017.zip`), or as
    `annotations/panoptic_train2017.json` beside `annotations/panoptic_train2017.zip` or
    `annotations/panoptic_train2017/`. It is a `datasets.readers.base.Reader`.

    A pixel of a panoptic PNG belongs to the segment with the id R + 256 * G + 65536 * B; 0 is void. Classes
    are the JSON's categories, things before stuff, each by category id.

    Args:
        root: the folder with the archives.
        split: "train" or "val"; chooses the default names.
        images: the images' archive or folder without `.zip`, default `{split}2017`.
        annotations: the name of the JSON and of its PNGs without suffix, default `panoptic_{split}2017`; or the path
            of a custom JSON, as for `CocoInstance`: its PNGs are in the archive or folder of the same name beside it.
        exif: as for `CocoInstance`.

    Raises:
        InputError: as `CocoInstance`; if the JSON names a PNG that is not there, or a segment id twice in an image.
    """

    kind, archive = "panoptic", "panoptic_annotations_trainval2017.zip"

    def has_targets(self) -> np.ndarray:
        """bool [N]: the image has a segment."""
        return np.diff(self._index.column("segment_end")) > 0

    def read(self, index: int) -> tuple[np.ndarray, ImageTargets]:
        image, name = self._image(index)
        ids, label, crowd = self._segments(index, "segment_id", "label", "crowd")
        (mask,) = self._index.rows("mask_of_image", index, index + 1)
        if mask < 0:
            id_map = np.zeros(image.shape[:2], dtype=np.uint32)
        else:
            data, file = self._masks.read(mask)
            where = f"{file} (ground truth of {name})"
            id_map = decode_id_map(data, where)
            check_size(id_map.shape, image.shape[:2], file, name)
            _check_ids(id_map, ids, where)
        return image, targets_from_id_map(id_map, ids, label, crowd)


def _check_ids(id_map: np.ndarray, segment_ids: np.ndarray, where: str) -> None:
    """Raise InputError unless a PNG and its JSON name the same segments, as panopticapi demands."""
    found = np.unique(runs(id_map)[0])
    unknown = np.setdiff1d(found, np.append(segment_ids, 0))
    if len(unknown):
        pixels = np.isin(id_map, unknown).sum()
        raise InputError(f"{where} has the id {unknown[0]} on {pixels} pixels, but its JSON has no such segment")
    missing = np.setdiff1d(segment_ids, found)
    if len(missing):
        raise InputError(f"{where} has no pixel with the id {missing[0]}, a segment of its JSON")


def _find(
    root: str | Path | None, images: str, annotations: str, archive: str, masks: bool
) -> tuple[Source, Source, str, Source | None]:
    """Images, the source and name of the JSON and, if wanted, panoptic PNGs. InputError names all that is missing."""
    custom = annotations.endswith(".json")
    folder = open_root(root, f"{images}.zip and {annotations if custom else archive}")
    source = find_source(folder, images)
    extracted = Path(folder, annotations) if custom else folder / "annotations" / f"{annotations}.json"
    name, stem = extracted.name, annotations.removesuffix(".json")
    truth = pngs = None
    if not custom and (folder / archive).is_file():
        packed = ZipArchive(folder / archive, "annotations")
        members = packed.members()
        nested = members.get(f"{stem}.zip") if masks else None
        if name in members and (nested or not masks):
            truth = packed
            pngs = packed.nested(f"{stem}.zip", nested, stem) if nested else None
    if truth is None and extracted.is_file():
        pngs = find_source(extracted.parent, name.removesuffix(".json")) if masks else None
        truth = Folder(extracted.parent) if pngs or not masks else None
    needs = annotations if custom else f"{archive} with annotations/{stem}.json"
    if masks:
        needs += f" and its PNGs in {stem}.zip or {stem}/"
    wanted = {f"{images}.zip or {images}/": source, needs: truth}
    missing = " and ".join(what for what, thing in wanted.items() if thing is None)
    if missing:
        raise InputError(
            f"data.root: {folder} lacks {missing}; download it, no need to unpack it, or name custom files by "
            "`images` and `annotations` of data.train and data.val"
        )
    return source, truth, name, pngs
