"""The original's recorded logits and results of post-processing, and the memory that a function adds."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

from safetensors.torch import load_file

from eomt.postprocess.geometry import Placement, cover_size, fit_size

GOLDEN = Path(__file__).parents[1] / "golden"
SETTINGS = json.loads((GOLDEN / "postprocess.json").read_text())

PEAK = """
import resource, sys
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "linux" else 2**30)
{setup}
run(*{small})
before = peak()
run(*{large})
print(peak() - before)
"""


@cache
def golden():
    """Tensors by name, each with the number of its case before it."""
    return load_file(GOLDEN / "postprocess.safetensors")


def fitted(height, width, size):
    return Placement(height, width, *fit_size(height, width, size))


def covering(height, width, size):
    return Placement(height, width, *cover_size(height, width, size))


def added_memory(setup, small, large):
    """GiB that `run(*large)` takes more than `run(*small)`, in a process of its own; `setup` defines `run`."""
    command = [sys.executable, "-c", PEAK.format(setup=setup, small=small, large=large)]
    done = subprocess.run(command, cwd=GOLDEN.parents[1], capture_output=True, text=True, check=True)
    return float(done.stdout)
