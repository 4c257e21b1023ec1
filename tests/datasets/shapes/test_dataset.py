"""The built-in dataset: its files, and how they come into the cache."""

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from datasets.readers.label_maps import VOID
from datasets.shapes import dataset as shapes
from datasets.shapes.dataset import ensure_shapes, shape_scene, shapes_instance, shapes_panoptic, shapes_semantic
from datasets.shapes.kinds import STUFF, THINGS
from eomt.errors import InputError
from tests.label_files import check_classes

SMALL = {"seed": 3, "train_images": 24, "val_images": 6, "size": 64}
THING_IDS = {kind.id for kind in THINGS}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return ensure_shapes(**SMALL, folder=tmp_path_factory.mktemp("shapes"))


def read_json(root, archive, name):
    return json.loads(zipfile.ZipFile(root / archive).read(name))


def read_image(archive, name):
    return np.asarray(Image.open(io.BytesIO(archive.read(name))))


def panoptic_maps(root, split):
    """Each annotation of a split with its decoded id map."""
    name = "panoptic_annotations_trainval2017.zip"
    rows = read_json(root, name, f"annotations/panoptic_{split}2017.json")["annotations"]
    nested = zipfile.ZipFile(root / name).read(f"annotations/panoptic_{split}2017.zip")
    with zipfile.ZipFile(io.BytesIO(nested)) as maps:
        for row in rows:
            colors = read_image(maps, f"panoptic_{split}2017/{row['file_name']}").astype(np.int64)
            yield row, colors @ [1, 256, 65536]


def test_panoptic_files_say_what_the_scene_is(root):
    for split in ("train", "val"):
        for index, (row, ids) in enumerate(panoptic_maps(root, split)):
            scene = shape_scene(SMALL["seed"], split, index, SMALL["size"])
            assert set(np.unique(ids)) - {0} == {s["id"] for s in row["segments_info"]}
            pairs = zip(row["segments_info"], scene.segments, strict=True)
            for number, (s, drawn) in enumerate(pairs, start=1):
                mask = ids == s["id"]
                assert np.array_equal(mask, scene.ids == number)
                assert (s["category_id"], s["iscrowd"]) == (drawn.category_id, drawn.crowd)
                rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
                assert s["area"] == coco_mask.area(rle)
                assert s["bbox"] == coco_mask.toBbox(rle).tolist()


def test_images_are_the_scenes_up_to_jpeg(root):
    document = read_json(root, "panoptic_annotations_trainval2017.zip", "annotations/panoptic_train2017.json")
    with zipfile.ZipFile(root / "train2017.zip") as archive:
        assert len(archive.namelist()) == len(document["images"]) == SMALL["train_images"]
        for index, entry in enumerate(document["images"]):
            image = read_image(archive, f"train2017/{entry['file_name']}")
            drawn = shape_scene(SMALL["seed"], "train", index, SMALL["size"]).image
            assert image.shape == (entry["height"], entry["width"], 3) == drawn.shape
            assert np.abs(image.astype(int) - drawn).mean() < 4


def test_official_tool_reads_the_instances_and_they_are_the_panoptic_things(root, tmp_path):
    file = tmp_path / "instances.json"
    archive = zipfile.ZipFile(root / "annotations_trainval2017.zip")
    file.write_bytes(archive.read("annotations/instances_train2017.json"))
    coco = COCO(file)
    assert coco.getCatIds() == [kind.id for kind in THINGS]
    assert any(row["iscrowd"] for row in coco.anns.values())
    for row, ids in panoptic_maps(root, "train"):
        things = [s for s in row["segments_info"] if s["category_id"] in THING_IDS]
        rows = coco.imgToAnns.get(row["image_id"], [])
        for s, instance in zip(things, rows, strict=True):
            assert np.array_equal(coco.annToMask(instance), ids == s["id"])
            assert {k: instance[k] for k in ("category_id", "iscrowd", "bbox", "area")} == {
                k: s[k] for k in ("category_id", "iscrowd", "bbox", "area")
            }


def test_equal_seed_gives_equal_bytes_and_more_images_leave_the_first_as_they_are(root, tmp_path):
    again = ensure_shapes(**SMALL, folder=tmp_path)
    assert again.name == root.name
    for path in root.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name
    fewer = ensure_shapes(**SMALL | {"train_images": 2}, folder=tmp_path)
    other = ensure_shapes(**SMALL | {"train_images": 2, "seed": 4}, folder=tmp_path)
    pictures = [zipfile.ZipFile(folder / "train2017.zip") for folder in (root, fewer, other)]
    for name in pictures[1].namelist():
        assert pictures[0].read(name) == pictures[1].read(name) != pictures[2].read(name)
    rows, some = (list(panoptic_maps(folder, "train")) for folder in (root, fewer))
    assert [row for row, _ in some] == [row for row, _ in rows[:2]]
    ids = [{row["image_id"] for row, _ in panoptic_maps(root, split)} for split in ("train", "val")]
    assert not ids[0] & ids[1]


def test_a_folder_is_written_once_and_lies_in_the_cache(root, tmp_path, monkeypatch):
    monkeypatch.setenv("EOMT_CACHE", str(tmp_path / "cache"))
    first = ensure_shapes(0, 1, 1, 32)
    assert first.parent == tmp_path / "cache"
    monkeypatch.setattr(shapes, "_write", lambda *_: pytest.fail("written twice"))
    assert ensure_shapes(0, 1, 1, 32) == first
    assert [p.name for p in first.parent.iterdir()] == [first.name]


def test_an_interrupted_write_leaves_nothing_that_looks_complete(tmp_path, monkeypatch):
    def interrupted(draft, *_):
        (draft / "train2017.zip").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shapes, "_write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ensure_shapes(0, 1, 1, 32, tmp_path)
    assert not list(tmp_path.iterdir())
    # What a killed process could not clean up does not matter either.
    whole = ensure_shapes(0, 1, 1, 32, tmp_path)
    left_over = tmp_path / f".{whole.name}.0123"
    whole.rename(left_over)
    (left_over / "train2017.zip").write_bytes(b"half")
    assert zipfile.ZipFile(ensure_shapes(0, 1, 1, 32, tmp_path) / "train2017.zip").testzip() is None


def test_the_loser_of_a_race_takes_the_winners_folder(tmp_path, monkeypatch):
    write = shapes._write

    def overtaken(draft, *arguments):
        write(draft, *arguments)
        monkeypatch.setattr(shapes, "_write", write)
        ensure_shapes(0, 1, 1, 32, tmp_path)
        (tmp_path / draft.name.split(".")[1] / "winner").touch()

    monkeypatch.setattr(shapes, "_write", overtaken)
    assert (ensure_shapes(0, 1, 1, 32, tmp_path) / "winner").exists()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file.*EOMT_CACHE"):
        ensure_shapes(0, 1, 1, 32, tmp_path / "file")


@pytest.mark.parametrize(("open_", "kinds"), [(shapes_panoptic, THINGS + STUFF), (shapes_instance, THINGS)])
def test_the_readers_of_coco_read_what_was_drawn(open_, kinds, root, tmp_path, monkeypatch):
    monkeypatch.setenv("EOMT_CACHE", str(tmp_path))
    for split in ("train", "val"):
        reader = open_(split, root=root)
        assert reader.classes.ids == [kind.id for kind in kinds]
        assert reader.classes.names == [kind.name for kind in kinds]
        assert reader.classes.is_thing == [kind in THINGS for kind in kinds]
        assert len(reader) == SMALL[f"{split}_images"]
        for index in range(len(reader)):
            image, targets = reader.read(index)
            scene = shape_scene(SMALL["seed"], split, index, SMALL["size"])
            assert image.shape == scene.image.shape
            read = {
                (reader.classes.ids[label], bool(crowd), mask.numpy().tobytes())
                for label, crowd, mask in zip(targets.labels, targets.crowd, targets.masks(), strict=True)
            }
            drawn = {
                (s.category_id, s.crowd, (scene.ids == number).tobytes())
                for number, s in enumerate(scene.segments, start=1)
                if s.category_id in reader.classes.ids
            }
            assert read == drawn


def test_the_semantic_set_agrees_with_the_panoptic_one(root, tmp_path, monkeypatch):
    monkeypatch.setenv("EOMT_CACHE", str(tmp_path))
    for split in ("train", "val"):
        data, panoptic = shapes_semantic(split, root=root), shapes_panoptic(split, root=root)
        assert (len(data), data.classes) == (SMALL[f"{split}_images"], panoptic.classes)
        for k in range(len(data)):
            (image, targets), (other, whole) = data.read(k), panoptic.read(k)
            np.testing.assert_array_equal(image, other)
            check_classes(targets, np.append(whole.labels.numpy(), VOID)[whole.ids[0].numpy() - 1])
    with pytest.raises(InputError, match=r"lacks train2017\.zip or semantic_trainval2017\.zip: set data\.root=null"):
        shapes_semantic("train", root=tmp_path)
