"""Signals: when they are noticed, and where stopped runs end once they are resumed."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning
import pytest
import torch

import train
from eomt.errors import Stopped
from eomt.training import stop
from eomt.training.stop import StopSignals
from eomt.weights.checkpoint import read_checkpoint
from tests.processes import descendants, environment, is_running, launched, wait_for_saves
from tests.running import ROOT, configured

pytestmark = pytest.mark.xdist_group("stop")

LONGER = ("trainer.max_epochs=12", "callbacks.last.every_n_steps=1", "trainer.limit_val_batches=0")


@pytest.fixture(scope="module")
def settings(options):
    return (*options, *LONGER, "callbacks.best=null")


@pytest.fixture(scope="module")
def undisturbed(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    train.main(configured(folder, *settings))
    return read_checkpoint(folder / "checkpoints" / "last.ckpt")


def _start(settings, folder):
    """Start a run in a process of its own; return once it has saved a checkpoint."""
    process = launched(*settings, f"hydra.run.dir={folder}")
    wait_for_saves(process, folder / "checkpoints" / "last.ckpt")
    return process


def _same_end(settings, folder, undisturbed):
    checkpoint = folder / "checkpoints" / "last.ckpt"
    stopped_at = read_checkpoint(checkpoint)["global_step"]
    assert 1 <= stopped_at <= undisturbed["global_step"]
    assert not [p for p in checkpoint.parent.iterdir() if p.suffix != ".ckpt" and not p.name.startswith(".")]
    if stopped_at < undisturbed["global_step"]:
        train.main(configured(folder, *settings, f"ckpt='{checkpoint}'"))
    ended = read_checkpoint(checkpoint)
    assert ended["global_step"] == undisturbed["global_step"]
    for key, value in undisturbed["state_dict"].items():
        assert torch.equal(ended["state_dict"][key], value), (key, stopped_at)


def test_a_signal_before_training_ends_the_run_at_once():
    with StopSignals() as signals, pytest.raises(Stopped) as stopped:
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.status == 143
    assert signals.received == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_a_process_ends_though_its_last_words_wait_for_the_main_thread():
    """The main thread does not come to its handler, as it is within one call of C, and holds a lock of the logs."""
    program = """if True:
        import ctypes, signal, threading
        from eomt.training import stop
        stop._UNNOTICED = stop._RANKS = 0.2
        lock = threading.Lock()
        with stop.StopSignals(lambda stopped: lock.acquire()) as signals, lock:
            signals.unblock()
            signal.pthread_sigmask(signal.SIG_BLOCK, stop.STOPPING)
            ctypes.CDLL(None).system(b"echo waits; exec sleep 20 >/dev/null 2>&1 </dev/null")
    """
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "waits\n"
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (143, "stopped by SIGTERM\n")


def test_the_end_waits_for_no_data_worker():
    """A worker has the pipe of the signals open, too."""
    with StopSignals() as signals:
        signals.unblock()
        worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(20,))
        worker.start()
    assert worker.is_alive()
    worker.kill()
    worker.join()


class InterruptAt(lightning.Callback):
    """Presses Ctrl-C after a micro-batch, counted from 1."""

    def __init__(self, batch):
        self.batch = batch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.fit_loop.epoch_loop.total_batch_idx + 1 == self.batch:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [6, 7])
def test_ctrl_c_within_and_at_the_end_of_a_step(settings, undisturbed, tmp_path, batch):
    """Two micro-batches make a step: whichever Ctrl-C meets, the step is finished before it is saved."""
    interrupt = f"+callbacks.interrupt={{_target_: tests.training.test_stop.InterruptAt, batch: {batch}}}"
    with pytest.raises(Stopped, match=r"resume by: python train\.py ckpt="):
        train.main(configured(tmp_path, *settings, "callbacks.last.every_n_steps=1000", interrupt))
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] in (3, 4)
    _same_end(settings, tmp_path, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_signals_on_the_command_line(settings, tmp_path, number, status):
    """To the whole process group, as a terminal and SLURM send them: the data workers live on until the run ends."""
    process = _start((*settings, "trainer.max_epochs=2000"), tmp_path)
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == status, output
    assert "resume by: python train.py ckpt=" in output
    assert "Traceback" not in output
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] >= 1


@pytest.mark.slow
def test_a_signal_while_the_program_is_still_importing(settings, tmp_path):
    process = launched(*settings, f"hydra.run.dir={tmp_path}/run")
    deadline = time.monotonic() + 60
    while "libtorch_cpu" not in Path(f"/proc/{process.pid}/maps").read_text():
        assert time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 143, output
    assert output.splitlines()[-1] == "stopped by SIGTERM"
    assert "Traceback" not in output
    assert not (tmp_path / "run").exists(), "a folder without a run"


@pytest.mark.slow
@pytest.mark.parametrize(("whom", "number", "status"), [("other", signal.SIGTERM, 143), ("all", signal.SIGINT, 130)])
def test_a_signal_before_the_first_step_ends_all_ranks(settings, tmp_path, whom, number, status):
    """The other rank is still starting, and the first one waits for it where no handler of Python's runs."""
    process = launched(*settings, "trainer.devices=2", f"hydra.run.dir={tmp_path}/run", output=tmp_path / "output")
    others = []
    while not others:
        assert process.poll() is None, (tmp_path / "output").read_text()
        time.sleep(0.02)
        others = [pid for pid in descendants(process.pid) if b"LOCAL_RANK=1" in environment(pid)]
    if whom == "all":
        os.killpg(process.pid, number)
    else:
        os.kill(others[0], number)
    assert process.wait(60) == status
    deadline = time.monotonic() + 30
    while is_running(others[0]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_running(others[0])
    output = (tmp_path / "output").read_text()
    assert "stopped by" in output.splitlines()[-1], output
    assert "Traceback" not in output
    assert not (tmp_path / "run").exists(), "a folder without a run"


def test_the_mark_of_a_processs_own_earlier_run_makes_it_no_started_rank(monkeypatch):
    """A rank of torchrun that does several runs has not lost its first rank when the second one takes long."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    for first, started in ((os.getpid(), False), (os.getppid(), True), (1 << 22, False)):
        monkeypatch.setenv("EOMT_FIRST_RANK", str(first))
        assert stop._is_started_rank() is started
