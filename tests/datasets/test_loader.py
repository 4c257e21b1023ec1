"""Loaders: batches, exact resume, replaced images, and workers that end or hang."""

import errno
import gc
import multiprocessing
import os
import re
import resource
import signal
import time
from itertools import islice
from types import SimpleNamespace

import albumentations as A
import pytest
import torch
from lightning.fabric.utilities import move_data_to_device

from datasets.files import source
from datasets.loader import BatchLoader, EvaluationLoader, ResumableLoader
from datasets.sampler import EpochBatchSampler
from datasets.samples import MAX_REPLACEMENTS, EvaluationSet, TrainingSet
from datasets.transforms import TrainTransform
from eomt.errors import InputError, worker_failure
from eomt.postprocess.geometry import FIT_AND_PAD, WINDOWS, Placement
from tests.memory_reader import MemoryReader

pytestmark = pytest.mark.xdist_group("loader")


def training_loader(reader=None, batch_size=2, workers=0, seed=0, **options):
    images = TrainingSet(reader or MemoryReader(), TrainTransform((16, 16)), seed)
    return ResumableLoader(images, EpochBatchSampler(len(images), batch_size, batch_size, seed), workers, **options)


def evaluation_loader(
    reader=None, batch_size=2, workers=0, geometry=FIT_AND_PAD, size=(16, 16), ranks=(0, 1), **options
):
    images = EvaluationSet(reader or MemoryReader(), geometry, size, *ranks)
    return EvaluationLoader(images, batch_size, workers, **options)


def take(loader, count):
    """Batches and states, asked for as Lightning does: never for the end of an epoch."""
    result = []
    while len(result) < count:
        iterator = iter(loader)
        for _ in range(min(len(loader), count - len(result))):
            result.append((next(iterator), loader.state_dict()))
    return result


def same(a, b):
    return a.names == b.names and torch.equal(a.images, b.images) and torch.equal(a.targets.ids, b.targets.ids)


class FaultyReader(MemoryReader):
    """Calls the entry of `faults` before an image is read."""

    def __init__(self, faults, **options):
        super().__init__(**options)
        self.faults = faults

    def read(self, index):
        if index in self.faults:
            self.faults[index]()
        return super().read(index)


class Failing:
    """Raises an error of the operating system a number of times."""

    def __init__(self, number, times):
        self.number, self.times = number, times

    def __call__(self):
        if self.times:
            self.times -= 1
            error = OSError(self.number, os.strerror(self.number))
            raise InputError("cannot read the archive") from error


@pytest.fixture(autouse=True)
def no_worker_left():
    """Iterators are freed with their workers: PyTorch reports a dead one again whenever any process ends."""
    yield
    gc.collect()


def hang():
    time.sleep(600)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def fail():
    raise RuntimeError("a fault of the reader's own")


def test_what_was_done_with_photos_is_said_once_for_each_kind(caplog):
    caplog.set_level("INFO", logger="eomt.data")
    reader, kinds = MemoryReader(), set()
    reader.photos = SimpleNamespace(note=lambda: (f"{len(kinds)} kinds", frozenset(kinds)))
    training = TrainingSet(reader, TrainTransform((16, 16)), 0)
    loaders = {
        "data.train": ResumableLoader(training, EpochBatchSampler(len(training), 4, 4, 0), 0),
        "data.val": EvaluationLoader(EvaluationSet(reader, FIT_AND_PAD, (16, 16)), 4, 0, limit=2),
    }
    for name, loader in loaders.items():
        for new in ({}, {0}, {0}, {0, 1}):
            kinds |= set(new)
            list(islice(loader, 2))
        assert [text for text in caplog.messages if name in text] == [f"{name}: 1 kinds", f"{name}: 2 kinds"]
        kinds.clear()


def test_images_at_a_lower_resolution_are_said_once(caplog):
    reader = MemoryReader(count=3)
    reader.size = lambda index: (8, 400 if index == 1 else 24)
    options = {"geometry": WINDOWS, "size": (4, 4), "batch_size": 1}
    # The second rank repeats its image, which is not scored, as the first one has a batch more.
    loaders = [evaluation_loader(reader, ranks=(rank, 2), **options) for rank in range(2)]
    for _ in range(2):
        assert [len(list(loader)) for loader in loaders] == [2, 2]
    (line,) = caplog.messages
    assert re.fullmatch(r"data\.val: 1 images too long for 32 windows, .*: image001", line)


def test_a_failing_augmentation_ends_training_in_one_line():
    """It is no fault of the image, which is not replaced."""
    images = TrainingSet(MemoryReader(), TrainTransform((16, 16), augmentations=[A.RandomCrop(500, 500, p=1)]), 0)
    loader = ResumableLoader(images, EpochBatchSampler(len(images), 2, 2, 0), 1)
    with pytest.raises(
        InputError, match=r"\Aimage\d+: data\.augmentations fail on \d+x\d+ pixels \(CropSizeError: .*\)\Z"
    ):
        next(iter(loader))


def test_samples_do_not_depend_on_workers_batches_or_the_global_generator():
    before = torch.get_rng_state()
    alone = {}
    for batch, _ in take(training_loader(batch_size=1), 12):
        alone[batch.names[0]] = batch.images[0]
    for batch, _ in take(training_loader(batch_size=3, workers=2), 4):
        for name, image in zip(batch.names, batch.images, strict=True):
            assert torch.equal(alone[name], image)
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


def test_a_new_iteration_takes_the_rest_of_the_epoch():
    loader = training_loader()
    next(iter(loader))
    assert (loader.state_dict()["epoch"], loader.state_dict()["batches"]) == (0, 1)
    assert [len(list(loader)) for _ in range(2)] == [5, 6]
    assert loader.state_dict()["epoch"] == 2


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
    loader = training_loader(broken, workers=workers)
    batches = take(loader, 18)
    reports = [record.getMessage() for record in caplog.records]
    assert sorted(report.split(";")[0] for report in reports) == [
        "image003.jpg is cut short: fetch it again",
        "image007.jpg is cut short: fetch it again",
    ]
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


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_but_broken_images_ends_training_in_one_line(workers):
    loader = training_loader(MemoryReader(broken=range(12)), workers=workers)
    one_line = rf"\A{MAX_REPLACEMENTS + 1} training images drawn in a row could not be read; .*again\Z"
    with pytest.raises(InputError, match=one_line):
        next(iter(loader))


def test_too_many_bad_images_end_the_run(caplog):
    reader = MemoryReader(broken=[0, 1, 2])
    with pytest.raises(InputError, match=r"3 training images cannot be read, more than data\.max_bad_images=2; "):
        list(training_loader(reader, max_bad_images=2))
    loader = training_loader(reader, max_bad_images=3)
    assert len(list(loader)) + len(list(loader)) == 12
    assert sum("trained on another image" in r.message for r in caplog.records) == 2 + 3
    # The first rank's state is every rank's: its bad images are not theirs.
    resumed = training_loader(MemoryReader(broken=[3, 4, 5]), max_bad_images=3)
    resumed.load_state_dict(loader.state_dict())
    assert len(list(resumed)) == 6


def test_passing_errors_are_read_again_and_others_replaced(monkeypatch, caplog):
    waited = []
    monkeypatch.setattr(source.time, "sleep", waited.append)
    wanted = list(training_loader())
    passing = FaultyReader({3: Failing(errno.EIO, 2), 5: Failing(errno.ESTALE, 3)})
    assert all(same(a, b) for a, b in zip(training_loader(passing), wanted, strict=True))
    assert not caplog.records
    assert sorted(waited) == sorted((*source.PAUSES, *source.PAUSES[:2]))
    loader = training_loader(FaultyReader({3: Failing(errno.ENOENT, 1)}))
    assert sum(not same(a, b) for a, b in zip(loader, wanted, strict=True)) == 1
    assert "image003: cannot read the archive; trained on another image instead (1 so far)" in caplog.text


def test_images_without_segments_are_validated_but_not_trained_on():
    reader = MemoryReader(bare=[2, 5])
    trained = [name for batch, _ in take(training_loader(reader, batch_size=1), 10) for name in batch.names]
    assert sorted(trained) == [f"image{k:03d}" for k in range(12) if k not in (2, 5)]
    assert [name for batch in evaluation_loader(reader, 5) for name in batch.names] == [
        f"image{k:03d}" for k in range(12)
    ]
    with pytest.raises(InputError, match="none has a segment"):
        TrainingSet(MemoryReader(count=2, bare=[0, 1]), TrainTransform((16, 16)), 0)


@pytest.mark.parametrize(("ranks", "images", "batches"), [(5, 12, 2), (5, 3, 1), (2, 12, 3), (2, 9, 3), (1, 3, 2)])
def test_validation_covers_every_image_once_over_ranks(ranks, images, batches):
    """In the same number of batches on every rank: a repeated, unscored image fills up."""
    ids = []
    for rank in range(ranks):
        loader = evaluation_loader(MemoryReader(count=images), ranks=(rank, ranks))
        assert len(loader) == len(list(loader)) == batches
        for batch in loader:
            assert len(batch.inputs) == sum(batch.counts) >= 1
            assert len(batch.counts) == len(batch.placements)
            assert len(batch.targets) == len(batch.names) == len(batch.image_ids)
            ids += batch.image_ids
    assert sorted(ids) == list(range(1000, 1000 + images))


def test_a_validation_batch_keeps_original_sizes():
    reader = MemoryReader()
    loader = evaluation_loader(reader, 3, workers=2, size=(16, 20))
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


@pytest.mark.parametrize(("geometry", "size"), [(FIT_AND_PAD, (96, 80)), (WINDOWS, (96, 80))])
def test_the_segments_that_validation_shows_a_loss_lie_on_the_inputs(geometry, size):
    images = EvaluationSet(MemoryReader(), geometry, size, with_shown=True)
    loader = EvaluationLoader(images, 3, 0)
    for batch in loader:
        assert len(batch.shown.counts) == len(batch.inputs) == sum(batch.counts)
        for pixels, ids, labels in zip(batch.inputs, batch.shown.ids, batch.shown.labels, strict=True):
            # Pixels of class n have the value 40 n, and background is 0.
            expected = torch.cat([torch.zeros(1), 40.0 * labels])[ids[0].long()]
            assert ((pixels[0] - expected).abs() < 20).float().mean() > 0.88, "all but the edges"
    assert next(iter(EvaluationLoader(EvaluationSet(MemoryReader(), geometry, size), 3, 0))).shown is None


def test_a_validation_batch_of_windows():
    reader = MemoryReader()
    batch = next(iter(evaluation_loader(reader, 3, geometry=WINDOWS)))
    assert batch.counts == (2, 2, 2)  # 24 x 32 covers 16 x 16 as 16 x 21
    assert batch.inputs.shape == (6, 3, 16, 16)
    for index in range(3):
        windows, placement = WINDOWS.prepare(reader.read(index)[0], (16, 16))
        assert torch.equal(batch.inputs[2 * index : 2 * index + 2], windows)
        assert batch.placements[index] == placement


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_validation_image_is_an_error_in_one_line(workers):
    with pytest.raises(InputError, match=r"\Aimage004.jpg is cut short: fetch it again\Z"):
        list(evaluation_loader(MemoryReader(broken=[4]), workers=workers))
    with pytest.raises(InputError, match=r"\Aimage007: cannot read the archive\Z"):
        list(evaluation_loader(FaultyReader({7: Failing(errno.ENOENT, 9)}), workers=workers))


def test_batches_keep_their_types_on_the_way_to_a_device():
    for loader in (evaluation_loader(), training_loader()):
        batch = next(iter(loader))
        moved = move_data_to_device(batch, torch.device("meta"))
        assert type(moved) is type(batch)
        assert moved[0].is_meta
        assert moved.names == batch.names
    placements = move_data_to_device(next(iter(evaluation_loader())), torch.device("meta")).placements
    assert all(type(p) is Placement and type(p.scaled_height) is int for p in placements)


@pytest.mark.parametrize("loader", [training_loader, evaluation_loader])
def test_a_worker_that_dies_ends_the_run_in_one_line(loader):
    reader = FaultyReader(dict.fromkeys(range(12), die))
    with pytest.raises(
        InputError, match=r"\Aa data worker has ended \(.*\): fewer data\.num_workers .* from last\.ckpt\Z"
    ):
        list(loader(reader, workers=1))


def test_a_worker_that_dies_while_no_batch_is_waited_for_is_recognised():
    """PyTorch raises its own error wherever the main process is; the command line turns it into the same line."""
    others = set(multiprocessing.active_children())
    batches = iter(training_loader(workers=1))
    next(batches)
    [worker] = set(multiprocessing.active_children()) - others

    def die_within_a_step():
        worker.kill()
        time.sleep(20)

    with pytest.raises(RuntimeError, match=r"\ADataLoader worker .* killed") as error:
        die_within_a_step()
    assert str(worker.pid) in str(worker_failure(error.value))


@pytest.mark.slow
@pytest.mark.parametrize("loader", [training_loader, evaluation_loader])
def test_a_file_system_that_hangs_ends_the_run_in_one_line(loader):
    with pytest.raises(InputError, match=r"\Ano batch of data within 0\.5 s \(data\.timeout\): .* from last\.ckpt\Z"):
        list(loader(FaultyReader(dict.fromkeys(range(3, 12), hang)), workers=2, timeout=0.5))


def test_workers_may_send_more_tensors_than_the_usual_limit_of_open_files():
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    hard = limits[1] if limits[1] != resource.RLIM_INFINITY else 1 << 20
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, hard), limits[1]))
        BatchLoader(range(4), list, num_workers=0, timeout=1)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(1024, hard)
        BatchLoader(range(4), list, num_workers=1, timeout=1)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(1 << 16, hard), limits[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    for text in ("received 0 items of ancdata", "[Errno 24] Too many open files"):
        assert "ulimit -n" in str(worker_failure(RuntimeError(text)))


def test_faults_of_a_custom_reader_keep_their_stack_trace():
    with pytest.raises(RuntimeError, match=r"(?s)Caught RuntimeError in DataLoader worker process 0.*in fail"):
        list(training_loader(FaultyReader(dict.fromkeys(range(12), fail)), workers=1))
