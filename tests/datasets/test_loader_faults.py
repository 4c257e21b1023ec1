"""Data that goes wrong while training: images that cannot be read, workers that die or hang."""

import errno
import io
import logging
import os
import random
import signal
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from datasets import workers
from datasets.files import retry
from datasets.files.archive import ZipArchive
from datasets.files.decode import decode_rgb
from datasets.module import SegmentationData
from eomt.errors import InputError
from eomt.postprocess.geometry import FIT_AND_PAD
from tests.memory_reader import MemoryReader
from tests.stress.faults import archive_case

pytestmark = pytest.mark.xdist_group("workers")


class FaultyReader(MemoryReader):
    """Of the images in `faults` reading does what the entry does."""

    def __init__(self, faults, **options):
        super().__init__(**options)
        self.faults = faults

    def read(self, index):
        if index in self.faults:
            self.faults[index]()
        return super().read(index)


class Passing:
    """An error of the operating system, so many times."""

    def __init__(self, number, times):
        self.number, self.times = number, times

    def __call__(self):
        if self.times:
            self.times -= 1
            error = OSError(self.number, os.strerror(self.number))
            raise InputError("cannot read the archive") from error


def hang():
    time.sleep(600)


def freeze():
    os.kill(os.getpid(), signal.SIGSTOP)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def data(train=MemoryReader, val=MemoryReader, **changes):
    options = {"image_size": 16, "batch_size": 2, "global_batch": 2, "num_workers": 2, "seed": 0}
    return SegmentationData(train, val, FIT_AND_PAD, **(options | changes))


def seen(batch):
    return batch.names, batch.images.sum().item(), batch.targets.ids.sum().item()


def kill_one(loader):
    os.kill(loader._iterator._workers[0].pid, signal.SIGKILL)


def test_a_killed_worker_is_replaced_and_no_batch_changes(caplog):
    undisturbed = data(num_workers=0).train_dataloader()
    wanted = [[seen(batch) for batch in undisturbed] for _ in range(4)]
    loader = data().train_dataloader()
    # The last one is after the epoch's last batch: the next epoch begins with a dead worker.
    for epoch, moment in enumerate((1, 3, 5, None)):
        batches = []
        for number, batch in enumerate(loader):
            batches.append(seen(batch))
            if number == moment:
                kill_one(loader)
        assert batches == wanted[epoch]
    assert len(caplog.records) == 3
    assert "data worker 0 of 2" in caplog.text
    assert "was ended by SIGKILL, most likely by the system, for want of memory; started anew" in caplog.text


def test_nothing_is_raised_while_no_batch_is_waited_for():
    loader = data().train_dataloader()
    batches = iter(loader)
    next(batches)
    kill_one(loader)
    end = time.monotonic() + 0.5
    while time.monotonic() < end:  # a training step, or the writing of a checkpoint
        sum(range(1000))
    assert len(list(batches)) == 5


def test_a_worker_killed_in_a_validation_leaves_no_image_out():
    loader = data(eval_batch_size=1).val_dataloader()
    for _ in range(2):
        ids = []
        for batch in loader:
            ids += batch.image_ids
            if len(ids) == 3:
                kill_one(loader)
        assert ids == list(range(1000, 1012))


def test_workers_that_keep_dying_end_the_run_with_one_line(caplog):
    reader = FaultyReader(dict.fromkeys(range(12), die))
    with pytest.raises(InputError, match=r"data worker . of 2 .* the 4th to die within 1000 batches: with") as error:
        list(data(lambda: reader).train_dataloader())
    assert "\n" not in str(error.value)
    assert len(caplog.records) == workers.MOST_DEATHS


def test_deaths_of_long_ago_are_forgiven(monkeypatch):
    """Four in a row are too many, four that are some batches apart are not."""
    monkeypatch.setattr(workers, "FORGIVEN_AFTER", 5)
    loader = data(num_workers=1).train_dataloader()
    for _ in range(workers.MOST_DEATHS + 2):
        assert len(list(loader)) == 6
        kill_one(loader)


@pytest.mark.parametrize("fault", [hang, freeze])
def test_a_file_system_that_hangs_ends_the_run_with_one_line(fault):
    reader = FaultyReader(dict.fromkeys(range(3, 12), fault))
    hanging = data(reader, reader, timeout=0.5)
    for loader in (hanging.train_dataloader(), hanging.val_dataloader()):
        before = time.monotonic()
        with pytest.raises(InputError, match=r"no batch of data within 0\.5 s \(data\.timeout\)"):
            list(loader)
        assert time.monotonic() - before < 30
        assert loader._iterator is None


def test_what_passes_is_read_again_and_what_does_not_is_replaced(monkeypatch, caplog):
    waited = []
    monkeypatch.setattr(retry.time, "sleep", waited.append)
    wanted = [seen(batch) for batch in data(num_workers=0).train_dataloader()]
    passing = FaultyReader({3: Passing(errno.EIO, 2), 5: Passing(errno.ESTALE, 3)})
    assert [seen(batch) for batch in data(passing, num_workers=0).train_dataloader()] == wanted
    assert not caplog.records
    assert sorted(waited) == sorted((*retry.PAUSES, *retry.PAUSES[:2]))
    waited.clear()
    for number, attempts in ((errno.EIO, 4), (errno.ENOENT, 1)):
        caplog.clear()
        loader = data(FaultyReader({3: Passing(number, attempts)}), num_workers=0).train_dataloader()
        batches = [seen(batch) for batch in loader]
        assert loader.replaced == 1
        assert len(waited) == 3
        assert "image003: cannot read the archive; trained on another image instead (1 so far)" in caplog.text
        changed = [(ours, theirs) for ours, theirs in zip(batches, wanted, strict=True) if ours != theirs]
        assert len(changed) == 1
        (names, *_), (old, *_) = changed[0]
        assert [old[k] for k in range(2) if names[k] != old[k]] == ["image003"]


def test_a_stale_archive_is_opened_again(tmp_path, monkeypatch):
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", b"content")
    source = ZipArchive(path)
    member = source.members()["a.txt"]
    real, opened = os.pread, []

    def pread(*arguments):
        if not opened:
            raise OSError(errno.ESTALE, "Stale file handle")
        return real(*arguments)

    def reopen(*arguments):
        opened.append(arguments)
        return old(*arguments)

    old = os.open
    monkeypatch.setattr(os, "open", reopen)
    monkeypatch.setattr(os, "pread", pread)
    monkeypatch.setattr(retry, "PAUSES", (0,))
    assert retry.read_with_retry(lambda _: source.read("a.txt", member), 0) == b"content"
    assert len(opened) == 1


def test_a_validation_stops_at_an_unreadable_image_and_names_it():
    loader = data(val=FaultyReader({7: Passing(errno.ENOENT, 9)})).val_dataloader()
    with pytest.raises(InputError, match=r"image007: cannot read the archive"):
        list(loader)


def test_too_many_bad_images_end_the_run(caplog):
    reader = MemoryReader(broken=[0, 1, 2])
    loader = data(reader, max_bad_images=2).train_dataloader()
    with pytest.raises(InputError, match=r"3 training images cannot be read, more than data\.max_bad_images=2; "):
        list(loader)
    loader = data(reader, max_bad_images=3).train_dataloader()
    assert len(list(loader)) + len(list(loader)) == 12
    assert sum("trained on another image" in r.message for r in caplog.records) == 2 + 3
    assert loader.replaced >= 6
    # The first rank's state is every rank's: its bad images are not theirs.
    resumed = data(MemoryReader(broken=[3, 4, 5]), max_bad_images=3).train_dataloader()
    resumed.load_state_dict(loader.state_dict())
    assert len(list(resumed)) == 6
    assert resumed.replaced >= 3


@pytest.mark.parametrize("size", [(1, 1), (50, 20000), (20000, 50)])
def test_extreme_images_are_read_and_cropped(size):
    class One(MemoryReader):
        def size(self, index):
            return size if index == 0 else super().size(index)

        def read(self, index):
            if index:
                return super().read(index)
            from eomt.targets import targets_from_id_map

            return np.full((*size, 3), 7, np.uint8), targets_from_id_map(np.ones(size, np.int64), [1], [0])

    reader = One(count=2)
    loading = data(reader, reader, num_workers=0, image_size=32, scale_range=(0.1, 2.0))
    for _ in range(3):
        (batch,) = loading.train_dataloader()
        assert batch.images.shape == (2, 3, 32, 32)
        assert all(batch.targets.counts)
    (batch,) = loading.val_dataloader()
    assert batch.placements[0].height, batch.placements[0].width == size


def test_a_truncated_jpeg_and_a_damaged_member_are_named(tmp_path):
    jpeg = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(jpeg, "jpeg")
    with pytest.raises(InputError, match=r"cut\.jpg cannot be decoded"):
        decode_rgb(jpeg.getvalue()[:1500], "cut.jpg")
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.jpg", jpeg.getvalue())
    damaged = bytearray(path.read_bytes())
    damaged[1000] ^= 4
    path.write_bytes(damaged)
    source = ZipArchive(path)
    with pytest.raises(InputError, match=r"images\.zip: a\.jpg does not match its checksum"):
        source.read("a.jpg", source.members()["a.jpg"])


def test_flipped_bits_of_an_archive_are_refused_or_named(shapes, tmp_path, monkeypatch):
    """`tests/stress/faults.py` does this 200 times."""
    monkeypatch.setenv("EOMT_CACHE", str(tmp_path))
    outcomes = {archive_case(shapes, tmp_path, random.Random(seed)) for seed in range(10)}
    good = {
        "refused at the start, one line",
        "images left out, each with a line that names it",
        "all read as before: no harm done",
    }
    assert outcomes <= good
    assert len(outcomes) > 1


def test_a_set_smaller_than_a_step_repeats_its_images(caplog):
    with caplog.at_level(logging.WARNING):
        loader = data(MemoryReader(count=3), batch_size=4, global_batch=8, num_workers=0).train_dataloader()
    batches = list(loader)
    assert [len(batch.names) for batch in batches] == [4, 4]
    assert {name for batch in batches for name in batch.names} == {"image000", "image001", "image002"}
    assert "data.global_batch=8 is more than the 3 training images" in caplog.text
