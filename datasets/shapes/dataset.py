"""The built-in dataset: written once into the cache in COCO's official layout, then read as COCO is.

Nothing is downloaded, and a run on it takes the path that a run on COCO takes. The folder holds, under COCO's
names,

    {split}2017.zip                         {split}2017/{id}.jpg
    panoptic_annotations_trainval2017.zip   annotations/panoptic_{split}2017.json, and .zip: the id maps
    annotations_trainval2017.zip            annotations/instances_{split}2017.json: the things' visible pixels

and for semantic segmentation of the same images

    semantic_trainval2017.zip               semantic_{split}2017/{id}.png: class + 1, 0 is void
"""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any, Literal
from zipfile import ZipFile, ZipInfo

import numpy as np
from numpy.random import SeedSequence, default_rng
from PIL import Image
from pycocotools import mask as coco_mask

from datasets.files.archive import ZipArchive, find_source
from datasets.files.index import cache_errors, cache_folder
from datasets.readers.coco import CocoInstance, CocoPanoptic
from datasets.readers.label_maps import VOID, LabelMaps, LabelTable, pair_files
from datasets.shapes.draw import Scene, draw_scene
from datasets.shapes.kinds import STUFF, THINGS
from eomt.classes import Classes
from eomt.errors import InputError
from eomt.files import replacing_folder

# Part of the folder's name: raise it with every change of pictures or files, so that no old folder is used.
VERSION = 4
SPLITS = ("train", "val")
_SEMANTIC = "semantic_trainval2017.zip"

CATEGORIES = [
    {
        "id": kind.id,
        "name": kind.name,
        "supercategory": "shape" if kind in THINGS else "texture",
        "isthing": int(kind in THINGS),
        "color": list(kind.color),
    }
    for kind in THINGS + STUFF
]
_COLOR = {row["id"]: row["color"] for row in CATEGORIES}
_THING_IDS = {kind.id for kind in THINGS}
_CLASS = {category: k for k, category in enumerate(Classes.from_categories(CATEGORIES).ids)}

log = logging.getLogger(__name__)


def shapes(
    kind: Literal["panoptic", "instance", "semantic"],
    split: str,
    seed: int = 0,
    train_images: int = 2080,
    val_images: int = 200,
    size: int = 96,
    root: str | Path | None = None,
) -> CocoPanoptic | CocoInstance | LabelMaps:
    """Open the built-in dataset, written first if the cache lacks it.

    Args:
        kind: the ground truth: panoptic, its things alone as instances, or semantic with the same classes.
        split: "train" or "val".
        seed, train_images, val_images, size: as for `ensure_shapes`.
        root: the folder that `ensure_shapes` returned; None to ask it.

    Raises:
        InputError: if the folder lacks a file, or as `ensure_shapes` does.
    """
    folder = Path(root or ensure_shapes(seed, train_images, val_images, size)).expanduser().absolute()
    name = f"{split}2017"
    images, archive = find_source(folder, name), folder / _SEMANTIC
    if images is None or (kind == "semantic" and not archive.is_file()):
        raise InputError(
            f"data.root: {folder} lacks {name}.zip or {_SEMANTIC} of the built-in shapes: set data.root=null to have "
            "them drawn; to take the data in that folder, leave out task=, or name another"
        )
    if kind != "semantic":
        reader = (CocoPanoptic if kind == "panoptic" else CocoInstance)(folder, split)
        reader.crowds_are_meant = True
        return reader
    files = pair_files(images, [".jpg"], [(ZipArchive(archive, f"semantic_{name}"), ".png")])
    classes = Classes.from_categories(CATEGORIES)
    class_of = {0: VOID} | {k + 1: k for k in range(len(classes))}
    return LabelMaps(*files, classes, LabelTable(class_of, "set data.root=null to have the dataset drawn anew"))


def ensure_shapes(
    seed: int = 0,
    train_images: int = 2080,
    val_images: int = 200,
    size: int = 96,
    folder: str | Path | None = None,
) -> Path:
    """Find the folder with the dataset, writing it if it is not there.

    Image i of a split depends on the seed, the split, i and the size alone: more images leave the first ones
    as they are. Several processes may call this at once; a folder is complete or absent.

    Args:
        seed: at least 0.
        train_images, val_images: at least 1.
        size: the nominal side in pixels, at least 32; each image's sides lie within a quarter of it.
        folder: the parent folder, default the cache (environment variable EOMT_CACHE).

    Returns:
        The dataset's folder, fit for `root`.

    Raises:
        InputError: if the folder cannot be written.
    """
    folder = cache_folder() if folder is None else Path(folder)
    final = folder / f"shapes-{VERSION}-seed{seed}-{train_images}+{val_images}-{size}px"
    if final.is_dir():
        return final
    log.info("writing the built-in dataset to %s (once)", final)
    with cache_errors(final):
        try:
            with replacing_folder(final, overwrite=False) as draft:
                _write(draft, seed, {"train": train_images, "val": val_images}, size)
        except OSError:
            if not final.is_dir():  # another process was first, with the same content
                raise
    return final


def shape_scene(seed: int, split: str, index: int, size: int) -> Scene:
    """Draw the index-th picture of a split."""
    return draw_scene(default_rng(SeedSequence(seed, spawn_key=(SPLITS.index(split), index))), size)


def _write(root: Path, seed: int, counts: dict[str, int], size: int) -> None:
    """Write the four kinds of archives into an empty folder."""
    with (
        ZipFile(root / "panoptic_annotations_trainval2017.zip", "w") as panoptic,
        ZipFile(root / "annotations_trainval2017.zip", "w") as instances,
        ZipFile(root / _SEMANTIC, "w") as semantic,
    ):
        for split, count in counts.items():
            name = f"{split}2017"
            id_maps = io.BytesIO()
            with ZipFile(root / f"{name}.zip", "w") as images, ZipFile(id_maps, "w") as maps:
                panoptic_json, instances_json = _write_split(seed, split, count, size, images, maps, semantic)
            _add(panoptic, f"annotations/panoptic_{name}.json", _json(panoptic_json))
            _add(panoptic, f"annotations/panoptic_{name}.zip", id_maps.getvalue())
            _add(instances, f"annotations/instances_{name}.json", _json(instances_json))


def _write_split(
    seed: int, split: str, count: int, size: int, images: ZipFile, maps: ZipFile, semantic: ZipFile
) -> tuple[dict, dict]:
    """Write a split's pictures and maps; returns its panoptic and its instance annotations."""
    name = f"{split}2017"
    info = {"description": f"EoMT's built-in shapes, version {VERSION}, seed {seed}"}
    common = {"info": info, "licenses": [], "images": []}
    things = [{k: row[k] for k in ("id", "name", "supercategory")} for row in CATEGORIES if row["isthing"]]
    panoptic = common | {"annotations": [], "categories": CATEGORIES}
    instances = common | {"annotations": [], "categories": things}
    for index in range(count):
        scene = shape_scene(seed, split, index, size)
        # Odd and even, so that ids differ between the splits whatever their sizes.
        image_id = 2 * index + 1 + SPLITS.index(split)
        stem, (height, width) = f"{image_id:012d}", scene.ids.shape
        file = {"id": image_id, "file_name": f"{stem}.jpg", "height": height, "width": width}
        common["images"].append(file)
        rows, objects = _rows(scene, image_id)
        file = {"image_id": image_id, "file_name": f"{stem}.png", "segments_info": rows}
        panoptic["annotations"].append(file)
        instances["annotations"] += objects
        # Full chroma resolution: in images so small, JPEG's usual halving would blur the borders.
        _add(images, f"{name}/{stem}.jpg", _encoded(scene.image, "JPEG", quality=95, subsampling=0))
        id_map = np.array([0] + [row["id"] for row in rows])[scene.ids]
        colors = np.stack([id_map & 255, id_map >> 8 & 255, id_map >> 16], axis=-1).astype(np.uint8)
        _add(maps, f"panoptic_{name}/{stem}.png", _encoded(colors, "PNG"))
        labels = np.array([0] + [_CLASS[row["category_id"]] + 1 for row in rows], dtype=np.uint8)[scene.ids]
        _add(semantic, f"semantic_{name}/{stem}.png", _encoded(labels, "PNG"))
    return panoptic, instances


def _rows(scene: Scene, image_id: int) -> tuple[list[dict], list[dict]]:
    """COCO's panoptic `segments_info`, and its instance annotations: the things of these as run lengths.

    Panoptic ids are near the category's colour, as in COCO's own id maps.
    """
    segments, instances, used = [], [], {0}
    for number, segment in enumerate(scene.segments, start=1):
        red, green, blue = _COLOR[segment.category_id]
        segment_id = red + 256 * green + 65536 * blue
        while segment_id in used:
            segment_id = (segment_id + 0x0A0B0D) % 0x1000000
        used.add(segment_id)
        rle: Any = coco_mask.encode(np.asfortranarray(scene.ids == number, dtype=np.uint8))
        row = {
            "id": segment_id,
            "category_id": segment.category_id,
            "iscrowd": int(segment.crowd),
            "bbox": coco_mask.toBbox(rle).astype(int).tolist(),
            "area": int(coco_mask.area(rle)),
        }
        segments.append(row)
        if segment.category_id in _THING_IDS:
            code = {"size": list(scene.ids.shape), "counts": rle["counts"].decode("ascii")}
            instances.append(row | {"id": 100 * image_id + number, "image_id": image_id, "segmentation": code})
    return segments, instances


def _encoded(pixels: np.ndarray, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def _json(value: dict) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _add(archive: ZipFile, name: str, data: bytes) -> None:
    """Store a file under a fixed date and system, so that equal content makes equal archives."""
    entry = ZipInfo(name, date_time=(2017, 9, 1, 0, 0, 0))
    entry.create_system, entry.external_attr = 3, 0o644 << 16
    archive.writestr(entry, data)
