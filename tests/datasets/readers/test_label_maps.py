"""Label maps on made-up files."""

import numpy as np
import pytest

from datasets.files.source import Folder
from datasets.readers.label_maps import VOID, LabelMaps, LabelTable, pair_files
from eomt.classes import Classes
from eomt.errors import InputError
from tests.label_files import check_classes, label_png, photo, write_folder


@pytest.fixture
def open_maps(tmp_path, monkeypatch):
    monkeypatch.setenv("EOMT_CACHE", str(tmp_path / "cache"))

    def open_(values, class_of, dtype=np.uint8):
        height, width = np.shape(values)
        root = write_folder(tmp_path, {"a/x.jpg": photo(height, width), "b/x.png": label_png(values, dtype)})
        files = pair_files(Folder(root / "a"), [".jpg"], [(Folder(root / "b"), ".png")])
        count = max(class_of.values()) + 1
        classes = Classes.from_categories([{"id": k, "name": str(k)} for k in range(count)])
        return LabelMaps(*files, classes, LabelTable(class_of, "mend it"))

    return open_


@pytest.mark.parametrize("present", [[0, 1, 2, 9, 200, 255], [1, 9], [0, 255], [200]])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_values_become_classes_and_several_may_be_one(open_maps, present, dtype):
    class_of = {0: VOID, 1: 3, 2: 0, 9: 3, 200: 1, 255: VOID}
    values = np.kron(np.random.default_rng(0).choice(present, (7, 9)), np.ones((3, 2), int))
    _, targets = open_maps(values, class_of, dtype).read(0)
    check_classes(targets, np.vectorize(class_of.get)(values))


def test_values_without_a_class_are_named(open_maps):
    with pytest.raises(InputError, match=r"x\.png has the values 7, 8, but no class for it: mend it"):
        open_maps([[1, 7], [8, 2]], {1: 0, 2: 1}).read(0)


def test_more_classes_than_targets_can_number():
    classes = Classes.from_categories({"id": k, "name": str(k)} for k in range(32768))
    with pytest.raises(InputError, match="32768 classes, more than 32767"):
        LabelMaps(None, [], classes, None)
