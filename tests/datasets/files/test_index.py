"""The cached index."""

import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from datasets.files.index import cache_folder, open_index, text_columns
from eomt.errors import InputError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EOMT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


ARRAYS = {"numbers": np.arange(1000), "nothing": np.zeros(0, dtype=np.int32)}


def build():
    return ARRAYS, {"categories": ["a"]}


def must_not_build():
    raise AssertionError("built although it was there")


def check(index):
    assert index.meta == {"categories": ["a"]}
    for name, array in ARRAYS.items():
        assert index.column(name).dtype == array.dtype
        np.testing.assert_array_equal(index.column(name), array)


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


def test_index_is_built_once(cache):
    check(open_index("key", build))
    check(open_index("key", must_not_build))
    assert [path.name for path in cache.iterdir()] == ["key.safetensors"]


def test_an_index_is_as_readable_as_its_folder(cache):
    cache.mkdir(exist_ok=True)
    for mode in (0o755, 0o700):
        cache.chmod(mode)
        open_index(f"key{mode}", build)
        assert (cache / f"key{mode}.safetensors").stat().st_mode & 0o777 == mode & 0o666


def test_rows_are_the_callers_own():
    index = open_index("key", build)
    for start, end in ((0, 3), (997, 1000), (5, 5), (1000, 1000)):
        np.testing.assert_array_equal(index.rows("numbers", start, end), ARRAYS["numbers"][start:end])
    assert index.rows("nothing", 0, 0).dtype == np.int32
    index.rows("numbers", 0, 3)[:] = 7
    check(index)


def test_a_strided_array_is_stored_as_it_reads():
    index = open_index("key", lambda: ({"odd": np.arange(10)[1::2]}, {}))
    assert index.column("odd").tolist() == [1, 3, 5, 7, 9]


def test_pickled_index_maps_the_same_file():
    data = pickle.dumps(open_index("key", build))
    assert len(data) < 500
    check(pickle.loads(data))


def test_texts_come_back():
    index = open_index("key", lambda: (text_columns("mask", [b"", b"one", b"", b"three"]), {}))
    assert index.texts("mask", 0, 4) == [b"", b"one", b"", b"three"]
    assert [index.texts("mask", k, k + 1) for k in range(4)] == [[b""], [b"one"], [b""], [b"three"]]
    assert index.texts("mask", 4, 4) == []


@pytest.mark.parametrize("size", [0, 7, 60, -1])
def test_a_damaged_index_is_built_anew(cache, size, caplog):
    open_index("key", build)
    path = cache / "key.safetensors"
    os.truncate(path, size if size >= 0 else path.stat().st_size - 1)
    check(open_index("key", build))
    assert "is damaged and is built anew" in caplog.text
    check(open_index("key", must_not_build))


def test_builders_at_once(cache):
    meet = threading.Barrier(4)

    def slow_build():
        meet.wait(timeout=30)  # all four are building before the first is done
        return build()

    with ThreadPoolExecutor(4) as pool:
        for index in pool.map(lambda _: open_index("key", slow_build), range(4)):
            check(index)
    assert [path.name for path in cache.iterdir()] == ["key.safetensors"]


def test_failed_build_leaves_nothing(cache):
    def fail():
        raise InputError("bad data")

    with pytest.raises(InputError, match="bad data"):
        open_index("key", fail)
    assert list(cache.iterdir()) == []
