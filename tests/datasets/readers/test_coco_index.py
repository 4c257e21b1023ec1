"""Indices of COCO's JSONs: contradictions are found, by name, before any image is read."""

import logging

import pytest

from datasets.readers.coco import CocoInstance, CocoPanoptic
from eomt.errors import InputError
from tests.coco_files import DOG, SQUARE, InstanceSet, PanopticSet, mask_code, segment
from tests.label_files import fails


def custom(root):
    return CocoInstance(root, images="train", annotations="truth/train.json")


# Faults of both formats, by what breaks a JSON and the end of the message.
COMMON_FAULTS = {
    "image file not there": (lambda j: j["images"][1].update(file_name="x.jpg"), r"x\.jpg is missing"),
    "image id twice": (lambda j: j["images"][1].update(id=j["images"][0]["id"]), r"image id \d+ stands more than once"),
    "file name twice": (
        lambda j: j["images"][1].update(file_name=j["images"][0]["file_name"]),
        r"file name '.\.jpg' stands more than once",
    ),
    "image id of a list": (lambda j: j["images"][1].update(id=["b_3"]), r"image \['b_3'\]: id must be .*b_3"),
    "image id of 1.5": (lambda j: j["images"][1].update(id=1.5), "image 1.5: id must be .* 1.5"),
    "image id of a switch": (lambda j: j["images"][1].update(id=True), "image True: id must be .* True"),
    "image id of 10 MB": (lambda j: j["images"][1].update(id="x" * 10**7), "image 'x*: id must be"),
    "no file name": (lambda j: j["images"][1].update(file_name=None), r"image \d+: a file name was expected"),
    "half a character": (lambda j: j["images"][1].update(file_name="\ud800"), r"image \d+: .*surrogates not allowed"),
    "height 0": (lambda j: j["images"][1].update(height=0), "height must be at least 1"),
    "a side that no image has": (lambda j: j["images"][1].update(height=10**9), "height must be .* at most 1048576"),
    "no images": (lambda j: j["images"].clear() or j["annotations"].clear(), "it names no images"),
    "no categories": (lambda j: j["categories"].clear(), "at least one class"),
    "category twice": (lambda j: j["categories"].append(j["categories"][0]), "category id .* more than once"),
    "category of text": (
        lambda j: j["categories"].append("sky"),
        "(a category needs.*sky|the entry 'sky' of 'categories': )",
    ),
    "category id of text": (
        lambda j: j["categories"].append({"id": "five", "name": "x"}),
        "the id of the category .* must",
    ),
    "category without a name": (
        lambda j: j["categories"].append({"id": 5, "name": None}),
        "the name of the category .* must be a text",
    ),
    "category without a name, the root of others": (
        lambda j: j["categories"].append({"id": 5, "supercategory": "none"}),
        "a category needs an id and a name, found {'id': 5, 'supercategory': 'none'",
    ),
    "category of a terminal's command": (
        lambda j: j["categories"].append({"id": 5, "name": "\x1b[2Jx"}),
        r"the name of the category .*\\x1b.* controls a terminal",
    ),
    "category of half a character": (
        lambda j: j["categories"].append({"id": 5, "name": "\ud800"}),
        r"the name of the category .*\\ud800.* or is no text",
    ),
    "colour of 5 numbers": (
        lambda j: j["categories"].append({"id": 5, "name": "x", "color": [1, 2, 3, 4, 5]}),
        r"the color of the category .* must be \[red, green, blue\]",
    ),
    "no annotations key": (lambda j: j.pop("annotations"), "has no 'annotations'"),
    "no categories key": (lambda j: j.pop("categories"), "has no 'categories'"),
    "no images key": (lambda j: j.pop("images"), "has no 'images'"),
    "no array": (lambda j: j.update(images={}), "'images' must be a list, found {}"),
    "no array but null": (lambda j: j.update(annotations=None), "'annotations' must be a list, found null"),
    "annotation of text": (lambda j: j["annotations"].append("x"), "the entry 'x' of 'annotations': "),
}


def rle(size, counts):
    return first(segmentation={"size": size, "counts": counts})


def first(**changes):
    return lambda j: j["annotations"][0].update(changes)


MASK = "annotation 11: .*"
INSTANCE_FAULTS = {
    "no id": (lambda j: j["annotations"][0].pop("id"), "of 'annotations': it lacks 'id'"),
    "id twice": (lambda j: j["annotations"][0].update(id=14), "annotation id 14 stands more than once"),
    "unknown image": (first(image_id=8), MASK + "to the unknown image id 8; the first image has the id 7"),
    "image of text": (first(image_id="seven"), MASK + "belongs to the unknown image id 'seven'"),
    "unknown category": (first(category_id=3), "annotation 11 of the image a.jpg has the category id 3, which"),
    "category 1.5": (first(category_id=1.5), MASK + "category_id must be a whole number, found 1.5"),
    "crowd of text": (first(iscrowd="no"), MASK + "iscrowd must be 0 or 1, found 'no'"),
    "area below 0": (first(area=-1), MASK + "area must be a number of at least 0, found -1"),
    "area of true": (first(area=True), MASK + "area must be a number of at least 0, found True"),
    "area of NaN": (first(area=float("nan")), MASK + "area must be a number of at least 0, found nan"),
    "no segmentation": (lambda j: j["annotations"][0].pop("segmentation"), MASK + "a box alone is no mask"),
    "no polygon": (first(segmentation=[]), MASK + "a box alone is no mask"),
    "text": (first(segmentation="x.png"), MASK + r"polygons or run lengths, found 'x\.png'"),
    "two corners": (first(segmentation=[[0, 0, 9, 9]]), MASK + r"3 corners or more, found \[0, 0, 9, 9\]"),
    "second polygon empty": (first(segmentation=[SQUARE, []]), MASK + r"3 corners or more, found \[\]"),
    "odd polygon": (first(segmentation=[[0, 0, 9, 9, 1, 2, 3]]), MASK + "3 corners"),
    "corner of nothing": (first(segmentation=[[0, 0, 9, None, 1, 2]]), MASK + "a corner"),
    "corner of text": (first(segmentation=[["0", "0", "9", "0", "9", "9"]]), MASK + "a corner .* no number"),
    "corner of true": (first(segmentation=[[0, 0, 9, True, 9, 9]]), MASK + "a corner .* no number"),
    "corner of NaN": (
        first(segmentation=[[0, 0, 9, float("nan"), 9, 9]]),
        MASK + "a corner .* NaN or infinite: .0, 0, 9, nan",
    ),
    "polygon within no list": (first(segmentation=[0, 0, 9, 0, 9, 9]), MASK + "3 corners"),
    "outside": (first(segmentation=[[-9, -9, -2, -9, -2, -2]]), MASK + "outside its image of 30x20"),
    "corner far off": (first(segmentation=[[0, 0, 9, 1e9, 1, 2]]), MASK + "a corner .* image of 30x20"),
    "runs of another size": (rle([30, 20], [600]), MASK + r"of size \[30, 20\], its image is of \[20, 30\]"),
    "runs without a size": (first(segmentation={"counts": [600]}), MASK + "it lacks 'size'"),
    "too few": (rle([20, 30], [100, 499]), MASK + "do not make up 600 pixels"),
    "negative": (rle([20, 30], [700, -100]), MASK + r"must lie within 0\.\.600"),
    "fraction": (rle([20, 30], [100.5, 499.5]), MASK + "must be whole numbers"),
    "true for one": (rle([20, 30], [599, True]), MASK + "must be whole numbers"),
    "compressed too few": (rle([20, 30], mask_code((20, 29), 0)["counts"]), MASK + "do not make up 600 pixels"),
    "compressed cut": (rle([20, 30], mask_code((20, 30), 0)["counts"][:-1]), MASK + "do not make up 600 pixels"),
    "compressed of other letters": (rle([20, 30], "~~~"), MASK + "no compressed code"),
    "runs of nothing": (rle([20, 30], None), MASK),
}


def first_segment(json_, annotation):
    return json_["annotations"][annotation]["segments_info"][0]


PANOPTIC_FAULTS = {
    "png not there": (
        lambda j: j["annotations"][0].update(file_name="x.png"),
        r"x\.png is missing",
    ),
    "unknown image": (
        lambda j: j["annotations"][1].update(image_id=11),
        r"annotation 'a\.png': .* unknown image id 11",
    ),
    "two annotations": (
        lambda j: j["annotations"][1].update(image_id=20),
        r"the image b\.jpg has more than one annotation",
    ),
    "unknown category": (
        lambda j: first_segment(j, 2).update(category_id=8),
        rf"segment {DOG} of the image b\.jpg has the category id 8, which is not in 'categories'",
    ),
    "segment id twice": (
        lambda j: j["annotations"][2]["segments_info"].append(segment(DOG, 3)),
        rf"segment {DOG} of the image b\.jpg has an id that stands more than once",
    ),
    "segment id 0": (
        lambda j: first_segment(j, 1).update(id=0),
        r"segment 0 of the image a\.jpg .* no PNG colour",
    ),
    "segment id too large": (
        lambda j: first_segment(j, 1).update(id=1 << 24),
        r"segment 16777216 of the image a\.jpg .* no PNG colour",
    ),
    "isthing of text": (lambda j: j["categories"][0].update(isthing="yes"), "isthing must be 0 or 1, found 'yes'"),
    "instances": (lambda j: j["annotations"][0].pop("segments_info"), r"annotation 'c\.png': it lacks 'segments_info'"),
    "segments of text": (lambda j: j["annotations"][0].update(segments_info="x"), "c.png': "),
    "segments of no list": (lambda j: j["annotations"][0].update(segments_info={}), "segments_info must be a list"),
}


@pytest.mark.parametrize("fault", COMMON_FAULTS | INSTANCE_FAULTS)
def test_faults_of_an_instance_json(tmp_path, fault):
    made = InstanceSet()
    break_, match = (COMMON_FAULTS | INSTANCE_FAULTS)[fault]
    break_(made.json)
    fails(r"(train\.json|train/).*" + match, custom, made.write(tmp_path))


@pytest.mark.parametrize("fault", COMMON_FAULTS | PANOPTIC_FAULTS)
def test_faults_of_a_panoptic_json(tmp_path, fault):
    made = PanopticSet()
    break_, match = (COMMON_FAULTS | PANOPTIC_FAULTS)[fault]
    break_(made.json)
    made.write(tmp_path)
    fails(r"(panoptic_annotations_trainval2017|val2017)\.zip.*" + match, CocoPanoptic, tmp_path, "val")


@pytest.mark.parametrize("keys", [["images", "annotations", "categories"], ["categories", "annotations", "images"]])
@pytest.mark.parametrize("made", [InstanceSet(), PanopticSet()], ids=["instance", "panoptic"])
def test_order_of_the_json(tmp_path, made, keys, monkeypatch, caplog):
    monkeypatch.setattr("datasets.readers.coco_index._REPORT_EVERY", 4)
    instance = isinstance(made, InstanceSet)
    readers = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        with caplog.at_level(logging.INFO, "datasets"):
            root = made.write(tmp_path / name)
            readers.append(custom(root) if instance else CocoPanoptic(root, "val"))
        made.json = {key: made.json[key] for key in keys}
    for name in ("image_id", "segment_end", "label", "crowd"):
        assert readers[0]._index.column(name).tolist() == readers[1]._index.column(name).tolist()
    assert "building the index" in caplog.text
    assert ("4 annotations of" in caplog.text) == instance


def test_many_faults_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.readers.faults.MOST_DETAILS", 3)
    made = InstanceSet()
    for row in made.json["annotations"]:
        row["category_id"] = 3
    with pytest.raises(
        InputError, match=r"train\.json has 6 faults, which .* annotation 11 .*; and 3 more; data\.skip_bad=true leaves"
    ) as caught:
        custom(made.write(tmp_path))
    assert len(caught.value.details) == 4
    assert caught.value.details[-1] == "and 3 more"


def test_more_objects_than_targets_can_number(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.readers.coco_index.MAX_SEGMENTS", 3)
    fails(r"the image a\.jpg has 4 annotations, more than 3", custom, InstanceSet().write(tmp_path))
