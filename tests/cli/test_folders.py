"""Run folders: their names, who may write into them, and what is refused."""

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from eomt.cli import folders
from eomt.cli.folders import check_unused, held, run_id, task_by_default
from eomt.errors import InputError
from eomt.files import locked
from tests.running import ROOT


def test_slurm_jobs_keep_their_folder_and_interactive_ones_do_not_share_one(tmp_path, monkeypatch):
    for name, value in (("SLURM_JOB_ID", "17"), ("SLURM_PROCID", "0"), ("SLURM_JOB_NAME", "train")):
        monkeypatch.setenv(name, value)
    assert [run_id(tmp_path, True) for _ in range(2)] == ["slurm-17"] * 2
    assert [run_id(tmp_path) for _ in range(2)] == ["slurm-17", "slurm-17-2"], "evaluations of one job"
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")
    assert not run_id(tmp_path, True).startswith("slurm")
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    monkeypatch.setenv("SLURM_PROCID", "1")
    for given, name in (("slurm-17-2", "slurm-17-2"), ("2026-11-27_10-43-05", "slurm-17"), ("slurm-171", "slurm-17")):
        monkeypatch.setenv("EOMT_RUN", given)
        assert run_id(tmp_path, True) == name, "not that of the run from which the job was submitted"


def test_a_task_that_nobody_chose_is_told_from_one_that_was(monkeypatch):
    typed = ["weights=a.ckpt"]
    hydra = SimpleNamespace(overrides=SimpleNamespace(task=typed))
    monkeypatch.setattr(folders, "HydraConfig", SimpleNamespace(initialized=lambda: True, get=lambda: hydra))
    assert task_by_default(SimpleNamespace(task_name="shapes_panoptic"))
    assert not task_by_default(SimpleNamespace(task_name="coco_panoptic")), "an experiment's"
    typed.append("task=shapes_panoptic")
    assert not task_by_default(SimpleNamespace(task_name="shapes_panoptic"))


def test_commands_of_one_second_have_folders_of_their_own(tmp_path, monkeypatch):
    names = [run_id(tmp_path / "runs") for _ in range(5)]
    assert len(set(names)) == 5
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert run_id(tmp_path / "runs") == names[-1], "that of the rank which has started it"


@pytest.mark.parametrize("name", ["checkpoints/last.ckpt", "checkpoints/previous.ckpt"])
def test_a_new_run_takes_no_used_folder(tmp_path, name):
    for start in ("csv/version_0/metrics.csv", "train.log", "checkpoints/.last.ckpt"):
        (tmp_path / start).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / start).touch()
    check_unused(tmp_path)
    (tmp_path / name).touch()
    with pytest.raises(InputError, match=rf"holds a run: resume it by train\.py ckpt=.*{name}, or start another"):
        check_unused(tmp_path)
    check_unused(tmp_path, f"{tmp_path}/checkpoints/best.ckpt")
    with pytest.raises(InputError):
        check_unused(tmp_path, f"{tmp_path}/other/checkpoints/last.ckpt")


@pytest.mark.parametrize("name", ["metrics.json", "predictions", "pictures", "images.json", "report.json"])
def test_nor_one_with_results_of_another_command(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=rf"holds results already \({name}\): start another .* by hydra\.run\.dir="):
        check_unused(tmp_path)


HOLD = "import sys, time; from eomt.files import locked\nwith locked(sys.argv[1]): print(flush=True); time.sleep(60)"


def test_a_folder_is_written_by_one_process_at_a_time(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    other = subprocess.Popen([sys.executable, "-c", HOLD, folder], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        other.stdout.readline()
        with pytest.raises(InputError, match=rf"by another command \(process {other.pid} on .*\)"), locked(folder):
            pass
        monkeypatch.setenv("SLURM_PROCID", "1")
        with held(folder):
            pass  # another rank of the same run
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert (folder / ".lock").exists()
    with locked(folder):
        assert os.fork() or os._exit(0)
    assert not list(folder.iterdir())
