"""Saving of predictions by several ranks."""

import contextlib
from types import SimpleNamespace

import pytest

from eomt.classes import Classes
from eomt.errors import InputError
from eomt.tasks import task_of
from eomt.training.callbacks import SavePredictions

CLASSES = Classes.from_categories([{"id": 7, "name": "cup"}])


class Names:
    """A validation set that has names alone, and a trainer."""

    def __init__(self, names, rank=0, world_size=1, barrier=lambda: None):
        self.names, self.global_rank, self.world_size = names, rank, world_size
        self.is_global_zero = rank == 0
        self.strategy = SimpleNamespace(barrier=barrier, broadcast=lambda value: value)

    def __len__(self):
        return len(self.names)

    def name(self, index):
        return self.names[index]

    def reader(self, split):
        return {"val": self}[split]


@pytest.mark.parametrize(
    ("kind", "names", "message"),
    [
        ("semantic", ["a/x.jpg", "y.jpg", "a/x.png"], r"of a/x\.jpg and a/x\.png would both be a/x\.png in .*semantic"),
        ("panoptic", ["a/x.jpg", "y.jpg", "a_x.jpg"], r"of a/x\.jpg and a_x\.jpg would both be a_x\.png in .*panoptic"),
        ("panoptic", ["x.jpg", "x.jpg"], r"of x\.jpg and x\.jpg"),
        ("semantic", ["a/x.jpg", "a_x.jpg", "b/x.jpg"], None),
        ("instance", ["a/x.jpg", "y.jpg", "a/x.png"], None),
    ],
)
def test_every_rank_refuses_names_that_collide_before_the_run(kind, names, message, tmp_path):
    module = SimpleNamespace(task=task_of(kind), classes=CLASSES, data=Names(names))
    for rank in (0, 1):
        refused = pytest.raises(InputError, match=message) if message else contextlib.nullcontext()
        with refused:
            SavePredictions(tmp_path).on_validation_start(Names(names, rank, 2), module)
    assert not message or not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_ranks_do_not_wait_for_one_that_fails(tmp_path, monkeypatch):
    waited = []
    trainer = Names(["x.jpg"], barrier=lambda: waited.append(True))
    callback = SavePredictions(tmp_path)
    module = SimpleNamespace(task=task_of("panoptic"), classes=CLASSES, data=trainer)
    callback.on_validation_start(trainer, module)
    monkeypatch.setattr(callback._writer, "_document", lambda rows: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        callback.on_validation_end(trainer, module)
    assert len(waited) == 2
