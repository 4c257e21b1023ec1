"""How time and memory of a training step grow, ours beside transformers'.

    python benchmarks/scaling.py --out scaling.png                          # ViT-tiny on a CPU, some minutes
    python benchmarks/scaling.py --device cuda --size large --precision bf16 --batch 4 --out scaling.png

One of queries, targets, image side and batch grows while the others stay where they are. Each point is measured in a
process of its own per side: the median of steps (forward, matching, losses, backward) over some seconds, on one thread
of a CPU processor time, and the most memory held beyond the model and the batch. Prints a table and draws it. Needs
`eomt[hf]` and matplotlib.
"""

import argparse
import json
import statistics
import subprocess
import sys

import torch
from common import (
    PRECISIONS,
    SIZES,
    clock,
    huggingface_network,
    huggingface_step,
    our_network,
    our_step,
    peak_mib,
    random_batch,
    synchronise,
)

from eomt.loss.mask_classification import MaskClassificationLoss

GROWS = {
    "queries": (50, 100, 200, 400, 800),
    "targets": (1, 10, 50, 100, 300),
    "pixels": (256, 512, 768, 1024, 1280),
    "batch": (1, 2, 4, 8),
}
SIDES = ("ours", "transformers")
SECONDS = 8  # of each side at each point, at least


def measure(options) -> dict:
    """Seconds and MiB of one side's step."""
    device, dtype = torch.device(options.device), PRECISIONS[options.precision]
    batch = random_batch(options.batch, options.pixels, options.targets, device)
    network = our_network(options.size, options.pixels, options.queries)
    theirs = huggingface_network(network).to(device).train() if options.side == "transformers" else None
    network, loss = network.to(device).train(), MaskClassificationLoss()
    if theirs is None:
        step = lambda: our_step(network, loss, batch, dtype)  # noqa: E731
    else:
        step = lambda: huggingface_step(theirs, network, batch, dtype)  # noqa: E731
    held = peak_mib(device)
    if device.type == "cuda":
        step()
        held = torch.cuda.memory_allocated() / 2**20
        torch.cuda.reset_peak_memory_stats()
    step()
    peak, seconds = peak_mib(device) - held, []
    while len(seconds) < options.rounds or sum(seconds) < SECONDS:
        synchronise(device)
        start = clock(device)
        step()
        synchronise(device)
        seconds.append(clock(device) - start)
    return {"seconds": statistics.median(seconds), "mib": peak}


def draw(found: dict, path: str, title: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(found), figsize=(4 * len(found), 7), squeeze=False, layout="constrained")
    for column, (name, points) in enumerate(found.items()):
        for row, (key, label) in enumerate((("seconds", "seconds a step"), ("mib", "MiB"))):
            axis = axes[row][column]
            for side, mark in zip(SIDES, "os", strict=True):
                axis.plot(list(points), [p[side][key] for p in points.values()], marker=mark, label=side)
            axis.set(xlabel=name, ylabel=label, ylim=(0, None))
            axis.grid(alpha=0.3)
    axes[0][0].legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--pixels", type=int, default=320)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--targets", type=int, default=20)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--rounds", type=int, default=3, help="steps, at least")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--only", choices=GROWS, nargs="+", default=list(GROWS))
    parser.add_argument("--out", help="where the picture goes")
    parser.add_argument("--side", choices=SIDES, help="only this one, at this point, in this process, as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("medium")
    if options.side:
        print(json.dumps(measure(options)))
        return
    title = (
        f"ViT {options.size}, {options.precision}, {options.device}; else {options.queries} queries, "
        f"{options.targets} targets, {options.pixels} pixels, batch {options.batch}"
    )
    print(f"{title}\n\n| | ours: s, MiB | transformers: s, MiB | ratios |\n|---|---|---|---|", flush=True)
    found = {}
    for name in options.only:
        found[name] = {}
        for value in GROWS[name]:
            point = {}
            for side in SIDES:
                command = [sys.executable, __file__, *sys.argv[1:], f"--{name}={value}", "--side", side]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                point[side] = json.loads(done.stdout.splitlines()[-1])
            found[name][value] = point
            ours, theirs = (point[side] for side in SIDES)
            print(
                f"| {name} {value} | {ours['seconds']:.3f}, {ours['mib']:.0f} | {theirs['seconds']:.3f}, "
                f"{theirs['mib']:.0f} | {theirs['seconds'] / ours['seconds']:.2f}, {theirs['mib'] / ours['mib']:.2f} |",
                flush=True,
            )
    if options.out:
        draw(found, options.out, title)


if __name__ == "__main__":
    main()
