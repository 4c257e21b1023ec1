"""Does a long run grow? Trains the default task and watches memory, file handles, threads and processes.

    python tests/stress/soak.py --minutes 30
    python tests/stress/soak.py --minutes 30 task=shapes_instance data.num_workers=2

Other arguments go to train.py. Memory is what processes hold but for mapped files and shared memory, of which other
programs have a part; what a forked worker shares with its parent counts for both. Prints a row every tenth of the
time, and the growth from the second quarter to the last one: of medians, since validation comes and goes. Needs psutil
and Linux.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
COLUMNS = ("MiB, main", "MiB, all", "handles", "threads", "processes")


def sample(process: psutil.Process) -> tuple[float, ...] | None:
    """The columns' values now; None if a process ended meanwhile."""
    try:
        tree = [process, *process.children(recursive=True)]
        memory = [(m.rss - m.shared) / 2**20 for m in (p.memory_info() for p in tree)]
        return memory[0], sum(memory), sum(p.num_fds() for p in tree), sum(p.num_threads() for p in tree), len(tree)
    except psutil.Error:
        return None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--every", type=float, default=5, help="seconds between samples")
    options, overrides = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "train.py"), "trainer.max_epochs=null", "trainer.max_steps=1000000"]
        command += [f"hydra.run.dir={folder}/run", "trainer.enable_progress_bar=false", *overrides]
        with open(f"{folder}/log", "w") as log:
            running = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        process, samples, start = psutil.Process(running.pid), [], time.monotonic()
        print("| minute | " + " | ".join(COLUMNS) + " |\n|" + "---|" * (len(COLUMNS) + 1))
        shown = 0
        while (minutes := (time.monotonic() - start) / 60) < options.minutes:
            time.sleep(options.every)
            if running.poll() is not None:
                raise SystemExit(f"training ended by itself:\n{Path(folder, 'log').read_text()[-2000:]}")
            values = sample(process)
            if values is None:
                continue
            samples.append((minutes, values))
            if minutes >= shown * options.minutes / 10:
                shown += 1
                print(f"| {minutes:.1f} | " + " | ".join(f"{v:.0f}" for v in values) + " |", flush=True)
        running.terminate()
        running.wait(120)
    # The first quarter is left out: workers start, caches fill.
    quarters = [
        [values for minute, values in samples if low <= minute / options.minutes < low + 0.25] for low in (0.25, 0.75)
    ]
    medians = [[statistics.median(column) for column in zip(*quarter, strict=True)] for quarter in quarters]
    print("\nfrom the second quarter to the last:")
    for name, before, after in zip(COLUMNS, *medians, strict=True):
        print(f"  {name}: {before:.0f} -> {after:.0f} ({after - before:+.0f})")


if __name__ == "__main__":
    main()
