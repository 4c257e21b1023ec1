"""Faults injected into short runs: they end in one line, or run to their end.

    python -m pytest -m stress tests/stress/test_faults.py
    python -m pytest -m stress tests/stress/test_faults.py -k rank

Runs are small, on the CPU, with two data workers.
"""

import errno
import os
import re
import shutil
import signal
import time
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from datasets.files.archive import ZipArchive
from eomt.errors import InputError, worker_failure
from eomt.weights.checkpoint import read_checkpoint
from tests.label_files import label_png, photo, write_folder
from tests.processes import descendants, is_running, launched, wait_for_saves
from tests.running import configured, equal

pytestmark = [pytest.mark.stress, pytest.mark.xdist_group("faults")]

ENDED = "ran to its end"
ANNOTATIONS = "panoptic_annotations_trainval2017.zip"


@pytest.fixture(scope="module")
def settings(options):
    off = [f"callbacks.{name}=null" for name in ("pictures", "curves", "best")]
    steps = ("trainer.max_epochs=-1", "trainer.max_steps=6", "callbacks.last.every_n_steps=2", "data.num_workers=2")
    return (*options, *steps, *off)


@pytest.fixture
def run(settings, tmp_path):
    """Train with further overrides; gives `ENDED`, or the line with which the run ended."""

    def run(*more):
        try:
            train.main(configured(tmp_path, *settings, *more))
        except InputError as error:
            said = str(error)
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            said = str(worker_failure(error))
        else:
            return ENDED
        assert "\n" not in said
        return said

    return run


@pytest.fixture
def copied(shapes, tmp_path):
    """A copy of the data and the override that names it."""
    copy = tmp_path / "data"
    shutil.copytree(shapes, copy, copy_function=shutil.copyfile)
    copy.chmod(0o755)
    return copy, f"data.root='{copy}'"


def learned(folder):
    checkpoint = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    return {part: checkpoint[part] for part in ("state_dict", "optimizer_states", "lr_schedulers")}


@pytest.fixture(scope="module")
def undisturbed(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    train.main(configured(folder, *settings))
    return learned(folder)


def damage_images(archive, count):
    """Flip a byte in the middle of the first members."""
    with zipfile.ZipFile(archive) as opened:
        middles = [i.header_offset + 30 + len(i.filename) + i.compress_size // 2 for i in opened.infolist()]
    content = bytearray(archive.read_bytes())
    for middle in middles[:count]:
        content[middle] ^= 255
    archive.write_bytes(content)


@pytest.mark.parametrize(
    ("what", "steps", "logged", "end"),
    [
        ("loss", [3], r"step 3: loss dice \(output \d\) not finite; images: .*1 in a row, 1 so far", ENDED),
        ("gradient", [3], r"step 3: the gradient of class_head\.weight not finite", ENDED),
        ("loss", [1, 2, 3, 4, 5, 6], "not finite", "4 optimizer steps in a row"),
    ],
    ids=["NaN in a loss", "infinite gradient", "NaN in every loss"],
)
def test_numbers_that_are_not_finite(run, caplog, what, steps, logged, end):
    fault = f"+callbacks.fault={{_target_: tests.fault_injection.Inject, what: {what}, steps: {steps}}}"
    assert end in run(fault, "optim.max_skipped_steps=4")
    assert re.search(logged, caplog.text)


def test_a_killed_data_worker(run, undisturbed, tmp_path):
    assert "a data worker has ended" in run(
        "+callbacks.fault={_target_: tests.fault_injection.Inject, what: kill, steps: [5]}"
    )
    assert run(f"ckpt='{tmp_path}/checkpoints/last.ckpt'") == ENDED
    assert equal(learned(tmp_path), undisturbed)


def test_reads_that_hang(run, monkeypatch):
    real, main = ZipArchive.chunks, os.getpid()
    monkeypatch.setattr(ZipArchive, "chunks", lambda *a: real(*a) if os.getpid() == main else time.sleep(600))
    assert "no batch of data within 3 s" in run("data.timeout=3")


def test_passing_errors_of_a_file_system(run, monkeypatch, undisturbed, tmp_path):
    """Each data worker's first two reads fail."""
    main, reads = os.getpid(), Counter()

    def opened(*arguments):
        reads[os.getpid()] += 1
        if os.getpid() != main and reads[os.getpid()] <= 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return open(*arguments)

    monkeypatch.setattr("datasets.files.archive.open", opened, raising=False)
    assert run() == ENDED
    assert equal(learned(tmp_path), undisturbed)


@pytest.mark.parametrize(
    ("archive", "count", "end"),
    [("train2017.zip", 3, ENDED), ("train2017.zip", 5, "data.max_bad_images"), ("val2017.zip", 1, "val2017.zip")],
)
def test_damaged_images(run, copied, archive, count, end):
    data, root = copied
    damage_images(data / archive, count)
    assert end in run(root, "data.max_bad_images=3")


@pytest.mark.parametrize("name", [ANNOTATIONS, "train2017.zip"])
def test_missing_archives(run, copied, name):
    data, root = copied
    (data / name).unlink()
    assert name.removesuffix(".zip") in run(root)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (50, 20000)])
def test_extreme_sizes(run, tmp_path, height, width):
    files = {}
    for split in ("train", "val"):
        files[f"images/{split}/a.png"] = photo(height, width, kind="PNG")
        files[f"labels/{split}/a.png"] = label_png(np.ones((height, width)))
    root = write_folder(tmp_path / "data", files)
    assert run("task=folder_semantic", "model=tiny", f"data.root='{root}'", "data.classes=[a,b]") == ENDED


@pytest.mark.parametrize("more", ["data.max_images=1", "model.num_queries=2"], ids=["one image", "two queries"])
def test_fewer_than_a_batch_or_the_targets_take(run, more):
    assert run(more) == ENDED


def test_a_full_disk(run, monkeypatch, tmp_path):
    def full(value, path):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(torch, "save", full)
    assert "No space left" in run()
    assert not any((tmp_path / "checkpoints").iterdir()), "nothing half-written"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_other(settings, tmp_path, rank):
    two = ("trainer.devices=2", "trainer.strategy=ddp", "trainer.max_steps=100000", "trainer.limit_val_batches=0")
    process = launched(*settings, *two, f"hydra.run.dir={tmp_path}/run")
    wait_for_saves(process, tmp_path / "run" / "checkpoints" / "last.ckpt")
    children = descendants(process.pid)
    (other,) = [pid for pid in children if b"LOCAL_RANK=1" in Path(f"/proc/{pid}/environ").read_bytes()][:1]
    victim, survivor = (other, process.pid) if rank else (process.pid, other)
    os.kill(victim, signal.SIGKILL)
    deadline = time.monotonic() + 120
    while is_running(survivor) and time.monotonic() < deadline:
        process.poll()
        time.sleep(0.1)
    assert not is_running(survivor)
    output, _ = process.communicate(timeout=60)
    assert process.returncode
    print(re.findall(r"error: .*", output))
