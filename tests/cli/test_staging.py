"""STAGE=1 of slurm/train.sbatch: the data is read from a node's own disk, which no checkpoint records.

SLURM's commands are stood in for by a few lines of shell; tests/test_slurm.py has the real ones.
"""

import os
import subprocess

import pytest

from eomt.cli import build as assemble
from tests.running import ROOT, configured

SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
echo "JobId=7 JobState=$STATE Reason=None"
"""
PYTHON = """#!/usr/bin/env bash
printf '%s\\n' "$@" "staged=${EOMT_STAGED_ROOT:-}" "$(ls "${EOMT_STAGED_ROOT:-.}")" > "$SEEN"
exit "$STATUS"
"""


def _job(folder, state, status, stage="1"):
    """The lines that the training saw, and whether the copy is still there after the job."""
    data, programs = folder / "data", folder / "bin"
    for path in (data, programs):
        path.mkdir()
    (data / "images.zip").touch()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "python": PYTHON}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    variables = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(folder),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "n1",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_NTASKS_PER_NODE": "1",
        "LOCAL": str(folder),
        "SEEN": str(folder / "seen"),
        "STAGE": stage,
        "STATE": state,
        "STATUS": str(status),
    }
    script = str(ROOT / "slurm" / "train.sbatch")
    done = subprocess.run(["bash", script, f"data.root={data}"], env=variables, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    return (folder / "seen").read_text().splitlines(), (folder / "eomt-7").exists()


@pytest.mark.parametrize(
    ("state", "status", "stays"),
    [
        ("RUNNING", 0, False),
        ("RUNNING", 1, False),
        ("PENDING", 0, True),  # requeued
        ("COMPLETING", 0, True),
        ("CANCELLED", 143, False),
    ],
)
def test_the_copy_lives_as_long_as_the_job(tmp_path, state, status, stays):
    seen, there = _job(tmp_path, state, status)
    assert there == stays
    assert f"staged={tmp_path}/eomt-7" in seen
    assert "images.zip" in seen
    assert [line for line in seen if line.startswith("data.root=")] == [f"data.root={tmp_path}/data"]


def test_without_staging_nothing_is_copied(tmp_path):
    seen, there = _job(tmp_path, "RUNNING", 0, stage="0")
    assert "staged=" in seen
    assert not there


def test_the_copy_is_read_and_not_recorded(options, tmp_path, shapes, monkeypatch):
    copy = tmp_path / "copy"
    copy.symlink_to(shapes)
    outside = [o for o in options if not o.startswith("data.root")]
    cfg = configured(tmp_path / "run", *outside, f"data.root='{tmp_path}/elsewhere'")
    monkeypatch.setenv(assemble.STAGED_ROOT, str(copy))
    data = assemble.build_data(cfg)
    assert len(data.reader("train")) == 24
    config = assemble.build_module(cfg, data.classes, data.image_size).run["config"]
    assert config["data"]["root"] == f"{tmp_path}/elsewhere"
    assert str(copy) not in str(config)
