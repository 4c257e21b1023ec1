"""The SLURM job that this process is a task of."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time

ENDING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""The signals that end a task: preemption; what `--signal=USR1@...` sends ahead of the time limit, and submitit."""

# A controller that is busy or just restarting answers a little later.
TRIES, PAUSE_SECONDS = 3, 5


def batch_job() -> str | None:
    """The number of the batch job that this process is a task of, which a requeued job keeps.

    None outside SLURM and within an interactive allocation, where runs follow each other under one number.
    """
    job, name = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_JOB_NAME")
    if job and "SLURM_PROCID" in os.environ and name not in ("bash", "sh", "zsh", "interactive"):
        return job
    return None


def first_task() -> bool:
    """Whether this process is the one that speaks for all; also true outside SLURM."""
    return os.environ.get("SLURM_PROCID", "0") == "0"


def requeue() -> str:
    """Put this job back into the queue, which ends it here within seconds.

    A job that SLURM is ending already (`scancel`, its time limit, preemption by requeuing) is left to it.

    Returns:
        why it was not done, in a few words; "" if it was.
    """
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    # The number of an array's last task is also that of the whole array.
    job = f"{array}_{task}" if array and task else os.environ["SLURM_JOB_ID"]
    state = re.search(r"JobState=(\w+)", _scontrol("show", "job", "-o", os.environ["SLURM_JOB_ID"])[1])
    if state and state[1] != "RUNNING":
        return f"SLURM itself is ending the job, whose state is {state[1]}"
    for attempt in range(TRIES):
        if attempt:
            time.sleep(PAUSE_SECONDS)
        done, answer = _scontrol("requeue", job)
        if done:
            return ""
    return f"scontrol requeue {job}: {answer}"


def _scontrol(*arguments: str) -> tuple[bool, str]:
    """Whether it succeeded, and what it said; in a session of its own, so that the job's end does not end it."""
    try:
        done = subprocess.run(
            ["scontrol", *arguments], capture_output=True, text=True, timeout=30, check=False, start_new_session=True
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, str(error)
    return done.returncode == 0, " ".join((done.stdout + done.stderr).split())
