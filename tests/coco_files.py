"""Tiny sets in COCO's instance and panoptic formats, as archives or folders."""

import json
import zipfile

import numpy as np
from pycocotools import mask as coco_mask

from tests.label_files import label_png, photo, write_folder, write_set, write_zip, zip_bytes

DOG, CAT, SKY = 8_941_399, 5, 5  # panoptic segment ids; the last two in different images
SQUARE = [2.5, 2.5, 12.0, 2.5, 12.0, 15.25, 2.5, 15.25]  # a polygon


def mask_code(size, seed):
    mask = np.random.default_rng(seed).random(size) < 0.4
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(size), "counts": rle["counts"].decode()}


def annotation(number, image, category, segmentation, **more):
    return {"segmentation": segmentation, "id": number, "image_id": image, "category_id": category, **more}


def segment(number, category, crowd=0):
    return {"id": number, "category_id": category, "iscrowd": crowd, "area": 1, "bbox": [0, 0, 1, 1]}


def id_png(id_map):
    ids = np.array(id_map)
    return label_png(np.stack([ids >> shift & 255 for shift in (0, 8, 16)], axis=-1))


def image_rows(sizes, ids):
    pairs = zip(sizes.items(), ids, strict=True)
    return [{"id": number, "file_name": name, "height": h, "width": w} for (name, (h, w)), number in pairs]


class InstanceSet:
    """Four images: every form of mask, crowd alone, no annotation, an empty mask; all out of order."""

    def __init__(self):
        self.sizes = {"a.jpg": (20, 30), "sub/b.png": (12, 9), "c.jpg": (8, 8), "d.jpg": (16, 10)}
        kinds = {name: "PNG" if name.endswith("png") else "JPEG" for name in self.sizes}
        self.images = {name: photo(*size, size[0], kinds[name]) for name, size in self.sizes.items()}
        self.images["a.jpg"] = photo(20, 30, mode="L")
        self.images["unnamed.jpg"] = b"an image that the JSON does not name"
        triangle, over_the_edge = [8, 4, 28, 4, 18, 18], [-3, -2, 5, -2, 5, 25, -3, 25]
        runs = {"size": [20, 30], "counts": [100, 50, 0, 10, 440]}
        self.json = {
            "info": {"year": 2017},
            "annotations": [
                annotation(11, 7, 0, [SQUARE], area=100.5, iscrowd=0),
                annotation(12, 3, 9, mask_code((12, 9), 0), area=3, iscrowd=1),
                annotation(14, 7, 9, [triangle, over_the_edge]),
                annotation(15, 1, 4.0, {"size": [16, 10], "counts": [160]}, iscrowd=False, area=0),
                annotation(10, 7, 4, runs, iscrowd=1.0, bbox=[1, 2]),
                annotation(13, 7, 0, mask_code((20, 30), 1), area=None, iscrowd=None),
            ],
            "images": image_rows(self.sizes, (7, 3, 5, 1)),
            "categories": [{"id": 9, "name": "nine", "isthing": 0}, {"id": 0, "name": "null"}, {"id": 4, "name": "4"}],
        }

    def write(self, root, layout="custom"):
        text = json.dumps(self.json).encode()
        if layout == "archives":
            write_set(root, "val2017", self.images, True)
            write_zip(root / "annotations_trainval2017.zip", {"annotations/instances_val2017.json": text})
        elif layout == "extracted":
            write_folder(root / "val2017", self.images)
            write_folder(root / "annotations", {"instances_val2017.json": text})
        else:
            write_folder(root / "train", self.images)
            write_folder(root / "truth", {"train.json": text})
        return root


class PanopticSet:
    """Four images: two segments and void; crowd alone; an annotation without segments; no annotation."""

    def __init__(self):
        self.sizes = {"b.jpg": (2, 3), "a.jpg": (2, 2), "c.jpg": (3, 2), "d.jpg": (1, 4)}
        self.images = {name: photo(*size, seed) for seed, (name, size) in enumerate(self.sizes.items())}
        self.images["unnamed.jpg"] = b"an image that the JSON does not name"
        self.masks = {
            "b.png": id_png([[SKY, DOG, 0], [SKY, DOG, DOG]]),
            "a.png": id_png([[CAT, CAT], [CAT, 0]]),
            "c.png": id_png(np.zeros((3, 2), int)),
        }
        segments = {30: [], 10: [segment(CAT, 3, crowd=1)], 20: [segment(DOG, 300), segment(SKY, 200)]}
        self.json = {
            "info": {"year": 2017, "nested": [1, {"images": []}]},
            "annotations": [
                {"image_id": image, "file_name": f"{name}.png", "segments_info": segments[image]}
                for name, image in (("c", 30), ("a", 10), ("b", 20))
            ],
            "categories": [
                {"id": 200, "name": "sky", "isthing": 0},
                {"id": 300, "name": "dog", "isthing": 1, "color": [1, 2, 3]},
                {"id": 100, "name": "wall", "isthing": 0},
                {"id": 3, "name": "cat", "isthing": 1},
            ],
            "images": image_rows(self.sizes, (20, 10, 30, 40)),
        }

    def write(self, root, layout="stored", images="val2017", annotations="panoptic_val2017", text=None):
        text = json.dumps(self.json) if text is None else text
        if layout in ("stored", "deflated"):
            write_set(root, images, self.images, True)
            inner = zip_bytes({f"{annotations}/{name}": data for name, data in self.masks.items()})
            outer = {f"annotations/{annotations}.json": text, f"annotations/{annotations}.zip": inner}
            method = zipfile.ZIP_STORED if layout == "stored" else zipfile.ZIP_DEFLATED
            write_zip(root / "panoptic_annotations_trainval2017.zip", outer, method)
            return root
        write_folder(root / images, self.images)
        write_folder(root / "annotations", {f"{annotations}.json": text.encode()})
        if layout == "extracted":
            write_folder(root / "annotations" / annotations, self.masks)
        else:  # the outer archive extracted, the inner one not
            write_zip(root / "annotations" / f"{annotations}.zip", self.masks)
        return root
