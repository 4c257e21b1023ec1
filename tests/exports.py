"""One set of 20 drawn pictures as each annotation tool exports it: a function of `EXPORTS` writes each format."""

import base64
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from tests.coco_files import id_png
from tests.label_files import encoded, label_png

CLASSES = ("bus", "car", "traffic cone")  # in the order that LabelMe's files give, which have no list of classes
COLORS = ((200, 30, 30), (30, 160, 60), (40, 60, 220))
SPLITS = {"train": range(16), "val": range(16, 20)}


class Picture(NamedTuple):
    """A picture of the set; objects do not overlap.

    Attributes:
        name: without suffix.
        photo: the PNG file.
        size: height and width.
        objects: (class 0..2, polygon [x, y, ...]) of each; the sixth picture has none.
    """

    name: str
    photo: bytes
    size: tuple[int, int]
    objects: list[tuple[int, list[float]]]

    def masks(self) -> list[np.ndarray]:
        """bool [H, W] of each object, as pycocotools draws its polygon."""
        return [coco_mask.decode(coco_mask.frPyObjects([polygon], *self.size)[0]) > 0 for _, polygon in self.objects]

    def maps(self) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [H, W] of the objects' numbers from 1, and of their classes from 1; 0 is background."""
        numbers, classes = np.zeros((2, *self.size), dtype=np.uint8)
        for number, ((label, _), mask) in enumerate(zip(self.objects, self.masks(), strict=True), 1):
            numbers[mask], classes[mask] = number, label + 1
        return numbers, classes


@functools.cache
def pictures() -> list[Picture]:
    """The set."""
    return [_picture(k, np.random.default_rng(k)) for k in range(20)]


def _picture(k: int, rng: np.random.Generator) -> Picture:
    height, width = (int(side) for side in rng.integers(24, 33, 2) * 2)
    photo = Image.fromarray(rng.integers(90, 130, (height, width, 3), dtype=np.uint8))
    objects = []
    for y, x in np.ndindex(2, 2):
        if k == 5 or rng.random() < 0.4:
            continue
        label = int(rng.integers(len(CLASSES)))
        corners = [(0.1, 0.2), (0.8, 0.1), (0.9, 0.9), (0.3, 0.7)][: 3 + label % 2]
        points = [((x + u) * width // 2, (y + v) * height // 2) for u, v in corners]
        ImageDraw.Draw(photo).polygon(points, COLORS[label])
        objects.append((label, [float(value) for point in points for value in point]))
    return Picture(f"picture {k:02}", encoded(photo), (height, width), objects)


def write(path: Path, data: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def coco_json(numbers: range, folder: str = "", roboflow: bool = False) -> str:
    """A JSON in COCO's instance form of some of the pictures."""
    chosen = [(k, picture) for k, picture in enumerate(pictures()) if k in numbers]
    parent = [{"id": 0, "name": "street", "supercategory": "none"}] * roboflow
    return json.dumps(
        {
            "categories": [
                *parent,
                *({"id": k, "name": name, "supercategory": "street"} for k, name in enumerate(CLASSES, 1)),
            ],
            "images": [
                {"id": k, "file_name": f"{folder}{p.name}.png", "height": p.size[0], "width": p.size[1]}
                for k, p in chosen
            ],
            "annotations": [
                {"id": 10 * k + n, "image_id": k, "category_id": label + 1, "segmentation": [polygon], "iscrowd": 0}
                for k, p in chosen
                for n, (label, polygon) in enumerate(p.objects, 1)
            ],
        }
    )


def write_photos(folder: Path, numbers: range = range(20)) -> None:
    for k in numbers:
        picture = pictures()[k]
        write(folder / f"{picture.name}.png", picture.photo)


def coco(root: Path) -> None:
    """COCO's instance form: annotations/*.json beside images/train and images/val."""
    for split, numbers in SPLITS.items():
        write_photos(root / "images" / split, numbers)
        write(root / "annotations" / f"instances_{split}.json", coco_json(numbers))


def roboflow(root: Path) -> None:
    """Roboflow's COCO: a JSON within each folder of images, and an empty root category."""
    for split, numbers in SPLITS.items():
        folder = root / {"val": "valid"}.get(split, split)
        write_photos(folder, numbers)
        write(folder / "_annotations.coco.json", coco_json(numbers, roboflow=True))


def one_json(root: Path) -> None:
    """Label Studio's COCO: one JSON for all images."""
    write_photos(root / "images")
    write(root / "result.json", coco_json(range(20), "images/"))


def yolo(root: Path) -> None:
    """YOLO segmentation as Roboflow writes it."""
    folders = {"train": "train", "val": "valid"}
    lines = [f"{split}: ../{folder}/images" for split, folder in folders.items()]
    write(root / "data.yaml", "\n".join([*lines, f"nc: {len(CLASSES)}", f"names: {[*CLASSES]}"]))
    for split, numbers in SPLITS.items():
        write_photos(root / folders[split] / "images", numbers)
        for k in numbers:
            write(root / folders[split] / "labels" / f"{pictures()[k].name}.txt", yolo_rows(pictures()[k]))


def yolo_rows(picture: Picture) -> str:
    """The lines of a picture's label file."""
    sides = picture.size[::-1]
    rows = ([label, *(value / sides[n % 2] for n, value in enumerate(points))] for label, points in picture.objects)
    return "\n".join(" ".join(map(str, row)) for row in rows)


def panoptic(root: Path) -> None:
    """COCO's panoptic form: a JSON beside a folder of PNGs; the background is stuff."""
    for split, numbers in SPLITS.items():
        write_photos(root / "images" / split, numbers)
        document = json.loads(coco_json(numbers))
        annotations = []
        for k in numbers:
            picture = pictures()[k]
            ids = picture.maps()[0].astype(int) + 1
            write(root / "annotations" / f"panoptic_{split}" / f"{picture.name}.png", id_png(ids))
            segments = [{"id": 1, "category_id": 9}]
            segments += [{"id": n, "category_id": label + 1} for n, (label, _) in enumerate(picture.objects, 2)]
            annotations.append({"image_id": k, "file_name": f"{picture.name}.png", "segments_info": segments})
        document["categories"].append({"id": 9, "name": "background", "isthing": 0})
        write(root / "annotations" / f"panoptic_{split}.json", json.dumps({**document, "annotations": annotations}))


def yolo_lists(root: Path) -> None:
    """YOLO segmentation as ultralytics writes it: lists of images, another machine's path, names by number."""
    names = "\n".join(f"  {k}: {name}" for k, name in enumerate(CLASSES))
    write(root / "street.yaml", f"path: /elsewhere/street\ntrain: train.txt\nval: val.txt\ntest:\nnames:\n{names}\n")
    for split, numbers in SPLITS.items():
        write(root / f"{split}.txt", "".join(f"./images/{pictures()[k].name}.png\n" for k in numbers))
    write_photos(root / "images")
    for picture in pictures():
        write(root / "labels" / f"{picture.name}.txt", yolo_rows(picture))


def voc(root: Path) -> None:
    """Pascal VOC as it is unpacked: PNGs with a palette, lists of images; and LabelMe's file of classes."""
    base = root / "VOCdevkit" / "VOC2012"
    for split, numbers in SPLITS.items():
        write(base / "ImageSets" / "Segmentation" / f"{split}.txt", "".join(f"{pictures()[k].name}\n" for k in numbers))
    write(base / "class_names.txt", "\n".join(["background", *CLASSES]))
    write_photos(base / "JPEGImages")
    for picture in pictures():
        for kind, values in zip(("Object", "Class"), picture.maps(), strict=True):
            png = Image.fromarray(values, "P")
            png.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
            write(base / f"Segmentation{kind}" / f"{picture.name}.png", encoded(png))


def cvat(root: Path) -> None:
    """CVAT's Segmentation mask 1.1: Pascal VOC's folders, with colours by labelmap.txt and one list."""
    colors = np.array([(0, 0, 0), *COLORS], dtype=np.uint8)
    rows = zip(("background", *CLASSES), colors, strict=True)
    lines = ["# label:color_rgb:parts:actions", *(f"{name}:{','.join(map(str, color))}::" for name, color in rows)]
    write(root / "labelmap.txt", "\n".join(lines))
    write(root / "ImageSets" / "Segmentation" / "default.txt", "".join(f"{p.name}\n" for p in pictures()))
    write_photos(root / "JPEGImages")
    for picture in pictures():
        numbers, classes = picture.maps()
        write(root / "SegmentationClass" / f"{picture.name}.png", encoded(Image.fromarray(colors[classes])))
        palette = np.array([(0, 0, 0), *((k * 40, 0, 128) for k in range(1, 6))], dtype=np.uint8)
        write(root / "SegmentationObject" / f"{picture.name}.png", encoded(Image.fromarray(palette[numbers])))


def masks(root: Path) -> None:
    """Images and label PNGs in one folder of each set, and a file of names."""
    write(root / "classes.txt", "\n".join(["background", *CLASSES]))
    for split, numbers in SPLITS.items():
        write_photos(root / split / "images", numbers)
        for k in numbers:
            write(root / split / "masks" / f"{pictures()[k].name}.png", label_png(pictures()[k].maps()[1]))


def labelme_json(picture: Picture, path: str, shapes: list[dict]) -> str:
    """A JSON as LabelMe 5 writes it."""
    shapes = [{"group_id": None, "description": "", "flags": {}, "mask": None, **shape} for shape in shapes]
    size = dict(zip(("imageHeight", "imageWidth"), picture.size, strict=True))
    return json.dumps({"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": path, "imageData": None, **size})


def labelme(root: Path) -> None:
    """LabelMe: a JSON of polygons beside each image."""
    for split, numbers in SPLITS.items():
        write_photos(root / split, numbers)
        for k in numbers:
            picture = pictures()[k]
            rows = ((CLASSES[label], np.reshape(points, (-1, 2)).tolist()) for label, points in picture.objects)
            shapes = [{"label": name, "points": points, "shape_type": "polygon"} for name, points in rows]
            write(root / split / f"{picture.name}.json", labelme_json(picture, f"{picture.name}.png", shapes))


def labelme_masks(root: Path) -> None:
    """LabelMe: masks, with another machine's paths, and the JSONs in a folder of their own."""
    write_photos(root / "images")
    for picture in pictures():
        shapes = []
        for (label, _), mask in zip(picture.objects, picture.masks(), strict=True):
            (top, *_, bottom), (left, *_, right) = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
            # In two halves of one group.
            middle = (top + bottom) // 2
            for first, last in ((top, middle), (middle + 1, bottom)):
                code = base64.b64encode(label_png(mask[first : last + 1, left : right + 1])).decode()
                points = [[float(left), float(first)], [float(right), float(last)]]
                shape = {"label": CLASSES[label], "points": points, "shape_type": "mask", "mask": code}
                shapes.append({**shape, "group_id": int(top * 100 + left)})
        shapes.append({"label": "note", "points": [[1.0, 1.0]], "shape_type": "point"})
        text = labelme_json(picture, rf"C:\photos\{picture.name}.png", shapes)
        write(root / "annotations" / f"{picture.name}.json", text)


def hugging_face(root: Path) -> None:
    """Parquet files of a data set on the Hugging Face Hub: data/train-*.parquet, classes as a feature."""
    for split, numbers in SPLITS.items():
        for part, some in enumerate((numbers[:2], numbers[2:])):
            path = root / "data" / f"{split.replace('val', 'validation')}-{part:05}-of-00002.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pytest.importorskip("pyarrow.parquet").write_table(hf_table(some), path)


def hugging_face_saved(root: Path) -> None:
    """The same by save_to_disk: Arrow files of one set, and id2label.json."""
    ipc = pytest.importorskip("pyarrow.ipc")
    write(root / "state.json", "{}")
    write(root / "id2label.json", json.dumps(dict(enumerate(["background", *CLASSES]))))
    for part, some in enumerate((range(7), range(7, 20))):
        table = hf_table(some)
        with ipc.new_stream(root / f"data-{part:05}-of-00002.arrow", table.schema) as stream:
            stream.write_table(table, 3)


def hf_table(numbers: range) -> Any:
    """A table with the columns image and mask of some pictures, typed in its metadata as Hugging Face does."""
    pyarrow = pytest.importorskip("pyarrow")
    image = {"_type": "Image"}
    names = {"_type": "ClassLabel", "names": ["background", *CLASSES]}
    kinds = {
        "image": image,
        "label": image,
        "objects": {"_type": "Sequence", "feature": names},
        "scene": {"_type": "Value"},
    }
    rows = [
        {
            "image": {"bytes": picture.photo, "path": f"{picture.name}.png"},
            "label": {"bytes": label_png(picture.maps()[1]), "path": None},
            "objects": [label + 1 for label, _ in picture.objects],
            "scene": picture.name,
        }
        for picture in (pictures()[k] for k in numbers)
    ]
    table = pyarrow.Table.from_pylist(rows)
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": kinds}})})


class Export(NamedTuple):
    """A format: the function that writes it, and the tasks that it can be trained for, the default first."""

    write: Callable[[Path], None]
    tasks: tuple[str, ...]


INSTANCE, PANOPTIC, SEMANTIC = "coco_instance", "coco_panoptic", "folder_semantic"
EXPORTS = {
    "coco": Export(coco, (INSTANCE,)),
    "roboflow": Export(roboflow, (INSTANCE,)),
    "one json": Export(one_json, (INSTANCE,)),
    "panoptic": Export(panoptic, (PANOPTIC,)),
    "yolo": Export(yolo, (INSTANCE,)),
    "yolo lists": Export(yolo_lists, (INSTANCE,)),
    "labelme": Export(labelme, (INSTANCE,)),
    "labelme masks": Export(labelme_masks, (INSTANCE,)),
    "voc": Export(voc, (SEMANTIC, INSTANCE, PANOPTIC)),
    "cvat": Export(cvat, (SEMANTIC, INSTANCE, PANOPTIC)),
    "masks": Export(masks, (SEMANTIC,)),
    "hugging face": Export(hugging_face, (SEMANTIC,)),
    "hugging face saved": Export(hugging_face_saved, (SEMANTIC,)),
}
