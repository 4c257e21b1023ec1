"""Write a small dataset in the three forms that a custom dataset may have, to look at and to train on.

python examples/own_data.py DIR

DIR/images/{train,val}/*.jpg                          the images
DIR/labels/{train,val}/*.png, DIR/classes.txt         label PNGs: a pixel's value is its class, 255 is void
DIR/instances_{train,val}.json                        COCO's instance format
DIR/panoptic_{train,val}.json, panoptic_{train,val}/  COCO's panoptic format
"""

from __future__ import annotations

import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from datasets.shapes.dataset import ensure_shapes
from eomt.classes import Classes


def main(folder: Path) -> None:
    shapes = ensure_shapes(train_images=120, val_images=24)
    with zipfile.ZipFile(shapes / "panoptic_annotations_trainval2017.zip") as panoptic:
        for split in ("train", "val"):
            name = f"{split}2017"
            with zipfile.ZipFile(shapes / f"{name}.zip") as images:
                _extract(images, f"{name}/", folder / "images" / split)
            with zipfile.ZipFile(io.BytesIO(panoptic.read(f"annotations/panoptic_{name}.zip"))) as maps:
                _extract(maps, f"panoptic_{name}/", folder / f"panoptic_{split}")
            annotations = panoptic.read(f"annotations/panoptic_{name}.json")
            (folder / f"panoptic_{split}.json").write_bytes(annotations)
            with zipfile.ZipFile(shapes / "annotations_trainval2017.zip") as instances:
                (folder / f"instances_{split}.json").write_bytes(instances.read(f"annotations/instances_{name}.json"))
            with zipfile.ZipFile(shapes / "semantic_trainval2017.zip") as labels:
                _extract(labels, f"semantic_{name}/", folder / "labels" / split)
            for path in (folder / "labels" / split).iterdir():
                # From class + 1, where 0 is void, to the class, where 255 is void: 0 - 1 is 255 in 8 bits.
                Image.fromarray(np.array(Image.open(path)) - np.uint8(1)).save(path)
    classes = Classes.from_categories(json.loads(annotations)["categories"])
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in classes.names))
    print(f"written to {folder}")


def _extract(archive: zipfile.ZipFile, prefix: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in archive.namelist():
        if name.startswith(prefix) and not name.endswith("/"):
            (folder / name.removeprefix(prefix)).write_bytes(archive.read(name))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("error: give the folder to write to, as in: python examples/own_data.py DIR")
    main(Path(sys.argv[1]))
