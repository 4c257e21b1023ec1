"""The classes of the published datasets against the datasets' own lists."""

import json
import zipfile

from eomt.classes import Classes
from eomt.published_classes import ADE20K, CITYSCAPES, COCO_INSTANCE, COCO_PANOPTIC, classes_by_names, kind_of


def test_classes_of_the_published_datasets(shared_data):
    with zipfile.ZipFile(shared_data / "coco" / "panoptic_annotations_trainval2017.zip") as archive:
        panoptic = json.loads(archive.read("annotations/panoptic_val2017.json"))["categories"]
    with zipfile.ZipFile(shared_data / "coco" / "annotations_trainval2017.zip") as archive:
        instance = json.loads(archive.read("annotations/instances_val2017.json"))["categories"]
    assert Classes.from_categories(panoptic) == COCO_PANOPTIC
    assert Classes.from_categories(instance) == COCO_INSTANCE


def test_known_classes():
    assert [sum(c.is_thing) for c in (COCO_PANOPTIC, COCO_INSTANCE, ADE20K, CITYSCAPES)] == [80, 80, 100, 8]
    assert COCO_PANOPTIC.items[:80] == COCO_INSTANCE.items
    assert (COCO_PANOPTIC[80].id, COCO_PANOPTIC[80].name) == (92, "banner")
    assert classes_by_names(COCO_PANOPTIC.names) is COCO_PANOPTIC
    assert classes_by_names([f"x{name}" for name in COCO_PANOPTIC.names]) is None
    assert classes_by_names(["a"]) is None
    assert kind_of(CITYSCAPES) == "semantic"
