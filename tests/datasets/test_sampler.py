import logging

import numpy as np
import pytest
import torch
from lightning.fabric.utilities import move_data_to_device
from torch.utils.data import DataLoader

from datasets.batch import TrainBatch, collate_train
from datasets.loader import (
    MAX_REPLACEMENTS,
    EvaluationLoader,
    EvaluationSet,
    ResumableLoader,
    TrainingSet,
)
from datasets.readers.base import FirstImages
from datasets.sampler import EpochBatchSampler, SampleKey
from datasets.transforms import TrainTransform
from eomt.errors import InputError
from eomt.postprocess.geometry import FIT_AND_PAD, WINDOWS, Placement
from tests.memory_reader import MemoryReader

pytestmark = pytest.mark.xdist_group("workers")


def epoch_batches(epoch, *args, start=0, **kwargs):
    sampler = EpochBatchSampler(*args, **kwargs)
    sampler.start_at(epoch, start)
    return list(sampler)


def indices(batches):
    return [key.index for batch in batches for key in batch]


def test_an_epoch_shows_images_once_in_its_own_order():
    epochs = [epoch_batches(epoch, 103, 4, 8, seed=0) for epoch in range(3)]
    for epoch, batches in enumerate(epochs):
        assert len(batches) == len(EpochBatchSampler(103, 4, 8, seed=0)) == 24  # 12 steps, 7 images dropped
        assert {len(batch) for batch in batches} == {4}
        assert len(set(indices(batches))) == 96
        assert all(key.epoch == epoch and key.repeat == 0 for batch in batches for key in batch)
    assert indices(epochs[0]) != indices(epochs[1]) != indices(epochs[2])
    assert epochs[0] == epoch_batches(0, 103, 4, 8, seed=0)
    assert epochs[0] != epoch_batches(0, 103, 4, 8, seed=1)
    assert set(range(103)) == set().union(*(indices(epoch_batches(e, 103, 4, 8, seed=0)) for e in range(8)))


def test_a_step_sees_the_same_images_on_any_number_of_ranks():
    def steps(batch_size, world_size):
        ranks = [epoch_batches(5, 50, batch_size, 8, 0, rank, world_size) for rank in range(world_size)]
        assert len({len(batches) for batches in ranks}) == 1
        accumulated = 8 // (batch_size * world_size)
        return [
            sorted(indices(b for batches in ranks for b in batches[first : first + accumulated]))
            for first in range(0, len(ranks[0]), accumulated)
        ]

    alone = steps(8, 1)
    assert len(alone) == 6
    assert all(len(set(step)) == 8 for step in alone)
    for batch_size, world_size in [(1, 1), (4, 2), (2, 2), (1, 8)]:
        assert steps(batch_size, world_size) == alone


def test_start_in_the_middle():
    whole = epoch_batches(2, 40, 4, 4, 0)
    assert epoch_batches(2, 40, 4, 4, 0, start=3) == whole[3:]


def test_a_small_set_repeats_images_with_other_keys(caplog):
    with caplog.at_level(logging.WARNING, "eomt.data"):
        batches = epoch_batches(0, 3, 4, 8, seed=0)
    assert "data.global_batch=8 is more than the 3 training images" in caplog.text
    assert len(batches) == 2
    keys = [key for batch in batches for key in batch]
    assert len(set(keys)) == 8
    assert sorted(indices(batches)[:3]) == sorted(indices(batches)[3:6]) == [0, 1, 2]


def training_loader(reader=None, batch_size=2, workers=0, seed=0, **kwargs):
    images = TrainingSet(reader or MemoryReader(), TrainTransform((16, 16)), seed)
    return ResumableLoader(images, EpochBatchSampler(len(images), batch_size, batch_size, seed), workers, **kwargs)


def take(loader, count):
    """As Lightning does: never ask for the end of an epoch."""
    result = []
    while len(result) < count:
        iterator = iter(loader)
        for _ in range(min(len(loader), count - len(result))):
            result.append((next(iterator), loader.state_dict()))
    return result


def same(a, b):
    return a.names == b.names and torch.equal(a.images, b.images) and torch.equal(a.targets.ids, b.targets.ids)


def test_a_batch():
    [(batch, _)] = take(training_loader(batch_size=4), 1)
    assert isinstance(batch, TrainBatch)
    assert batch.images.shape == (4, 3, 16, 16)
    assert batch.images.dtype == torch.uint8
    assert batch.targets.ids.shape == (4, 1, 16, 16)
    assert batch.targets.ids.dtype == torch.int8
    assert len(batch.targets.counts) == len(batch.names) == len(set(batch.names)) == 4


def test_workers_stack_into_shared_memory():
    def shared(items):
        batch = collate_train(items)
        return batch.images.is_shared(), batch.targets.ids.is_shared()

    images = TrainingSet(MemoryReader(), TrainTransform((16, 16)), 0)
    keys = [[SampleKey(0, 0, 0), SampleKey(0, 1, 0)]]
    assert list(DataLoader(images, batch_sampler=keys, collate_fn=shared, num_workers=1)) == [(True, True)]


def test_readers_may_read_otherwise_for_training():
    class Reader(MemoryReader):
        def read_for_training(self, index):
            image, targets = self.read(index)
            return image + 1, targets

    first, other = (take(training_loader(reader), 1)[0][0] for reader in (MemoryReader(), Reader()))
    assert not torch.equal(first.images, other.images)
    few = FirstImages(Reader(), 5)
    assert few.read_for_training(0)[0].min() == 1


def test_samples_do_not_depend_on_workers_or_batches():
    alone = {}
    for batch, _ in take(training_loader(batch_size=1), 12):
        alone[batch.names[0]] = batch.images[0]
    for batch, _ in take(training_loader(batch_size=3, workers=2), 4):
        for name, image in zip(batch.names, batch.images, strict=True):
            assert torch.equal(alone[name], image)


def test_a_loader_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    take(training_loader(), 13)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_anywhere(workers):
    whole = take(training_loader(workers=workers), 15)  # two epochs of 6 and a half
    assert whole[5][1] == whole[5][1] | {"epoch": 1, "batches": 0}
    assert whole[7][1] == whole[7][1] | {"epoch": 1, "batches": 2}
    for stop in [3, 6, 7, 11] if workers == 0 else [4]:
        resumed = training_loader(workers=workers)
        resumed.load_state_dict(whole[stop - 1][1])
        iterator = iter(resumed)
        rest = [next(iterator) for _ in range(6 - stop % 6)]
        rest += [batch for batch, _ in take(resumed, 15 - stop - len(rest))]
        assert all(same(a, b) for a, (b, _) in zip(rest, whole[stop:], strict=True))
        assert resumed.state_dict() == whole[-1][1]


def test_a_new_iteration_is_a_new_epoch():
    loader = training_loader()
    first = [batch.names for batch in loader]
    assert loader.state_dict()["epoch"] == 1
    next(iter(loader))
    assert (loader.state_dict()["epoch"], loader.state_dict()["batches"]) == (1, 1)
    third = [batch.names for batch in loader]
    assert len(first) == len(third) == 6
    assert loader.state_dict()["epoch"] == 3
    assert third == [b.names for b, _ in take(training_loader(), 18)[12:]]


def test_a_limited_epoch_ends_at_the_limit():
    loader = training_loader(limit=4)
    iterator = iter(loader)
    for _ in range(4):
        next(iterator)
    assert (loader.state_dict()["epoch"], loader.state_dict()["batches"]) == (1, 0)


def test_another_layout_is_refused_in_the_middle_of_an_epoch_only():
    states = [state for _, state in take(training_loader(), 6)]
    other = training_loader(batch_size=3)
    with pytest.raises(InputError, match=r"batch_size was 2, is 3.*or from the end of an epoch"):
        other.load_state_dict(states[2])
    other.load_state_dict(states[5])
    assert other.state_dict()["epoch"] == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_replaced_and_reported(workers, caplog):
    broken, others = MemoryReader(broken=[3, 7]), MemoryReader()
    with caplog.at_level(logging.WARNING, "eomt.data"):
        loader = training_loader(broken, workers=workers)
        batches = take(loader, 18)
    reports = [record.getMessage() for record in caplog.records]
    assert sorted(report.split(";")[0] for report in reports) == [
        "image003.jpg is cut short: fetch it again",
        "image007.jpg is cut short: fetch it again",
    ]
    assert loader.replaced >= 6  # in each of three epochs at least those two
    intact = take(training_loader(others), 18)
    for (batch, _), (expected, _) in zip(batches, intact, strict=True):
        for k, name in enumerate(expected.names):
            if name in ("image003", "image007"):
                assert batch.names[k] not in ("image003", "image007")
            else:
                assert batch.names[k] == name
                assert torch.equal(batch.images[k], expected.images[k])
    again = take(training_loader(broken), 18)
    assert all(same(a, b) for (a, _), (b, _) in zip(again, batches, strict=True))
    resumed = training_loader(broken)
    resumed.load_state_dict(batches[7][1])
    assert all(same(a, b) for a, (b, _) in zip(resumed, batches[8:12], strict=True))
    assert 0 < resumed.replaced < loader.replaced, "counted since the last start"


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_but_broken_images_ends_training_in_one_line(workers):
    loader = training_loader(MemoryReader(broken=range(12)), workers=workers)
    one_line = rf"\A{MAX_REPLACEMENTS + 1} training images drawn in a row could not be read; .*again\Z"
    with pytest.raises(InputError, match=one_line):
        next(iter(loader))


def test_replacements_are_drawn_from_all_images():
    drawn = [SampleKey(1, 2, 0).replacement(0, attempt, 10) for attempt in range(1, 200)]
    assert set(drawn) == set(range(10))
    assert SampleKey(1, 2, 0).replacement(0, 1, 10**6) != SampleKey(1, 3, 0).replacement(0, 1, 10**6)


def test_images_without_segments_are_validated_but_not_trained_on():
    reader = MemoryReader(bare=[2, 5])
    trained = [name for batch, _ in take(training_loader(reader, batch_size=1), 10) for name in batch.names]
    assert sorted(trained) == [f"image{k:03d}" for k in range(12) if k not in (2, 5)]
    validated = EvaluationLoader(EvaluationSet(reader, FIT_AND_PAD, (16, 16)), batch_size=5, num_workers=0)
    assert [name for batch in validated for name in batch.names] == [f"image{k:03d}" for k in range(12)]
    with pytest.raises(InputError, match="none has a segment"):
        TrainingSet(MemoryReader(count=2, bare=[0, 1]), TrainTransform((16, 16)), 0)


@pytest.mark.parametrize(("ranks", "images", "batches"), [(5, 12, 2), (5, 3, 1), (2, 12, 3), (2, 9, 3), (1, 3, 2)])
def test_validation_covers_every_image_once_over_ranks(ranks, images, batches):
    """In as many batches on every rank: a last one of an image that is not counted, where there is none left."""
    ids = []
    for rank in range(ranks):
        share = EvaluationSet(MemoryReader(count=images), FIT_AND_PAD, (16, 16), rank, ranks)
        loader = EvaluationLoader(share, batch_size=2, num_workers=0)
        assert len(loader) == len(list(loader)) == batches
        for batch in loader:
            assert len(batch.inputs) == sum(batch.counts) >= 1
            assert len(batch.counts) == len(batch.placements)
            assert len(batch.targets) == len(batch.names) == len(batch.image_ids)
            ids += batch.image_ids
    assert sorted(ids) == list(range(1000, 1000 + images))


def test_a_validation_batch_keeps_original_sizes():
    reader = MemoryReader()
    loader = EvaluationLoader(EvaluationSet(reader, FIT_AND_PAD, (16, 20)), batch_size=3, num_workers=2)
    for _ in range(2):
        batches = list(loader)
        assert len(loader) == len(batches) == 4
    batch = batches[1]
    assert batch.inputs.shape == (3, 3, 16, 20)
    assert batch.counts == (1, 1, 1)
    assert batch.image_ids == (1003, 1004, 1005)
    for index, placement, targets in zip(range(3, 6), batch.placements, batch.targets, strict=True):
        assert placement[:2] == reader.size(index)
        assert targets.ids.shape[1:] == reader.size(index)
        assert torch.equal(targets.ids, reader.read(index)[1].ids)


def test_a_validation_batch_of_windows():
    reader = MemoryReader()
    batch = next(iter(EvaluationLoader(EvaluationSet(reader, WINDOWS, (16, 16)), batch_size=3, num_workers=0)))
    assert batch.counts == (2, 2, 2)  # 24 x 32 covers 16 x 16 as 16 x 21
    assert batch.inputs.shape == (6, 3, 16, 16)
    for index in range(3):
        windows, placement = WINDOWS.prepare(reader.read(index)[0], (16, 16))
        assert torch.equal(batch.inputs[2 * index : 2 * index + 2], windows)
        assert batch.placements[index] == placement


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_validation_image_is_an_error_in_one_line(workers):
    dataset = EvaluationSet(MemoryReader(broken=[4]), FIT_AND_PAD, (16, 16))
    with pytest.raises(InputError, match=r"\Aimage004.jpg is cut short: fetch it again\Z"):
        list(EvaluationLoader(dataset, batch_size=2, num_workers=workers))


def test_batches_keep_their_types_on_the_way_to_a_device():
    validation = EvaluationLoader(EvaluationSet(MemoryReader(), FIT_AND_PAD, (16, 16)), batch_size=2, num_workers=0)
    batch = next(iter(validation))
    moved = move_data_to_device(batch, torch.device("meta"))
    assert type(moved) is type(batch)
    assert moved.inputs.is_meta
    assert moved.targets[1].ids.is_meta
    assert all(type(p) is Placement and type(p.scaled_height) is int for p in moved.placements)
    assert moved.placements == batch.placements
    assert (moved.names, moved.image_ids) == (batch.names, batch.image_ids)
    batch = next(iter(training_loader()))
    moved = move_data_to_device(batch, torch.device("meta"))
    assert moved.targets.ids.is_meta
    assert moved.targets.counts == batch.targets.counts
    assert np.array_equal(moved.names, batch.names)
