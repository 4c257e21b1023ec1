"""Training runs in processes of their own, and a look at running processes through Linux's /proc."""

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.running import ROOT


def launched(*overrides: str, output: Path | None = None) -> subprocess.Popen:
    """Start train.py in a process group of its own, with one thread: the order of sums depends on their number.

    Args:
        overrides: the command line.
        output: the file for what it prints; default a pipe, which takes no more than a short run prints.
    """
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *overrides],
        stdout=output.open("w") if output else subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def wait_for_saves(process: subprocess.Popen, checkpoint: Path, count: int = 1) -> None:
    """Return once `checkpoint` has been written `count` times; fail if the process ends before."""
    deadline, saves, last = time.monotonic() + 300, 0, None
    while saves < count:
        assert process.poll() is None, process.stdout and process.stdout.read()
        assert time.monotonic() < deadline, f"{saves} checkpoints within five minutes"
        time.sleep(0.002)
        if checkpoint.exists() and (now := checkpoint.stat().st_mtime_ns) != last:
            saves, last = saves + 1, now


def descendants(parent: int) -> list[int]:
    """Process ids of a process's children, their children, and so on."""
    pairs = [(int(path.name), _stat(path)) for path in Path("/proc").iterdir() if path.name.isdigit()]
    children = [pid for pid, stat in pairs if stat[1:2] == [str(parent)]]
    return children + [pid for child in children for pid in descendants(child)]


def is_running(pid: int) -> bool:
    """True if a process exists and is no zombie."""
    return _stat(Path(f"/proc/{pid}"))[:1] not in ([], ["Z"])


def environment(pid: int) -> bytes:
    """The environment with which a process was started; empty for one that has gone."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def _stat(process: Path) -> list[str]:
    """State, parent and so on; empty for a process that has gone."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
