"""Folders of images and label PNGs: matching of files, values, colours, bad input."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from datasets.readers.folder import FolderSemantic
from datasets.readers.label_maps import VOID
from tests import label_files
from tests.label_files import check_classes, label_png, photo, write_set

NAMES = ["road", "car", "sky"]
VALUES = np.array([[0, 1, 1, 255], [2, 0, 1, 255], [255, 255, 0, 0]])


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
            write_set(root, name, files, zipped)
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


def test_what_systems_leave_behind_is_not_read(tmp_path, own):
    own.images |= {"__MACOSX/._b.jpg": b"", "._c.jpeg": b"", "Thumbs.db": b"", "notes.txt": b""}
    own.labels |= {".hidden.png": b"", "__MACOSX/._b.png": b""}
    check_own(open_own(own.write(tmp_path, zipped=True)), own)


def test_heic_photos_beside_others_of_their_names_are_not_read(tmp_path, own):
    own.images = {"b.HEIC": b"", "b.heif": b"", "deep/a.heic": b""} | own.images
    check_own(open_own(own.write(tmp_path)), own)


def test_changed_files_are_found_anew_and_moved_ones_need_no_new_index(tmp_path, own, monkeypatch):
    open_own(own.write(tmp_path / "one"))
    own.images["d.jpg"], own.labels["d.png"] = photo(1, 1), label_png([[1]])
    assert len(open_own(own.write(tmp_path / "one"))) == 4
    (tmp_path / "one").rename(tmp_path / "two")
    monkeypatch.setattr("datasets.readers.label_maps._pair_columns", None)
    assert len(open_own(tmp_path / "two")) == 4


def test_accents_written_in_two_ways_are_one_name(tmp_path, own):
    own.images["cafe\u0301.jpg"], own.labels["caf\xe9.png"] = photo(1, 1), label_png([[2]])
    data = open_own(own.write(tmp_path))
    assert [data.name(k) for k in range(4)] == ["b.jpg", "c.jpeg", "cafe\u0301.jpg", "deep/a.PNG"]
    assert data.read(2)[1].labels.tolist() == [2]


def test_labels_without_an_image_are_left_out_and_named(tmp_path, own):
    own.labels["extra.png"] = label_png([[0]])
    own.write(tmp_path)
    for _ in range(2):  # built, then from the cache
        data = open_own(tmp_path)
        check_own(data, own)
        assert data.remarks()[0] == "1 files of ground truth have no image and are not used: extra.png"


def test_photos_of_a_kind_that_is_not_read_are_said(tmp_path, own):
    own.images["d.CR2"], own.labels["d.png"] = b"II*", label_png([[0]])
    for split in ("train", "val"):  # one index serves both
        line = open_own(own.write(tmp_path / split)).remarks()[0]
        assert line.endswith("not used: d.png; 1 other files lie beside the images, the first: d.CR2")
    own.images = {"d.CR2": b"II*"}
    fails(r"no images .*\.gif.*; 1 other files are there, the first: d\.CR2", own.write(tmp_path / "none"))


def test_label_files_of_other_names_are_said(tmp_path, own):
    own.labels = {name.replace(".png", "_mask.png"): data for name, data in own.labels.items()}
    fails(r"but for the ending \.png; 3 other files are there, the first: b_mask\.png", own.write(tmp_path))


def test_nothing_is_said_of_classes_in_label_files_that_cannot_be_read(tmp_path, own):
    own.labels = dict.fromkeys(own.labels, label_png([[77, 0]]))
    assert open_own(own.write(tmp_path)).remarks() == []


def test_values_of_16_bits(tmp_path, own):
    own.labels["b.png"] = label_png([[0, 255, 256, 999], [1, 0, 998, 300], [999, 999, 2, 65535]], np.uint16)
    names = [f"class {k}" for k in range(1000)]
    data = open_own(own.write(tmp_path), classes=names, ignore=65535)
    check_classes(data.read(0)[1], np.array([[0, 255, 256, 999], [1, 0, 998, 300], [999, 999, 2, VOID]]))
    fails(r"data\.ignore=255 is also the value of the class 'class 255'", tmp_path, classes=names, ignore=255)
    fails("32768 classes, more than 32767", tmp_path, classes=[f"class {k}" for k in range(32768)], ignore=65535)


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


def test_classes_of_a_file_and_gaps(tmp_path, own):
    own.labels["b.png"] = label_png(np.where(VALUES == 2, 70, VALUES))
    del own.images["deep/a.PNG"]
    own.write(tmp_path)
    (tmp_path / "classes.txt").write_text("road\ncar\nsky\n")
    assert open_own(tmp_path, classes="classes.txt").classes.names == NAMES
    data = open_own(tmp_path, classes={0: "road", 1: "car", 70: "sky"}, ignore=[255, 71])
    assert data.classes.ids == [0, 1, 70]
    check_classes(data.read(0)[1], np.where(VALUES == 255, VOID, VALUES))


def test_a_list_of_names(tmp_path, own):
    own.images["\xe9.jpg"], own.labels["\xe9.png"] = photo(3, 4), label_png(VALUES)
    own.write(tmp_path)
    (tmp_path / "names.txt").write_text("deep/a\ne\u0301\n", encoding="utf-8")  # as macOS writes it
    data = open_own(tmp_path, names="names.txt")
    assert [data.name(k) for k in range(len(data))] == ["deep/a.PNG", "\xe9.jpg"]
    (tmp_path / "names.txt").write_text("\n")
    fails("names.txt names no images", tmp_path, names="names.txt")


# Bad input


def fails(match, root, read=None, **options):
    def attempt():
        data = open_own(root, **options)
        if read is not None:
            data.read(read)

    label_files.fails(match, attempt)


def test_classes_not_given(tmp_path, own):
    own.write(tmp_path)
    fails(
        r"data\.classes is not set: the first 3 of 3 label files hold the values 0, 1, 2, 255; .*\"0\": \"name of 0\"",
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
    fails(r"b\.png holds colours.*data\.color_labels=true", tmp_path, read=0)


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
        r"3 of 3 images in .*photos have no ground truth in .*void: b\.jpg, c\.jpeg, deep/a\.PNG; ground truth has the",
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
