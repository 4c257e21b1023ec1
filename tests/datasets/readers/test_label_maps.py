"""Label PNGs as ground truth: decoding, matching of files, a user's own folders, the built-in set."""

import io
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from datasets.files.decode import decode_color_map, decode_label_map
from datasets.files.source import Folder
from datasets.readers.folder import FolderSemantic
from datasets.readers.label_maps import VOID, LabelMaps, LabelTable, PairedFiles
from datasets.shapes.dataset import CATEGORIES, shapes_panoptic, shapes_semantic
from eomt.classes import Classes
from eomt.errors import InputError
from tests.label_files import check_classes, encoded, label_png, narrow_png, photo, write_folder, write_zip

NAMES = ["road", "car", "sky"]
VALUES = np.array([[0, 1, 1, 255], [2, 0, 1, 255], [255, 255, 0, 0]])


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("EOMT_CACHE", str(tmp_path_factory.mktemp("cache")))


class Own:
    """Three images with labels: of all classes, of one, and of void alone; one of them in a folder."""

    def __init__(self):
        self.images = {"b.jpg": photo(3, 4), "deep/a.PNG": photo(2, 3, 1, "PNG"), "c.jpeg": photo(2, 2, 2)}
        self.labels = {
            "b.png": label_png(VALUES),
            "deep/a.png": label_png(np.full((2, 3), 2)),
            "c.png": label_png(np.full((2, 2), 255)),
        }

    def write(self, root, zipped=False):
        for name, files in (("photos", self.images), ("truth", self.labels)):
            if zipped:
                write_zip(root / f"{name}.zip", {f"{name}/{member}": data for member, data in files.items()})
            else:
                write_folder(root / name, files)
        return root


@pytest.fixture
def own():
    return Own()


def open_own(root, **options):
    return FolderSemantic(root, **({"images": "photos", "labels": "truth", "classes": NAMES} | options))


def check_own(data, own):
    assert len(data) == 3
    assert data.classes.names == NAMES
    assert data.classes.ids == [0, 1, 2]
    assert data.has_targets().tolist() == [True] * 3
    assert [data.name(k) for k in range(3)] == ["b.jpg", "c.jpeg", "deep/a.PNG"]
    assert [data.image_id(k) for k in range(3)] == [1, 2, 3]
    for k, expected in enumerate([np.where(VALUES == 255, VOID, VALUES), np.full((2, 2), VOID), np.full((2, 3), 2)]):
        image, targets = data.read(k)
        assert image.flags.c_contiguous
        assert image.flags.writeable
        np.testing.assert_array_equal(image, np.asarray(Image.open(io.BytesIO(own.images[data.name(k)]))))
        check_classes(targets, expected)


@pytest.mark.parametrize("zipped", [False, True])
def test_own_folders_and_archives(tmp_path, own, zipped):
    own.write(tmp_path, zipped)
    for _ in range(2):  # built, then from the cache
        check_own(open_own(tmp_path), own)
    check_own(open_own(str(tmp_path), images="photos.zip" if zipped else "photos/"), own)
    sent = pickle.dumps(open_own(tmp_path))
    assert len(sent) < 5000
    check_own(pickle.loads(sent), own)


@pytest.mark.slow
def test_a_spawned_process_reads_the_same(tmp_path, own):
    data = open_own(own.write(tmp_path, zipped=True))
    (tmp_path / "reader").write_bytes(pickle.dumps(data))
    code = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')).read(0)[1].ids.tolist())"
    run = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "reader"], cwd=Path(__file__).parents[3], capture_output=True, text=True
    )
    assert run.stdout.strip() == str(data.read(0)[1].ids.tolist()), run.stderr


def test_what_systems_leave_behind_is_not_read(tmp_path, own):
    own.images |= {"__MACOSX/._b.jpg": b"", "._c.jpeg": b"", "Thumbs.db": b"", "notes.txt": b""}
    own.labels |= {".hidden.png": b"", "__MACOSX/._b.png": b""}
    check_own(open_own(own.write(tmp_path, zipped=True)), own)


def test_changed_files_are_found_anew_and_moved_ones_need_no_new_index(tmp_path, own, monkeypatch):
    open_own(own.write(tmp_path / "one"))
    own.images["d.jpg"], own.labels["d.png"] = photo(1, 1), label_png([[1]])
    assert len(open_own(own.write(tmp_path / "one"))) == 4
    (tmp_path / "one").rename(tmp_path / "two")
    monkeypatch.setattr("datasets.readers.label_maps._pair_columns", None)
    assert len(open_own(tmp_path / "two")) == 4


def test_labels_without_an_image_are_left_out_with_a_warning(tmp_path, own, caplog):
    own.labels["extra.png"] = label_png([[0]])
    check_own(open_own(own.write(tmp_path)), own)
    assert "1 files of ground truth have no image" in caplog.text
    assert "extra.png" in caplog.text


# Decoding


def indexed(values, **options):
    image = Image.fromarray(np.array(values, dtype=np.uint8)).convert("P")
    image = Image.frombytes("P", image.size, np.array(values, dtype=np.uint8).tobytes())
    image.putpalette([200, 30, 7] * 256)  # colours that say nothing
    return encoded(image, **options)


BITS = np.array([[0, 1, 1], [1, 0, 0]])
NIBBLES = np.array([[0, 1, 15, 7], [3, 2, 0, 9]])
WIDE = np.array([[0, 255, 256], [65535, 40000, 1]])


@pytest.mark.parametrize(
    ("data", "values"),
    [
        (label_png(VALUES), VALUES),
        (indexed(VALUES), VALUES),
        (indexed(NIBBLES, bits=4), NIBBLES),
        (narrow_png(NIBBLES, 4), NIBBLES),
        (narrow_png(NIBBLES % 4, 2), NIBBLES % 4),
        (narrow_png(BITS, 1), BITS),
        (encoded(Image.fromarray(BITS.astype(bool))), BITS),
        (label_png(WIDE, np.uint16), WIDE),
    ],
    ids=["8 bit", "palette", "4-bit palette", "4 bit", "2 bit", "1 bit", "mode 1", "16 bit"],
)
def test_label_values_are_as_stored(data, values):
    decoded = decode_label_map(data, "x.png")
    assert decoded.dtype in (np.uint8, np.uint16)
    np.testing.assert_array_equal(decoded, values)


def test_colours_of_every_kind_of_png():
    pixels = np.array([[[1, 2, 3], [255, 0, 7]], [[0, 0, 0], [1, 2, 3]]], dtype=np.uint8)
    codes = pixels.astype(np.uint32) @ np.array([1, 256, 65536], dtype=np.uint32)
    image = Image.fromarray(pixels)
    for kind in (image, image.convert("RGBA"), image.quantize(4)):
        np.testing.assert_array_equal(decode_color_map(encoded(kind), "x.png"), codes)
    grey = decode_color_map(label_png([[0, 9]]), "x.png")
    assert grey.tolist() == [[0, 0x090909]]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (photo(2, 2, kind="PNG"), r"x\.png must be a grey or palette PNG, .* but its mode is RGB"),
        (photo(2, 2), r"x\.png must be a PNG, but it is a JPEG"),
        (label_png(VALUES)[:-30], r"x\.png cannot be decoded"),
        (b"", r"x\.png cannot be decoded"),
    ],
)
def test_no_label_png(data, message):
    with pytest.raises(InputError, match=message):
        decode_label_map(data, "x.png")


# Values and colours


def test_more_classes_than_a_byte_holds(tmp_path, own):
    own.labels["b.png"] = label_png([[0, 255, 256, 999], [1, 0, 998, 300], [999, 999, 2, 65535]], np.uint16)
    names = [f"class {k}" for k in range(1000)]
    data = open_own(own.write(tmp_path), classes=names, ignore=65535)
    _, targets = data.read(0)
    check_classes(targets, np.array([[0, 255, 256, 999], [1, 0, 998, 300], [999, 999, 2, VOID]]))
    assert len(data.classes) == 1000
    with pytest.raises(InputError, match=r"data\.ignore=255 is also the value of the class 'class 255'"):
        open_own(tmp_path, classes=names)


def test_several_values_may_stand_for_one_class(tmp_path, own):
    root = own.write(tmp_path)
    files = PairedFiles(Folder(root / "photos"), [".jpg"], [(Folder(root / "truth"), ".png")])
    data = LabelMaps(
        files, Classes.from_categories([{"id": 9, "name": "a"}]), LabelTable({0: 0, 1: VOID, 2: 0, 255: VOID}, "")
    )
    check_classes(data.read(0)[1], np.where((VALUES == 0) | (VALUES == 2), 0, VOID))


RED, GREEN, WHITE, BLACK = [255, 0, 0], [0, 255, 0], [255] * 3, [0] * 3
COLORED = [{"name": "fire", "color": RED}, {"name": "leaf", "color": GREEN, "isthing": 1}]


def colored(own, pixels):
    own.images = {"b.jpg": own.images["b.jpg"]}
    own.labels = {"b.png": label_png(pixels)}


@pytest.mark.parametrize(
    ("void", "ignore"), [(WHITE, 255), (BLACK, 0), (BLACK, [0, 0, 0]), ([1, 2, 3], [BLACK, [1, 2, 3]])]
)
def test_colours_name_classes(tmp_path, own, void, ignore):
    colored(own, [[RED, void, GREEN, RED], [void] * 4, [GREEN] * 4])
    data = open_own(own.write(tmp_path), classes=COLORED, ignore=ignore, color_labels=True)
    assert [(c.name, c.color, c.is_thing) for c in data.classes] == [
        ("fire", (255, 0, 0), False),
        ("leaf", (0, 255, 0), True),
    ]
    check_classes(data.read(0)[1], np.array([[0, VOID, 1, 0], [VOID] * 4, [1] * 4]))


FORMS = {
    "names": ["a", "b", "c"],
    "mapping": {2: "c", 0: "a", 1: "b"},
    "entries": [{"id": 1, "name": "b"}, {"id": 0, "name": "a"}, {"id": 2, "name": "c"}],
    "entries without ids": [{"name": "a"}, {"name": "b"}, {"name": "c"}],
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_classes(tmp_path, own, form):
    own.write(tmp_path)
    (tmp_path / "own.json").write_text(json.dumps(FORMS[form]))
    for spec in (FORMS[form], OmegaConf.create({"classes": FORMS[form]}).classes, "own.json", tmp_path / "own.json"):
        classes = open_own(tmp_path, classes=spec).classes
        assert [(c.id, c.name, c.is_thing) for c in classes] == [(0, "a", False), (1, "b", False), (2, "c", False)]
        assert len({c.color for c in classes}) == 3


def test_classes_of_a_text_file_and_gaps(tmp_path, own):
    own.labels["b.png"] = label_png(np.where(VALUES == 2, 70, VALUES))
    del own.images["deep/a.PNG"]
    own.write(tmp_path)
    (tmp_path / "classes.txt").write_text("\ufeffroad\ncar \nsky\n\n", encoding="utf-8")
    assert open_own(tmp_path, classes="classes.txt").classes.names == NAMES
    data = open_own(tmp_path, classes={0: "road", 1: "car", 70: "sky"}, ignore=[255, 71])
    assert data.classes.ids == [0, 1, 70]
    check_classes(data.read(0)[1], np.where(VALUES == 255, VOID, VALUES))


# Bad input


def fails(match, root, read=None, **options):
    def attempt():
        data = open_own(root, **options)
        if read is not None:
            data.read(read)

    with pytest.raises(InputError, match=match) as caught:
        attempt()
    assert "\n" not in str(caught.value)


def test_classes_not_given(tmp_path, own):
    own.write(tmp_path)
    fails(
        r"data\.classes is not set: the first 3 label files hold the values 0, 1, 2, 255; .*\"0\": \"name of 0\"",
        tmp_path,
        classes=None,
    )
    colored(own, [[RED, RED, RED, GREEN]] * 3)
    own.write(tmp_path / "two")
    fails(
        r'hold the colours \[255, 0, 0\], \[0, 255, 0\]; .*"color": \[255, 0, 0\]',
        tmp_path / "two",
        classes=None,
        color_labels=True,
    )


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([], "data.classes holds no classes"),
        (7, "data.classes holds no classes"),
        ({}, "data.classes holds no classes"),
        (["a", "b", "a"], "the name a stands for 2 classes"),
        (["a", "", "c"], "the name of the class {'id': 1, 'name': ''} must be text"),
        (["a", False], "the name of the class .*False.* must be text; quote it"),
        ([{"id": 1, "name": "a"}, {"name": "b"}], "1 of 2 classes have an id"),
        ([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "the id 1 stands for 2 classes"),
        ({"x": "a"}, "the id of the class {'id': 'x', .* must be a whole number"),
        ({-1: "a"}, "the id of the class .* must be a whole number, 0 to 65535"),
        ([{"name": "a", "color": [0, 0, 256]}], r"the color of the class .* must be \[red, green, blue\]"),
        ([{"name": "a", "isthing": 2}], "the isthing of the class .* must be 0 or 1"),
        ([{"name": "a", "colour": [0, 0, 0]}], "has the unknown key 'colour'"),
        ([{"id": 3}], "has no name"),
        ("nowhere.txt", r"cannot read .*nowhere\.txt: No such file.*counts from data\.root"),
        ("broken.json", r"broken\.json is no JSON"),
        ("empty.txt", r"empty\.txt holds no classes"),
        ("latin.txt", r"latin\.txt is no text in UTF-8"),
    ],
)
def test_bad_classes(tmp_path, own, classes, message):
    own.write(tmp_path)
    write_folder(tmp_path, {"broken.json": b'["a"', "empty.txt": b"\n\n", "latin.txt": "Stra\xdfe".encode("latin-1")})
    fails(message, tmp_path, classes=classes)


@pytest.mark.parametrize("ignore", ["255", -1, 70000, [True], 2.0, [[0, 0, 0]]])
def test_bad_ignore(tmp_path, own, ignore):
    fails(r"data\.ignore=.* must be a value of the label files", own.write(tmp_path), ignore=ignore)


def test_bad_colours(tmp_path, own):
    colored(own, [[RED, BLACK, GREEN, [1, 2, 3]]] * 3)
    own.write(tmp_path)

    def bad(match, classes=COLORED, ignore=0, **options):
        fails(match, tmp_path, classes=classes, ignore=ignore, color_labels=True, **options)

    bad(r"b\.png has the colour \[1, 2, 3\], but no class for it: add what it stands for to data\.classes, or", read=0)
    bad("the class 'b' has no color", classes=[{"name": "a", "color": RED}, {"name": "b"}])
    bad(r"the color \[255, 0, 0\] stands for 2 classes", classes=[{"name": n, "color": RED} for n in "ab"])
    bad(r"data\.ignore=\[255, 0, 0\] is also the colour of the class 'fire'", ignore=RED)
    bad(r"data\.ignore=256 must be a colour", ignore=256)
    bad(r"data\.ignore=\[0, 255\] must be a colour", ignore=[0, 255])
    fails("must be a grey or palette PNG", tmp_path, read=0)


def test_bad_files(tmp_path, own):
    fails(r"data\.root is not set", None)
    fails(r"data\.root: .*nowhere is no folder", tmp_path / "nowhere")
    fails("images: there is neither a folder .*photos nor an archive", tmp_path)
    own.write(tmp_path)
    fails("labels of data.train or data.val is not set", tmp_path, labels=None)
    fails("labels: there is neither a folder .*masks nor an archive", tmp_path, labels="masks")
    (tmp_path / "void").mkdir()
    fails(r"there are no images .*void/\*\.jpg or \*\.jpeg", tmp_path, images="void")
    fails(
        r"3 of 3 images in .*photos have no ground truth: .*void/b\.png is missing, the file of b\.jpg",
        tmp_path,
        labels="void",
    )
    own.images["b.png"] = photo(3, 4, kind="PNG")
    fails(r"photos has both b\.jpg and b\.png", own.write(tmp_path))


def test_bad_label_files_are_named(tmp_path, own):
    own.labels["b.png"] = label_png(np.where(VALUES == 2, 17, VALUES))
    own.labels["c.png"] = label_png(np.zeros((2, 3)))
    own.labels["deep/a.png"] = own.labels["deep/a.png"][:-30]
    own.write(tmp_path)
    fails(
        r"truth/b\.png has the value 17, but no class for it: add what it stands for to data\.classes, or ",
        tmp_path,
        0,
    )
    fails(r"truth/c\.png is 3x2 \(width x height\), but its image .*photos/c\.jpeg is 2x2", tmp_path, 1)
    fails(r"deep/a\.png cannot be decoded", tmp_path, 2)
    fails(r"truth/b\.png has the values 1, 17, but no class", own.write(tmp_path), 0, classes=["road"])


def test_a_damaged_archive_is_named(tmp_path, own):
    path = own.write(tmp_path, zipped=True) / "truth.zip"
    data = path.read_bytes()
    at = data.index(own.labels["b.png"]) + 45
    path.write_bytes(data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :])
    fails(r"truth\.zip: b\.png does not match its checksum: the archive is damaged", tmp_path, 0)
    path.write_bytes(data[:-100])
    fails(r"truth\.zip is no complete zip archive", tmp_path)


# The built-in dataset


def test_built_in_semantic_agrees_with_panoptic(tmp_path):
    options = {"seed": 5, "train_images": 6, "val_images": 3, "size": 40}
    for split, count in (("train", 6), ("val", 3)):
        data, panoptic = shapes_semantic(split, **options), shapes_panoptic(split, **options)
        assert (len(data), data.classes) == (count, panoptic.classes)
        assert len(data.classes) == len(CATEGORIES) == 13
        for k in range(count):
            (image, targets), (other, whole) = data.read(k), panoptic.read(k)
            np.testing.assert_array_equal(image, other)
            expected = np.append(whole.labels.numpy(), VOID)[whole.ids[0].numpy() - 1]
            check_classes(targets, expected)
    with pytest.raises(InputError, match=r"lacks train2017\.zip or semantic_trainval2017\.zip: set data\.root=null"):
        shapes_semantic("train", root=tmp_path)
