"""How much memory and time does post-processing take on a CPU?

    python benchmarks/memory.py                              # one image of 3000 x 4000
    python benchmarks/memory.py --height 480 --width 640
    python benchmarks/memory.py --max-mib 64                 # let maps be upsampled in smaller portions

Each kind runs in a fresh process. Memory is the peak of its resident set above what it had once torch was
loaded and the logits were there: the answer is included, the logits are not. Logits are random, with a few
dozen sure blobs as a trained network gives; "crowded": every query is one of them, the worst case of the
panoptic merge. Rows: semantic with 100 queries, 150 classes and windows of 512; instance and panoptic with
200 queries, 80 and 133 classes and an input of 640.

Last table (one thread, 2 CPU cores that others kept busy, so take the seconds as upper bounds; torch 2.11):

    3000 x 4000             MiB  seconds  segments
    semantic                574    19.74        86
    instance                 97     7.54       100
    panoptic                215     6.49        21
    panoptic crowded        214    22.56         5
    480 x 640               MiB  seconds  segments
    semantic                485     1.07        84
    instance                 16     0.11       100
    panoptic                 11     0.09        21
    panoptic crowded         22     0.41         5
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from eomt.postprocess.geometry import Placement, cover_size, fit_size, window_starts
from eomt.postprocess.instance import instance_segmentation
from eomt.postprocess.panoptic import panoptic_segmentation
from eomt.postprocess.semantic import semantic_segmentation

KINDS = ("semantic", "instance", "panoptic", "panoptic crowded")


def blob_logits(images: int, queries: int, classes: int, side: int, sure: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mask logits [images, queries, side, side] with a round blob each, and class logits: the first `sure`
    queries have a class, the others none.
    """
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.arange(side)[:, None], torch.arange(side)
    masks = torch.empty(images, queries, side, side)
    for mask in masks.flatten(0, 1):  # one by one: what is needed on the way must not hide what is measured
        y, x, size = torch.rand(3, generator=generator).tolist()
        distance = ((rows - y * side) ** 2 + (columns - x * side) ** 2).sqrt()
        mask.normal_(0, 0.25, generator=generator)
        mask.add_(10 * (1 - distance / (side * (0.03 + 0.1 * size**2)))).clamp_(-12, 12)
    logits = torch.randn(images, queries, classes + 1, generator=generator)
    logits[:, sure:, -1] += 8
    label = torch.randint(classes, (images, sure, 1), generator=generator)
    logits[:, :sure].scatter_(-1, label, 12)
    return masks, logits


def prepare(kind: str, height: int, width: int, options: dict):
    """A function that runs the kind on an image of that size and returns how many segments it found."""
    if kind == "semantic":
        size = (512, 512)
        placement = Placement(height, width, *cover_size(height, width, size))
        windows = len(window_starts(max(placement[2:]), size[0]))
        masks, logits = blob_logits(windows, 100, 150, 128, sure=30)
        return lambda: len(semantic_segmentation(masks, logits, placement, size, **options).labels)
    size = (640, 640)
    placement = Placement(height, width, *fit_size(height, width, size))
    classes = 80 if kind == "instance" else 133
    masks, logits = blob_logits(1, 200, classes, 160, sure=200 if kind == "panoptic crowded" else 40)
    if kind == "instance":
        return lambda: len(instance_segmentation(masks[0], logits[0], placement, size, **options).labels)
    things = torch.arange(classes) < 80
    return lambda: len(panoptic_segmentation(masks[0], logits[0], placement, size, things, **options).labels)


def peak_mib() -> float:
    """The highest resident set so far: Linux counts in KiB, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**10 if sys.platform == "linux" else 2**20)


def measure(kind: str, height: int, width: int, options: dict) -> dict:
    run = prepare(kind, height, width, options)
    before = peak_mib()
    run()
    peak = peak_mib()
    start = time.perf_counter()  # of a second run, when everything is loaded
    segments = run()
    return {"seconds": time.perf_counter() - start, "mib": peak - before, "segments": segments}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--height", type=int, default=3000)
    parser.add_argument("--width", type=int, default=4000)
    parser.add_argument("--max-mib", type=int, help="bound on the maps upsampled at a time; default: each kind's own")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kind", choices=KINDS, help="only this one, in this process, as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.kind:
        bound = {} if options.max_mib is None else {"max_bytes": options.max_mib * 2**20}
        print(json.dumps(measure(options.kind, options.height, options.width, bound)))
        return
    print(f"{f'{options.height} x {options.width}':18}      MiB  seconds  segments")
    for kind in KINDS:
        command = [sys.executable, __file__, *sys.argv[1:], "--kind", kind]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"{kind:18} {found['mib']:8.0f} {found['seconds']:8.2f} {found['segments']:9d}", flush=True)


if __name__ == "__main__":
    main()
