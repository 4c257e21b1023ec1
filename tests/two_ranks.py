"""Several runs in one pair of processes: `python -m tests.two_ranks RANK PORT SPECIFICATION.json`.

Starting a pair takes longer than training a few steps of a tiny network.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from tests.running import ROOT

TWO = ("trainer.devices=2", "trainer.accelerator=cpu")


def run_pair(folder, runs):
    """Run several configurations, one after the other, in two processes over gloo.

    Args:
        folder: the folder for the specification.
        runs: (script, run folder, overrides) of each run; the script is "train" or "eval".
    """
    specification = Path(folder) / "runs.json"
    specification.write_text(json.dumps([[name, str(where), list(overrides)] for name, where, overrides in runs]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.two_ranks", str(rank), str(port), str(specification)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=600)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    statuses = [process.returncode for process in ranks]
    assert statuses == [0, 0], "\n".join([*(output[-3000:] for output in outputs), str(statuses)])


def main(rank, port, specification):
    """One of the two ranks, announced to Lightning by torchrun's variables."""
    os.environ |= {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "TORCHELASTIC_RUN_ID": "tests",
    }
    import torch
    from lightning.pytorch.loops import utilities

    import eval as evaluation
    import train
    from tests.running import configured

    torch.set_num_threads(1)
    # Over gloo Lightning would evaluate without inference mode, which it takes over NCCL.
    utilities.dist = SimpleNamespace(get_backend=lambda: "nccl")

    scripts = {"train": train.main, "eval": evaluation.main}
    for name, folder, overrides in json.loads(Path(specification).read_text()):
        scripts[name](configured(folder, *overrides, *TWO, name=name))


if __name__ == "__main__":
    main(*sys.argv[1:])
