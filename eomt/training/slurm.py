"""SLURM: the job of this process, and its requeueing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time

ENDING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that end a task: SIGTERM at preemption, SIGUSR1 ahead of the time limit (`--signal=USR1@...`), submitit's."""


def batch_job() -> str | None:
    """Return the number of this process's batch job, which a requeued job keeps.

    None outside SLURM and within an interactive allocation, where several runs share one number.
    """
    job, name = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_JOB_NAME")
    if job and "SLURM_PROCID" in os.environ and name not in ("bash", "sh", "zsh", "interactive"):
        return job
    return None


def first_task() -> bool:
    """True if this process is the first task of its job; also true outside SLURM."""
    return os.environ.get("SLURM_PROCID", "0") == "0"


def first_rank() -> bool:
    """True if this process is the first of all ranks of its run, however they were started."""
    return all(os.environ.get(rank, "0") == "0" for rank in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def requeue() -> str:
    """Put this job back into the queue, which ends it here within seconds.

    A job that SLURM is ending already (`scancel`, its time limit, preemption by requeuing) is left to it.

    Returns:
        The reason why it was not done, in a few words; "" if it was.
    """
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    # The number of an array's last task is also that of the whole array.
    job = f"{array}_{task}" if array and task else os.environ["SLURM_JOB_ID"]
    state = re.search(r"JobState=(\w+)", _scontrol("show", "job", "-o", os.environ["SLURM_JOB_ID"])[1])
    if state and state[1] != "RUNNING":
        return f"SLURM itself is ending the job, whose state is {state[1]}"
    for pause in (0, 5, 5):
        # A controller that is busy or restarting replies a little later.
        time.sleep(pause)
        done, output = _scontrol("requeue", job)
        if done:
            return ""
    return f"scontrol requeue {job}: {output}"


def _scontrol(*arguments: str) -> tuple[bool, str]:
    """Run scontrol; return whether it succeeded, and its output."""
    try:
        # In its own session, so that the end of the job does not end it.
        done = subprocess.run(
            ["scontrol", *arguments], capture_output=True, text=True, timeout=30, check=False, start_new_session=True
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, str(error)
    return done.returncode == 0, " ".join((done.stdout + done.stderr).split())
