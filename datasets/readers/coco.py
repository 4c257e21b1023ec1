"""COCO's formats, instance and panoptic: COCO 2017 itself, or any dataset with a JSON like it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Literal

import numpy as np

from datasets.files.archive import ZipArchive, find_source
from datasets.files.decode import decode_id_map
from datasets.files.index import open_index
from datasets.files.photos import Photos
from datasets.files.source import Folder, IndexedFiles, Member, Source
from datasets.readers.base import check_size, index_remarks, left_out, listed, open_root
from datasets.readers.coco_index import VERSION, build_index
from datasets.readers.foreign import Foreign
from datasets.readers.json_arrays import stream_arrays
from datasets.readers.labelme import LabelMe
from datasets.readers.voc import Voc
from datasets.readers.yolo import Yolo
from eomt.classes import Classes
from eomt.errors import InputError
from eomt.photo import Form
from eomt.targets import ImageId, ImageTargets, runs, targets_from_id_map, targets_from_rles

FORMATS: dict[str, type[Foreign]] = {"labelme": LabelMe, "voc": Voc, "yolo": Yolo}
"""Formats whose rows are read as a JSON's are, by the value of `data.format` that chooses each."""

_PUBLISHED = ("train2017", "val2017")  # folders and archives of COCO's own photos

_CROWDS = {
    "coco": "which are not trained and no errors when scored; data.crowd=object takes them as objects",
    "object": "trained and scored as objects (data.crowd=object)",
}


class _CocoReader:
    """Images and segments by the rows of an index; see `CocoInstance`."""

    kind: str
    archive: str
    crowds_are_meant = False  # nothing is to be said of them

    def __init__(
        self,
        root: str | Path | None,
        split: str = "train",
        images: str | None = None,
        annotations: str | None = None,
        exif: Form | None = None,
        crowd: Literal["coco", "object"] = "coco",
        skip_bad: bool = False,
        format: str = "coco",
    ):
        annotations = annotations or f"{self.kind}_{split}2017"
        images = images or f"{split}2017"
        things, masks = self.kind == "instances", None
        if format == "coco":
            source, truth, name, masks = _find(root, images, annotations, self.archive, not things)
            folder, where, digest, remarks = truth.path, truth.describe(name), truth.digest(name), []

            def rows(keys: Collection[str]) -> Iterator[tuple[str, object]]:
                member = Member() if isinstance(truth, Folder) else truth.members()[name]
                return stream_arrays(truth.chunks(name, member), keys, where)

        else:
            source, path = _find_foreign(root, images, annotations, format)
            foreign = FORMATS[format](path, source, split, things, exif)
            folder, where, name, rows, remarks = path.parent, str(path), path.name, foreign.rows, foreign.remarks
            digest = foreign.digest()
        state = blake2b(digest + source.fingerprint(), digest_size=16)
        if masks:
            state.update(masks.fingerprint())

        def build() -> tuple[dict[str, np.ndarray], dict]:
            folders = (folder, open_root(root, ""))
            arrays, meta = build_index(rows, where, source, masks, folders, skip_bad, things)
            return arrays, {**meta, "remarks": [*remarks, *meta["remarks"]]}

        kind = f"{self.kind}{'-skip-bad' * skip_bad}{f'-{format}' * (format != 'coco')}-{VERSION}"
        key = f"{kind}-{name.removesuffix('.json')[:80]}-{state.hexdigest()}"
        self._index = open_index(key, build)
        self._images = IndexedFiles(source, self._index, "image")
        # COCO's own annotations were drawn on the photos as stored.
        self.photos = Photos(self._images, exif, "stored" if source.path.name in _PUBLISHED else "upright")
        self._masks = IndexedFiles(masks, self._index, "mask") if masks else None
        self._crowds = crowd
        self.classes = Classes.from_list(self._index.meta["categories"])

    def __len__(self) -> int:
        return len(self._images)

    def has_targets(self) -> np.ndarray:
        """bool [N]: the image has a segment that is no crowd."""
        images, _, crowd = self.segments()
        return np.bincount(images[~crowd], minlength=len(self)) > 0

    def segments(self, index: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The image and the class, int [S], of an image's segments, or of all; and bool [S], True for crowds."""
        labels, crowd = self._rows("label", index), self._crowd(index)
        if index is not None:
            return np.full(len(labels), index), labels, crowd
        return np.repeat(np.arange(len(self)), np.diff(self._index.column("segment_end"))), labels, crowd

    def remarks(self) -> list[str]:
        """Remarks on the set, which a run says: categories, what is left out, crowds, and classes without a segment."""
        lines = index_remarks(self._index)
        image, labels, crowd = self.segments()
        flagged = image[self._index.column("crowd")]
        if len(flagged) and not self.crowds_are_meant:
            images = np.unique(flagged)
            lines.append(
                f"{len(flagged)} segments in {len(images)} images are crowds (iscrowd 1), {_CROWDS[self._crowds]}: "
                f"{listed([self.name(image) for image in images[:3]], count=len(images))}"
            )
        shown = set(labels[~crowd].tolist())
        if missing := [item.name for k, item in enumerate(self.classes) if k not in shown]:
            lines.append(f"{len(missing)} of {len(self.classes)} classes have no segment: {listed(missing)}")
        return lines

    def left_out(self) -> list[str]:
        """The faults that `skip_bad` passes over."""
        return left_out(self._index)

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
        table = self._rows("annotated", index)
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
            raise InputError(
                f"{where} is {found} (width x height), but its JSON says {width}x{height}: replace one of the two"
            )
        return image, where

    def _rows(self, column: str, index: int | None) -> np.ndarray:
        """The rows of an image's segments, or of all."""
        return self._index.column(column) if index is None else self._index.rows(column, *self._span(index))

    def _crowd(self, index: int | None) -> np.ndarray:
        """bool [T]: an image's segments, or all, that count as crowds."""
        return self._rows("crowd", index) & (self._crowds == "coco")

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
        crowd: "coco" takes annotations with `iscrowd` as regions of many objects, "object" as an object each: some
            tools set it for every mask that was drawn by brush.
        skip_bad: leave out images and annotations with the faults below, but for the first.
        format: "coco", or a key of `FORMATS`: `annotations` is then the path of that format's
            own file or folder.

    Raises:
        InputError: if no folder is given or a file is missing or damaged; if the JSON names an image that is not
            there, an image id, annotation id or file name twice, an unknown image or category id; if an annotation
            has no mask, a polygon of fewer than 3 corners, or run lengths of another size than its image.
    """

    kind, archive = "instances", "annotations_trainval2017.zip"

    def read(self, index: int) -> tuple[np.ndarray, ImageTargets]:
        image, _ = self._image(index)
        codes = self._index.texts("mask", *self._span(index))
        labels, areas = self._rows("label", index), self._rows("area", index)
        return image, targets_from_rles(codes, self._size(index), labels, self._crowd(index), areas)


class CocoPanoptic(_CocoReader):
    """Images with COCO panoptic ground truth, from the archives as downloaded or the same tree extracted.

    `root` holds the images as for `CocoInstance`, and the annotations as `panoptic_annotations_trainval2017.zip` (in it
    `annotations/panoptic_train2017.json` and `annotations/panoptic_train2017.zip`), or as
    `annotations/panoptic_train2017.json` beside `annotations/panoptic_train2017.zip` or
    `annotations/panoptic_train2017/`. It is a `datasets.readers.base.Reader`.

    A pixel of a panoptic PNG belongs to the segment with the id R + 256 * G + 65536 * B; 0 is void, and so are ids that
    the JSON lacks. A segment of the JSON that the PNG lacks has no pixel: when scored it is missed, as in panopticapi.
    Classes are the JSON's categories, things before stuff, each by category id.

    Args:
        root: the folder with the archives.
        split: "train" or "val"; chooses the default names.
        images: the images' archive or folder without `.zip`, default `{split}2017`.
        annotations: the name of the JSON and of its PNGs without suffix, default `panoptic_{split}2017`; or the path
            of a custom JSON, as for `CocoInstance`: its PNGs are in the archive or folder of the same name beside it.
        exif: as for `CocoInstance`.
        crowd, skip_bad, format: as for `CocoInstance`.

    Raises:
        InputError: as `CocoInstance`; if the JSON names a PNG that is not there, or a segment id twice in an image.
    """

    kind, archive = "panoptic", "panoptic_annotations_trainval2017.zip"

    def read(self, index: int) -> tuple[np.ndarray, ImageTargets]:
        image, name = self._image(index)
        labels = self._rows("label", index)
        if self._masks is None:  # of another format
            codes = self._index.texts("mask", *self._span(index))
            targets = targets_from_rles(codes, self._size(index), labels, self._crowd(index))
            return image, targets._replace(rles=None)
        ids, notes = self._rows("segment_id", index), ()
        (mask,) = self._index.rows("mask_of_image", index, index + 1)
        if mask < 0:
            id_map = np.zeros(image.shape[:2], dtype=np.uint32)
        else:
            data, file = self._masks.read(mask)
            id_map = decode_id_map(data, f"{file} (ground truth of {name})")
            check_size(id_map.shape, image.shape[:2], file, name)
            notes = tuple(_differences(id_map, ids))
        return image, targets_from_id_map(id_map, ids, labels, self._crowd(index))._replace(notes=notes)


def _differences(id_map: np.ndarray, segment_ids: np.ndarray) -> Iterator[tuple[str, str]]:
    """Notes (see `ImageTargets`) on the ids that a PNG or its JSON lacks."""
    found = np.unique(runs(id_map)[0])
    unknown, missing = np.setdiff1d(found, np.append(segment_ids, 0)), np.setdiff1d(segment_ids, found)
    if len(unknown):
        yield "unknown_id", f"id {listed(unknown)} on {np.isin(id_map, unknown).sum()} pixels"
    if len(missing):
        yield "no_pixels", f"id {listed(missing)}"


def _find_foreign(root: str | Path | None, images: str, annotations: str, format: str) -> tuple[Source, Path]:
    """The images and the annotations of another format. InputError if one of them is not there."""
    if format not in FORMATS:
        raise InputError(f"data.format={format} must be coco or {' or '.join(FORMATS)}")
    folder = open_root(root, f"{images} and {annotations}")
    source, path = find_source(folder, images), folder / annotations
    if source is None or not path.exists():
        raise InputError(
            f"data.root: {folder} lacks {images if source is None else annotations} (data.format={format})"
        )
    return source, path


def _find(
    root: str | Path | None, images: str, annotations: str, archive: str, masks: bool
) -> tuple[Source, Source, str, Source | None]:
    """Images, the source and name of the JSON and, if wanted, panoptic PNGs. InputError names all that is missing."""
    images, custom = images.rstrip("/").removesuffix(".zip"), annotations.endswith(".json")
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
        needs = f"{f'the PNGs of {name}' if extracted.is_file() else f'{needs} and its PNGs'} in {stem}.zip or {stem}/"
    wanted = {f"{images}.zip or {images}/": source, needs: truth}
    if source is None or truth is None:
        missing = " and ".join(what for what, thing in wanted.items() if thing is None)
        download = "" if custom else "download it, no need to unpack it, or "
        anew = "; task=coco_instance or coco_panoptic looks anew at what the folder is" if custom else ""
        raise InputError(
            f"data.root: {folder} lacks {missing}; {download}name custom files by `images` and `annotations` of "
            f"data.train and data.val{anew}"
        )
    return source, truth, name, pngs
