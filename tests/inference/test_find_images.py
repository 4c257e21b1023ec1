"""Which image files are meant, and the names of their results."""

from pathlib import PurePath

import pytest
from PIL import Image

from eomt.errors import InputError
from eomt.inference.find_images import find_images, result_names
from eomt.postprocess.writers import flat_name


def save(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)
    return path


def test_which_files_are_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one, two = save(tmp_path / "a" / "x.png"), save(tmp_path / "b" / "c" / "x.JPEG")
    literal = save(tmp_path / "[ab].png")
    out = tmp_path / "out"
    assert find_images("a/x.png", out) == (tmp_path / "a", [one])
    assert find_images(["a", "b"], out) == (tmp_path, [one, two])
    assert find_images(["a/x.png", "a", "a/*", "**/x.png"], out) == (tmp_path, [one])
    assert find_images("[ab].png", out) == (tmp_path, [literal])
    assert find_images("[ab]/**", out) == (tmp_path, [one, two])
    assert find_images("b/*/x.*", out) == (tmp_path / "b", [two])
    # Earlier results are left out; other files beside them are not.
    for name in ("pictures/x.jpg", "predictions/semantic/x.png", "mine/x.png"):
        save(out / name)
    assert find_images("out", out) == (out, [out / "mine" / "x.png"])
    assert set(find_images(".", out)[1]) == {one, two, literal, out / "mine" / "x.png"}
    (tmp_path / "empty").mkdir()
    for given, message in (
        ("none.jpg", "images=none.jpg: no such file or folder"),
        ("none/*.jpg", r"images=none/\*\.jpg has no image"),
        ("empty", "images=empty has no image: names must end in .jpg"),
        (["a", "none"], "images=none: no such"),
    ):
        with pytest.raises(InputError, match=message):
            find_images(given, out)


def test_linked_folders_are_followed_and_loops_are_not(tmp_path):
    other, own = save(tmp_path / "disk2" / "x.png"), save(tmp_path / "photos" / "a" / "x.png")
    for name, target in {"b": other.parent, "a/self": own.parent, "a/up": tmp_path / "photos"}.items():
        (tmp_path / "photos" / name).symlink_to(target)
    (other.parent / "gone.png").symlink_to(tmp_path / "nothing")
    both = [own, tmp_path / "photos" / "b" / "x.png"]
    for given in ("", "/**", "/**/*.png", "/*/x.png", "/**/**/x.*"):
        assert find_images(f"{tmp_path}/photos{given}", tmp_path / "out")[1] == both
    assert [name.as_posix() for name in result_names([PurePath("a/x.png"), PurePath("b/x.png")])] == ["a/x", "b/x"]


def test_names_stay_apart():
    files = ["x.jpg", "x.png", "X.gif", "x_jpg.jpg", "a/b.jpg", "a_b.jpg", "a/c.d.jpg", "a/c.jpg", "y.tif"]
    names = result_names([PurePath(file) for file in files])
    assert [name.as_posix() for name in names] == [
        "x_jpg", "x_png", "X_gif", "x_jpg-2", "a/b_jpg", "a_b_jpg-2", "a/c.d", "a/c", "y",
    ]  # fmt: skip
    long = [PurePath("ü" * 120 + str(k), "é" * 120 + ".jpg") for k in range(3)]
    names = result_names([*long, PurePath("é" * 120 + ".png")])
    assert len({flat_name(name) for name in names}) == len({str(name) for name in names}) == 4
    for name in names:
        assert max(len(flat_name(name).encode()), len(name.name.encode())) <= 180


def test_files_of_a_folder_that_are_no_images_are_counted(tmp_path, caplog):
    save(tmp_path / "photos" / "a.jpg")
    for name in ("b.cr2", "c.cr2", ".hidden.txt", "d.jpg.txt"):
        (tmp_path / "photos" / name).write_bytes(b"")
    caplog.set_level("INFO")
    assert [path.name for path in find_images(str(tmp_path / "photos"), tmp_path / "out")[1]] == ["a.jpg"]
    assert "2 .cr2, 1 .txt" in caplog.text
    (tmp_path / "photos" / "a.jpg").unlink()
    with pytest.raises(InputError, match=r"has no image: .*, found 2 \.cr2, 1 \.txt"):
        find_images(str(tmp_path / "photos"), tmp_path / "out")
