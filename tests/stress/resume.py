"""Kills a short run at random moments, resumes it each time, and compares its end with that of an undisturbed run.

    python tests/stress/resume.py                   20 runs, ended by SIGKILL, SIGTERM, SIGUSR1 and Ctrl-C in turn
    python tests/stress/resume.py --runs 4 --seed 1

The run is the built-in shapes task on the CPU, small: a checkpoint after every step, validation within, a data worker.
Compared are weights, optimizer, schedule, mask probabilities, the loader's place, and all logged numbers, bit for bit.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from datasets.shapes.dataset import ensure_shapes  # noqa: E402
from eomt.weights.checkpoint import intact, read_checkpoint  # noqa: E402
from tests.running import SMALL  # noqa: E402

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
STATUS = {number: {128 + number} if number != signal.SIGKILL else {-number} for number in SIGNALS}


def main() -> None:
    """Print a row per killed run, and how many ended the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--epochs", type=int, default=30, help="of three optimizer steps each")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), arguments)


def measure(folder: Path, arguments: argparse.Namespace) -> None:
    """Run undisturbed, then killed and resumed, in subfolders."""
    os.environ["EOMT_CACHE"] = str(folder / "cache")
    shapes = ensure_shapes(train_images=24, val_images=10, size=48)
    options = [
        *SMALL,
        f"data.root={shapes}",
        f"trainer.max_epochs={arguments.epochs}",
        "trainer.check_val_every_n_epoch=3",
        "callbacks.last.every_n_steps=1",
        "callbacks.pictures=null",
        "callbacks.curves=null",
    ]
    moments = random.Random(arguments.seed)
    start = time.monotonic()
    end(launched(options, folder / "undisturbed"), {0})
    wanted = state(folder / "undisturbed")
    steps = wanted[".global_step"]
    print(f"undisturbed: {steps} steps, {time.monotonic() - start:.0f} s")
    print("\n| run | signal | sent after | exit | last.ckpt at step | left behind | same end |")
    print("|---|---|---|---|---|---|---|")
    same = 0
    for number in range(arguments.runs):
        run, sent = folder / f"run{number}", SIGNALS[number % len(SIGNALS)]
        process = launched(options, run)
        # Counted in checkpoints, one per step, for machines are now fast, now slow; then anywhere in a step or a save.
        saves, delay = moments.randint(1, steps - 6), moments.uniform(0, 0.3)
        wait_for_saves(process, run, saves)
        time.sleep(delay)
        process.send_signal(sent)
        status = end(process, STATUS[sent] | {0})
        last = intact(run / "checkpoints" / "last.ckpt")
        step = read_checkpoint(last)["global_step"]
        left = sum(path.name.startswith(".") for path in last.parent.iterdir())
        if status:
            end(launched([f"ckpt={last}"], None), {0})
        differences = different(state(run), wanted)
        same += not differences
        answer = "yes" if not differences else f"no: {', '.join(differences[:3])}"
        print(
            f"| {number + 1} | {sent.name} | save {saves} + {delay:.2f} s | {status} | {step} | {left} | {answer} |",
            flush=True,
        )
    print(f"\n{same} of {arguments.runs} ended bit for bit like the undisturbed run")
    sys.exit(same != arguments.runs)


def launched(options: list[str], folder: Path | None) -> subprocess.Popen:
    """A training process, of one thread: the order of sums hangs on their number."""
    arguments = [*options, *([f"hydra.run.dir={folder}"] if folder else [])]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for_saves(process: subprocess.Popen, folder: Path, count: int) -> None:
    """Return once the run has saved `count` checkpoints."""
    path, seen, last = folder / "checkpoints" / "last.ckpt", 0, None
    while seen < count:
        if process.poll() is not None:
            sys.exit(process.stdout.read())
        time.sleep(0.002)
        if path.exists() and (now := path.stat().st_mtime_ns) != last:
            seen, last = seen + 1, now


def end(process: subprocess.Popen, expected: set[int]) -> int:
    """The exit status once the process has ended, which must be an expected one."""
    output, _ = process.communicate()
    if process.returncode not in expected:
        sys.exit(f"exit status {process.returncode}:\n{output}")
    return process.returncode


def state(folder: Path) -> dict:
    """What must be the same, flat: the last checkpoint's values and the logged numbers."""
    checkpoint = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    parts = ("global_step", "state_dict", "optimizer_states", "lr_schedulers")
    values = dict(flat({part: checkpoint[part] for part in parts}))
    values |= flat({"loader": checkpoint["loops"]["fit_loop"]["state_dict"]})
    with (folder / "csv" / "version_0" / "metrics.csv").open() as file:
        rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]
    return values | dict(flat({"log": rows}))


def flat(value, name: str = "") -> dict:
    """Nested values under dotted names."""
    if isinstance(value, dict | list | tuple):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, part in pairs for k, v in flat(part, f"{name}.{key}").items()}
    return {name: value}


def different(ours: dict, theirs: dict) -> list[str]:
    """The names under which values differ."""
    return [
        name
        for name in sorted(ours.keys() | theirs.keys())
        if name not in ours
        or name not in theirs
        or not (
            torch.equal(ours[name], theirs[name])
            if isinstance(ours[name], torch.Tensor)
            else ours[name] == theirs[name]
        )
    ]


if __name__ == "__main__":
    main()
