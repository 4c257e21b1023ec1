"""Members of zip archives."""

import logging
import os
import pickle
import random
import zipfile
from io import BytesIO

import pytest

from datasets.files.archive import ZipArchive, find_source
from datasets.files.source import CHUNK, Folder
from eomt.errors import InputError
from tests.label_files import contents, read

FILES = {
    "train2017/a.jpg": random.Random(0).randbytes(3000),
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


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("comment", [b"", b"made by hand"])
def test_zip_members(tmp_path, method, comment):
    (tmp_path / "train2017.zip").write_bytes(zip_bytes(method=method, comment=comment))
    assert contents(find_source(tmp_path, "train2017")) == INSIDE
    assert contents(pickle.loads(pickle.dumps(ZipArchive(tmp_path / "train2017.zip")))) == FILES
    assert contents(ZipArchive(tmp_path / "train2017.zip", prefix="absent")) == FILES


def test_names_that_other_systems_write(tmp_path):
    raw = {
        b"./train\\a.jpg": b"1",
        b"train\\sub\\": b"",
        b"train/sub/\xc3\xa9.jpg": b"2",  # UTF-8, not marked as such
        b"train/\x81.jpg": b"3",  # cp437
        b"__MACOSX/train/._a.jpg": b"4",
    }
    data = zip_bytes({f"{k:*<{len(name)}}": content for k, (name, content) in enumerate(raw.items())})
    for k, name in enumerate(raw):
        data = data.replace(f"{k:*<{len(name)}}".encode(), name)
    (tmp_path / "train.zip").write_bytes(data)
    found = contents(find_source(tmp_path, "train.zip"))
    assert found == {"a.jpg": b"1", "sub/\xe9.jpg": b"2", "\xfc.jpg": b"3"}


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
        read(source, "train2017/a.jpg", members["train2017/a.jpg"])


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_every_flipped_byte_is_noticed_or_harmless(tmp_path, method):
    files = {"a.txt": b"hello hello hello", "b.txt": random.Random(0).randbytes(20)}
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


def test_an_archive_that_cannot_be_read(tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(zip_bytes())
    source = ZipArchive(path)
    members = source.members()
    path.rename(tmp_path / "moved.zip")
    with pytest.raises(InputError, match=r"cannot read .*a\.zip: No such file"):
        read(source, "other.txt", members["other.txt"])


def test_a_member_that_inflates_to_more_than_it_could_hold_is_refused(tmp_path):
    data = zip_bytes({"bomb.json": bytes(65 << 20)}, zipfile.ZIP_DEFLATED)
    (tmp_path / "a.zip").write_bytes(data)
    source = ZipArchive(tmp_path / "a.zip")
    with pytest.raises(InputError, match=r"a\.zip: bomb\.json claims to inflate from \d+ to 68157440 bytes"):
        read(source, "bomb.json", source.members()["bomb.json"])


def test_no_more_is_inflated_than_claimed_and_no_more_at_once_than_a_chunk(tmp_path):
    content = bytes(20 << 20)
    (tmp_path / "a.zip").write_bytes(zip_bytes({"big": content}, zipfile.ZIP_DEFLATED))
    source = ZipArchive(tmp_path / "a.zip")
    member = source.members()["big"]
    sizes = [len(chunk) for chunk in source.chunks("big", member)]
    assert sum(sizes) == len(content)
    assert max(sizes) <= CHUNK
    seen = []
    with pytest.raises(InputError, match="more than the 1000000 bytes"):
        seen.extend(map(len, source.chunks("big", member._replace(size=1_000_000))))
    assert sum(seen) <= CHUNK


@pytest.mark.parametrize("field", ["offset", "packed", "size"])
def test_claims_of_64_bits_end_in_one_line(tmp_path, field):
    (tmp_path / "a.zip").write_bytes(zip_bytes(method=zipfile.ZIP_DEFLATED))
    source = ZipArchive(tmp_path / "a.zip")
    member = source.members()["other.txt"]._replace(**{field: (1 << 64) - 1})
    with pytest.raises(InputError, match=r"a\.zip: other\.txt"):
        read(source, "other.txt", member)


def test_real_archives_hold_what_zipfile_reads(shared_data):
    paths = sorted(shared_data.rglob("*.zip"))
    assert len(paths) >= 5
    for path in paths:
        source = ZipArchive(path)
        with zipfile.ZipFile(path) as archive:
            members = source.members()
            assert list(members) == [info.filename for info in archive.infolist() if not info.is_dir()]
            for name, member in members.items():
                assert read(source, name, member) == archive.read(name)
