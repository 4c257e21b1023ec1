"""Files of a folder, files by number, and repeated reads."""

import errno
import io
import os
from types import SimpleNamespace

import pytest

from datasets.files import source as module
from datasets.files.index import open_index
from datasets.files.source import (
    PAUSES,
    Folder,
    IndexedFiles,
    Member,
    file_columns,
    read_with_retry,
    without_heic_twins,
)
from eomt.errors import InputError
from eomt.photo import read_photo
from tests.label_files import contents, fails, photo, read, write_folder

FILES = {"a.jpg": b"photo", "sub/\xe9.jpg": b"some text " * 400_000, "empty.jpg": b""}


def test_folder(tmp_path):
    source = Folder(write_folder(tmp_path, FILES))
    assert contents(source) == FILES
    assert read(source.below("sub"), "\xe9.jpg", Member()) == FILES["sub/\xe9.jpg"]
    fingerprint, digest = source.fingerprint(), source.digest("a.jpg")
    (tmp_path / "a.jpg").write_bytes(b"other")
    assert source.fingerprint() == fingerprint
    assert source.digest("a.jpg") != digest
    (tmp_path / "a.jpg").rename(tmp_path / "b.jpg")
    assert source.fingerprint() != fingerprint
    fails(r"cannot read .*a\.jpg: No such file", read, source, "a.jpg", Member())


def test_linked_folders_are_followed_and_loops_are_not(tmp_path):
    write_folder(tmp_path / "disk2", {"c/x.jpg": b"x"})
    write_folder(tmp_path / "set", {"a/y.jpg": b"y"})
    links = {"b": tmp_path / "disk2", "b2": tmp_path / "disk2", "a/up": tmp_path / "set", "gone": tmp_path / "nothing"}
    for name, target in links.items():
        (tmp_path / "set" / name).symlink_to(target)
    (tmp_path / "disk2" / "back").symlink_to(tmp_path)
    found = Folder(tmp_path / "set").members()
    assert sorted(found) == ["a/y.jpg", "b/c/x.jpg", "b2/c/x.jpg", "gone"]
    before = Folder(tmp_path / "set").fingerprint()
    write_folder(tmp_path / "disk2", {"new.jpg": b""})
    assert Folder(tmp_path / "set").fingerprint() != before


@pytest.mark.parametrize("what", ["pipe", "device"])
def test_what_has_no_end_is_not_read(tmp_path, what):
    if what == "pipe":
        os.mkfifo(tmp_path / "x.jpg")
    else:
        (tmp_path / "x.jpg").symlink_to("/dev/zero")
    fails(r"cannot read .*x\.jpg: it is no file of data", read, Folder(tmp_path), "x.jpg", Member())


def test_folders_that_lie_too_deep(tmp_path, monkeypatch):
    monkeypatch.setattr("eomt.files._DEEPEST", 4)
    write_folder(tmp_path, {"a/b/c/x.jpg": b""})
    assert list(Folder(tmp_path).members()) == ["a/b/c/x.jpg"]
    write_folder(tmp_path, {"a/b/c/d/x.jpg": b""})
    fails("folders below .* lie more than 4 deep", Folder(tmp_path).members)


def test_links_that_multiply(tmp_path):
    for depth in range(12):
        (tmp_path / f"{depth}").mkdir()
        for name in "ab":
            (tmp_path / f"{depth}" / name).symlink_to(tmp_path / f"{depth + 1}")
    (tmp_path / "12").mkdir()
    fails("links below .*0 lead to .* in more than 100 ways", Folder(tmp_path / "0").members)


def test_files_of_an_index_come_back(tmp_path, monkeypatch):
    monkeypatch.setenv("EOMT_CACHE", str(tmp_path))
    files = {"a/\xe9.txt": Member(1 << 40, 2, (1 << 64) - 1, 0xFFFFFFFF, 8, 0x800), "b.txt": Member()}
    index = open_index("key", lambda: (file_columns("photo", files.items()), {}))
    seen = {}
    source = SimpleNamespace(
        chunks=lambda name, member: [seen.setdefault(name, member) and b""], describe=lambda name: f"in {name}"
    )
    listed = IndexedFiles(source, index, "photo")
    assert [listed.read(k)[1] for k in range(2)] == ["in a/\xe9.txt", "in b.txt"]
    assert seen == files


@pytest.fixture
def waited(monkeypatch):
    waited = []
    monkeypatch.setattr(module.time, "sleep", waited.append)
    return waited


def test_a_photo_of_the_same_name_goes_before_its_heic():
    names = ["a.JPG", "a.HEIC", "a.heif", "b.heic", "sub/a.heic", "cafe\u0301.png", "caf\xe9.heic"]
    assert without_heic_twins(names) == ["a.JPG", "b.heic", "sub/a.heic", "cafe\u0301.png"]


@pytest.mark.parametrize(("number", "attempts"), [(errno.EIO, 4), (errno.ESTALE, 4), (errno.ENOENT, 1), (None, 1)])
def test_errors_that_may_pass_are_tried_again(waited, number, attempts):
    tried = []

    def failing(index):
        tried.append(index)
        raise InputError("cannot read x") from OSError(number, "reason")

    with pytest.raises(InputError, match="cannot read x"):
        read_with_retry(failing, 7)
    assert tried == [7] * attempts
    assert waited == list(PAUSES[: attempts - 1])


def test_a_read_that_succeeds_in_the_end(waited):
    left = [errno.ETIMEDOUT]

    def passing(index):
        if left:
            raise InputError("cannot read x") from OSError(left.pop(), "reason")
        return index + 1

    assert read_with_retry(passing, 7) == 8


def test_damaged_images_are_not_read_again(waited):
    with pytest.raises(InputError, match="cannot be read"):
        read_with_retry(lambda _: read_photo(io.BytesIO(photo(9, 9)[:-30]), "x.jpg"), 0)
    assert not waited
