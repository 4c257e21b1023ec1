"""Stopped and requeued jobs: what they say, how they end, and from which checkpoint and logs they resume."""

import contextlib
import signal
import sys
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from eomt.cli import endings, main, resume
from eomt.errors import InputError, Stopped
from eomt.training.stop import StopSignals
from eomt.weights.checkpoint import CONTINUATION, FORMAT, read_checkpoint
from tests.running import configured


def write_last(run, job=None, **logs):
    """Write the `last.ckpt` of a run with default settings in its folder; return its path."""
    last = run / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True, exist_ok=True)
    config = OmegaConf.to_container(configured(run), resolve=True)
    torch.save({FORMAT: {"config": config}, CONTINUATION: {"job": job, "logs": logs}, "global_step": 3}, last)
    return last


def test_a_requeued_job_resumes_by_itself(tmp_path, monkeypatch):
    """Another job does not, nor one with other settings."""
    run = tmp_path / "run"
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "eomt"}.items():
        monkeypatch.setenv(name, value)
    cfg = configured(run)
    resume.choose_checkpoint(cfg)
    assert cfg.ckpt is None
    write_last(run)
    resume.choose_checkpoint(cfg)
    assert cfg.ckpt is None, "the checkpoint of no job"
    last = write_last(run, job="7")
    cfg.ckpt = "weights/to/start/from.ckpt"
    resume.choose_checkpoint(cfg)
    assert cfg.ckpt == str(last)
    with pytest.raises(InputError, match=r"another run of this job.*hydra\.run\.dir="):
        resume.choose_checkpoint(configured(run, "seed=1"))
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    cfg.ckpt = None
    resume.choose_checkpoint(cfg)
    assert cfg.ckpt is None


def test_logs_are_resumed_in_the_same_folder_alone(tmp_path):
    last = write_last(tmp_path / "run", WandbLogger="abc123", CSVLogger=0)
    for folder, run_id in ((tmp_path / "run", "abc123"), (tmp_path / "other", None)):
        cfg = configured(folder, "logger=wandb", f"ckpt='{last}'")
        resume.continue_logs(cfg, read_checkpoint(last))
        assert cfg.logger.csv.get("version") is None, "a version for each start"
        assert cfg.logger.wandb.id == run_id


def test_requeueing(monkeypatch):
    """Message and exit status of the first task; the others never end it by their status."""
    said = []
    monkeypatch.setattr(
        endings, "log", SimpleNamespace(info=lambda _, message: said.append(message), hasHandlers=lambda: True)
    )
    stopped = Stopped("stopped by SIGUSR1 after step 3; resume by: ...", signal.SIGUSR1)
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "eomt"}.items():
        monkeypatch.setenv(name, value)
    before = [signal.getsignal(number) for number in endings.STOPPING]
    try:
        for reason, status, words in (("", 0, "is requeued"), ("not today", 138, r"not requeued: not today")):
            monkeypatch.setattr(endings, "requeue", lambda reason=reason: reason)
            for number in endings.STOPPING:
                signal.signal(number, signal.SIG_DFL)
            with pytest.raises(SystemExit) as ended, StopSignals():
                endings._end(stopped)
            assert ended.value.code == status
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN, "the requeuing ends what is being closed"
            assert words in said[-1]
        monkeypatch.setattr(endings, "requeue", lambda: pytest.fail("the first task speaks for all"))
        monkeypatch.setenv("SLURM_PROCID", "1")
        with pytest.raises(SystemExit) as ended:
            endings._end(stopped)
        assert ended.value.code == 0
    finally:
        for number, handler in zip(endings.STOPPING, before, strict=True):
            signal.signal(number, handler)


@pytest.mark.parametrize("ending", [lambda *_: None, lambda *_: sys.exit(1)])
def test_signals_are_ignored_once_the_run_has_ended(monkeypatch, ending):
    monkeypatch.setattr(main, "_run", ending)
    before = [signal.getsignal(number) for number in main.ENDING]
    try:
        with contextlib.suppress(SystemExit):
            main.command("train", None)
        assert {signal.getsignal(number) for number in main.ENDING} == {signal.SIG_IGN}
    finally:
        for number, handler in zip(main.ENDING, before, strict=True):
            signal.signal(number, handler)
