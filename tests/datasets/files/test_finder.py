"""Files found under the names that tools of other people and systems write."""

import unicodedata
import zipfile

import pytest

from datasets.files.archive import find_source
from datasets.files.finder import FileFinder
from tests.label_files import write_folder

ACCENT = unicodedata.normalize("NFD", "caf\xe9 noir.jpg")
FILES = {"x.jpg": b"", "sub/y.jpg": b"", "sub/deep/1.JPG": b"", "a/1.png": b"", "b/1.png": b"", ACCENT: b""}
FILES |= {"100%.jpg": b"", ".trash/y.jpg": b"", "aachen/aachen_000000_000019_leftImg8bit.png": b""}

# The file found, or the end of the message.
SILENT = {
    "x.jpg": "x.jpg",
    "./x.jpg": "x.jpg",
    ".//sub/../x.jpg": "x.jpg",
    "../train/x.jpg": "x.jpg",
    "train/sub/y.jpg": "sub/y.jpg",
    "../images/train/x.jpg": "x.jpg",
    "images\\train\\sub\\y.jpg": "sub/y.jpg",
    "ROOT/images/train/sub/y.jpg": "sub/y.jpg",
    "100%.jpg": "100%.jpg",
}
GUESSED = {
    "X.JPG ": "x.jpg",
    "y.jpg": "sub/y.jpg",
    "cafe\u0301%20noir.jpg": ACCENT,
    "caf\xe9 noir.jpg": ACCENT,
    "C:\\Users\\me\\photos\\x.jpg": "x.jpg",
    "/data/upload/3/y.jpg": "sub/y.jpg",
    "/home/b/1.png": "b/1.png",
    "https://host/bucket/a/1.png?token=b/1.png#x": "a/1.png",
    "file:///C:/caf%C3%A9%20noir.jpg": ACCENT,
    "exported/x.jpg": "x.jpg",
    "aachen_000000_000019_gtFine_leftImg8bit.png": "aachen/aachen_000000_000019_leftImg8bit.png",
}
REFUSED = {
    "z.jpg": "z.jpg is missing",
    "1.png": "may be .*a/1.png or .*b/1.png",
    "c/1.png": "missing",
    "/data/1.png": "may be",
    "sub/x.png": "missing",
    "..": "missing",
    "https://[host": "missing",
    "%00": "missing",
    "\0": "missing",
    "../val/x.jpg": "val/x.jpg, not in .*images/train",
    "val/x.jpg": "val/x.jpg, not in ",
    "ROOT/images/val/x.jpg": "val/x.jpg, not in",
    "../../../secret.jpg": "secret.jpg, not in",
    "/etc/passwd": "missing",
}


@pytest.fixture(scope="module", params=["folder", "archive"])
def finder(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("files") / "root"
    write_folder(root / "images" / "val", {"x.jpg": b""})
    write_folder(root.parent, {"secret.jpg": b""})
    if request.param == "folder":
        write_folder(root / "images" / "train", FILES)
    else:
        with zipfile.ZipFile(root / "images" / "train.zip", "w") as archive:
            for name in FILES:
                archive.writestr(f"train/{name}", b"")
    return FileFinder(find_source(root / "images", "train"), (root / "annotations", root / "images", root))


@pytest.mark.parametrize("name", SILENT | GUESSED)
def test_names_of_a_file(finder, name):
    finder.guessed.clear()
    written = name.replace("ROOT", finder._folders[-1].rstrip("/"))
    assert finder.find(written) == (SILENT | GUESSED)[name]
    assert (written in finder.guessed) == (name in GUESSED)


@pytest.mark.parametrize("name", REFUSED)
def test_names_of_no_file_of_the_source(finder, name):
    with pytest.raises(ValueError, match=REFUSED[name]):
        finder.find(name.replace("ROOT", finder._folders[-1].rstrip("/")))


def test_folders_beside_the_root(tmp_path):
    write_folder(tmp_path / "photos", {"x.jpg": b""})
    (tmp_path / "root").mkdir()
    finder = FileFinder(find_source(tmp_path / "root", "../photos"), (tmp_path / "root",))
    assert [finder.find(name) for name in ("./x.jpg", "../photos/x.jpg", f"{tmp_path}/photos/x.jpg")] == ["x.jpg"] * 3
    assert not finder.guessed


def test_a_name_of_the_real_folder_of_a_linked_one(tmp_path):
    write_folder(tmp_path / "disk2", {"x.jpg": b""})
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "train").symlink_to(tmp_path / "disk2")
    finder = FileFinder(find_source(tmp_path / "root", "train"), (tmp_path / "root", tmp_path))
    assert finder.find(f"{tmp_path}/disk2/x.jpg") == "x.jpg"
