"""Jobs over two nodes of a real SLURM: stopped by signals, they requeue themselves and end like an undisturbed one."""

import json
import os
import re
import subprocess
import sys
import time

import pytest
import torch

from eomt.weights.checkpoint import CONTINUATION, read_checkpoint
from tests.running import ROOT, logged
from tests.slurm_cluster import cluster, missing

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("slurm"),
    pytest.mark.skipif(bool(missing()), reason=missing() or "SLURM is there"),
]

SCRIPT = str(ROOT / "slurm" / "train.sbatch")
SBATCH = ("--nodes=2", "--ntasks-per-node=1", "--gres=none", "--cpus-per-task=1")
EPOCHS = 30


@pytest.fixture(scope="module")
def slurm():
    with cluster() as environment:
        yield environment | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def settings(options):
    kept = [option.replace("'", "") for option in options if "max_epochs" not in option]
    return (*kept, f"trainer.max_epochs={EPOCHS}", "trainer.check_val_every_n_epoch=10", "callbacks.pictures=null")


def _submit(slurm, settings, folder):
    """Submit a job in `folder`, where its run folder will be; return its number."""
    # The script runs train.py of the folder from which it was submitted.
    for path in ROOT.glob("*.py"):
        (folder / path.name).symlink_to(path)
    environment = slurm | {"PYTHONPATH": str(ROOT), "EOMT_CACHE": os.environ["EOMT_CACHE"]}
    done = subprocess.run(
        ["sbatch", "--parsable", *SBATCH, SCRIPT, *settings, "trainer.strategy=ddp"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _state(slurm, job):
    done = subprocess.run(["scontrol", "show", "job", "-o", job], env=slurm, capture_output=True, text=True, check=True)
    return dict(re.findall(r"(JobState|Restarts|Reason)=(\S+)", done.stdout))


def _wait(condition, folder, what, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        logs = "\n".join(path.read_text() for path in folder.glob("*.log"))
        assert time.monotonic() < deadline, f"no {what} within {seconds} s:\n{logs}"
        time.sleep(0.1)


def _run_folder(folder, job):
    return folder / "runs" / "shapes_panoptic" / f"slurm-{job}"


def _finish(slurm, settings, folder, signals):
    """Run a job to its end, with a signal after each further checkpoint; return its number, run folder and log."""
    job = _submit(slurm, settings, folder)
    last = _run_folder(folder, job) / "checkpoints" / "last.ckpt"
    for number, name in enumerate(signals):
        before = _saved(last)
        _wait(lambda before=before: _saved(last) > before, folder, "checkpoint")
        subprocess.run(["scancel", f"--signal={name}", job], env=slurm, check=True)
        _wait(lambda n=number: _state(slurm, job)["Restarts"] == str(n + 1), folder, "requeueing")
        _wait(lambda: _state(slurm, job)["JobState"] == "PENDING", folder, "place in the queue")
        # It waits for two minutes, lest a job that fails at once fills the queue.
        subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], env=slurm, check=True)
    ended = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL")
    _wait(lambda: _state(slurm, job)["JobState"] in ended, folder, "end")
    log = next(folder.glob("*.log")).read_text()
    assert _state(slurm, job)["JobState"] == "COMPLETED", log
    return job, _run_folder(folder, job), log


def _saved(path):
    return path.stat().st_mtime_ns if path.exists() else 0


def test_a_job_over_two_nodes_requeues_itself_and_ends_the_same(slurm, settings, tmp_path):
    folders = [tmp_path / name for name in ("undisturbed", "signalled")]
    for folder in folders:
        folder.mkdir()
    _, undisturbed, log = _finish(slurm, settings, folders[0], ())
    assert "effective batch 8 = 4 per device x 2 devices x 1 accumulated" in log
    job, run, log = _finish(slurm, [*settings, "callbacks.last.every_n_steps=1"], folders[1], ("USR1", "TERM"))
    stops = [int(step) for step in re.findall(r"stopped by SIG\w+ after step (\d+); the job is requeued", log)]
    assert len(stops) == 2, log
    assert 1 <= stops[0] < stops[1] <= 3 * EPOCHS
    assert "Traceback" not in log
    assert sorted(path.name for path in run.parent.iterdir()) == [f"slurm-{job}"]

    ours, theirs = (read_checkpoint(f / "checkpoints" / "last.ckpt") for f in (run, undisturbed))
    assert ours["global_step"] == theirs["global_step"] == 3 * EPOCHS
    assert ours[CONTINUATION]["job"] == job
    for key, value in theirs["state_dict"].items():
        assert torch.equal(ours["state_dict"][key], value), key
    for name in ("metrics.json", "metrics_per_class.json"):
        assert json.loads((run / name).read_text()) == json.loads((undisturbed / name).read_text()), name
    assert logged(run) == logged(undisturbed), "as one log, without gap or repetition"


def test_a_cancelled_job_does_not_come_back(slurm, settings, tmp_path):
    job = _submit(slurm, [*settings, "trainer.max_epochs=2000", "callbacks.last.every_n_steps=1"], tmp_path)
    _wait((_run_folder(tmp_path, job) / "checkpoints" / "last.ckpt").exists, tmp_path, "checkpoint")
    subprocess.run(["scancel", job], env=slurm, check=True)
    _wait(lambda: _state(slurm, job)["JobState"] == "CANCELLED", tmp_path, "end")
    assert _state(slurm, job)["Restarts"] == "0"
    log = next(tmp_path.glob("*.log")).read_text()
    assert "stopped by SIGTERM after step" in log
    assert "not requeued" in log
