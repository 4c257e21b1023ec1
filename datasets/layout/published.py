"""Data sets as they are published, by the names of their files."""

from __future__ import annotations

from typing import Any

from datasets.layout.listing import DataFolder, Layout, both


def builtin(folder: DataFolder) -> Layout | None:
    """Recognise the built-in shapes."""
    if folder.has_files("semantic_trainval2017.zip"):
        return Layout("the built-in shapes", {f"shapes_{kind}": {} for kind in ("panoptic", "instance", "semantic")})
    return None


def ade20k(folder: DataFolder) -> Layout | None:
    """Recognise ADE20K."""
    if folder.has("ADEChallengeData2016"):
        return Layout("ADE20K as downloaded", {"ade20k_semantic": {}, "ade20k_panoptic": {}})
    return None


def cityscapes(folder: DataFolder) -> Layout | None:
    """Recognise Cityscapes, also with the panoptic JSONs that its official scripts write."""
    if not all(folder.has(name, f"{name}_trainvaltest") for name in ("leftImg8bit", "gtFine")):
        return None
    readings: dict[str, dict[str, Any]] = {f"cityscapes_{kind}": {} for kind in ("semantic", "panoptic", "instance")}
    for end in ("", "_trainId"):
        jsons = {split: f"gtFine/cityscapes_panoptic_{split}{end}.json" for split in ("train", "val")}
        if folder.has_files(*jsons.values()):
            sets = {split: {"images": f"leftImg8bit/{split}", "annotations": name} for split, name in jsons.items()}
            readings["coco_panoptic"] = both(sets)
    return Layout("Cityscapes as downloaded", readings)


def coco_2017(folder: DataFolder) -> Layout | None:
    """Recognise COCO 2017."""
    if not (folder.has("train2017") and folder.has("val2017")):
        return None
    archives = {"panoptic": "panoptic_annotations_trainval2017", "instances": "annotations_trainval2017"}
    readings: dict[str, dict[str, Any]] = {
        f"coco_{name.rstrip('s')}": {}
        for name, archive in archives.items()
        if folder.has(archive) or folder.has_files(f"annotations/{name}_train2017.json")
    }
    return Layout("COCO 2017 as downloaded", readings) if readings else None
