"""The COCO panoptic reader on tiny archives of its own and on the shared real ones."""

import io
import json
import pickle
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.readers.coco import CocoPanoptic
from datasets.readers.coco_json import stream_arrays
from eomt.errors import InputError

CATEGORIES = [
    {"id": 200, "name": "sky", "isthing": 0},
    {"id": 300, "name": "dog", "isthing": 1, "color": [1, 2, 3]},
    {"id": 100, "name": "wall", "isthing": 0},
    {"id": 3, "name": "cat", "isthing": 1},
]
DOG, CAT, SKY = 8_941_399, 5, 5  # the last two in different images


def segment(id_, category, crowd=0):
    return {"id": id_, "category_id": category, "iscrowd": crowd, "area": 1, "bbox": [0, 0, 1, 1]}


def picture(height, width, seed=0, mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encode(image, format_, **options):
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def png(id_map):
    ids = np.array(id_map)
    return encode(Image.fromarray(np.stack([ids >> shift & 255 for shift in (0, 8, 16)], -1).astype(np.uint8)), "PNG")


class Tiny:
    """Four images: two segments and void; crowd alone; an annotation without segments; no annotation."""

    def __init__(self):
        self.images = {
            "b.jpg": encode(picture(2, 3), "JPEG"),
            "a.jpg": encode(picture(2, 2, 1), "JPEG"),
            "c.jpg": encode(picture(3, 2, 2), "JPEG"),
            "d.jpg": encode(picture(1, 4, 3), "JPEG"),
            "unnamed.jpg": b"an image that the JSON does not name",
        }
        self.masks = {
            "b.png": png([[SKY, DOG, 0], [SKY, DOG, DOG]]),
            "a.png": png([[CAT, CAT], [CAT, 0]]),
            "c.png": png(np.zeros((3, 2), int)),
        }
        self.json = {
            "info": {"year": 2017, "nested": [1, {"images": []}]},
            "annotations": [
                {"image_id": 30, "file_name": "c.png", "segments_info": []},
                {"image_id": 10, "file_name": "a.png", "segments_info": [segment(CAT, 3, crowd=1)]},
                {
                    "image_id": 20,
                    "file_name": "b.png",
                    "segments_info": [segment(DOG, 300), segment(SKY, 200)],
                },
            ],
            "categories": CATEGORIES,
            "images": [
                {"id": 20, "file_name": "b.jpg", "height": 2, "width": 3},
                {"id": 10, "file_name": "a.jpg", "height": 2, "width": 2},
                {"id": 30, "file_name": "c.jpg", "height": 3, "width": 2},
                {"id": 40, "file_name": "d.jpg", "height": 1, "width": 4},
            ],
        }

    def write(self, root, layout="stored", images="val2017", annotations="panoptic_val2017", text=None):
        text = json.dumps(self.json) if text is None else text
        if layout in ("stored", "deflated"):
            write_zip(root / f"{images}.zip", {f"{images}/{n}": d for n, d in self.images.items()})
            inner = write_zip(io.BytesIO(), {f"{annotations}/{n}": d for n, d in self.masks.items()})
            outer = {
                f"annotations/{annotations}.json": text,
                f"annotations/{annotations}.zip": inner.getvalue(),
            }
            method = zipfile.ZIP_STORED if layout == "stored" else zipfile.ZIP_DEFLATED
            write_zip(root / "panoptic_annotations_trainval2017.zip", outer, method)
            return root
        write_folder(root / images, self.images)
        write_folder(root / "annotations", {f"{annotations}.json": text.encode()})
        if layout == "extracted":
            write_folder(root / "annotations" / annotations, self.masks)
        else:  # the outer archive extracted, the inner one not
            write_zip(root / "annotations" / f"{annotations}.zip", self.masks)
        return root


def write_zip(target, files, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return target


def write_folder(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


@pytest.fixture
def tiny():
    return Tiny()


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("EOMT_CACHE", str(tmp_path_factory.mktemp("cache")))


def check_tiny(data, tiny):
    assert len(data) == 4
    assert data.classes.names == ["cat", "dog", "wall", "sky"]
    assert data.classes.ids == [3, 300, 100, 200]
    assert data.classes.is_thing == [True, True, False, False]
    assert data.classes[1].color == (1, 2, 3)
    assert [data.name(k) for k in range(4)] == ["b.jpg", "a.jpg", "c.jpg", "d.jpg"]
    assert [data.image_id(k) for k in range(4)] == [20, 10, 30, 40]
    assert data.has_targets().tolist() == [True, True, False, False]
    expected = [([1, 3], [False, False]), ([0], [True]), ([], []), ([], [])]
    id_maps = [[[2, 1, 0], [2, 1, 1]], [[1, 1], [1, 0]], np.zeros((3, 2)), np.zeros((1, 4))]
    for k in range(4):
        image, targets = data.read(k)
        assert image.dtype == np.uint8
        assert image.shape == [(2, 3, 3), (2, 2, 3), (3, 2, 3), (1, 4, 3)][k]
        assert image.flags.c_contiguous
        assert image.flags.writeable
        stored = Image.open(io.BytesIO(tiny.images[data.name(k)]))
        np.testing.assert_array_equal(image, np.asarray(stored.convert("RGB")))
        assert targets.ids.dtype == torch.int16
        np.testing.assert_array_equal(targets.ids[0], id_maps[k])
        assert (targets.labels.tolist(), targets.crowd.tolist()) == expected[k]
        targets.labels.zero_(), targets.crowd.zero_()  # the caller's own, not the index's pages


@pytest.mark.parametrize("layout", ["stored", "deflated", "extracted", "half extracted"])
def test_layouts(tmp_path, tiny, layout):
    tiny.write(tmp_path, layout)
    for _ in range(2):  # built, then from the cache
        data = CocoPanoptic(tmp_path, "val")
        check_tiny(data, tiny)
    sent = pickle.dumps(data)
    assert len(sent) < 5000
    check_tiny(pickle.loads(sent), tiny)


def test_names_of_ones_own(tmp_path, tiny):
    tiny.write(tmp_path, "stored", images="photos", annotations="truth")
    check_tiny(CocoPanoptic(str(tmp_path), images="photos", annotations="truth"), tiny)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("absolute", [False, True])
def test_json_of_ones_own(tmp_path, tiny, packed, absolute):
    write_folder(tmp_path / "train", tiny.images)
    write_folder(tmp_path / "truth", {"all.json": json.dumps(tiny.json).encode()})
    path = tmp_path / "truth" / "all.json" if absolute else "truth/all.json"
    own = {"images": "train", "annotations": str(path)}
    with pytest.raises(InputError, match=r"lacks .*truth/all\.json with its PNGs in .*truth/all\.zip or .*truth/all/;"):
        CocoPanoptic(tmp_path, **own)
    if packed:
        write_zip(tmp_path / "truth" / "all.zip", tiny.masks)
    else:
        write_folder(tmp_path / "truth" / "all", tiny.masks)
    check_tiny(CocoPanoptic(tmp_path, **own), tiny)


def test_annotations_of_one_archive_do_not_mix(tmp_path, tiny):
    # The two differ in nothing but their JSON, and one archive holds both.
    tiny.write(tmp_path)
    masks = write_zip(io.BytesIO(), tiny.masks).getvalue()
    files = {"annotations/all.json": json.dumps(tiny.json), "annotations/all.zip": masks}
    tiny.json["images"].pop()
    files |= {"annotations/few.json": json.dumps(tiny.json), "annotations/few.zip": masks}
    write_zip(tmp_path / "panoptic_annotations_trainval2017.zip", files)
    sizes = [len(CocoPanoptic(tmp_path, "val", annotations=name)) for name in ("all", "few", "all")]
    assert sizes == [4, 3, 4]


@pytest.mark.parametrize("layout", ["stored", "extracted", "half extracted"])
def test_changed_files_are_read_anew(tmp_path, tiny, layout):
    assert len(CocoPanoptic(tiny.write(tmp_path, layout), "val")) == 4
    tiny.masks = {"unnamed.png": b"longer than before", **tiny.masks}
    check_tiny(CocoPanoptic(tiny.write(tmp_path, layout), "val"), tiny)
    tiny.json["images"][3]["file_name"] = "unnamed.jpg"
    assert CocoPanoptic(tiny.write(tmp_path, layout), "val").name(3) == "unnamed.jpg"
    del tiny.images["c.jpg"]
    if layout != "stored":
        (tmp_path / "val2017" / "c.jpg").unlink()
    with pytest.raises(InputError, match=r"c\.jpg is missing"):
        CocoPanoptic(tiny.write(tmp_path, layout), "val")


def test_moved_archives_need_no_new_index(tmp_path, tiny, monkeypatch):
    (tmp_path / "one").mkdir()
    CocoPanoptic(tiny.write(tmp_path / "one"), "val")
    (tmp_path / "one").rename(tmp_path / "two")
    monkeypatch.setattr("datasets.readers.coco.build_panoptic_index", None)
    check_tiny(CocoPanoptic(tmp_path / "two", "val"), tiny)


TURNED = Image.Exif()
TURNED[0x112] = 6  # to be shown turned by 90 degrees


@pytest.mark.parametrize(
    ("mode", "format_", "options"),
    [
        ("L", "JPEG", {}),
        ("CMYK", "JPEG", {}),
        ("RGB", "JPEG", {"exif": TURNED}),
        ("P", "PNG", {}),
        ("RGBA", "PNG", {}),
    ],
)
def test_other_colours_and_no_turning(tmp_path, tiny, mode, format_, options):
    tiny.images["b.jpg"] = encode(picture(2, 3, 5, mode), format_, **options)
    image, _ = CocoPanoptic(tiny.write(tmp_path), "val").read(0)
    assert image.shape == (2, 3, 3)
    if options:
        assert Image.open(io.BytesIO(tiny.images["b.jpg"])).getexif()[0x112] == 6
    if mode == "L":
        assert (image == image[..., :1]).all()


# Bad input


def fails(root, match, read=None):
    def attempt():
        data = CocoPanoptic(root, "val")
        if read is not None:
            data.read(read)

    with pytest.raises(InputError, match=match) as caught:
        attempt()
    assert "\n" not in str(caught.value)


def test_missing_root_and_archives(tmp_path, tiny):
    fails(tmp_path / "nowhere", r"data\.root: .*nowhere is no folder; .*val2017\.zip and panoptic_annotations")
    both = (
        r"lacks val2017\.zip or val2017/ and panoptic_annotations_trainval2017\.zip with "
        r"annotations/panoptic_val2017\.json"
    )
    fails(tmp_path, both)
    tiny.write(tmp_path)
    (tmp_path / "val2017.zip").unlink()
    fails(tmp_path, r"lacks val2017\.zip or val2017/; download")
    tiny.write(tmp_path)
    with pytest.raises(InputError, match=r"panoptic_train2017\.json"):
        CocoPanoptic(tmp_path, "train", images="val2017")


@pytest.mark.parametrize("name", ["val2017.zip", "panoptic_annotations_trainval2017.zip"])
def test_cut_archive(tmp_path, tiny, name):
    path = tiny.write(tmp_path) / name
    path.write_bytes(path.read_bytes()[:-400])
    fails(tmp_path, rf"{name} is no complete zip archive.*download it again")


def first_segment(json_, annotation):
    return json_["annotations"][annotation]["segments_info"][0]


JSON_FAULTS = {
    "image file not there": (
        lambda j: j["images"][1].update(file_name="x.jpg"),
        r"x\.jpg is missing, and 0 more of 4",
    ),
    "png not there": (
        lambda j: j["annotations"][0].update(file_name="x.png"),
        r"x\.png is missing, and 0 more of 3",
    ),
    "image id twice": (lambda j: j["images"][1].update(id=20), "image id 20 stands 2 times"),
    "file name twice": (
        lambda j: j["images"][1].update(file_name="b.jpg"),
        r"file name b\.jpg stands 2 times",
    ),
    "unknown image": (
        lambda j: j["annotations"][1].update(image_id=11),
        r"annotation a\.png .* unknown image id 11",
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
    "no height": (lambda j: j["images"][1].pop("height"), r"an entry of 'images' lacks 'height': .*a\.jpg"),
    "instances": (lambda j: j["annotations"][0].pop("segments_info"), r"annotation c\.png lacks 'segments_info'"),
    "id of text": (lambda j: j["images"][1].update(id="berlin_7"), "'images' cannot be read .*berlin_7"),
    "no file name": (lambda j: j["images"][1].update(file_name=None), "'images' cannot be read .*file name"),
    "row of text": (lambda j: j["images"].append("d.jpg"), "'images' cannot be read"),
    "no images": (lambda j: j["images"].clear() or j["annotations"].clear(), "names no images"),
    "no categories": (lambda j: j.update(categories=[]), "at least one class"),
    "category twice": (lambda j: j["categories"].append(CATEGORIES[0]), "category id 200 .* more than once"),
    "category of text": (lambda j: j["categories"].append("sky"), "a category needs an id and a name, found sky"),
    "category of 5 colours": (
        lambda j: j["categories"].append({"id": 5, "name": "x", "color": [1, 2, 3, 4, 5]}),
        r"the color of the category .* must be \[red, green, blue\]",
    ),
    "colour out of range": (
        lambda j: j["categories"].append({"id": 5, "name": "x", "color": [1, 2, 256]}),
        r"the color of the category .* must be \[red, green, blue\]",
    ),
    "category id of text": (
        lambda j: j["categories"].append({"id": "5", "name": "x"}),
        "the id of the category .* must be a whole number",
    ),
    "id of 64 bits": (lambda j: j["images"][1].update(id=10**30), "'images' cannot be read"),
    "a side that no image has": (lambda j: j["images"][1].update(height=10**9), "height must be .* at most 1048576"),
    "segments of text": (lambda j: j["annotations"][0].update(segments_info="x"), "c.png cannot be read"),
    "no key": (lambda j: j.pop("annotations"), "has no 'annotations'"),
    "no array": (lambda j: j.update(images={}), r"is not valid JSON \(expected \["),
}


@pytest.mark.parametrize("fault", JSON_FAULTS)
def test_contradictions_in_the_json(tmp_path, tiny, fault):
    break_, match = JSON_FAULTS[fault]
    tiny.json["categories"] = list(CATEGORIES)
    break_(tiny.json)
    files = r"(panoptic_annotations_trainval2017|val2017)\.zip.*"
    fails(tiny.write(tmp_path), files + match)


DIGITS, DEEP = "9" * 5000, "[" * 100_000
BROKEN = [f'{{"images": [{{"id": {DIGITS}', f'{{"info": {DEEP}', f'{{"images": [{DEEP}']
BROKEN += ["", "{", '{"images": [{"id": 1', "[]", '{"info": [1 2]}', '{"a" 1}', "\0", "{}"]


@pytest.mark.parametrize("text", BROKEN, ids=lambda text: text[:20])
def test_broken_json(tmp_path, tiny, text):
    fails(tiny.write(tmp_path, text=text), r"panoptic_val2017\.json (is not valid JSON|has no)")


def png_of(ids):
    return lambda tiny: tiny.masks.update({"b.png": png(ids)})


IMAGE_FAULTS = {
    "png without a segment": (
        png_of([[SKY, SKY, 0], [0, 0, 0]]),
        f"b.png .*b.jpg.* no pixel with the id {DOG}",
    ),
    "png with an unknown id": (png_of([[SKY, DOG, 9], [0, 9, 0]]), r"b.png .*b.jpg.* the id 9 on 2 pixels"),
    "png of another size": (png_of([[SKY, DOG]]), r"b.png is 2x1 .*its image .*b.jpg is 3x2"),
    "png without colours": (
        lambda t: t.masks.update({"b.png": encode(picture(2, 3, mode="L"), "PNG")}),
        "red, green and blue, but its mode is L",
    ),
    "png broken": (lambda t: t.masks.update({"b.png": t.masks["b.png"][:50]}), "b.png .* cannot be decoded"),
    "png empty": (lambda t: t.masks.update({"b.png": b""}), "b.png .* cannot be decoded"),
    "image of another size": (
        lambda t: t.images.update({"b.jpg": encode(picture(3, 2), "JPEG")}),
        r"b.jpg is 2x3 .*JSON says 3x2",
    ),
    "image cut": (lambda t: t.images.update({"b.jpg": t.images["b.jpg"][:-20]}), "b.jpg cannot be decoded"),
    "image of text": (lambda t: t.images.update({"b.jpg": b"<html>404</html>"}), "b.jpg cannot be decoded"),
}


@pytest.mark.parametrize("layout", ["stored", "extracted"])
@pytest.mark.parametrize("fault", IMAGE_FAULTS)
def test_bad_images(tmp_path, tiny, fault, layout):
    break_, match = IMAGE_FAULTS[fault]
    break_(tiny)
    fails(tiny.write(tmp_path, layout), match, read=0)
    CocoPanoptic(tmp_path, "val").read(1)


def test_ids_without_any_segment_in_the_json(tmp_path, tiny):
    tiny.masks["c.png"] = png([[0, 0], [0, 4], [0, 0]])
    fails(tiny.write(tmp_path), r"c\.png .* has the id 4 on 1 pixels", read=2)


def test_file_taken_away_later(tmp_path, tiny):
    data = CocoPanoptic(tiny.write(tmp_path, "extracted"), "val")
    (tmp_path / "val2017" / "a.jpg").unlink()
    with pytest.raises(InputError, match=r"cannot read .*a\.jpg"):
        data.read(1)


# The JSON in pieces


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_json_in_pieces(size):
    wanted = [{"n": 'ü\n"[', "v": [1, {}]}, 2.5, -17, None, "x", []]
    value = {"number": 12345, "a": wanted, "skip": {"a": [1]}, "b": [], "c": 1}
    text = b"\xef\xbb\xbf" + json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"
    pieces = [text[k : k + size] for k in range(0, len(text), size)]
    assert list(stream_arrays(pieces, ["a", "b"], "file")) == [("a", element) for element in wanted]


def test_json_is_not_held_whole():
    pending = {"now": 0, "most": 0}

    def chunks():
        yield b'{"a": ['
        for _ in range(2000):
            pending["now"] += 1
            pending["most"] = max(pending["most"], pending["now"])
            yield b'"' + b"x" * 100 + b'",'
        yield b"0]}"

    for _ in stream_arrays(chunks(), ["a"], "file"):
        pending["now"] -= 1
    assert pending["most"] < 10


def test_an_element_that_would_fill_the_memory_is_refused():
    chunks = (b'{"a": ["' if k == 0 else b"x" * (1 << 20) for k in range(200))
    with pytest.raises(InputError, match=r"file is not valid JSON \(an element of more than 32 MB"):
        list(stream_arrays(chunks, ["a"], "file"))
    assert next(chunks)


# Real data


@pytest.fixture(scope="module", params=["train", "val"])
def real(request, shared_data, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EOMT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield request.param, CocoPanoptic(shared_data / "coco", request.param)


def test_published_classes_of_coco(real):
    classes = real[1].classes
    assert len(classes) == 133
    assert classes.is_thing == [True] * 80 + [False] * 53
    assert classes.ids[:80] == sorted(classes.ids[:80])
    assert classes.ids[80:] == sorted(classes.ids[80:])
    names = classes.names
    assert (names[0], names[79], names[80], names[132]) == ("person", "toothbrush", "banner", "rug-merged")


def test_real_images_agree_with_plain_reading(real, shared_data):
    split, data = real
    with zipfile.ZipFile(shared_data / "coco" / "panoptic_annotations_trainval2017.zip") as outer:
        truth = json.loads(outer.read(f"annotations/panoptic_{split}2017.json"))
        inner = zipfile.ZipFile(io.BytesIO(outer.read(f"annotations/panoptic_{split}2017.zip")))
    rows = {row["image_id"]: row for row in truth["annotations"]}
    class_of = {id_: k for k, id_ in enumerate(data.classes.ids)}
    crowds = 0
    assert len(data) == len(truth["images"]) == 8
    for k in range(len(data)):
        row = rows[data.image_id(k)]
        image, targets = data.read(k)
        with inner.open(f"panoptic_{split}2017/{row['file_name']}") as file:
            ids = np.asarray(Image.open(file)).astype(int) @ [1, 256, 65536]
        assert image.shape == (*ids.shape, 3)
        segments = row["segments_info"]
        assert targets.labels.tolist() == [class_of[s["category_id"]] for s in segments]
        assert targets.crowd.tolist() == [bool(s["iscrowd"]) for s in segments]
        for mask, s in zip(targets.masks().numpy(), segments, strict=True):
            assert mask.sum() == s["area"]
            np.testing.assert_array_equal(mask, ids == s["id"])
        crowds += targets.crowd.sum().item()
    assert crowds == {"train": 1, "val": 2}[split]
