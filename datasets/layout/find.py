"""Detection of what a folder of data is: the task and the keys that read it, by the layouts that are known.

It imports nothing heavy, for the command line asks before all else; the layouts do, once there is a folder to look at.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from eomt.errors import InputError

OWN_DATA = ("coco_instance", "coco_panoptic", "folder_semantic")
"""The tasks that are for any data set of their form."""

_NESTED = 3  # folders in one another with nothing else in them, as archives are unpacked
_WAY_OUT = "see docs/own_data.md, or name the files by keys of data.train and data.val"


def find_layout(root: Path, task: str | None) -> tuple[str, dict[str, Any]]:
    """Find out what a folder is and how it is read.

    Args:
        root: the folder.
        task: the task that is typed, or None.

    Returns:
        What it is, in words with the tasks that could be chosen instead; and the keys as they would be typed, `task`
        and keys of `data`, with their values. A typed task that the folder is not for gives no keys.

    Raises:
        InputError: if no layout fits and no task is typed, or if the file that describes the folder is damaged.
    """
    from datasets.layout import coco, listing, masks, objects, published

    # The first that fits a task counts.
    layouts = {
        "the built-in shapes": published.builtin,
        "ADE20K (ADEChallengeData2016)": published.ade20k,
        "Cityscapes (leftImg8bit, gtFine)": published.cityscapes,
        "YOLO segmentation (data.yaml)": objects.yolo,
        "COCO's JSONs (annotations/*.json, train/_annotations.coco.json, one JSON)": coco.coco,
        "LabelMe's JSONs": objects.labelme,
        "Pascal VOC (SegmentationClass)": objects.voc,
        "images and label PNGs in folders (images and masks, also in train and val)": masks.masks,
        "Hugging Face's Parquet or Arrow files (columns of images and masks)": masks.tables,
    }
    folder = listing.DataFolder(root)
    for _ in range(_NESTED):
        inner = [name for name in folder.names() if not name.startswith((".", "__MACOSX"))]
        if len(inner) == 1 and (folder.path / inner[0]).is_dir():
            folder = listing.DataFolder(folder.path / inner[0])
    found: dict[str, listing.Layout] = {}
    faults: list[InputError] = []
    for recognise in layouts.values():
        try:
            layout = recognise(folder)
        except InputError as error:
            faults.append(error)
            continue
        if layout is not None:
            found |= {name: layout for name in layout.readings if name not in found}
    if faults and task not in found:
        raise faults[0]
    tasks = list(found)
    if task not in (None, *tasks):
        if found and task in OWN_DATA:
            what = f"{found[tasks[0]].what}, for task={' or '.join(tasks)}"
            raise InputError(f"data.root={root} is {what}, not for task={task}; {_WAY_OUT}")
        return "", {}
    if not found and (unread := masks.masks_of_other_kinds(folder)):
        raise InputError(f"data.root={root}: the masks in {unread} must be PNGs: JPEG alters values; export them anew")
    if not found:
        looked_for = ", ".join(layouts)
        raise InputError(f"data.root={root} is nothing that is known here; looked for {looked_for}; {_WAY_OUT}")
    chosen = task or tasks[0]
    others = " or ".join(f"task={name}" for name in tasks if name != chosen)
    below = folder.path.relative_to(root).as_posix()
    keys = {f"data.{key}": _moved(key, value, below) for key, value in found[chosen].readings[chosen].items()}
    return found[chosen].what + (f" (also for {others})" if others else ""), {"task": chosen, **keys}


def _moved(key: str, value: Any, below: str) -> Any:
    """The value of a key of `data` where the layout was found below the root."""
    paths = ("images", "annotations", "labels", "names")
    is_path = key.rpartition(".")[2] in paths or (key == "classes" and isinstance(value, str))
    return os.path.normpath(os.path.join(below, value)) if is_path and value is not None else value
