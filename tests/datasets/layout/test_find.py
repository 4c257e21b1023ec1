"""Data sets as tools export them: each is found out, and all give the same masks."""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import check_data
import train
from datasets.layout import listing
from datasets.layout.find import find_layout
from eomt.cli.arguments import prepared
from eomt.cli.build import build_data
from tests.exports import CLASSES, EXPORTS, INSTANCE, SEMANTIC, SPLITS, pictures, write
from tests.label_files import fails, photo, turned
from tests.running import ROOT, SMALL, composed, logged

ALL = [pytest.param(name, task, id=f"{name}-{task}") for name, export in EXPORTS.items() for task in export.tasks]


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("EOMT_CACHE", str(tmp_path_factory.mktemp("cache")))


def opened(root, *typed):
    """The data module of what is typed for a folder."""
    return build_data(composed("train", *prepared("train", [f"data.root={root}", *typed], find_layout)))


def masks_of(reader, index):
    """The pixels of each class's segments, sorted: [(class, mask), ...]."""
    _, targets = reader.read(index)
    found = zip(targets.labels.tolist(), targets.masks().numpy(), strict=True)
    return sorted(((reader.classes[label].name, mask.tobytes()) for label, mask in found), key=repr)


def expected(picture, task):
    """The masks that a task has of a picture."""
    masks = [(CLASSES[label], mask) for (label, _), mask in zip(picture.objects, picture.masks(), strict=True)]
    if task == SEMANTIC:
        classes = picture.maps()[1]
        masks = [(name, classes == k) for k, name in enumerate(CLASSES, 1) if (classes == k).any()]
    if task != INSTANCE:
        masks.append(("background", picture.maps()[0] == 0))
    return sorted(((name, mask.tobytes()) for name, mask in masks), key=repr)


@pytest.mark.parametrize(("name", "task"), ALL)
def test_all_formats_give_the_same_masks(name, task, tmp_path, capsys):
    EXPORTS[name].write(tmp_path)
    is_default = task == EXPORTS[name].tasks[0]
    data = opened(tmp_path, *[f"task={task}"] * (not is_default))
    assert capsys.readouterr().err.count("\n") == 1
    drawn, seen = {picture.name: picture for picture in pictures()}, {}
    for split, numbers in SPLITS.items():
        reader = data.reader(split)
        assert len(reader) == len(numbers) or data.split
        for index in range(len(reader)):
            name = reader.name(index).removesuffix(".png")[-len("picture 00") :]
            seen[name] = split
            np.testing.assert_equal(masks_of(reader, index), expected(drawn[name], task))
    assert sorted(seen) == sorted(drawn)


def moved(root, *moves):
    for before, after in moves:
        (root / after).parent.mkdir(parents=True, exist_ok=True)
        (root / before).rename(root / after)


def renamed_lists(root):
    for split in SPLITS:
        text = (root / f"{split}.txt").read_text().replace("./images", "data/images")
        write(root / f"{split}.txt", text)


VARIANTS = {
    "a JSON beside the folder of its images": (
        "coco",
        lambda root: moved(
            root,
            *[(f"images/{split}", split) for split in SPLITS],
            *[(f"annotations/instances_{split}.json", f"{split}.json") for split in SPLITS],
        ),
        {"train.images": "train", "val.annotations": "val.json"},
    ),
    "a set alone": ("roboflow", lambda root: shutil.rmtree(root / "valid"), {"split": 0.9, "val.images": "train"}),
    "a test set alone": (
        "roboflow",
        lambda root: moved(root, ("valid", "test")),
        {"val.images": "test", "split": None},
    ),
    "CVAT's folders": (
        "one json",
        lambda root: moved(
            root, ("images", "a"), ("a", "images/default"), ("result.json", "annotations/instances_default.json")
        ),
        {"train.images": "images/default", "split": 0.9},
    ),
    "Label Studio's YOLO": (
        "yolo lists",
        lambda root: [
            write(root / "classes.txt", "\n".join(CLASSES)),
            *((root / name).unlink() for name in ("street.yaml", "train.txt", "val.txt")),
        ],
        {"train.images": "images", "train.annotations": "classes.txt", "split": 0.9},
    ),
    "CVAT's YOLO": ("yolo lists", renamed_lists, {"train.images": ".", "split": None}),
    "YOLO of another machine": (
        "yolo",
        lambda root: write(
            root / "data.yaml",
            "train: C:\\\\me\\\\train\\\\images\nval: /home/me/set/valid/images\nnames: [bus, car, traffic cone]",
        ),
        {"train.images": "train/images", "val.images": "valid/images"},
    ),
    "CamVid's folders": (
        "masks",
        lambda root: moved(
            root,
            *[(f"{split}/{kind}", f"{split}{end}") for split in ("train",) for kind, end in [("masks", "annot")]],
            ("val/masks", "valannot"),
        ),
        {"train.labels": "trainannot", "val.labels": "valannot"},
    ),
    "mmsegmentation's folders": (
        "masks",
        lambda root: moved(
            root,
            *[
                (f"{s}/{kind}", f"{end}/{s}")
                for s in SPLITS
                for kind, end in (("masks", "ann_dir"), ("images", "img_dir"))
            ],
        ),
        {"train.images": "img_dir/train", "val.labels": "ann_dir/val"},
    ),
    "nested as it was packed": (
        "yolo",
        lambda root: [moved(root, (name, f"packed/set/{name}")) for name in ("train", "valid", "data.yaml")],
        {"train.images": "packed/set/train/images", "train.annotations": "packed/set/data.yaml"},
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_other_names_of_files_and_folders(variant, tmp_path):
    name, change, expected = VARIANTS[variant]
    EXPORTS[name].write(tmp_path)
    change(tmp_path)
    _, keys = find_layout(tmp_path, None)
    assert {key: keys.get(f"data.{key}") for key in expected} == expected
    data = opened(tmp_path)
    counts = [len(data.reader(split)) for split in SPLITS]
    assert sum(counts) == 16 if variant == "a set alone" else counts in ([16, 4], [18, 2])


def test_an_evaluation_scores_the_whole_folder(tmp_path):
    EXPORTS["one json"].write(tmp_path)
    typed = prepared("eval", ["ckpt=tue-mps/x", f"data.root={tmp_path}", f"task={INSTANCE}"], find_layout)
    assert "result.json" in typed[-1]
    assert "split" not in typed[-1]


def test_what_a_folder_is_is_said_in_one_line(tmp_path, capsys):
    EXPORTS["roboflow"].write(tmp_path)
    data = opened(tmp_path, "data.val.images=train", "data.val.annotations=train/_annotations.coco.json")
    assert len(data.reader("val")) == len(data.reader("train")) == 16
    assert capsys.readouterr().err == (
        f"note: data.root={tmp_path} is a data set with JSONs of COCO's form; taken as task=coco_instance "
        "data.train.images=train data.train.annotations=train/_annotations.coco.json: typed keys go over these\n"
    )
    assert any("'street' is left out: the root of others" in line for line in data.remarks("train"))
    assert data.classes.names == list(CLASSES)


@pytest.mark.slow
def test_what_a_folder_is_stands_in_the_log(tmp_path):
    EXPORTS["roboflow"].write(tmp_path / "data")
    command = [sys.executable, str(ROOT / "check_data.py"), f"data.root={tmp_path}/data", "data.num_workers=0"]
    done = subprocess.run([*command, "pictures=0", "hydra.run.dir=run"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    line = "is a data set with JSONs of COCO's form; taken as task=coco_instance"
    log = (tmp_path / "run" / "check_data.log").read_text()
    assert [text.count(line) for text in (done.stderr, done.stdout, log)] == [1, 0, 1]


def test_a_root_category_that_one_set_uses_is_named(tmp_path):
    EXPORTS["roboflow"].write(tmp_path)
    path = tmp_path / "train" / "_annotations.coco.json"
    used = json.loads(path.read_text())
    used["annotations"][0]["category_id"] = 0
    write(path, json.dumps(used))
    message = r"data.val has 3 classes where data.train has 4 classes \(street in one .*same by data.only"
    fails(message, opened(tmp_path).setup, "fit")
    data = opened(tmp_path, f"data.only=[{','.join(CLASSES)}]")
    data.setup("fit")
    assert data.classes.names == list(CLASSES)


def test_supercategories_of_several_groups_are_classes(tmp_path):
    EXPORTS["roboflow"].write(tmp_path)
    for path in tmp_path.glob("*/_annotations.coco.json"):
        document = json.loads(path.read_text())
        document["categories"][-1] |= {"supercategory": "none"}
        write(path, json.dumps(document))
    data = opened(tmp_path)
    data.setup("fit")
    assert data.classes.names == ["street", *CLASSES]


@pytest.mark.parametrize(
    "typed",
    [
        ["ckpt=null", "seed=1"],
        ["task=coco_instance", "data.train.annotations='a.json'", "data.val.annotations='b.json'"],
        ["task=cityscapes_semantic"],
    ],
    ids=["a run's own settings", "both named", "a task that knows its files"],
)
def test_what_is_decided_already_is_left_alone(typed, tmp_path, capsys):
    EXPORTS["coco"].write(tmp_path)
    assert prepared("train", [f"data.root={tmp_path}", *typed], find_layout)[1:] == typed
    assert not capsys.readouterr().err


def test_one_set_is_divided_the_same_in_every_run(tmp_path):
    EXPORTS["one json"].write(tmp_path / "a")
    first = opened(tmp_path / "a", "data.split=0.75")
    names = [
        {data.reader(split).name(k) for k in range(len(data.reader(split)))} for data in (first,) for split in SPLITS
    ]
    assert [len(part) for part in names] == [15, 5]
    (tmp_path / "a").rename(tmp_path / "b")
    again = opened(tmp_path / "b", "data.split=0.75", "seed=7", "data.max_images=3")
    assert {again.reader("val").name(k) for k in range(3)} < names[1]
    both = opened(tmp_path / "b", "data.split=0.75", "data.validate_on_train=true")
    assert [len(both.reader(split)) for split in SPLITS] == [15, 15]
    found, _ = both.reader("val").annotated(0)[::2]
    assert found.shape[1] == 4


def test_a_typed_split_divides_the_training_set(tmp_path):
    EXPORTS["coco"].write(tmp_path)
    data = opened(tmp_path, "data.split=0.5")
    assert [len(data.reader(split)) for split in SPLITS] == [8, 8]
    assert not {*map(data.reader("train").name, range(8))} & {*map(data.reader("val").name, range(8))}


def test_a_validation_set_that_a_typed_split_leaves_unused_is_said(tmp_path, capsys):
    EXPORTS["roboflow"].write(tmp_path)
    opened(tmp_path, "data.split=0.5")
    assert "note: data.split=0.5 divides train: valid is not used; leave data.split out" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "valid")
    opened(tmp_path, "data.split=0.5")
    assert "is not used" not in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[1, 2]", "[" * 100_000, '{"a": 1}', '{"images": null}', '{"images": []}'])
@pytest.mark.parametrize(
    ("name", "file"), [("roboflow", "train/_annotations.coco.json"), ("coco", "annotations/instances_val.json")]
)
def test_a_json_that_is_no_set_is_named(text, name, file, tmp_path):
    EXPORTS[name].write(tmp_path)
    write(tmp_path / file, text)
    fails(f"{file}(: 'images' must| is a list| has no| names no images).* repair", find_layout, tmp_path, None)


def test_other_jsons_beside_a_set_are_passed_over(tmp_path):
    EXPORTS["coco"].write(tmp_path)
    before = find_layout(tmp_path, None)
    for name in ("annotations/train_names.json", "test_results.json", "train.json", "labels.json"):
        write(tmp_path / name, "[1, 2]")
    assert find_layout(tmp_path, None) == before


@pytest.mark.parametrize(("name", "folder"), [("roboflow", "train"), ("roboflow", "valid"), ("coco", "images/val")])
def test_photos_of_a_set_without_its_json_are_said(name, folder, tmp_path):
    EXPORTS[name].write(tmp_path)
    assert "not used" not in find_layout(tmp_path, None)[0]
    inside = tmp_path / folder / "_annotations.coco.json"
    (inside if inside.exists() else tmp_path / "annotations/instances_val.json").unlink()
    count = 16 if folder == "train" else 4
    what, _ = find_layout(tmp_path, None)
    assert what.endswith(f", but none for the photos in {folder} ({count} photos), which are not used")


def test_photos_of_a_set_without_its_masks_are_said(tmp_path):
    EXPORTS["masks"].write(tmp_path)
    assert "not used" not in find_layout(tmp_path, None)[0]
    shutil.rmtree(tmp_path / "val/masks")
    what, keys = find_layout(tmp_path, None)
    assert what.endswith("label PNGs, but none for the photos in val/images (4 photos), which are not used")
    assert keys["data.split"] == 0.9


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join(f'*{a}' for _ in range(9))}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("name", "file", "content", "match"),
    [
        ("yolo", "data.yaml", "!!python/object/apply:os.system [false]", "data.yaml is no YAML of plain values"),
        ("yolo", "data.yaml", BOMB + "names: *i", "data.yaml: names must be texts by number"),
        ("yolo", "data.yaml", "train: train/images\nnc: 3", "data.yaml has no 'names'"),
        ("yolo", "data.yaml", "train: train/images\nnames: [car, no]", "names must be texts by number: quote"),
        ("yolo", "data.yaml", f"names: [0x{'f' * 5000}]", "names must be texts by number"),
        ("yolo", "data.yaml", f"names: {{? 0x{'f' * 5000} : car}}", "names must be texts by number"),
        ("yolo", "data.yaml", b"\xff\xfe\x00", "data.yaml is no text in UTF-8"),
        (
            "yolo",
            "train/labels/picture 00.txt",
            "7 0 0 1 0 1 1",
            "labels/picture 00.txt:1: class 7 is not among the names of data.yaml: 0: bus, 1: car, 2: traffic cone",
        ),
        (
            "yolo",
            "train/labels/picture 00.txt",
            "1 0.5 0.5 0.2 0.2",
            "labels/picture 00.txt:1.* a box alone is no mask",
        ),
        ("yolo", "train/labels/picture 00.txt", "1 0 0 1 0 1 x", "labels/picture 00.txt:1: expected a class and .* x'"),
        ("yolo", "train/labels/picture 00.txt", "1 0 0 1 0 1", "picture 00.txt:1.* of 3 corners or more"),
        ("yolo", "train/labels/picture 00.txt", "1 0 0 320 0 320 240", "lies far off its image"),
        ("yolo", "train/labels/picture 00.txt", b"\x00\x01", "picture 00.txt is no text in UTF-8"),
        ("yolo", "train/images/picture 00.png", b"GIF", "picture 00.png is no image that can be read"),
        ("cvat", "labelmap.txt", "background:black::", "labelmap.txt has a line that is not name:red,green,blue"),
        ("cvat", "labelmap.txt", "background:0,0,0::\ncar:200,30,30::", "no class for it"),
        ("cvat", "ImageSets/Segmentation/default.txt", "picture 99", "picture 99.png"),
        ("coco", "annotations/instances_train.json", "{", "instances_train.json"),
    ],
)
def test_wrong_inputs_end_in_one_line(name, file, content, match, tmp_path):
    EXPORTS[name].write(tmp_path)
    write(tmp_path / file, content)
    task = [f"task={INSTANCE}"] * (name == "cvat" or file.endswith("json"))
    fails(match, lambda: opened(tmp_path, *task).reader("train"))


@pytest.mark.parametrize("name", ["yolo", "cvat"])
def test_bad_annotations_are_left_out_and_counted(name, tmp_path):
    EXPORTS[name].write(tmp_path)
    if name == "yolo":
        write(tmp_path / "train/labels/picture 00.txt", "1 0.5 0.5 0.2 0.2\n0 0 0 1 0 1 1")
    else:
        write(tmp_path / "SegmentationObject/picture 00.png", b"damaged")
    data = opened(tmp_path, f"task={INSTANCE}", "data.skip_bad=true")
    reader = data.reader("train")
    assert any(line.startswith("data.skip_bad=true leaves out 1: ") for line in data.remarks("train"))
    if name == "yolo":
        assert len(reader.read(0)[1].labels) == 1
    else:
        assert len(reader) + len(data.reader("val")) == 19


def test_heic_photos_beside_others_of_their_names_are_not_read(tmp_path):
    EXPORTS["yolo"].write(tmp_path)
    for name in ("picture 00.heic", "picture 01.HEIF"):
        write(tmp_path / "train/images" / name, b"")
    assert len(opened(tmp_path).reader("train")) == 16


def test_links_are_followed_where_folders_are_looked_for_alone(tmp_path, monkeypatch):
    EXPORTS["coco"].write(tmp_path / "files")
    for split in SPLITS:
        for path in [*(tmp_path / "files/images" / split).iterdir()]:
            (tmp_path / "links" / split).mkdir(parents=True, exist_ok=True)
            (tmp_path / "links" / split / path.name).symlink_to(path)
    asked = Counter()
    is_folder = listing._is_folder
    monkeypatch.setattr(listing, "_is_folder", lambda entry: asked.update([entry.path]) or is_folder(entry))
    folder = listing.DataFolder(tmp_path / "links")
    assert folder.below == ["train", "val"]
    assert len(asked) == 2 + 20
    for split in SPLITS:
        assert folder.names(split)
        assert folder.holds(split)
    assert set(asked.values()) == {1}
    assert not folder.holds("train", (".txt",))
    assert listing.DataFolder(tmp_path).holds("links", (".png",))


def test_the_folder_of_photos_that_a_json_names_otherwise_is_found_below_the_working_directory(tmp_path, monkeypatch):
    write(tmp_path / "data/annotations/instances.json", json.dumps({"images": [{"file_name": "gone.jpg"}]}))
    write(tmp_path / "data/images/a.jpg", photo(2, 2))
    monkeypatch.chdir(tmp_path)
    assert find_layout(Path("data"), None)[1]["data.train.images"] == "images"


def test_what_a_yolo_set_has_too_much_is_said(tmp_path):
    EXPORTS["yolo"].write(tmp_path)
    assert not any("nc:" in line or "no image" in line for line in opened(tmp_path).remarks("train"))
    text = (tmp_path / "data.yaml").read_text()
    write(tmp_path / "data.yaml", text.replace("nc: 3", "nc: 5"))
    for name in ("gone", "classes"):
        write(tmp_path / f"train/labels/{name}.txt", "")
    lines = [*opened(tmp_path).remarks("train")]
    assert "data.yaml says nc: 5, but has 3 names, which are the classes" in lines
    assert "1 label files have no image and are not used: train/labels/gone.txt" in lines
    (tmp_path / "train/labels/gone.txt").unlink()
    assert not any("no image" in line for line in opened(tmp_path).remarks("train"))


def test_classes_of_one_name_are_said_and_can_be_joined(tmp_path):
    EXPORTS["yolo"].write(tmp_path)
    write(tmp_path / "data.yaml", (tmp_path / "data.yaml").read_text().replace("'bus'", "'car'"))
    line = "several classes are called 'car', each with scores of its own; data.merge joins them"
    data = opened(tmp_path)
    assert [*data.remarks("train"), *data.remarks("val")].count(line) == 1
    data = opened(tmp_path, "data.merge={car: [car]}")
    assert data.classes.names == ["car", "traffic cone"]
    assert line not in data.remarks("train")


def test_a_link_to_nothing_is_named(tmp_path):
    EXPORTS["yolo"].write(tmp_path)
    path = tmp_path / "train/images/picture 00.png"
    path.unlink()
    path.symlink_to(tmp_path / "gone.png")
    fails(r"picture 00\.png: it is a link to .*gone\.png, which is not there", opened(tmp_path).reader, "train")


def test_photos_are_turned_as_their_polygons_were_drawn(tmp_path):
    write(tmp_path / "data.yaml", "train: images\nval: images\nnames: [car]")
    photo_file = photo(20, 40, exif=turned(6))  # upright it is 40 high and 20 wide
    write(tmp_path / "images/a.jpg", photo_file)
    write(tmp_path / "labels/a.txt", "0 0 0 1 0 1 0.5 0 0.5")
    for form, size in ((None, (40, 20)), ("upright", (40, 20)), ("stored", (20, 40))):
        image, targets = opened(tmp_path, f"data.exif={form or 'null'}").reader("train").read(0)
        assert image.shape[:2] == size
        assert targets.masks()[0, : size[0] // 2].all()
        assert not targets.masks()[0, size[0] // 2 :].any()


def test_a_changed_label_file_is_read_anew(tmp_path):
    EXPORTS["yolo"].write(tmp_path)
    before = len(opened(tmp_path).reader("train").read(0)[1].labels)
    path = tmp_path / "train/labels/picture 00.txt"
    path.write_text(path.read_text() + "\n0 0 0 1 0 1 1")
    assert len(opened(tmp_path).reader("train").read(0)[1].labels) == before + 1


def test_changed_classes_are_read_anew(tmp_path):
    EXPORTS["cvat"].write(tmp_path)
    typed = f"task={INSTANCE}"
    assert CLASSES[0] in opened(tmp_path, typed).reader("train").classes.names
    path = tmp_path / "labelmap.txt"
    path.write_text(path.read_text().replace(f"{CLASSES[0]}:", "renamed:"))
    assert "renamed" in opened(tmp_path, typed).reader("train").classes.names


def test_a_set_that_is_not_there_is_not_the_whole_folder(tmp_path):
    EXPORTS["yolo"].write(tmp_path)
    path = tmp_path / "data.yaml"
    path.write_text(re.sub("^train: .*", "train: nowhere", path.read_text(), flags=re.MULTILINE))
    keys = find_layout(tmp_path, None)[1]
    assert "nowhere" not in str(keys)
    assert keys["data.train.images"] == keys["data.val.images"] != "."
    assert "data.split" in keys


def test_what_does_not_fit_is_said(tmp_path):
    (tmp_path / "empty").mkdir()
    fails("known here; looked for .*YOLO.*COCO's JSONs.*Pascal VOC", find_layout, tmp_path / "empty", None)
    EXPORTS["yolo"].write(tmp_path / "yolo")
    fails(
        "is a YOLO data set .*task=coco_instance, not for task=folder_semantic",
        find_layout,
        tmp_path / "yolo",
        SEMANTIC,
    )


def test_masks_that_are_no_pngs_are_said(tmp_path):
    for folder in ("images", "masks"):
        write(tmp_path / folder / "a.jpg", photo(20, 40))
    fails("the masks in masks must be PNGs", find_layout, tmp_path, None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "formats"),
    [(INSTANCE, ("coco", "roboflow", "yolo", "yolo lists", "labelme", "voc")), (SEMANTIC, ("masks", "hugging face"))],
)
def test_all_formats_give_the_same_scores(task, formats, tmp_path):
    """Three steps on each format, and a check of it."""
    scores, losses = {}, {}
    for name in formats:
        root = tmp_path / name
        EXPORTS[name].write(root)
        small = [
            *SMALL,
            f"data.root={root}",
            f"task={task}",
            "model=tiny",
            "trainer.devices=1",
            "data.num_workers=0",
        ]
        steps = ["trainer.max_steps=3", f"run_folder={tmp_path}/run {name}", "trainer.max_epochs=9"]
        train.main(composed("train", *prepared("train", [*small, *steps], find_layout)))
        scores[name] = json.loads((tmp_path / f"run {name}" / "metrics.json").read_text())
        losses[name] = logged(tmp_path / f"run {name}")
        checked = [*small, f"run_folder={tmp_path}/check {name}", "pictures=1"]
        check_data.main(composed("check_data", *prepared("check_data", checked, find_layout)))
    for name in scores:
        np.testing.assert_equal(losses[name], losses[formats[0]])
        assert scores[name] == scores[formats[0]]
    assert len(losses[formats[0]]["loss_class/output_1"]) == 3
