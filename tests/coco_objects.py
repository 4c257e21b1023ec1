"""COCO's official objects, and predictions of them with every kind of fault."""

import contextlib
import io
import json
import zipfile

import numpy as np
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from eomt.classes import Classes
from eomt.postprocess.types import Instances
from eomt.targets import ImageTargets, targets_from_rles


def encode(masks):
    return coco_mask.encode(np.asfortranarray(np.asarray(masks, dtype=np.uint8).transpose(1, 2, 0)))


def as_instances(size, masks, labels, scores):
    rles = encode(masks) if len(masks) else []
    areas = [int(coco_mask.area(code)) for code in rles]
    return Instances(
        size,
        rles,
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(scores, dtype=torch.float32),
        torch.tensor(areas, dtype=torch.int64),
        torch.arange(len(rles)),
    )


def targets_from_masks(masks, labels, crowd=None):
    """Targets of masks, bool [T, H, W]."""
    codes = [code["counts"] for code in encode(masks)] if len(masks) else []
    return targets_from_rles(codes, masks.shape[1:], labels, crowd)._replace(rles=None)


def as_targets(size, masks, labels, crowd, areas=None):
    if not len(masks):
        none = torch.zeros(0, dtype=torch.int64)
        return ImageTargets(torch.zeros(1, *size, dtype=torch.int16), none, none, none.bool(), areas)
    targets = targets_from_masks(np.asarray(masks, dtype=bool), labels, crowd)
    return targets._replace(areas=areas)


def perturbed(generator, size, masks, labels, num_classes):
    """Predictions with every kind of fault, many of equal score."""
    found = []
    for mask, label in zip(masks, labels, strict=True):
        for _ in range(generator.choice([0, 1, 1, 2, 3])):
            shift = generator.integers(-3, 4, 2) if generator.random() < 0.6 else (0, 0)
            moved = np.roll(mask, shift, (0, 1))
            if generator.random() < 0.3:
                moved = moved & np.roll(moved, 2, 0) & np.roll(moved, 2, 1)
            if generator.random() < 0.05:
                moved = np.zeros_like(mask)
            wrong = generator.random() < 0.15
            found.append((moved, int(generator.integers(num_classes)) if wrong else label))
    for _ in range(generator.integers(0, 4)):
        blank = np.zeros(size, dtype=bool)
        y, x = generator.integers(0, size[0]), generator.integers(0, size[1])
        blank[y : y + generator.integers(1, size[0] + 1), x : x + generator.integers(1, size[1] + 1)] = True
        found.append((blank, int(generator.integers(num_classes))))
    scores = generator.integers(0, 12, len(found)) / np.float32(11)
    return as_instances(size, [mask for mask, _ in found], [label for _, label in found], scores)


def official_objects(shared_data):
    """The official document, its classes, and per image the targets and faulty predictions."""
    with zipfile.ZipFile(shared_data / "coco" / "annotations_trainval2017.zip") as archive:
        document = json.loads(archive.read("annotations/instances_val2017.json"))
    classes = Classes.from_categories(document["categories"])
    generator = np.random.default_rng(0)
    rows = {image["id"]: [] for image in document["images"]}
    for row in document["annotations"]:
        rows[row["image_id"]].append(row)
    with contextlib.redirect_stdout(io.StringIO()):
        reader = COCO()
        reader.dataset = document
        reader.createIndex()
    truth, found = {}, {}
    for image in document["images"]:
        k, size = image["id"], (image["height"], image["width"])
        masks = [coco_mask.decode([reader.annToRLE(row)])[..., 0].astype(bool) for row in rows[k]]
        labels = [classes.ids.index(row["category_id"]) for row in rows[k]]
        areas = torch.tensor([row["area"] for row in rows[k]], dtype=torch.float64)
        truth[k] = as_targets(size, masks, labels, [bool(row["iscrowd"]) for row in rows[k]], areas)
        found[k] = perturbed(generator, size, masks, labels, len(classes))
    # More than 100 of one class, the best of them last.
    k = next(k for k, targets in truth.items() if len(targets.labels))
    one = truth[k].masks()[:1].numpy()
    many = as_instances(
        one.shape[1:], np.repeat(one, 120, 0), [truth[k].labels[0].item()] * 120, np.linspace(0.1, 0.9, 120)
    )
    found[k] = Instances(many.size, *(_join(a, b) for a, b in zip(found[k][1:], many[1:], strict=True)))
    return document, classes, truth, found


def _join(one, other):
    return one + other if isinstance(one, list) else torch.cat([one, other])
