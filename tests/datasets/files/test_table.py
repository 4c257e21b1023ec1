"""Columns of images in Parquet and Arrow files."""

import os
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest

from datasets.files.archive import find_source
from datasets.files.index import cache_folder
from datasets.files.table import columns
from datasets.layout.find import find_layout
from eomt.cli.arguments import prepared
from tests.exports import CLASSES, hugging_face, pictures
from tests.label_files import contents, fails

pyarrow = pytest.importorskip("pyarrow")
ipc, parquet = pytest.importorskip("pyarrow.ipc"), pytest.importorskip("pyarrow.parquet")


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("EOMT_CACHE", str(tmp_path_factory.mktemp("cache")))


def test_a_column_is_an_archive(tmp_path):
    hugging_face(tmp_path)
    for _ in range(2):
        source = find_source(tmp_path, "data/validation*.parquet:image")
        assert list(contents(source).values()) == [picture.photo for picture in pictures()[16:]]
    assert next(iter(source.members())) == "data/validation-00000-of-00002/00000000 picture 16.png"
    assert columns(tmp_path / "data" / "train-00000-of-00002.parquet") == (["image", "label"], ["background", *CLASSES])


def test_processes_that_unpack_at_once_do_not_disturb_each_other(tmp_path, monkeypatch):
    hugging_face(tmp_path)
    cache, pattern, seen = cache_folder(), "data/train*.parquet:image", []
    is_file = Path.is_file

    def another_is_first(path):
        if path.parent == cache and not seen:
            seen.append(path)
            seen.append(find_source(tmp_path, pattern).fingerprint())
            monkeypatch.setattr("time.time", lambda: 2e9)
            return False
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", another_is_first)
    assert find_source(tmp_path, pattern).fingerprint() == seen[1], "the key of the index that both build"
    assert [*cache.iterdir()] == [seen[0]]


def test_what_cannot_be_read_ends_in_one_line(tmp_path):
    hugging_face(tmp_path)
    fails("no column 'mask' of images; its columns are image", find_source, tmp_path, "data/train*.parquet:mask")
    fails("no column 'scene' of images", find_source, tmp_path, "data/train*.parquet:scene")
    fails("there is no file", find_source, tmp_path, "data/test*.parquet:image")
    for name in ("bad.parquet", "bad.arrow"):
        (tmp_path / name).write_bytes(b"PAR1 damaged PAR1")
        fails(f"{name} cannot be read", find_source, tmp_path, f"{name}:image")


def test_a_file_that_unpacks_to_far_more_is_refused(tmp_path):
    table = pyarrow.table({"image": pyarrow.array([bytes(1 << 20)] * 80)})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 1 << 16
    fails("a.parquet unpacks to more than 200 times its size", find_source, tmp_path, "a.parquet:image")


def test_what_repeats_is_not_unpacked_at_once(tmp_path, monkeypatch):
    table = pyarrow.table({"image": pyarrow.array([bytes(1 << 24)] * 32)})
    parquet.write_table(table, tmp_path / "a.parquet", compression="zstd")
    whole, pool = pyarrow.default_memory_pool(), pyarrow.proxy_memory_pool(pyarrow.default_memory_pool())
    pyarrow.set_memory_pool(pool)
    try:
        fails("a.parquet unpacks to more than 200 times its size", find_source, tmp_path, "a.parquet:image")
    finally:
        pyarrow.set_memory_pool(whole)
    assert pool.max_memory() < 1 << 28
    plain = pyarrow.table({"image": pyarrow.array([bytes(1 << 24)] * 8)})
    parquet.write_table(plain, tmp_path / "b.parquet", compression="zstd", use_dictionary=False)
    fails("b.parquet unpacks to more than 200 times its size", find_source, tmp_path, "b.parquet:image")
    # Cells without data make members of an archive, too.
    parquet.write_table(pyarrow.table({"image": pyarrow.nulls(100, pyarrow.binary())}), tmp_path / "c.parquet")
    monkeypatch.setattr("datasets.files.table._limit", lambda file: 5000)
    fails("c.parquet unpacks to more than 200 times its size", find_source, tmp_path, "c.parquet:image")


def test_a_folder_named_like_a_pattern(tmp_path):
    for name in ("a*b", "aXb"):
        (tmp_path / name).mkdir()
        parquet.write_table(pyarrow.table({"image": pyarrow.array([name.encode()])}), tmp_path / name / "t.parquet")
    assert list(contents(find_source(tmp_path / "a*b", "t.parquet:image")).values()) == [b"a*b"]


def test_columns_of_other_tools(tmp_path):
    rows = [{"image": {"bytes": b"1", "filepath": "a.png"}, "label": {"bytes": b"2", "filepath": "b.png"}}]
    (tmp_path / "[one]").mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "[one]" / "train.parquet")
    keys = find_layout(tmp_path, None)[1]
    for key, content in (("images", b"1"), ("labels", b"2")):
        assert list(contents(find_source(tmp_path, keys[f"data.train.{key}"])).values()) == [content]
    twice = pyarrow.table([pyarrow.array([b"1"])] * 2, ["image", "image"])
    parquet.write_table(twice, tmp_path / "twice.parquet")
    fails("twice.parquet cannot be read", find_source, tmp_path, "twice.parquet:image")


def test_images_beyond_the_end_of_a_file(tmp_path):
    table = pyarrow.table({"image": pyarrow.array([b"hello", b"worldworld"])})
    with ipc.new_stream(tmp_path / "a.arrow", table.schema) as stream:
        stream.write_table(table)
    ends = [np.array([0, 5, end], np.int32).tobytes() for end in (15, 1 << 30)]
    data = (tmp_path / "a.arrow").read_bytes()
    assert ends[0] in data
    (tmp_path / "a.arrow").write_bytes(data.replace(*ends))
    fails("a.arrow cannot be read: .*out of bounds", find_source, tmp_path, "a.arrow:image")


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "a.parquet")  # reading it would wait for ever
    fails("a.parquet cannot be read: it is no file of data", find_source, tmp_path, "a.parquet:image")


def test_a_data_set_on_the_hub(tmp_path, monkeypatch):
    hugging_face(tmp_path / "made")
    (tmp_path / "none").mkdir()
    asked = []

    def snapshot(repo_id, repo_type, revision, allow_patterns):
        asked.append((repo_id, repo_type, revision))
        return str(tmp_path / ("made" if revision else "none"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    arguments = prepared("train", ["data.root=someone/streets"], find_layout)
    assert f"data.root='{tmp_path}/made'" in arguments
    assert "task=folder_semantic" in arguments
    assert {*asked} == {("someone/streets", "dataset", None), ("someone/streets", "dataset", "refs/convert/parquet")}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path / "none"))
    fails(
        "streets: no such folder; as a data set, .* no Parquet files", prepared, "train", ["data.root=someone/streets"]
    )
