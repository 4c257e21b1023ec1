"""Checking datasets: sound ones pass, and each kind of defect is named."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import check_data
from datasets.check.report import KINDS
from eomt.errors import InputError
from tests.label_files import label_png, photo, turned, write_folder
from tests.memory_reader import MemoryReader
from tests.running import ROOT, configured

COMMON = ("data.num_workers=0", "data.image_size=64", "pictures=2")


def checked(folder, *overrides):
    """The report, and the message with which the check ended."""
    message = None
    try:
        check_data.main(configured(folder, *COMMON, *overrides, name="check_data"))
    except InputError as error:
        message = str(error)
    return json.loads((folder / "report.json").read_text()), message


def found(report, kind, split=None):
    """Names to what is the matter, of one kind of finding."""
    items = report["findings"].get(kind, {"items": []})["items"]
    return {item["name"]: item["what"] for item in items if split in (None, item["split"])}


def lines(report, kind, split):
    return [item["what"] for item in report["findings"][kind]["items"] if item["split"] == split]


@pytest.mark.parametrize("kind", ["panoptic", "instance", "semantic"])
def test_sound_sets_pass(kind, shapes, tmp_path, caplog):
    caplog.set_level("INFO", logger="eomt")
    report, message = checked(tmp_path, f"task=shapes_{kind}", f"data.root='{shapes}'")
    assert message is None
    assert report["errors"] == 0
    # Pictures of 48 pixels have small parts, some have no object, and a few show a crowd.
    assert report["findings"].keys() <= {"no_segment", "tiny_segment", "crowd", "remark"}
    assert {split: row["images"] for split, row in report["sets"].items()} == {"train": 24, "val": 10}
    assert len(report["classes"]) == (8 if kind == "instance" else 13)
    for split in ("train", "val"):
        shares = [row[split]["pixels_percent"] for row in report["classes"]]
        assert sum(shares) + report["sets"][split]["unlabelled_percent"] == pytest.approx(100, abs=0.01)
        with Image.open(tmp_path / f"contact_{split}.png") as picture:
            assert min(picture.size) > 700
    assert "crescent" in caplog.text
    assert "no errors" in caplog.text


def test_the_histogram_counts_what_is_there(shapes, tmp_path):
    from datasets.readers.coco import CocoPanoptic

    report, _ = checked(tmp_path, "task=shapes_panoptic", f"data.root='{shapes}'", "split=train", "pictures=0")
    assert not list(tmp_path.glob("*.png"))
    assert list(report["sets"]) == ["train"]
    reader = CocoPanoptic(shapes, "train")
    targets = [reader.read(index)[1] for index in range(len(reader))]
    for k, row in enumerate(report["classes"]):
        mine = [t.masks()[(t.labels == k) & ~t.crowd] for t in targets]
        assert row["name"] == reader.classes[k].name
        assert row["train"]["segments"] == sum(map(len, mine))
        assert row["train"]["images"] == sum(len(masks) > 0 for masks in mine)
        assert row["train"]["pixels"] == sum(int(masks.sum()) for masks in mine)


def square(left, top, side):
    right, bottom = left + side, top + side
    return [[left, top, right, top, right, bottom, left, bottom]]


def row(number, image, polygons, category=1, **more):
    return {"id": number, "image_id": image, "category_id": category, "segmentation": polygons, **more}


def image_row(number, name, height=48, width=64):
    return {"id": number, "file_name": name, "height": height, "width": width}


CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


def write_coco(root, split, images, annotations, files, categories=CATEGORIES):
    value = {"images": images, "annotations": annotations, "categories": categories}
    write_folder(root / split, files)
    write_folder(root, {f"{split}.json": json.dumps(value).encode()})


def coco(root):
    names = [f"data.{split}.{key}={split}{end}" for split in ("train", "val") for key, end in KEYS.items()]
    return ("task=coco_instance", "model=tiny", f"data.root='{root}'", *names)


KEYS = {"images": "", "annotations": ".json"}


def odd_set(root):
    """Everything that is odd but no error, in one instance set."""
    shapes = {"small.jpg": (20, 30), "long.jpg": (40, 400), "turned.jpg": (48, 64)}
    names = ["fine", "bare", "crowd", "empty", "tiny", "many", "outside", "polygon", "box", "nobox", "area", "copy"]
    sizes = {f"{name}.jpg": (48, 64) for name in names} | shapes
    files = {name: photo(*size, seed=k) for k, (name, size) in enumerate(sizes.items())}
    files["copy.jpg"] = files["fine.jpg"]
    files["turned.jpg"] = photo(64, 48, seed=50, exif=turned(6))
    images = [image_row(k, name, *size) for k, (name, size) in enumerate(sizes.items())]
    number = {row["file_name"]: row["id"] for row in images}
    good = {name: row(100 + k, k, square(2, 2, 12), bbox=[2, 2, 12, 12], area=144) for name, k in number.items()}
    del good["bare.jpg"]
    good["crowd.jpg"]["iscrowd"] = 1
    good["empty.jpg"]["segmentation"] = {"size": [48, 64], "counts": [48 * 64]}
    good["tiny.jpg"] |= row(200, number["tiny.jpg"], square(2, 2, 3), bbox=[2, 2, 3, 3], area=9)
    good["outside.jpg"] |= {"segmentation": square(52, 36, 12), "bbox": [52, 36, 20, 12]}
    good["polygon.jpg"] |= {"segmentation": square(-20, 0, 32), "bbox": [0, 0, 12, 32], "area": 384}
    good["box.jpg"]["bbox"] = [2, 2, 14, 30]
    good["nobox.jpg"]["bbox"] = [2, 2]
    good["area.jpg"]["area"] = 1440
    many = [row(300 + k, number["many.jpg"], square(3 * k, 30, 5)) for k in range(3)]  # they overlap
    write_coco(root, "train", images, [*good.values(), *many], files | {"left.jpg": photo(8, 8)})
    (root / "train" / "broken").symlink_to("nothing")
    leak = [image_row(1, "seen.jpg"), image_row(2, "own.jpg")]
    here = {"seen.jpg": files["fine.jpg"], "own.jpg": photo(48, 64, 99), "notes.txt": b"no image"}
    write_coco(root, "val", leak, [row(1, 1, square(2, 2, 12)), row(2, 2, square(2, 2, 12), 2)], here)


def test_every_oddity_is_named_and_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setenv("EOMT_CACHE", str(tmp_path / "cache"))
    odd_set(tmp_path / "set")
    report, message = checked(tmp_path / "run", *coco(tmp_path / "set"), "model.num_queries=3")
    assert message is None
    assert report["errors"] == 0
    expected = {
        "leak": {"seen.jpg": "fine.jpg of train"},
        "duplicate": {"copy.jpg": "fine.jpg"},
        "no_segment": {"bare.jpg": "no segment", "crowd.jpg": "only crowd"},
        "crowd": {"crowd.jpg": "cat"},
        "remark": {"": "2 of 15 images have no segment, or crowds alone: left out; data.keep_empty=true trains"},
        "empty_segment": {"empty.jpg": "cat"},
        "tiny_segment": {"tiny.jpg": "cat of 9 pixels"},
        "many_segments": {"many.jpg": "4 segments, the network has 3 queries"},
        "small_image": {"small.jpg": "30 x 20"},
        "long_image": {"long.jpg": "400 x 40"},
        "exif": {"turned.jpg": "orientation 6, turned upright"},
        "outside": {
            "outside.jpg": "the box of cat [52, 36, 72, 48]",
            "polygon.jpg": "the polygon of cat [-20, 0, 12, 32]",
        },
        "box": {
            "box.jpg": "cat has the box [2, 2, 16, 32], its mask [2, 2, 14, 14]",
            "nobox.jpg": "no [left, top, width, height]: cat",
            "outside.jpg": "its mask [52, 36, 64, 48]",
        },
        "area": {"area.jpg": "area 1440, its mask 144 pixels"},
        "unseen_class": {"dog": "no image"},
        "unused_file": {
            str(tmp_path / "set" / "train" / "left.jpg"): "nothing refers to it",
            str(tmp_path / "set" / "train" / "broken"): "a link to nothing",
        },
    }
    assert report["findings"].keys() == expected.keys()
    elsewhere = {"left_out", "unknown_id", "no_pixels", "reduced"}
    assert expected.keys() | elsewhere == {kind for kind, (level, _) in KINDS.items() if level == "warning"}
    for kind, names in expected.items():
        here = found(report, kind, "train" if kind == "remark" else None)
        assert here.keys() == names.keys(), kind
        for name, what in names.items():
            assert what in here[name], name
    assert found(report, "unseen_class", "train") == found(report, "unseen_class")
    assert report["classes"][0]["train"]["images"] == 15 - 3, "all but bare, crowd and empty"
    report, _ = checked(tmp_path / "first", *coco(tmp_path / "set"), "data.max_images=9")
    assert report["sets"]["train"]["images"] == 9
    assert found(report, "box").keys() == {"box.jpg", "outside.jpg"}
    assert len(found(report, "unused_file")) == 2


def test_all_faults_of_an_instance_json_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("EOMT_CACHE", str(tmp_path / "cache"))
    images = [image_row(k, f"{k}.jpg") for k in range(5)]
    rows = [
        row(1, 0, square(2, 2, 12)),
        row(1, 1, square(2, 2, 12)),
        row(2, 77, square(2, 2, 12)),
        row(3, 88, square(2, 2, 12)),
        row(4, 1, square(2, 2, 12), category=9),
        row(5, 1, [[1, 2, 3, 4]]),
        row(6, 1, []),
    ]
    write_coco(tmp_path, "train", images, rows, {"0.jpg": photo(48, 64), "1.jpg": photo(48, 64, 1)})
    twice = [*images, image_row(0, "x.jpg"), image_row(9, "2.jpg"), image_row(1, "y.jpg")]
    write_coco(tmp_path, "val", twice, [], {"0.jpg": b"", "x.jpg": b"", "y.jpg": b""})
    report, message = checked(tmp_path / "run", *coco(tmp_path))
    assert "the check found 20 errors and 0 warnings" in message
    faults = "\n".join(lines(report, "not_opened", "train"))
    for what in ("2.jpg is missing", "3.jpg is missing", "4.jpg is missing", "image id 77", "image id 88"):
        assert what in faults
    for what in ("annotation id 1 stands more", "category id 9", "annotation 5: ", "annotation 6: "):
        assert what in faults
    faults = "\n".join(lines(report, "not_opened", "val"))
    for what in ("image id 0 stands", "image id 1 stands", "file name '2.jpg' stands", "3.jpg is missing"):
        assert what in faults
    assert report["classes"] == []


@pytest.mark.slow
def test_a_folder_by_the_command_line_with_two_workers(tmp_path, monkeypatch):
    """It exits with status 1 and one line of error."""
    monkeypatch.setenv("EOMT_CACHE", str(tmp_path / "cache"))
    values = np.repeat([[0, 1, 255]], 40, axis=0).repeat(20, axis=1)
    for split in ("train", "val"):
        names = ("a", "b", "c")
        write_folder(tmp_path / "images" / split, {f"{n}.jpg": photo(40, 60, k) for k, n in enumerate(names)})
        write_folder(tmp_path / "labels" / split, {f"{n}.png": label_png(values) for n in names})
    (tmp_path / "labels" / "train" / "b.png").write_bytes(label_png(values + (values == 1)))
    (tmp_path / "labels" / "train" / "left.png").write_bytes(label_png(values))
    for name in ("a", "c"):
        (tmp_path / "labels" / "val" / f"{name}.png").unlink()
    overrides = ["task=folder_semantic", "model=tiny", f"data.root={tmp_path}", "data.classes=[sky,sea]", "pictures=1"]
    command = [sys.executable, str(ROOT / "check_data.py"), *overrides, "data.num_workers=2", "data.image_size=64"]
    done = subprocess.run(
        [*command, f"hydra.run.dir={tmp_path}/run"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: the check found 3 errors")
    assert "Traceback" not in done.stderr
    assert "b.png has the value 2" in done.stdout
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert found(report, "unreadable").keys() == {"b.jpg"}
    missing = lines(report, "not_opened", "val")
    assert len(missing) == 2
    assert "a.png is missing" in missing[0]
    assert "c.png is missing" in missing[1]
    for name in ("a", "c"):
        (tmp_path / "labels" / "val" / f"{name}.png").write_bytes(label_png(values))
    report, _ = checked(tmp_path / "mended", *[o for o in overrides if "root" not in o], f"data.root='{tmp_path}'")
    assert report["errors"] == 1
    assert list(found(report, "unused_file")) == [str(tmp_path / "labels" / "train" / "left.png")]
    assert found(report, "leak").keys() == {"a.jpg", "c.jpg"}


def test_where_no_image_can_be_read_that_alone_is_said(tmp_path):
    write_coco(tmp_path, "train", [image_row(1, "a.jpg")], [row(1, 1, square(1, 1, 9))], {"a.jpg": b"ftypheic"})
    write_coco(tmp_path, "val", [image_row(1, "b.jpg")], [row(1, 1, square(1, 1, 9))], {"b.jpg": photo(48, 64)})
    report, _ = checked(tmp_path, *coco(tmp_path), "split=train")
    assert "convert it to JPEG or PNG" in found(report, "unreadable")["a.jpg"]
    assert report["findings"].keys() <= {"unreadable", "remark"}


def test_names_ids_and_classes_that_clash(tmp_path, monkeypatch):
    class Clashing(MemoryReader):
        def name(self, index):
            return f"image{index // 2}"

        def image_id(self, index):
            return min(index, 2)

    other = [{"id": 1, "name": "else"}, *({"id": k, "name": f"class {k}"} for k in range(2, 7))]
    readers = {"train": Clashing(4, bare=range(4)), "val": MemoryReader(3, categories=other)}
    monkeypatch.setattr("datasets.module.SegmentationData.reader", lambda self, split: readers[split])
    report, message = checked(tmp_path, "task=shapes_panoptic")
    assert found(report, "same_identity").keys() == {"image0", "image1", "2"}
    assert "6 classes where data.train has 5" in found(report, "different_classes")[""]
    assert found(report, "nothing_to_train", "train")
    assert message.startswith("the check found 5 errors")
    assert {row["name"] for row in report["classes"]} == {"else", *(f"class {k}" for k in range(7))}
    assert not (tmp_path / "contact_train.png").exists()


@pytest.mark.parametrize("override", ["split=test", "pictures=-1", "shown=many", "data.num_workers=two"])
def test_values_out_of_range(override, tmp_path):
    with pytest.raises(InputError, match=override.partition("=")[0].replace("data.", "")):
        check_data.main(configured(tmp_path, override, name="check_data"))


@pytest.mark.slow
def test_a_check_leaves_its_own_folder_alone(shapes, tmp_path):
    options = [f"data.root={shapes}", "task=shapes_panoptic", "data.max_images=4", "pictures=0"]
    subprocess.run([sys.executable, ROOT / "check_data.py", *options], cwd=tmp_path, check=True)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["check"]
    assert len(list((tmp_path / "runs").glob("check/*/report.json"))) == 1
