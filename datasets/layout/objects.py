"""Folders of objects in the forms of YOLO, Pascal VOC and LabelMe."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

from datasets.layout.coco import MOST_JSONS
from datasets.layout.listing import SPLITS, DataFolder, Layout, both, split_of
from datasets.readers import voc as voc_reader
from datasets.readers.labelme import is_labelme
from datasets.readers.yolo import description, folders
from eomt.errors import InputError

_MOST_YAMLS = 4


def yolo(folder: DataFolder) -> Layout | None:
    """Recognise YOLO segmentation, and Label Studio's, which has a `classes.txt` alone.

    Raises:
        InputError: if the `data.yaml` is damaged.
    """
    here = [name for name in folder.names() if name.endswith((".yaml", ".yml")) or name == "classes.txt"]
    for name in sorted(here, key=lambda name: (name != "data.yaml", name))[:_MOST_YAMLS]:
        has_no_yaml = name == "classes.txt"
        if has_no_yaml and not folder.holds("labels", (".txt",)):
            continue
        try:
            entries, _ = description(folder.path / name)
        except InputError:
            if name == "data.yaml":
                raise
            continue
        sets: Mapping[str | None, str | None] = {split: folders(folder.path / name, entries, split) for split in SPLITS}
        if has_no_yaml:
            inner = {split_of(place): f"images/{place}" for place in folder.names("images") if split_of(place)}
            sets = inner or {None: "images"}
        found = {split: {"images": images, "annotations": name} for split, images in sets.items() if images is not None}
        if found:
            return Layout(f"a YOLO data set ({name})", {"coco_instance": {"format": "yolo", **both(found)}})
    return None


def labelme(folder: DataFolder) -> Layout | None:
    """Recognise LabelMe's JSONs."""
    places = [".", *folder.below]
    jsons = (folder.path / name / file for name in places for file in folder.names(name) if file.endswith(".json"))
    if not any(map(is_labelme, islice(jsons, MOST_JSONS))):
        return None
    sets: dict[str | None, dict[str, str]] = {}
    for name in places:
        if folder.holds(name, deeper=False):
            split = split_of(name)
            sets.setdefault(split, {"images": name if split else ".", "annotations": "."})
    readings = {"coco_instance": {"format": "labelme", **both(sets)}}
    return Layout("a folder of LabelMe's JSONs", readings) if sets else None


def voc(folder: DataFolder) -> Layout | None:
    """Recognise Pascal VOC's layout; the maps of classes alone are for semantic segmentation."""
    shown, objects = voc_reader.folders(folder.path)
    if not shown.is_dir():
        return None
    lists = "ImageSets/Segmentation"
    named = {split_of(name): f"{lists}/{name}" for name in folder.names(lists) if name.endswith(".txt")}
    images = "JPEGImages" if (folder.path / "JPEGImages").is_dir() else "images"
    sets = {split: {"images": images, "labels": shown.name, "names": name} for split, name in named.items()}
    file = voc_reader.class_file(folder.path)
    classes: dict[str, object] = {"classes": file.name if file else [*voc_reader.CLASSES]}
    if file is not None and file.name == "labelmap.txt":
        classes |= {"color_labels": True, "ignore": voc_reader.VOID_COLORS}
    readings = {"folder_semantic": {**both(sets or {None: {"images": images, "labels": shown.name}}), **classes}}
    if objects.is_dir():
        truths = {split: {"images": images, "annotations": name} for split, name in named.items()}
        keys = {"format": "voc", **both(truths or {None: {"images": images, "annotations": shown.name}})}
        readings |= {"coco_instance": keys, "coco_panoptic": keys}
    return Layout("a data set in Pascal VOC's layout", readings)
