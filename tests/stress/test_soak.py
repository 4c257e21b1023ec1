"""A long run does not grow: memory, file handles, threads and processes of the default task.

    python -m pytest -m stress tests/stress/test_soak.py --minutes 30 -s

Memory is what processes hold without mapped files and shared memory; what a forked worker shares with its parent
counts for both. Prints a row every tenth of the time. Medians of the last quarter are compared with those of the second
one, since validation comes and goes and workers start and caches fill in the first. Needs Linux.
"""

import os
import statistics
import time
from pathlib import Path

import pytest

from tests.processes import descendants, launched, wait_for_saves

COLUMNS = ("MiB, main", "MiB, all", "handles", "threads", "processes")
GROWTH = {"MiB, main": 100, "MiB, all": 200, "handles": 200, "threads": 2, "processes": 1}
PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / 2**20


def sample(main):
    """The columns' values now; None if a process ended meanwhile."""
    tree = [main, *descendants(main)]
    try:
        sizes = [[int(n) for n in Path(f"/proc/{pid}/statm").read_text().split()] for pid in tree]
        memory = [PAGE_MIB * (resident - shared) for _, resident, shared, *_ in sizes]
        counted = [sum(len(os.listdir(f"/proc/{pid}/{kind}")) for pid in tree) for kind in ("fd", "task")]
    except OSError:
        return None
    return (memory[0], sum(memory), *counted, len(tree))


@pytest.mark.stress
def test_a_long_run_does_not_grow(tmp_path, request):
    minutes = request.config.getoption("minutes")
    log = tmp_path / "log"
    process = launched(
        "trainer.max_epochs=null",
        "trainer.max_steps=1000000",
        "trainer.enable_progress_bar=false",
        "callbacks.last.every_n_steps=20",
        f"hydra.run.dir={tmp_path}/run",
        output=log,
    )
    try:
        wait_for_saves(process, tmp_path / "run" / "checkpoints" / "last.ckpt")
        samples, start, shown = [], time.monotonic(), 0
        print("\n| minute | " + " | ".join(COLUMNS) + " |\n|" + "---|" * (len(COLUMNS) + 1))
        while (minute := (time.monotonic() - start) / 60) < minutes:
            time.sleep(min(5, minutes))
            assert process.poll() is None, log.read_text()[-2000:]
            if values := sample(process.pid):
                samples.append((minute / minutes, values))
                if minute >= shown * minutes / 10:
                    shown += 1
                    print(f"| {minute:.1f} | " + " | ".join(f"{value:.0f}" for value in values) + " |", flush=True)
    finally:
        process.terminate()
        process.wait(120)
    quarters = [[values for part, values in samples if low <= part < low + 0.25] for low in (0.25, 0.75)]
    before, after = ([statistics.median(column) for column in zip(*quarter, strict=True)] for quarter in quarters)
    for name, first, last in zip(COLUMNS, before, after, strict=True):
        print(f"{name}: {first:.0f} -> {last:.0f}")
        assert last - first <= GROWTH[name], name
