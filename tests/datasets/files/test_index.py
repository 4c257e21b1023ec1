"""The cached index."""

import os
import pickle
import threading

import numpy as np
import pytest

from datasets.files.index import cache_folder, open_index
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
