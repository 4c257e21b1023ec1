"""Data sets as tools export them: each is found out, and all give the same masks."""

import numpy as np
import pytest

from datasets.layout import find_layout
from eomt.cli.arguments import prepared
from eomt.cli.build import build_data
from tests.exports import CLASSES, EXPORTS, INSTANCE, SEMANTIC, SPLITS, pictures
from tests.running import composed

ALL = [pytest.param(name, task, id=f"{name}-{task}") for name, export in EXPORTS.items() for task in export.tasks]


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("EOMT_CACHE", str(tmp_path_factory.mktemp("cache")))


def opened(root, *typed):
    """The data module of what is typed for a folder."""
    return build_data(composed("train", *prepared("train", [f"data.root={root}", *typed], find_layout)))


def masks_of(reader, index):
    """The pixels of each class's segments, sorted: [(class, mask), ...]."""
    _, targets = reader.read(index)
    found = zip(targets.labels.tolist(), targets.masks().numpy(), strict=True)
    return sorted(((reader.classes[label].name, mask.tobytes()) for label, mask in found), key=repr)


def expected(picture, task):
    """The masks that a task has of a picture."""
    masks = [(CLASSES[label], mask) for (label, _), mask in zip(picture.objects, picture.masks(), strict=True)]
    if task == SEMANTIC:
        classes = picture.maps()[1]
        masks = [(name, classes == k) for k, name in enumerate(CLASSES, 1) if (classes == k).any()]
    if task != INSTANCE:
        masks.append(("background", picture.maps()[0] == 0))
    return sorted(((name, mask.tobytes()) for name, mask in masks), key=repr)


@pytest.mark.parametrize(("name", "task"), ALL)
def test_all_formats_give_the_same_masks(name, task, tmp_path, capsys):
    EXPORTS[name].write(tmp_path)
    is_default = task == EXPORTS[name].tasks[0]
    data = opened(tmp_path, *[f"task={task}"] * (not is_default))
    assert capsys.readouterr().err.count("\n") == 1
    drawn, seen = {picture.name: picture for picture in pictures()}, {}
    for split, numbers in SPLITS.items():
        reader = data.reader(split)
        assert len(reader) == len(numbers) or data.split
        for index in range(len(reader)):
            name = reader.name(index).rpartition("/")[2].removesuffix(".png")
            seen[name] = split
            np.testing.assert_equal(masks_of(reader, index), expected(drawn[name], task))
    assert sorted(seen) == sorted(drawn)
