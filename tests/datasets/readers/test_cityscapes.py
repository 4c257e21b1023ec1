"""The Cityscapes reader on trees in its layout."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

import check_data
import train
from datasets.layout.find import find_layout
from datasets.readers.chosen import ChosenClasses
from datasets.readers.cityscapes import CityscapesInstance, CityscapesPanoptic, CityscapesSemantic
from datasets.readers.label_maps import VOID
from eomt.cli.arguments import prepared
from eomt.cli.build import build_data
from eomt.published_classes import CITYSCAPES
from tests import label_files
from tests.coco_files import id_png
from tests.label_files import check_classes, label_png, photo, turned, write_folder, write_zip
from tests.running import SMALL, composed

# Void, ego vehicle, road, sidewalk, parking, building, caravan, bicycle; and what is no label id.
LABELS = np.array([[0, 1, 7, 8], [9, 11, 29, 33], [255, 7, 7, 33]])
TRAIN_IDS = np.array([[VOID, VOID, 0, 1], [VOID, 2, VOID, 18], [VOID, 0, 0, 18]])
# Void, road, a group of cars, two cars, a rider, a caravan, and what is no label id.
INSTANCES = np.array([[1, 7, 26, 26000], [26001, 25003, 29000, 26], [255, 7, 7, 26001]])


def write(root, zipped, leave_out=()):
    images, labels = {}, {}
    for frame in ("val/ulm/ulm_000000_000019", "val/bonn/bonn_000000_000019", "train/jena/jena_000002_000019"):
        images[f"{frame}_leftImg8bit.png"] = photo(3, 4, len(images), "PNG")
        labels[f"{frame}_gtFine_labelIds.png"] = label_png(LABELS)
        labels[f"{frame}_gtFine_instanceIds.png"] = label_png(INSTANCES, np.uint16)
        labels[f"{frame}_gtFine_color.png"] = photo(3, 4, 1, "PNG")
        labels[f"{frame}_gtFine_polygons.json"] = b"{}"
    for name in leave_out:
        del labels[name]
    for name, files in (("leftImg8bit", images), ("gtFine", labels)):
        if zipped:
            members = {f"{name}/{member}": data for member, data in files.items()} | {"license.txt": b"", "README": b""}
            write_zip(root / f"{name}_trainvaltest.zip", members)
        else:
            write_folder(root / name, files)
    return root


@pytest.mark.parametrize("zipped", [True, False])
def test_layouts(tmp_path, zipped):
    data = pickle.loads(pickle.dumps(CityscapesSemantic(write(tmp_path, zipped), "val")))
    names = ["bonn/bonn_000000_000019_leftImg8bit.png", "ulm/ulm_000000_000019_leftImg8bit.png"]
    assert [data.name(k) for k in range(len(data))] == names
    assert [data.image_id(k) for k in range(2)] == [1, 2]
    images = [data.read(k)[0] for k in range(2)]
    assert images[0].shape == (3, 4, 3)
    assert (images[0] != images[1]).any()
    for k in range(2):
        check_classes(data.read(k)[1], TRAIN_IDS)
    assert len(CityscapesSemantic(tmp_path, "train")) == 1


@pytest.mark.parametrize(
    ("reader", "names", "values"),
    [
        (CityscapesPanoptic, ["road", "car", "rider", "car", "car"], [7, 26, 25003, 26000, 26001]),
        (CityscapesInstance, ["car", "rider", "car", "car"], [26, 25003, 26000, 26001]),
    ],
)
def test_objects_and_groups(reader, names, values, tmp_path):
    root = write(tmp_path, True)
    data = reader(root, "val")
    _, targets = data.read(0)
    assert [data.classes[label].name for label in targets.labels] == names
    assert targets.crowd.tolist() == [value == 26 for value in values]
    np.testing.assert_array_equal(targets.masks().numpy(), [value == INSTANCES for value in values])
    assert len(data.classes) == (8 if reader is CityscapesInstance else 19)
    merged = ChosenClasses(data, ["car", "rider"], {"car": ["car", "bus"]}).read(0)[1]
    assert len(merged.labels) == 4


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["panoptic", "instance"])
def test_a_run(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("EOMT_CACHE", str(tmp_path / "cache"))
    root = write(tmp_path, False)
    small = [*SMALL, f"data.root={root}", f"task=cityscapes_{kind}", "model=tiny", "trainer.devices=1"]
    small += ["data.image_size=[64,128]", "data.num_workers=0"]
    steps = ["trainer.max_steps=2", f"run_folder={tmp_path}/run", "trainer.max_epochs=9"]
    train.main(composed("train", *prepared("train", [*small, *steps], find_layout)))
    assert (tmp_path / "run" / "metrics.json").is_file()
    checked = [*small, f"run_folder={tmp_path}/check", "pictures=1"]
    check_data.main(composed("check_data", *prepared("check_data", checked, find_layout)))


def test_the_official_jsons_give_the_same(tmp_path, monkeypatch):
    """JSONs of createPanopticImgs.py, which names photos as it does and groups of things crowds."""
    monkeypatch.setenv("EOMT_CACHE", str(tmp_path / "cache"))
    root, frame = tmp_path, "ulm_000000_000019_gtFine"
    for split in ("train", "val"):
        name = f"{split}/ulm/{frame}".removesuffix("_gtFine")
        write_folder(root / "leftImg8bit", {f"{name}_leftImg8bit.png": photo(3, 4, 0, "PNG")})
        write_folder(root / "gtFine", {f"{name}_gtFine_instanceIds.png": label_png(INSTANCES, np.uint16)})
        kept = [7, 26, 25003, 26000, 26001]
        segments = [
            {"id": v, "category_id": v if v < 1000 else v // 1000, "iscrowd": int(v == 26), "area": 1, "bbox": []}
            for v in kept
        ]
        document = {
            "images": [{"id": frame, "file_name": f"{frame}_leftImg8bit.png", "height": 3, "width": 4}],
            "annotations": [{"image_id": frame, "file_name": f"{frame}_panoptic.png", "segments_info": segments}],
            "categories": CITYSCAPES.to_list(),
        }
        folder = f"cityscapes_panoptic_{split}"
        png = id_png(np.where(np.isin(INSTANCES, kept), INSTANCES, 0))
        write_folder(
            root / "gtFine", {f"{folder}.json": json.dumps(document).encode(), f"{folder}/{frame}_panoptic.png": png}
        )
    overrides = prepared("train", [f"data.root={root}", "task=coco_panoptic"], find_layout)
    theirs = build_data(composed("train", *overrides)).reader("val")
    ours = CityscapesPanoptic(root, "val")
    (image, one), (other_image, other) = ours.read(0), theirs.read(0)
    np.testing.assert_array_equal(image, other_image)
    names = [[reader.classes[label].name for label in part.labels] for reader, part in ((ours, one), (theirs, other))]
    assert names[0] == names[1]
    np.testing.assert_array_equal(one.masks().numpy(), other.masks().numpy())
    assert one.crowd.tolist() == other.crowd.tolist()


def test_photos_are_usually_taken_as_stored(tmp_path):
    path = write(tmp_path, False) / "leftImg8bit" / "train/jena/jena_000002_000019_leftImg8bit.png"
    path.write_bytes(photo(3, 4, 0, "PNG", exif=turned(2)))
    stored = np.asarray(Image.open(path))
    assert (CityscapesSemantic(tmp_path, "train").read(0)[0] == stored).all()
    assert (CityscapesSemantic(tmp_path, "train", "upright").read(0)[0] == stored[:, ::-1]).all()


def fails(match, root, split="val"):
    label_files.fails(match, CityscapesSemantic, root, split)


def test_missing_files(tmp_path):
    fails(r"data\.root is not set", None)
    fails("splits train and val, not 'test'", tmp_path, "test")
    fails(r"nowhere is no folder; it must hold leftImg8bit_trainvaltest\.zip and gtFine", tmp_path / "nowhere")
    fails(r"lacks leftImg8bit_trainvaltest\.zip or leftImg8bit/ and gtFine_trainvaltest\.zip or gtFine/", tmp_path)
    write(tmp_path, True, ["val/ulm/ulm_000000_000019_gtFine_labelIds.png"])
    missing = r"gtFine_trainvaltest\.zip: val/: ulm/ulm_000000_000019_leftImg8bit\.png; complete"
    fails(rf"1 of 2 images in .*leftImg8bit_trainvaltest\.zip: val/ have no ground truth in .*{missing}", tmp_path)
    path = tmp_path / "gtFine_trainvaltest.zip"
    path.write_bytes(path.read_bytes()[:-50])
    fails(r"gtFine_trainvaltest\.zip is no complete zip archive", tmp_path)
