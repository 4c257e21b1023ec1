"""Zip archives, folders and the cached index."""

import logging
import multiprocessing
import os
import pickle
import threading
import zipfile
from io import BytesIO

import numpy as np
import pytest

from datasets.files.archive import Folder, ZipArchive, find_source
from datasets.files.index import cache_folder, open_index
from datasets.files.zip_format import MEMBER, Member
from eomt.errors import InputError

FILES = {
    "train2017/a.jpg": os.urandom(3000),
    "train2017/sub/é.jpg": b"some text " * 400,
    "train2017/empty.jpg": b"",
    "other.txt": b"outside",
}
INSIDE = {name.removeprefix("train2017/"): data for name, data in FILES.items() if name != "other.txt"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EOMT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def zip_bytes(files=FILES, method=zipfile.ZIP_STORED, comment=b""):
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.mkdir("train2017")
        for name, data in files.items():
            archive.writestr(name, data)
        archive.comment = comment
    return buffer.getvalue()


def contents(source):
    return {name: source.read(name, member) for name, member in source.members().items()}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("comment", [b"", b"made by hand PK\5\6"])
def test_zip_members(tmp_path, method, comment):
    (tmp_path / "train2017.zip").write_bytes(zip_bytes(method=method, comment=comment))
    assert contents(find_source(tmp_path, "train2017")) == INSIDE
    assert contents(ZipArchive(tmp_path / "train2017.zip")) == FILES
    assert contents(ZipArchive(tmp_path / "train2017.zip", prefix="absent")) == FILES


def test_zip64(tmp_path, monkeypatch):
    # Offsets and sizes beyond 4 GiB and more than 65,535 members, as in train2017.zip, without their bulk.
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)
    data = zip_bytes(method=zipfile.ZIP_DEFLATED)
    assert b"PK\6\6" in data
    assert b"PK\6\7" in data
    (tmp_path / "a.zip").write_bytes(data)
    assert contents(ZipArchive(tmp_path / "a.zip")) == FILES


def test_members_beyond_4_gib(tmp_path):
    path = tmp_path / "a.zip"
    with open(path, "wb") as file:  # a sparse file: no space is taken
        file.truncate(5 << 30)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("late.txt", b"beyond")
    source = ZipArchive(path)
    assert source.members()["late.txt"].offset == 5 << 30
    assert contents(source) == {"late.txt": b"beyond"}


def test_data_before_the_archive_shifts_offsets(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"#!/bin/sh\n" * 7 + zip_bytes())
    assert contents(ZipArchive(tmp_path / "a.zip")) == FILES


@pytest.mark.parametrize("inner", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_nested_stored_archive_is_read_in_place(tmp_path, cache, inner):
    files = {"head.txt": b"first", "train2017.zip": zip_bytes(method=inner), "tail.txt": b"last"}
    (tmp_path / "outer.zip").write_bytes(zip_bytes(files))
    outer = ZipArchive(tmp_path / "outer.zip")
    nested = outer.nested("train2017.zip", outer.members()["train2017.zip"], "train2017")
    assert contents(nested) == INSIDE
    assert "outer.zip: train2017.zip: a.jpg" in nested.describe("a.jpg")
    assert not cache.exists()


def test_nested_deflated_archive_is_extracted_once(tmp_path, cache, caplog):
    caplog.set_level(logging.INFO)
    for round_, text in enumerate((b"one", b"two")):
        files = {"train2017.zip": zip_bytes({"train2017/x.png": text})}
        (tmp_path / "outer.zip").write_bytes(zip_bytes(files, zipfile.ZIP_DEFLATED))
        outer = ZipArchive(tmp_path / "outer.zip")
        for _ in range(2):
            nested = outer.nested("train2017.zip", outer.members()["train2017.zip"], "train2017")
            assert contents(nested) == {"x.png": text}
        assert len(caplog.messages) == len(list(cache.iterdir())) == round_ + 1
        assert "train2017.zip" in caplog.messages[-1]
        assert str(cache) in caplog.messages[-1]


def test_damaged_nested_archive_leaves_nothing_in_the_cache(tmp_path, cache):
    data = bytearray(zip_bytes({"train2017.zip": zip_bytes()}, zipfile.ZIP_DEFLATED))
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "outer.zip").write_bytes(data)
    outer = ZipArchive(tmp_path / "outer.zip")
    with pytest.raises(InputError, match="download it again"):
        outer.nested("train2017.zip", outer.members()["train2017.zip"])
    assert list(cache.iterdir()) == []


def test_folder(tmp_path):
    with zipfile.ZipFile(BytesIO(zip_bytes())) as archive:
        archive.extractall(tmp_path)
    source = find_source(tmp_path, "train2017")
    assert contents(source) == INSIDE
    before = source.fingerprint()
    (tmp_path / "train2017" / "a.jpg").rename(tmp_path / "train2017" / "b.jpg")
    assert source.fingerprint() != before
    with pytest.raises(InputError, match=r"cannot read .*a\.jpg: No such file"):
        source.read("a.jpg")


def test_archive_goes_before_folder_and_absence_is_none(tmp_path):
    assert find_source(tmp_path, "train2017") is None
    (tmp_path / "train2017").mkdir()
    assert isinstance(find_source(tmp_path, "train2017"), Folder)
    (tmp_path / "train2017.zip").write_bytes(zip_bytes())
    assert isinstance(find_source(tmp_path, "train2017"), ZipArchive)


def test_fingerprint_follows_contents(tmp_path):
    prints = set()
    for k, data in enumerate((b"one", b"two", b"three")):
        path = tmp_path / f"{k}.zip"
        path.write_bytes(zip_bytes({"x": data}))
        prints.add(ZipArchive(path).fingerprint())
        copy = tmp_path / f"copy{k}.zip"
        copy.write_bytes(path.read_bytes())
        assert ZipArchive(copy).fingerprint() == ZipArchive(path).fingerprint()
    assert len(prints) == 3


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9, 0.999])
def test_cut_download(tmp_path, keep):
    # The part before the cut ends with a whole archive, which must not be taken for this one.
    data = zip_bytes({"train2017.zip": zip_bytes(), "more.txt": b"x" * 500})
    (tmp_path / "cut.zip").write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(InputError, match=r"cut\.zip is no complete zip archive.*download it again"):
        ZipArchive(tmp_path / "cut.zip").members()


def test_archive_cut_after_its_directory_was_read(tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(zip_bytes())
    source = ZipArchive(path)
    members = source.members()
    os.truncate(path, 200)
    with pytest.raises(InputError, match=r"a\.zip: train2017/a\.jpg ends too early.*download it again"):
        source.read("train2017/a.jpg", members["train2017/a.jpg"])


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_every_flipped_byte_is_noticed_or_harmless(tmp_path, method):
    files = {"a.txt": b"hello hello hello", "b.txt": os.urandom(20)}
    good = zip_bytes(files, method)
    path = tmp_path / "a.zip"
    messages = []
    for place in range(len(good)):
        path.write_bytes(good[:place] + bytes([good[place] ^ 0x55]) + good[place + 1 :])
        try:
            found = contents(ZipArchive(path))
        except InputError as error:
            messages.append(str(error))
        else:
            # Dates, attributes and names may change (a folder become an empty file); contents may not.
            assert set(found.values()) <= {*files.values(), b""}
    assert len(messages) > len(good) // 4
    assert all("a.zip" in message and "\n" not in message for message in messages)


def test_unsupported_method(tmp_path):
    (tmp_path / "a.zip").write_bytes(zip_bytes(method=zipfile.ZIP_LZMA))
    source = ZipArchive(tmp_path / "a.zip")
    with pytest.raises(InputError, match="method 14"):
        contents(source)


def test_one_descriptor_per_process_and_none_pickled(tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(zip_bytes())
    source = ZipArchive(path)
    members = source.members()
    (own,) = source._file._descriptors.values()

    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    def child():
        data = source.read("other.txt", members["other.txt"])
        queue.put((data, source._file._descriptors[os.getpid()]))

    process = context.Process(target=child)
    process.start()
    process.join(30)
    assert process.exitcode == 0
    data, descriptor = queue.get()
    assert data == b"outside"
    assert descriptor != own

    copy = pickle.loads(pickle.dumps(source))
    assert copy._file._descriptors == {}
    assert contents(copy) == FILES


def test_threads_share_a_descriptor(tmp_path, monkeypatch):
    path = tmp_path / "a.zip"
    path.write_bytes(zip_bytes(method=zipfile.ZIP_DEFLATED))
    members = ZipArchive(path).members()
    source = ZipArchive(path)
    together, opened, closed, wrong = threading.Barrier(8), [], [], []
    open_, close = os.open, os.close

    def slow_open(*args):
        together.wait(timeout=30)  # all eight found none open
        opened.append(open_(*args))
        return opened[-1]

    monkeypatch.setattr("datasets.files.archive.os.open", slow_open)
    monkeypatch.setattr("datasets.files.archive.os.close", lambda fd: (closed.append(fd), close(fd)))

    def read():
        for _ in range(20):
            wrong.extend(n for n, m in members.items() if source.read(n, m) != FILES[n])

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(opened) == 8
    assert set(opened) - set(closed) == set(source._file._descriptors.values())


def test_members_survive_an_array(tmp_path):
    member = Member(1 << 40, 2, 1 << 33, 0xFFFFFFFF, 8, 0x800)
    assert Member(*np.array([member], dtype=MEMBER)[0].item()) == member


# The index


ARRAYS = {"numbers": np.arange(1000), "nothing": np.zeros(0, dtype=np.int32)}


def build():
    return ARRAYS, {"categories": ["a"]}


def must_not_build():
    raise AssertionError("built although it was there")


def check(index):
    assert index.meta == {"categories": ["a"]}
    for name, array in ARRAYS.items():
        assert index[name].dtype == array.dtype
        np.testing.assert_array_equal(index[name], array)


def test_cache_folder(tmp_path, monkeypatch):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("EOMT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "eomt"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "eomt"
    (tmp_path / "file").touch()
    monkeypatch.setenv("EOMT_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="set EOMT_CACHE"):
        cache_folder()


def test_index_is_built_once_and_mapped(cache):
    check(open_index("key", build))
    index = open_index("key", must_not_build)
    check(index)
    assert not index["numbers"].flags.writeable
    assert not index["numbers"].flags.owndata
    assert [path.name for path in cache.iterdir()] == ["key"]


def test_pickled_index_maps_the_same_files():
    index = open_index("key", build)
    data = pickle.dumps(index)
    assert len(data) < 500
    copy = pickle.loads(data)
    check(copy)
    assert not copy["numbers"].flags.owndata


@pytest.mark.parametrize("damage", ["empty folder", "cut array", "empty array", "cut meta", "no meta"])
def test_damaged_index_is_built_anew(cache, damage):
    open_index("key", build)
    folder = cache / "key"
    if damage == "cut array":
        os.truncate(folder / "numbers.npy", 500)
    elif damage == "empty array":
        os.truncate(folder / "numbers.npy", 0)
    elif damage == "cut meta":
        os.truncate(folder / "meta.json", 20)
    elif damage == "no meta":
        (folder / "meta.json").unlink()
    else:
        for path in folder.iterdir():
            path.unlink()
    check(open_index("key", build))
    check(open_index("key", must_not_build))
    assert [path.name for path in cache.iterdir()] == ["key"]


def test_builders_at_once(cache):
    meet = threading.Barrier(4)

    def slow_build():
        meet.wait(timeout=30)  # all four are building before the first is done
        return build()

    results, errors = [], []

    def run():
        try:
            results.append(open_index("key", slow_build))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for index in results:
        check(index)
    assert [path.name for path in cache.iterdir()] == ["key"]


def test_failed_build_leaves_nothing(cache):
    def fail():
        raise InputError("bad data")

    with pytest.raises(InputError, match="bad data"):
        open_index("key", fail)
    with pytest.raises(ValueError, match="Object arrays"):
        open_index("key", lambda: ({"ragged": np.array([{}], dtype=object)}, {}))
    assert list(cache.iterdir()) == []
