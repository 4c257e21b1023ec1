"""The built-in dataset: its pictures, its files, and how they come into the cache."""

import colorsys
import io
import json
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from datasets.shapes import dataset as shapes
from datasets.shapes.dataset import CATEGORIES, ensure_shapes, shape_scene, shapes_instance, shapes_panoptic
from datasets.shapes.draw import MIN_AREA, MIN_VISIBLE, Segment, _Canvas
from datasets.shapes.kinds import STUFF, THINGS
from eomt.classes import Classes
from eomt.errors import InputError

SMALL = {"seed": 3, "train_images": 24, "val_images": 6, "size": 64}
THING_IDS = {kind.id for kind in THINGS}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return ensure_shapes(**SMALL, folder=tmp_path_factory.mktemp("shapes"))


@pytest.fixture(scope="module")
def scenes():
    return [shape_scene(0, "train", index, 96) for index in range(150)]


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


def test_scenes_have_what_the_tasks_need(scenes):
    things = [sum(s.category_id in THING_IDS and not s.crowd for s in scene.segments) for scene in scenes]
    assert 3 < np.mean(things) < 6
    assert 0.01 < np.mean(np.array(things) == 0) < 0.12
    assert 0.04 < np.mean([any(s.crowd for s in scene.segments) for scene in scenes]) < 0.2
    assert 0.15 < np.mean([(scene.ids == 0).any() for scene in scenes]) < 0.5
    seen = {s.category_id for scene in scenes for s in scene.segments}
    assert seen == {kind.id for kind in THINGS + STUFF}
    shapes_seen = {scene.ids.shape for scene in scenes}
    sides = np.array(sorted(shapes_seen))
    assert len(shapes_seen) > 100
    assert sides.min() >= 72
    assert sides.max() <= 120
    # From small to half the picture.
    widths = [
        np.ptp(np.flatnonzero((scene.ids == number).any(axis=0))) + 1
        for scene in scenes
        for number, s in enumerate(scene.segments, start=1)
        if s.category_id in THING_IDS and not s.crowd
    ]
    assert min(widths) < 14
    assert max(widths) > 48


def test_every_segment_is_visible_and_stuff_is_one_segment_per_kind(scenes):
    for scene in scenes:
        area = np.bincount(scene.ids.ravel(), minlength=len(scene.segments) + 1)
        assert len(area) == len(scene.segments) + 1
        assert (area[1:] >= MIN_AREA).all()
        stuff = [s.category_id for s in scene.segments if s.category_id not in THING_IDS]
        assert len(stuff) == len(set(stuff))


def test_things_leave_each_other_visible_and_slivers_become_void():
    canvas = _Canvas(np.random.default_rng(0), 80, 90, 96)
    canvas.lay_stuff()
    for _ in range(40):
        canvas.add_thing()
    visible = np.bincount(canvas.ids.ravel(), minlength=len(canvas.segments) + 1)[1:]
    assert len(canvas.segments) > 10
    assert (visible >= MIN_VISIBLE * np.array(canvas.areas)).all()
    sliver = (slice(0, 1), slice(0, MIN_AREA - 1))
    canvas.segments.insert(0, Segment(THINGS[0].id))
    canvas.ids[canvas.ids > 0] += 1
    canvas.ids[sliver] = 1
    scene = canvas.finish()
    assert (scene.ids[sliver] == 0).all()
    assert scene.segments == [
        s for number, s in enumerate(canvas.segments, start=1) if (canvas.ids == number).sum() >= MIN_AREA
    ]


def test_splits_show_different_pictures():
    first, second = (shape_scene(0, split, 0, 96).image for split in ("train", "val"))
    assert first.shape != second.shape or not np.array_equal(first, second)


def test_picture_and_ground_truth_agree_and_two_pairs_of_kinds_share_their_hue(scenes):
    """A segment's pixels have its kind's hue, so the map fits the picture; hue tells no pair apart."""
    hues = {kind.id: [] for kind in THINGS}
    for scene in scenes:
        for number, s in enumerate(scene.segments, start=1):
            inside = scene.ids == number
            if s.category_id in hues and not s.crowd:
                hue = colorsys.rgb_to_hsv(*np.median(scene.image[inside], axis=0) / 255)[0]
                hues[s.category_id].append((hue + 0.5) % 1 - 0.5)
    ranges = {}
    for kind in THINGS:
        # The median of each channel shifts hue a little; red is left of 0 as well as right of it.
        low, high = kind.hue
        turned = [(h - (low + high) / 2 + 0.5) % 1 - 0.5 for h in hues[kind.id]]
        assert np.abs(turned).max() < (high - low) / 2 + 0.03, kind.name
        ranges[kind.name] = kind.hue
    assert ranges["disc"] == ranges["ring"]
    assert ranges["square"] == ranges["cross"]
    assert len(set(ranges.values())) == len(THINGS) - 2


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


def test_semantic_labels_are_the_classes_of_the_panoptic_segments(root):
    order = Classes.from_categories(CATEGORIES).ids
    with zipfile.ZipFile(root / "semantic_trainval2017.zip") as archive:
        for row, ids in panoptic_maps(root, "val"):
            expected = np.zeros(ids.shape, dtype=np.uint8)
            for s in row["segments_info"]:
                expected[ids == s["id"]] = order.index(s["category_id"]) + 1
            assert np.array_equal(read_image(archive, f"semantic_val2017/{row['file_name']}"), expected)


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


def test_many_that_write_at_once_agree(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: ensure_shapes(0, 20, 1, 32, tmp_path), range(4)))
    assert len(set(folders)) == 1
    assert len(list(tmp_path.iterdir())) == 1


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


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"seed": -1}, "seed"),
        ({"train_images": 0}, "train_images"),
        ({"val_images": 1.5}, "val_images"),
        ({"size": 8}, "size"),
    ],
)
def test_values_out_of_range_are_named(values, word, tmp_path):
    with pytest.raises(InputError, match=word):
        ensure_shapes(**values, folder=tmp_path)


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
