"""Chosen and merged classes: as a set that was written with those classes alone."""

import json
from zipfile import ZipFile

import numpy as np
import pytest
import torch

import train
from datasets.files.decode import decode_id_map, decode_label_map
from datasets.readers.chosen import ChosenClasses
from datasets.readers.coco import CocoInstance, CocoPanoptic
from datasets.shapes.dataset import shapes as open_shapes
from eomt.weights.checkpoint import FORMAT, read_checkpoint
from tests.coco_files import PanopticSet, id_png, segment
from tests.label_files import fails, label_png, write_folder
from tests.memory_reader import CATEGORIES, MemoryReader
from tests.running import configured, equal, typed

VAN, CAR, ROAD, PATH = 7, 8, 9, 10


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("EOMT_CACHE", str(tmp_path_factory.mktemp("cache")))


def same(ours, theirs):
    """Check that two readers give the same targets of the same classes."""
    assert [(c.id, c.name, c.is_thing) for c in ours.classes] == [(c.id, c.name, c.is_thing) for c in theirs.classes]
    assert len(ours) == len(theirs)
    np.testing.assert_array_equal(ours.has_targets(), theirs.has_targets())
    for index in range(len(ours)):
        (image, mine), (other_image, other) = ours.read(index), theirs.read(index)
        np.testing.assert_array_equal(image, other_image)
        assert equal(
            (mine.labels, mine.crowd, mine.areas, mine.rles, mine.masks()),
            (other.labels, other.crowd, other.areas, other.rles, other.masks()),
        )
        if hasattr(theirs, "annotated"):
            for table, expected in zip(ours.annotated(index), theirs.annotated(index), strict=True):
                np.testing.assert_array_equal(table[np.isfinite(table)], expected[np.isfinite(table)])
                assert table.shape == expected.shape
    return True


def panoptic_set(root, merged):
    """Things and stuff; or what data.merge={street: [path, road], auto: [van, car]} makes of them."""
    made = PanopticSet()
    classes = [(VAN, "van", 1), (CAR, "car", 1), (ROAD, "road", 0), (PATH, "path", 0)]
    rows = [segment(1, CAR), segment(2, ROAD), segment(3, VAN), segment(4, PATH), segment(5, CAR, crowd=1)]
    number = np.arange(6)
    if merged:
        classes, number[4] = [(VAN, "auto", 1), (ROAD, "street", 0)], 2
        rows = [segment(1, VAN), segment(2, ROAD), segment(3, VAN), segment(5, VAN, crowd=1)]
    made.json["categories"] = [{"id": k, "name": name, "isthing": thing} for k, name, thing in classes]
    made.json["annotations"] = [{"image_id": 20, "file_name": "b.png", "segments_info": rows}]
    made.masks["b.png"] = id_png(number[[[2, 1, 5], [4, 3, 0]]])
    return CocoPanoptic(made.write(root, "extracted"), "val")


KEYS = {"ball": ["disc", "square"], "ground": ["grass", "tiles"]}
ONLY = {"instance": ["ring", "ball"], "panoptic": ["ball", "ring", "ground", "sky"]}
ONLY["semantic"] = ONLY["panoptic"]
IDS = {1: (1, "ball", 1), 4: (1, "ball", 1), 2: (2, "ring", 1), 100: (100, "ground", 0), 107: (100, "ground", 0)}
IDS[92] = (92, "sky", 0)


def written(root, shapes, kind):
    """The built-in set written with the chosen classes alone, in the same layout."""
    rows = [{"id": k, "name": name, "isthing": thing} for k, name, thing in dict.fromkeys(IDS.values())]
    for split in ("train", "val"):
        name = f"{split}2017"
        (root / f"{name}.zip").symlink_to(shapes / f"{name}.zip")
        if kind == "instance":
            with ZipFile(shapes / "annotations_trainval2017.zip") as archive:
                document = json.loads(archive.read(f"annotations/instances_{name}.json"))
            kept = [row for row in document["annotations"] if row["category_id"] in IDS]
            kept = [row | {"category_id": IDS[row["category_id"]][0]} for row in kept]
            document |= {"annotations": kept, "categories": [row for row in rows if row["isthing"]]}
            write_folder(root, {f"annotations/instances_{name}.json": json.dumps(document).encode()})
            continue
        with ZipFile(shapes / "panoptic_annotations_trainval2017.zip") as archive:
            document = json.loads(archive.read(f"annotations/panoptic_{name}.json"))
            with archive.open(f"annotations/panoptic_{name}.zip") as inner, ZipFile(inner) as masks:
                maps = {
                    row["file_name"]: masks.read(f"panoptic_{name}/{row['file_name']}")
                    for row in document["annotations"]
                }
        for row in document["annotations"]:
            ids = decode_id_map(maps[row["file_name"]], "")
            kept = []
            for part in row["segments_info"]:
                number, _, thing = IDS.get(part["category_id"], (0, "", 1))
                one = next((p["id"] for p in kept if p["category_id"] == number and not thing), part["id"])
                ids[ids == part["id"]] = one if number else 0
                kept += [part | {"category_id": number}] * (bool(number) and one == part["id"])
            row["segments_info"] = kept
            write_folder(root, {f"annotations/panoptic_{name}/{row['file_name']}": id_png(ids)})
        document["categories"] = rows
        write_folder(root, {f"annotations/panoptic_{name}.json": json.dumps(document).encode()})
    return root


def label_pngs(root, shapes, chosen):
    """The built-in set with label PNGs, all of its classes or the chosen ones, and data.classes for it."""
    classes = open_shapes("semantic", "val", root=shapes).classes
    number = np.arange(1 + len(classes))
    if chosen:
        number = np.array([255, *(IDS.get(k, (255,))[0] for k in classes.ids)])
    for split in ("train", "val"):
        with ZipFile(shapes / f"{split}2017.zip") as images, ZipFile(shapes / "semantic_trainval2017.zip") as labels:
            images.extractall(root / "images")
            (root / "images" / f"{split}2017").rename(root / "images" / split)
            for file in labels.namelist():
                if file.startswith(f"semantic_{split}2017"):
                    pixels = number[decode_label_map(labels.read(file), file)]
                    write_folder(root / "labels" / split, {file.rpartition("/")[2]: label_png(pixels)})
    names = {k: name for k, name, _ in IDS.values()} if chosen else dict(enumerate(classes.names, 1))
    return "{" + ",".join(f"{k}: {name}" for k, name in names.items()) + "}"


@pytest.mark.parametrize("kind", ["instance", "panoptic"])
def test_targets_are_those_of_a_set_written_so(kind, shapes, tmp_path):
    reader = {"instance": CocoInstance, "panoptic": CocoPanoptic}[kind]
    merge = {"ball": KEYS["ball"]} if kind == "instance" else KEYS
    root = written(tmp_path, shapes, kind)
    for split in ("train", "val"):
        same(ChosenClasses(reader(shapes, split), ONLY[kind], merge), reader(root, split))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["instance", "panoptic", "semantic"])
def test_a_run_is_that_on_a_set_written_so(kind, shapes, options, tmp_path, caplog):
    """Weights, classes and scores to the last bit; also resumed and evaluated from the checkpoint."""
    caplog.set_level("INFO")
    common = [*options, "model=tiny", "trainer.max_steps=3", "trainer.max_epochs=-1", "trainer.devices=1"]
    common += [
        "trainer.check_val_every_n_epoch=1",
        "callbacks.last.every_n_steps=1",
        "callbacks.last.keep_previous=true",
    ]
    merge = "{ball: [disc, square]" + (", ground: [grass, tiles]}" if kind != "instance" else "}")
    keys = [f"data.only=[{','.join(ONLY[kind])}]", f"data.merge={merge}"]
    if kind == "semantic":
        common += ["task=folder_semantic"]
        whole = [
            f"data.root='{tmp_path}/all'",
            f"data.classes={label_pngs(tmp_path / 'all', shapes, False)}",
            "data.ignore=0",
        ]
        alone = [f"data.root='{tmp_path}/few'", f"data.classes={label_pngs(tmp_path / 'few', shapes, True)}"]
    else:
        common += [f"task=coco_{kind}"]
        (tmp_path / "few").mkdir()
        whole, alone = [], [f"data.root='{written(tmp_path / 'few', shapes, kind)}'"]
    runs = {"chosen": [*common, *whole, *keys], "written": [*common, *alone]}
    for name, overrides in runs.items():
        train.main(configured(tmp_path / name, *overrides))
    one, other = (read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in runs)
    assert equal(one["state_dict"], other["state_dict"])
    assert [row["name"] for row in one[FORMAT]["classes"]] == [row["name"] for row in other[FORMAT]["classes"]]
    scores = [json.loads((tmp_path / name / "metrics_per_class.json").read_text()) for name in runs]
    without_ids = [[{k: v for k, v in row.items() if k != "id"} for row in rows] for rows in scores]
    assert without_ids[0] == without_ids[1]
    if kind == "instance":
        previous = f"ckpt='{tmp_path}/chosen/checkpoints/previous.ckpt'"
        train.main(configured(tmp_path / "resumed", *runs["chosen"], previous))
        resumed = read_checkpoint(tmp_path / "resumed" / "checkpoints" / "last.ckpt")
        assert equal(resumed["state_dict"], one["state_dict"])
    assert f"data.only and data.merge make {len(ONLY[kind])} of " in caplog.text
    typed("eval", f"ckpt={tmp_path}/chosen/checkpoints/last.ckpt", f"run_folder={tmp_path}/eval")
    assert json.loads((tmp_path / "eval" / "metrics_per_class.json").read_text()) == scores[0]


def test_panoptic_stuff_that_is_merged_is_one_segment_and_things_stay_apart(tmp_path):
    merge = {"street": ["path", "road"], "auto": ["van", "car"]}
    whole = panoptic_set(tmp_path / "whole", False)
    same(ChosenClasses(whole, merge=merge), panoptic_set(tmp_path / "merged", True))
    assert ChosenClasses(whole, ["street"], merge).classes.names == ["street"]


def test_what_is_left_out_is_void_and_counted(tmp_path):
    reader = ChosenClasses(panoptic_set(tmp_path, False), ["path"])
    assert reader.has_targets().tolist() == [True, False, False, False]
    (_, targets) = reader.read(0)
    assert targets.ids.tolist() == [[[0, 0, 0], [1, 0, 0]]]
    assert (
        "3 are left out, their pixels are in no segment: van, car, road (4 segments in 1 images)"
        in reader.remarks()[-1]
    )


@pytest.mark.parametrize(
    ("only", "merge", "message"),
    [
        (["vam"], None, "data.only: there is no class 'vam'; the nearest is 'van' of van, car, road, path"),
        (None, {"auto": ["van", "cra"]}, "data.merge: there is no class 'cra'; the nearest is 'car'"),
        (["car"], {"auto": ["van", "car"]}, "data.only: data.merge makes 'car' a part of 'auto'"),
        (None, {"auto": ["van", "car"], "street": ["car", "road"]}, "data.merge: 'car' is in 'auto' and in 'street'"),
        (None, {"road": ["van", "car"]}, "data.merge: there is a class 'road' already"),
        (None, {"mix": ["car", "road"]}, "data.merge: 'mix' joins things and stuff: 'road' is stuff"),
    ],
)
def test_names_that_do_not_fit_are_one_line(only, merge, message, tmp_path):
    fails(message, ChosenClasses, panoptic_set(tmp_path, False), only, merge)


def test_any_reader_is_chosen_from_and_names_may_change():
    reader = ChosenClasses(MemoryReader(bare=[1]), merge={"class 1": ["class 0"], "class 0": ["class 1"]})
    assert reader.classes.names == ["class 1", "class 0", *(row["name"] for row in CATEGORIES[2:])]
    assert reader.has_targets().tolist() == [True, False, *[True] * 10]
    assert torch.equal(reader.read(0)[1].ids, MemoryReader().read(0)[1].ids)
