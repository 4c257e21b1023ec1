"""Classes of custom label files: every form, and one line for anything else."""

import json
import os

import pytest
from omegaconf import OmegaConf

from eomt.custom_classes import read_classes
from eomt.errors import InputError

FORMS = {
    "names": ["a", "b", "c"],
    "mapping": {2: "c", 0: "a", 1: "b"},
    "entries": [{"id": 1, "name": "b"}, {"id": 0, "name": "a"}, {"id": 2, "name": "c"}],
    "entries without ids": [{"name": "a"}, {"name": "b"}, {"name": "c"}],
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_classes(tmp_path, form):
    (tmp_path / "own.json").write_text(json.dumps(FORMS[form]))
    for spec in (FORMS[form], OmegaConf.create({"classes": FORMS[form]}).classes, "own.json", tmp_path / "own.json"):
        classes = read_classes(spec, tmp_path)
        assert [(c.id, c.name, c.is_thing) for c in classes] == [(0, "a", False), (1, "b", False), (2, "c", False)]
        assert len({c.color for c in classes}) == 3


def test_a_text_file_has_a_name_a_line(tmp_path):
    (tmp_path / "classes.txt").write_text("\ufeffroad\ncar \nsky\n\n", encoding="utf-8")
    assert read_classes("classes.txt", tmp_path).names == ["road", "car", "sky"]


def test_ids_may_have_gaps(tmp_path):
    assert read_classes({70: "sky", 0: "road", 1: "car"}, tmp_path).ids == [0, 1, 70]


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
        ({"9" * 5000: "a"}, "the id of the class .* must be a whole number"),
        ("digits.json", r"digits\.json is no JSON"),
        ("deep.json", r"deep\.json is no JSON"),
        ("broken.json", r"broken\.json is no JSON"),
        ("empty.txt", r"empty\.txt holds no classes"),
        ("latin.txt", r"latin\.txt is no text in UTF-8"),
    ],
)
def test_bad_classes(tmp_path, classes, message):
    files = {
        "broken.json": '["a"',
        "empty.txt": "\n\n",
        "digits.json": "[" + "9" * 5000 + "]",
        "deep.json": "[" * 10**6,
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "latin.txt").write_bytes("Stra\xdfe".encode("latin-1"))
    with pytest.raises(InputError, match=message) as caught:
        read_classes(classes, tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_devices_and_gigabytes_are_no_class_files(tmp_path):
    with (tmp_path / "large.txt").open("wb") as file:
        file.truncate(3 << 30)
    os.mkfifo(tmp_path / "pipe.txt")
    for name in ("large.txt", "pipe.txt", "/dev/zero"):
        with pytest.raises(InputError, match="is no file of classes"):
            read_classes(name, tmp_path)
