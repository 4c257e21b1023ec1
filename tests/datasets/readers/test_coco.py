"""COCO's readers on tiny sets and on the shared real ones."""

import io
import json
import pickle
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from datasets.readers.coco import CocoInstance, CocoPanoptic
from eomt.errors import InputError
from tests.coco_files import DOG, SKY, InstanceSet, PanopticSet, id_png
from tests.label_files import fails, label_png, photo, turned, write_folder, write_zip, zip_bytes


@pytest.fixture
def instances():
    return InstanceSet()


@pytest.fixture
def panoptic():
    return PanopticSet()


def custom(root):
    return CocoInstance(root, images="train", annotations="truth/train.json")


def official(document):
    """pycocotools' view of a JSON, without its prints."""
    coco = COCO()
    coco.dataset = document
    coco.createIndex()
    return coco


def check_image(image, stored):
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert image.flags.writeable
    np.testing.assert_array_equal(image, np.asarray(Image.open(io.BytesIO(stored)).convert("RGB")))


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


def check_instances(data, made):
    assert len(data) == 4
    assert data.classes.ids == [0, 4, 9]
    assert data.classes.names == ["null", "4", "nine"]
    assert data.classes.is_thing == [True] * 3
    assert [data.name(k) for k in range(4)] == list(made.sizes)
    assert [data.image_id(k) for k in range(4)] == [7, 3, 5, 1]
    assert data.has_targets().tolist() == [True, False, False, True]
    coco = official(made.json)
    for k, name in enumerate(made.sizes):
        image, targets = data.read(k)
        check_image(image, made.images[name])
        assert targets.ids.dtype == torch.int16
        assert targets.ids.shape[1:] == made.sizes[name]
        check_masks(data, k, targets, coco)
        assert len(targets.rles) == len(targets.labels)
        for part in targets[:5]:
            part.zero_()  # the caller's own, not the index's pages


def check_panoptic(data, made):
    assert len(data) == 4
    assert data.classes.names == ["cat", "dog", "wall", "sky"]
    assert data.classes.ids == [3, 300, 100, 200]
    assert data.classes.is_thing == [True, True, False, False]
    assert data.classes[1].color == (1, 2, 3)
    assert [data.name(k) for k in range(4)] == list(made.sizes)
    assert [data.image_id(k) for k in range(4)] == [20, 10, 30, 40]
    assert data.has_targets().tolist() == [True, False, False, False]
    expected = [([1, 3], [False, False]), ([0], [True]), ([], []), ([], [])]
    id_maps = [[[2, 1, 0], [2, 1, 1]], [[1, 1], [1, 0]], np.zeros((3, 2)), np.zeros((1, 4))]
    for k in range(4):
        image, targets = data.read(k)
        check_image(image, made.images[data.name(k)])
        assert targets.ids.dtype == torch.int16
        np.testing.assert_array_equal(targets.ids[0], id_maps[k])
        assert (targets.labels.tolist(), targets.crowd.tolist()) == expected[k]
        targets.labels.zero_(), targets.crowd.zero_()  # the caller's own, not the index's pages


@pytest.mark.parametrize("layout", ["archives", "extracted", "custom"])
def test_layouts_of_instance_sets(tmp_path, instances, layout, monkeypatch):
    def opened():
        return custom(tmp_path) if layout == "custom" else CocoInstance(str(tmp_path), "val")

    instances.write(tmp_path, layout)
    check_instances(opened(), instances)
    sent = pickle.dumps(opened())
    assert len(sent) < 5000
    check_instances(pickle.loads(sent), instances)
    with monkeypatch.context() as patch:
        patch.setattr("datasets.readers.coco.build_index", None)
        check_instances(opened(), instances)
    instances.json["annotations"][0]["area"] = 99.5
    instances.write(tmp_path, layout)
    check_instances(opened(), instances)


@pytest.mark.parametrize("exif", [None, "upright", "stored"])
@pytest.mark.parametrize("layout", ["archives", "extracted", "custom"])
def test_cocos_own_photos_are_usually_taken_as_stored(tmp_path, instances, layout, exif):
    instances.images["a.jpg"] = photo(20, 30, exif=turned(3))
    stored = np.asarray(Image.open(io.BytesIO(instances.images["a.jpg"])))
    names = {"images": "train", "annotations": "truth/train.json"} if layout == "custom" else {}
    data = CocoInstance(instances.write(tmp_path, layout), "val", **names, exif=exif)
    upright = exif == "upright" or (exif is None and layout == "custom")
    np.testing.assert_array_equal(data.read(0)[0], stored[::-1, ::-1] if upright else stored)


IDS = ["town_000019", 1 << 70, 5.0, "\u00e9\n\ud800\t"]


@pytest.mark.parametrize("kind", ["instances", "panoptic"])
def test_image_ids_come_back_as_they_stand_in_the_json(tmp_path, request, kind):
    made = request.getfixturevalue(kind)
    new = dict(zip([row["id"] for row in made.json["images"]], IDS, strict=True))
    for row in made.json["images"]:
        row["id"] = new[row["id"]]
    for row in made.json["annotations"]:
        row["image_id"] = new[row["image_id"]]
        row["id"] = f"{row.get('id')}-of-text"
    data = custom(made.write(tmp_path)) if kind == "instances" else CocoPanoptic(made.write(tmp_path), "val")
    assert [json.dumps(data.image_id(k)) for k in range(4)] == list(map(json.dumps, IDS))
    counts = {"instances": [4, 1, 0, 1], "panoptic": [2, 1, 0, 0]}
    assert [len(data.read(k)[1].labels) for k in range(4)] == counts[kind]


def test_files_under_other_names(tmp_path, instances):
    for row in instances.json["images"][1:]:
        row["file_name"] = f"C:\\photos\\{row['file_name']}"
    for _ in range(2):  # said also when the index comes from the cache
        data = custom(instances.write(tmp_path))
        check_instances(data, instances)
        assert data.remarks()[0].startswith("3 of 4 files are found by names like theirs, the first: sub/b.png for")
    instances.json["images"][1]["file_name"] = "./a.jpg"
    fails(r"'a\.jpg' and './a\.jpg' are both the file .*a\.jpg", custom, instances.write(tmp_path))


def test_no_annotations_at_all(tmp_path, instances):
    instances.json["annotations"] = []
    data = custom(instances.write(tmp_path))
    assert data.has_targets().tolist() == [False] * 4
    targets = data.read(0)[1]
    assert targets.ids.shape == (1, 20, 30)
    assert len(targets.labels) == len(targets.areas) == 0


@pytest.mark.parametrize("layout", ["stored", "deflated", "extracted", "half extracted"])
def test_layouts_of_panoptic_sets(tmp_path, panoptic, layout):
    panoptic.write(tmp_path, layout)
    for _ in range(2):  # built, then from the cache
        data = CocoPanoptic(tmp_path, "val")
        check_panoptic(data, panoptic)
    sent = pickle.dumps(data)
    assert len(sent) < 5000
    check_panoptic(pickle.loads(sent), panoptic)


def test_custom_names_and_moved_archives(tmp_path, panoptic, monkeypatch):
    panoptic.write(tmp_path / "one", "stored", images="photos", annotations="truth")
    names = {"images": "photos", "annotations": "truth"}
    check_panoptic(CocoPanoptic(str(tmp_path / "one"), **names), panoptic)
    (tmp_path / "one").rename(tmp_path / "two")
    monkeypatch.setattr("datasets.readers.coco.build_index", None)
    check_panoptic(CocoPanoptic(tmp_path / "two", **names), panoptic)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("absolute", [False, True])
def test_custom_json(tmp_path, panoptic, packed, absolute):
    write_folder(tmp_path / "train", panoptic.images)
    write_folder(tmp_path / "truth", {"all.json": json.dumps(panoptic.json).encode()})
    path = tmp_path / "truth" / "all.json" if absolute else "truth/all.json"
    names = {"images": "train", "annotations": str(path)}
    with pytest.raises(InputError, match=r"lacks the PNGs of all\.json in .*truth/all\.zip or .*truth/all/;"):
        CocoPanoptic(tmp_path, **names)
    if packed:
        write_zip(tmp_path / "truth" / "all.zip", panoptic.masks)
    else:
        write_folder(tmp_path / "truth" / "all", panoptic.masks)
    check_panoptic(CocoPanoptic(tmp_path, **names), panoptic)


def test_annotations_of_one_archive_do_not_mix(tmp_path, panoptic):
    # The two differ in nothing but their JSON, and one archive holds both.
    panoptic.write(tmp_path)
    masks = zip_bytes(panoptic.masks)
    files = {"annotations/all.json": json.dumps(panoptic.json), "annotations/all.zip": masks}
    panoptic.json["images"].pop()
    files |= {"annotations/few.json": json.dumps(panoptic.json), "annotations/few.zip": masks}
    write_zip(tmp_path / "panoptic_annotations_trainval2017.zip", files)
    sizes = [len(CocoPanoptic(tmp_path, "val", annotations=name)) for name in ("all", "few", "all")]
    assert sizes == [4, 3, 4]


@pytest.mark.parametrize("layout", ["stored", "extracted", "half extracted"])
def test_changed_files_are_read_anew(tmp_path, panoptic, layout):
    assert len(CocoPanoptic(panoptic.write(tmp_path, layout), "val")) == 4
    panoptic.masks = {"unnamed.png": b"longer than before", **panoptic.masks}
    check_panoptic(CocoPanoptic(panoptic.write(tmp_path, layout), "val"), panoptic)
    panoptic.json["images"][3]["file_name"] = "unnamed.jpg"
    assert CocoPanoptic(panoptic.write(tmp_path, layout), "val").name(3) == "unnamed.jpg"
    del panoptic.images["c.jpg"]
    if layout != "stored":
        (tmp_path / "val2017" / "c.jpg").unlink()
    with pytest.raises(InputError, match=r"c\.jpg is missing"):
        CocoPanoptic(panoptic.write(tmp_path, layout), "val")


# Bad input


def test_missing_files(tmp_path, instances, panoptic):
    fails(r"data\.root is not set", CocoInstance, None)
    fails(r"no is no folder; it must hold train2017\.zip and annotations_trainv", CocoInstance, tmp_path / "no")
    images = r"lacks val2017\.zip or val2017/ and "
    instance = r"annotations_trainval2017\.zip with annotations/instances_val2017\.json;.*`annotations`"
    fails(images + instance, CocoInstance, tmp_path, "val")
    fails(images + r"panoptic_anno.*zip with annotations/panoptic_val2017\.json", CocoPanoptic, tmp_path, "val")
    fails(r"lacks train\.zip or train/ and truth/train\.json;", custom, tmp_path)
    instances.write(tmp_path, "archives")
    fails(r"lacks annotations_train.*zip with .*_train2017\.json", CocoInstance, tmp_path, images="val2017")
    panoptic.write(tmp_path)
    fails(r"panoptic_train2017\.json", CocoPanoptic, tmp_path, images="val2017")
    (tmp_path / "val2017.zip").unlink()
    fails(r"lacks val2017\.zip or val2017/; download", CocoPanoptic, tmp_path, "val")


IMAGE_FAULTS = {
    "png of another size": ("b.png", id_png([[SKY, DOG]]), r"b.png is 2x1 .*its image .*b.jpg is 3x2"),
    "png without colours": ("b.png", label_png([[1]]), "red, green and blue, but its mode is L"),
    "png broken": ("b.png", id_png([[SKY, DOG]])[:50], "b.png .* cannot be decoded"),
    "png empty": ("b.png", b"", "b.png .* cannot be decoded"),
    "image of another size": ("b.jpg", photo(3, 2), r"b.jpg is 2x3 .*JSON says 3x2"),
    "image cut": ("b.jpg", photo(2, 3)[:-20], "b.jpg cannot be read: "),
    "image of text": ("b.jpg", b"<html>404</html>", "b.jpg cannot be read: it is no image"),
}


@pytest.mark.parametrize("layout", ["stored", "extracted"])
@pytest.mark.parametrize("fault", IMAGE_FAULTS)
def test_bad_images(tmp_path, panoptic, fault, layout):
    name, content, match = IMAGE_FAULTS[fault]
    (panoptic.masks if name.endswith("png") else panoptic.images)[name] = content
    data = CocoPanoptic(panoptic.write(tmp_path, layout), "val")
    fails(match, data.read, 0)
    data.read(1)


def test_ids_that_a_png_or_its_json_lacks(tmp_path, panoptic):
    panoptic.masks["c.png"] = id_png([[0, 0], [0, 4], [0, 0]])
    panoptic.masks["b.png"] = id_png([[SKY, 9, 9], [SKY, 0, 8]])
    data = CocoPanoptic(panoptic.write(tmp_path), "val")
    targets = data.read(2)[1]
    assert not targets.ids.any()
    assert targets.notes == (("unknown_id", "id 4 on 1 pixels"),)
    targets = data.read(0)[1]
    assert targets.ids.tolist() == [[[2, 0, 0], [2, 0, 0]]]
    assert targets.labels.tolist() == [1, 3]
    assert targets.notes == (("unknown_id", "id 8, 9 on 3 pixels"), ("no_pixels", f"id {DOG}"))
    assert data.read(1)[1].notes == ()


# Real data


@pytest.mark.slow
@pytest.mark.parametrize(("split", "images", "crowds"), [("train", 106, 11), ("val", 110, 13)])
def test_real_masks_are_those_of_pycocotools(shared_data, split, images, crowds):
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


@pytest.mark.parametrize(("split", "crowds"), [("train", 1), ("val", 2)])
def test_real_id_maps_agree_with_plain_reading(shared_data, split, crowds):
    data = CocoPanoptic(shared_data / "coco", split)
    names, ids = data.classes.names, data.classes.ids
    assert data.classes.is_thing == [True] * 80 + [False] * 53
    assert ids == sorted(ids[:80]) + sorted(ids[80:])
    assert (names[0], names[79], names[80], names[132]) == ("person", "toothbrush", "banner", "rug-merged")
    with zipfile.ZipFile(shared_data / "coco" / "panoptic_annotations_trainval2017.zip") as outer:
        truth = json.loads(outer.read(f"annotations/panoptic_{split}2017.json"))
        inner = zipfile.ZipFile(io.BytesIO(outer.read(f"annotations/panoptic_{split}2017.zip")))
    rows = {row["image_id"]: row for row in truth["annotations"]}
    assert len(data) == len(truth["images"]) == 8
    found = 0
    for k in range(len(data)):
        row = rows[data.image_id(k)]
        image, targets = data.read(k)
        with inner.open(f"panoptic_{split}2017/{row['file_name']}") as file:
            id_map = np.asarray(Image.open(file)).astype(int) @ [1, 256, 65536]
        assert image.shape == (*id_map.shape, 3)
        assert targets.labels.tolist() == [ids.index(s["category_id"]) for s in row["segments_info"]]
        assert targets.crowd.tolist() == [bool(s["iscrowd"]) for s in row["segments_info"]]
        for mask, s in zip(targets.masks().numpy(), row["segments_info"], strict=True):
            assert mask.sum() == s["area"]
            np.testing.assert_array_equal(mask, id_map == s["id"])
        found += int(targets.crowd.sum())
    assert found == crowds
