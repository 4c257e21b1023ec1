"""Contact sheets of a checked dataset."""

import numpy as np
import torch

from datasets.check import contact_sheet
from datasets.check.contact_sheet import _flat, spread
from datasets.module import SegmentationData
from datasets.sampler import SampleKey
from eomt.postprocess.geometry import FIT_AND_PAD
from tests.memory_reader import MemoryReader


def test_pictures_are_spread_over_the_set():
    chosen = spread(range(100), 10, seed=3)
    assert [place // 10 for place in chosen] == list(range(10))
    assert chosen == spread(range(100), 10, seed=3) != spread(range(100), 10, seed=4)
    assert spread([4, 7], 5, seed=0) == [4, 7]
    assert spread([], 5, seed=0) == spread([4], 0, seed=0) == []


def test_drawn_targets_overlap_with_the_small_on_top():
    ids = torch.zeros(2, 4, 4, dtype=torch.int16)
    ids[0, 1, 1], ids[1] = 1, 2
    flat = _flat(ids, torch.tensor([0, 1]))
    assert flat[1, 1] == 1
    assert (flat == 2).sum() == 15


def test_sheets_show_what_training_and_validation_read(monkeypatch):
    reader = MemoryReader(6, bare=[0, 1], broken=[3])
    data = SegmentationData(reader, reader, FIT_AND_PAD, 40, 2, 2, 0, seed=5)
    drawn = []
    monkeypatch.setattr(contact_sheet, "TILE", 40)  # nothing is resized for the sheet
    original = contact_sheet.draw_segments
    monkeypatch.setattr(contact_sheet, "draw_segments", lambda *a: (drawn.append(a), original(*a))[1])
    contact_sheet.train_sheet(data, [0, 1, 2, 4], 1)
    place = spread([0, 2], 1, 5)[0]
    samples = [data.training_set()[SampleKey(epoch, place, 0)] for epoch in (0, 1)]
    assert len(drawn) == 3
    for (pixels, ids, labels, _), item in zip(drawn[:2], samples, strict=True):
        assert np.array_equal(pixels, item.image.permute(1, 2, 0))
        assert torch.equal(ids, item.targets.ids[0])
        assert torch.equal(labels, item.targets.labels)
    drawn.clear()
    contact_sheet.val_sheet(data, [2, 4], 2)
    (view, ids, labels, _), (_, truth, _, _) = drawn[:2]
    inputs, placement = FIT_AND_PAD.prepare(reader.read(2)[0], (40, 40))
    size = (placement.scaled_height, placement.scaled_width)
    assert np.array_equal(view, inputs[0, :, : size[0], : size[1]].permute(1, 2, 0))
    assert ids.shape == size
    assert labels.tolist() == [1, 2, 3, 4]
    assert set(truth.unique().tolist()) == {0, 1, 2, 3, 4}
