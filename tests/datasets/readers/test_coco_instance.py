"""The COCO instance reader on tiny files of its own and on the shared real ones."""

import io
import json
import logging
import pickle
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from datasets.readers.coco import CocoInstance
from eomt.errors import InputError

SIZES = {"a.jpg": (20, 30), "sub/b.png": (12, 9), "c.jpg": (8, 8), "d.jpg": (16, 10)}
SQUARE = [2.5, 2.5, 12.0, 2.5, 12.0, 15.25, 2.5, 15.25]
TRIANGLE = [8, 4, 28, 4, 18, 18]
OVER_THE_EDGE = [-3, -2, 5, -2, 5, 25, -3, 25]


def picture(name, mode="RGB"):
    height, width = SIZES[name]
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "PNG" if name.endswith("png") else "JPEG")
    return buffer.getvalue()


def mask_code(size, seed):
    mask = np.random.default_rng(seed).random(size) < 0.4
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(size), "counts": rle["counts"].decode()}


class Tiny:
    """Four images: every form of mask, crowd alone, no annotation, an empty mask; all out of order."""

    def __init__(self):
        self.images = {name: picture(name) for name in SIZES}
        self.images["a.jpg"] = picture("a.jpg", "L")
        self.images["unnamed.jpg"] = b"an image that the JSON does not name"
        ids = {"a.jpg": 7, "sub/b.png": 3, "c.jpg": 5, "d.jpg": 1}
        self.json = {
            "info": {"year": 2017},
            "annotations": [
                annotation(11, 7, 0, [SQUARE], area=100.5, iscrowd=0),
                annotation(12, 3, 9, mask_code((12, 9), 0), area=3, iscrowd=1),
                annotation(14, 7, 9, [TRIANGLE, OVER_THE_EDGE]),
                annotation(15, 1, 4.0, {"size": [16, 10], "counts": [160]}, iscrowd=False, area=0),
                annotation(10, 7, 4, {"size": [20, 30], "counts": [100, 50, 0, 10, 440]}, iscrowd=1.0, bbox=[1, 2]),
                annotation(13, 7, 0, mask_code((20, 30), 1), area=None, iscrowd=None),
            ],
            "images": [
                {"id": id_, "file_name": name, "height": SIZES[name][0], "width": SIZES[name][1]}
                for name, id_ in ids.items()
            ],
            "categories": [{"id": 9, "name": "nine", "isthing": 0}, {"id": 0, "name": "null"}, {"id": 4, "name": "4"}],
        }

    def write(self, root, layout="own"):
        text = json.dumps(self.json).encode()
        if layout == "archives":
            write_zip(root / "val2017.zip", {f"val2017/{name}": data for name, data in self.images.items()})
            write_zip(root / "annotations_trainval2017.zip", {"annotations/instances_val2017.json": text})
        elif layout == "extracted":
            write_folder(root / "val2017", self.images)
            write_folder(root / "annotations", {"instances_val2017.json": text})
        else:
            write_folder(root / "train", self.images)
            write_folder(root / "truth", {"train.json": text})
        return root


def annotation(id_, image, category, segmentation, **more):
    return {"segmentation": segmentation, "id": id_, "image_id": image, "category_id": category, **more}


def write_zip(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def write_folder(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def own(root):
    return CocoInstance(root, images="train", annotations="truth/train.json")


@pytest.fixture
def tiny():
    return Tiny()


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("EOMT_CACHE", str(tmp_path_factory.mktemp("cache")))


def official(document):
    """pycocotools' own view of a JSON, without its prints."""
    coco = COCO()
    coco.dataset = document
    coco.createIndex()
    return coco


def check_masks(data, index, targets, coco):
    rows = coco.imgToAnns[data.image_id(index)]
    assert [data.classes.ids[label] for label in targets.labels] == [row["category_id"] for row in rows]
    assert targets.crowd.tolist() == [bool(row.get("iscrowd")) for row in rows]
    masks = targets.masks().numpy()
    for mask, row in zip(masks, rows, strict=True):
        np.testing.assert_array_equal(mask, coco.annToMask(row).astype(bool))
    areas = [mask.sum() if row.get("area") is None else row["area"] for mask, row in zip(masks, rows, strict=True)]
    assert targets.areas.tolist() == areas
    assert targets.areas.dtype == torch.float64


def check_tiny(data, tiny):
    assert len(data) == 4
    assert data.classes.ids == [0, 4, 9]
    assert data.classes.names == ["null", "4", "nine"]
    assert data.classes.is_thing == [True] * 3
    assert [data.name(k) for k in range(4)] == list(SIZES)
    assert [data.image_id(k) for k in range(4)] == [7, 3, 5, 1]
    assert data.has_targets().tolist() == [True, False, False, True]
    assert data._index.column("segment_id").tolist() == [11, 14, 10, 13, 12, 15]
    coco = official(tiny.json)
    for k, name in enumerate(SIZES):
        image, targets = data.read(k)
        assert image.dtype == np.uint8
        assert image.flags.c_contiguous
        assert image.flags.writeable
        stored = Image.open(io.BytesIO(tiny.images[name]))
        np.testing.assert_array_equal(image, np.asarray(stored.convert("RGB")))
        assert targets.ids.dtype == torch.int16
        assert targets.ids.shape[1:] == SIZES[name]
        check_masks(data, k, targets, coco)
        assert len(targets.rles) == len(targets.labels)
        for part in targets[:-1]:
            part.zero_()  # the caller's own, not the index's pages


def test_layouts_and_pickling(tmp_path, tiny):
    readers = []
    for layout in ("archives", "extracted"):
        (tmp_path / layout).mkdir()
        readers.append(CocoInstance(tiny.write(tmp_path / layout, layout), "val"))
    readers.append(own(tiny.write(tmp_path)))
    readers.append(CocoInstance(str(tmp_path), images="train", annotations=str(tmp_path / "truth" / "train.json")))
    for data in readers:
        check_tiny(data, tiny)
        sent = pickle.dumps(data)
        assert len(sent) < 5000
        check_tiny(pickle.loads(sent), tiny)


@pytest.mark.parametrize("layout", ["archives", "extracted"])
def test_an_index_is_built_once(tmp_path, tiny, layout, monkeypatch):
    CocoInstance(tiny.write(tmp_path, layout), "val")
    with monkeypatch.context() as patch:
        patch.setattr("datasets.readers.coco.build_instance_index", None)
        check_tiny(CocoInstance(tmp_path, "val"), tiny)
    tiny.json["annotations"][0]["area"] = 99.5
    check_tiny(CocoInstance(tiny.write(tmp_path, layout), "val"), tiny)


@pytest.mark.parametrize("keys", [["images", "annotations", "categories"], ["categories", "annotations", "images"]])
def test_order_of_the_json(tmp_path, tiny, keys, monkeypatch, caplog):
    monkeypatch.setattr("datasets.readers.coco_index._REPORT_EVERY", 4)
    tiny.json = {key: tiny.json[key] for key in keys}
    with caplog.at_level(logging.INFO, "datasets"):
        check_tiny(own(tiny.write(tmp_path)), tiny)
    messages = [record.getMessage() for record in caplog.records]
    assert sum("building the index" in message for message in messages) == 1
    assert next(message for message in messages if "annotations of" in message).startswith("4 annotations of")


def test_no_annotations_at_all(tmp_path, tiny):
    tiny.json["annotations"] = []
    data = own(tiny.write(tmp_path))
    assert data.has_targets().tolist() == [False] * 4
    check = data.read(0)[1]
    assert check.ids.shape == (1, 20, 30)
    assert len(check.labels) == len(check.areas) == 0


# Bad input


def fails(attempt, match):
    with pytest.raises(InputError, match=match) as caught:
        attempt()
    assert "\n" not in str(caught.value)


def test_missing_files(tmp_path, tiny):
    fails(lambda: CocoInstance(None), r"data\.root is not set")
    fails(
        lambda: CocoInstance(tmp_path / "no"), r"no is no folder; it must hold train2017\.zip and annotations_trainval"
    )
    both = (
        r"lacks val2017\.zip or val2017/ and annotations_trainval2017\.zip with annotations/instances_val2017\.json"
        r".*`annotations`"
    )
    fails(lambda: CocoInstance(tmp_path, "val"), both)
    fails(lambda: own(tmp_path), r"lacks train\.zip or train/ and truth/train\.json;")
    tiny.write(tmp_path, "archives")
    fails(
        lambda: CocoInstance(tmp_path, images="val2017"), r"lacks annotations_trainval2017\.zip with .*_train2017\.json"
    )


def rle(size, counts):
    return lambda j: j["annotations"][0].update(segmentation={"size": size, "counts": counts})


def first(**changes):
    return lambda j: j["annotations"][0].update(changes)


MASK = "annotation 11 cannot be read .*"
FAULTS = {
    "image file not there": (lambda j: j["images"][1].update(file_name="x.jpg"), "is missing, and 0 more of 4"),
    "image id twice": (lambda j: j["images"][1].update(id=7), "image id 7 stands 2 times"),
    "image id of text": (
        lambda j: j["images"][1].update(id="b_3"),
        "'images' cannot be read .id must be a whole .*b_3",
    ),
    "no height": (lambda j: j["images"][1].pop("height"), r"an entry of 'images' lacks 'height': .*b\.png"),
    "height 0": (lambda j: j["images"][1].update(height=0), "'images' cannot be read .height must be at least 1"),
    "half a character": (lambda j: j["images"][1].update(file_name="\ud800"), "'images' cannot be read"),
    "no images": (lambda j: j["images"].clear(), "names no images"),
    "no categories": (lambda j: j["categories"].clear(), "at least one class"),
    "category of text": (lambda j: j["categories"].append("sky"), "a category needs an id and a name, found sky"),
    "category without a name": (lambda j: j["categories"].append({"id": 5}), "a category needs an id and a name"),
    "no annotations key": (lambda j: j.pop("annotations"), "has no 'annotations'"),
    "no categories key": (lambda j: j.pop("categories"), "has no 'categories'"),
    "no images key": (lambda j: j.pop("images"), "has no 'images'"),
    "row of text": (lambda j: j["annotations"].append("x"), "'annotations' cannot be read"),
    "no id": (lambda j: j["annotations"][0].pop("id"), "an entry of 'annotations' lacks 'id'"),
    "id twice": (lambda j: j["annotations"][0].update(id=14), "annotation id 14 stands more than once"),
    "unknown image": (first(image_id=8), MASK + "belongs to the unknown image id 8"),
    "image of text": (first(image_id="7"), "annotation 11 cannot be read .image_id must be a whole number, found '7'"),
    "no image": (lambda j: j["annotations"][0].pop("image_id"), "annotation 11 lacks 'image_id'; mend or remove it"),
    "unknown category": (first(category_id=3), "annotation 11 of the image a.jpg has the category id 3, which"),
    "category 1.5": (first(category_id=1.5), MASK + "category_id must be a whole number, found 1.5"),
    "crowd of text": (first(iscrowd="0"), MASK + "iscrowd must be 0 or 1, found '0'"),
    "area below 0": (first(area=-1), MASK + "area must be a number of at least 0, found -1"),
    "area not a number": (first(area=float("nan")), MASK + "area must be a number .* found nan"),
    "no segmentation": (lambda j: j["annotations"][0].pop("segmentation"), MASK + "a box alone is no mask"),
    "segmentation null": (first(segmentation=None), MASK + "a box alone is no mask"),
    "no polygon": (first(segmentation=[]), MASK + "a box alone is no mask"),
    "text": (first(segmentation="x.png"), MASK + r"polygons or run lengths, found 'x\.png'"),
    "two corners": (first(segmentation=[[0, 0, 9, 9]]), MASK + r"3 corners or more, found \[0, 0, 9, 9\]"),
    "second polygon empty": (first(segmentation=[SQUARE, []]), MASK + r"3 corners or more, found \[\]"),
    "odd polygon": (first(segmentation=[[0, 0, 9, 9, 1, 2, 3]]), MASK + "3 corners"),
    "flat polygon": (first(segmentation=SQUARE), MASK + r"3 corners or more, found 2\.5"),
    "polygon of points": (first(segmentation=[[[0, 0], [1, 1], [0, 2]]]), MASK + "3 corners"),
    "corner of nothing": (first(segmentation=[[0, 0, 9, None, 1, 2]]), MASK + "a corner"),
    "corner far off": (first(segmentation=[[0, 0, 9, 1e9, 1, 2]]), MASK + "a corner .* image of 30x20"),
    "runs of another size": (rle([30, 20], [600]), MASK + r"of size \[30, 20\], its image is of \[20, 30\]"),
    "runs without a size": (first(segmentation={"counts": [600]}), "annotation 11 lacks 'size'"),
    "too few": (rle([20, 30], [100, 499]), MASK + "do not make up 600 pixels"),
    "too many": (rle([20, 30], [100, 501]), MASK + "do not make up 600 pixels"),
    "negative": (rle([20, 30], [700, -100]), MASK + r"must lie within 0\.\.600"),
    "compressed too few": (rle([20, 30], mask_code((20, 29), 0)["counts"]), MASK + "do not make up 600 pixels"),
    "compressed cut": (rle([20, 30], mask_code((20, 30), 0)["counts"][:-1]), MASK + "do not make up 600 pixels"),
    "compressed of other letters": (rle([20, 30], "~~~"), MASK + "no compressed code"),
    "compressed of far letters": (rle([20, 30], "\u00fc"), MASK),
    "runs of nothing": (rle([20, 30], None), MASK),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_the_format_forbids(tmp_path, tiny, fault):
    break_, match = FAULTS[fault]
    break_(tiny.json)
    fails(lambda: own(tiny.write(tmp_path)), r"(train\.json|train/x\.jpg).*" + match)
    assert not [path for path in tmp_path.rglob("*") if "instance-" in path.name]


def test_more_objects_than_targets_can_number(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr("datasets.readers.coco_index.MAX_SEGMENTS", 3)
    fails(lambda: own(tiny.write(tmp_path)), r"the image a\.jpg has 4 annotations, more than 3")


def test_bad_images(tmp_path, tiny):
    tiny.images["c.jpg"] = tiny.images["d.jpg"]
    tiny.images["d.jpg"] = tiny.images["d.jpg"][:-30]
    data = own(tiny.write(tmp_path))
    fails(lambda: data.read(2), r"train/c\.jpg is 10x16 \(width x height\), but its JSON says 8x8")
    fails(lambda: data.read(3), r"train/d\.jpg cannot be decoded")
    data.read(0)


# Real data


@pytest.mark.slow
@pytest.mark.parametrize(("split", "images", "crowds"), [("train", 106, 11), ("val", 110, 13)])
def test_real_masks_are_those_of_pycocotools(shared_data, tmp_path, split, images, crowds):
    archive = zipfile.ZipFile(shared_data / "coco" / "annotations_trainval2017.zip")
    text = archive.read(f"annotations/instances_{split}2017.json")
    data = CocoInstance(shared_data / "coco", split)
    assert len(data) == images
    assert (len(data.classes), data.classes.names[0], data.classes.names[79]) == (80, "person", "toothbrush")
    coco = official(json.loads(text))
    bare = found = 0
    for k in range(images):
        image, targets = data.read(k)
        assert image.shape == (*targets.ids.shape[1:], 3)
        check_masks(data, k, targets, coco)
        assert len(targets.ids) <= 6
        bare += not len(targets.labels)
        found += int(targets.crowd.sum())
        assert data.has_targets()[k] == (~targets.crowd).any()
    assert bare == 2
    assert found == crowds
    # The same in files of one's own.
    write_folder(tmp_path, {"mine.json": text})
    other = CocoInstance(tmp_path, images=str(shared_data / "coco" / f"{split}2017"), annotations="mine.json")
    for name in ("mask", "area", "label", "segment_id"):
        np.testing.assert_array_equal(other._index.column(name), data._index.column(name))
