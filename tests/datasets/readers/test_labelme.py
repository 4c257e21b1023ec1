"""LabelMe's JSONs: shapes of all types, and files that are none."""

import base64
import json

import numpy as np
import pytest

from datasets.readers.coco import CocoInstance, CocoPanoptic
from tests.label_files import fails, label_png, photo, turned, write_folder

SIZE = (20, 30)


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("EOMT_CACHE", str(tmp_path_factory.mktemp("cache")))


def shape(kind="polygon", points=((2, 2), (12, 2), (12, 9)), label="car", **more):
    return {"label": label, "points": [list(point) for point in points], "shape_type": kind, **more}


def mask(pixels, left, top):
    code = base64.b64encode(label_png(pixels)).decode()
    height, width = np.shape(pixels)
    return shape("mask", [(left, top), (left + width - 1, top + height - 1)], mask=code)


def written(root, shapes, **more):
    document = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": "a.jpg", "imageData": None, **more}
    return write_folder(
        root, {"a.jpg": photo(*SIZE), "a.json": json.dumps(document).encode(), "b.jpg": photo(*SIZE, 1)}
    )


def opened(root, **options):
    return CocoInstance(root, images=".", annotations=".", format="labelme", **options)


def test_each_type_of_shape(tmp_path):
    dot = np.array([[1, 0], [1, 1]])
    shapes = [
        shape("rectangle", [(12, 9), (2, 3)]),
        shape("circle", [(15, 10), (15, 4)], "ball"),
        mask(dot, 5, 7),
        shape(None, [(1, 1), (5, 1), (5, 5)], "ball", group_id=0),
        shape("polygon", [(9, 9), (13, 9), (13, 13)], "ball", group_id=0),
        shape("polygon", [(20, 2), (28, 2), (28, 6)], "car", group_id=0),
        mask(dot, 8, 12) | {"group_id": 0},
        shape("linestrip"),
        shape("point", [(1, 1)], "spot"),
        shape(label="__ignore__"),
    ]
    reader = opened(written(tmp_path, shapes))
    assert reader.classes.names == ["ball", "car"]
    image, targets = reader.read(0)
    assert image.shape == (*SIZE, 3)
    masks = targets.masks().numpy()
    assert [reader.classes.names[label] for label in targets.labels] == ["car", "ball", "car", "ball", "car"]
    assert np.argwhere(masks[0]).min(0).tolist() == [3, 2]
    assert masks[0].sum() == 60
    assert masks[1].sum() == pytest.approx(np.pi * 36, abs=3)
    np.testing.assert_array_equal(masks[2][7:9, 5:7], dot)
    assert masks[2].sum() == 3
    assert masks[3][2, 4]
    assert masks[3][10, 12]
    np.testing.assert_array_equal(masks[4][12:14, 8:10], dot)
    assert masks[4][3, 26]
    lines = reader.remarks()
    assert "1 images have no JSON and are not used: b.jpg" in lines
    kinds = "1 of the label __ignore__, 1 of the type linestrip, 1 of the type point"
    assert f"3 shapes are no objects and left out: {kinds}" in lines


def test_photos_are_upright_and_other_jsons_left_alone(tmp_path):
    written(tmp_path, [shape()], imageWidth=None)
    turned_photo = photo(30, 20, exif=turned(6))
    write_folder(tmp_path, {"a.jpg": turned_photo, "coco.json": b'{"images": []}', "list.json": b"[1]"})
    reader = opened(tmp_path)
    assert reader.read(0)[0].shape == (*SIZE, 3)
    assert any("2 JSONs" in line for line in reader.remarks())


@pytest.mark.parametrize(
    ("broken", "match"),
    [
        ({"points": [[1, 2], [3]]}, r"a.json: shape 2: its points must be a list of \[x, y\]"),
        ({"points": [["1", 2], [3, 4], [4, 5]]}, "shape 2: a corner of its polygon is no number"),
        ({"points": [[float("nan"), 2], [3, 4], [4, 5]]}, "shape 2: a corner of its polygon is NaN or infinite"),
        ({"points": [[1e300, 2], [-1e300, 4]], "shape_type": "circle"}, "shape 2: "),
        ({"points": [[1, 2], [3, 4]]}, "shape 2: a polygon is .* of 3 corners or more"),
        ({"points": None}, "shape 2: its points must be"),
        ({"shape_type": "star"}, "shape 2: the type 'star' of 3 points is none that is read"),
        ({"label": ["x"]}, "shape 2: it must be an object with a label, a text"),
        ({"shape_type": "mask"}, "shape 2: it lacks 'mask'"),
        (mask(np.ones((2, 2)), 29, 3), r"shape 2: its box \[29, 3, 30, 4\] is not within its image of 30x20"),
        (mask(np.ones((2, 2)), 2, 3) | {"mask": "?"}, "shape 2: "),
        (mask(np.ones((2, 2)), 2, 3) | {"mask": "R0lG"}, "shape 2: its mask is no PNG of 2x2"),
        (mask(np.ones((2, 2)), 2, 3) | {"points": [[2, 3], [2, 3]]}, "shape 2: its mask is no PNG of 1x1"),
    ],
)
def test_broken_shapes_are_named_and_can_be_left_out(broken, match, tmp_path):
    written(tmp_path, [shape(), shape() | broken])
    fails(match, opened, tmp_path)
    reader = opened(tmp_path, skip_bad=True)
    assert len(reader.read(0)[1].labels) == 1
    assert len(reader.left_out()) == 1


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ({"a.json": b"{"}, "a.json is no JSON"),
        ({"a.json": b"[" * 100_000}, "a.json is no JSON"),
        ({"a.json": b"\xff\xfe"}, "a.json is no text in UTF-8"),
        ({"a.json": b'{"shapes": {}, "imagePath": "a.jpg"}'}, "a.json: shapes must be a list"),
        ({"a.json": b'{"shapes": [], "imagePath": 3}'}, "a.json: imagePath must be a text"),
        ({"c.json": b'{"shapes": [], "imagePath": "c.jpg"}'}, "c.json: its image 'c.jpg' is missing"),
        ({"c.json": b'{"shapes": [], "imagePath": "a.jpg"}'}, "c.json and .*a.json are both of the image a.jpg"),
        ({"a.jpg": b"GIF"}, "a.jpg is no image that can be read"),
    ],
)
def test_files_that_are_none_end_in_one_line(files, match, tmp_path):
    written(tmp_path, [shape()])
    write_folder(tmp_path, files)
    fails(match, opened, tmp_path)


def test_a_photo_of_another_size_is_read_anew(tmp_path):
    written(tmp_path, [shape()])
    assert opened(tmp_path).read(0)[0].shape[:2] == SIZE
    write_folder(tmp_path, {"a.jpg": photo(40, 60)})
    assert opened(tmp_path).read(0)[0].shape[:2] == (40, 60)


def test_heic_photos_beside_others_of_their_names_are_not_read(tmp_path):
    written(tmp_path, [shape()], imagePath="gone.png")
    reader = opened(write_folder(tmp_path, {"a.heic": b"", "other/a.heic": b"", "b.HEIC": b""}))
    assert reader.name(0) == "a.jpg"
    found, bare = (next(line for line in reader.remarks() if word in line) for word in ("are found", "no JSON"))
    assert found == "1 images are found by their JSONs' names, the first: a.jpg for 'gone.png'"
    assert "a.heic" not in bare.replace("other/a.heic", "")
    assert "b.HEIC" not in bare


def test_shapes_that_may_overlap_are_not_panoptic(tmp_path):
    root = written(tmp_path, [shape()])
    fails("task=coco_instance reads them", CocoPanoptic, root, images=".", annotations=".", format="labelme")
