"""Time and memory of a training step beside transformers: forward pass with masks, matching, losses, backward pass.

    python benchmarks/training_step.py                                # ViT-S at 640 on this machine
    python benchmarks/training_step.py --size large --batch 8 --precision bf16 --compile --device cuda
    python benchmarks/training_step.py --original PATH                # and the original, from a checkout
    python benchmarks/training_step.py --scaling --size tiny --pixels 320 --queries 100
    python benchmarks/training_step.py --profile FOLDER               # where the time of our step goes

Rows: the step; its peak memory above model and batch, each side in a process of its own; matching and losses alone
(forward and backward, from mask embeddings and features on); the mask-free network alone on one image. No optimizer
step, no data loading. Ratios are of medians of alternating rounds, of processor time with `--threads 1`. FLOPs are
those of matrix products, convolutions and attention, by formula; the limit is the rate of a large matrix product on
the same machine in the same precision. `--scaling` varies queries, targets, pixels and batch, one at a time, each
point in a process of its own. `--profile` prints the costliest operations and writes a trace for Perfetto. Needs
`eomt[hf]`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from common import (
    PRECISIONS,
    Batch,
    autocast,
    child,
    clock,
    describe,
    huggingface_network,
    huggingface_step,
    interleaved,
    matmul_rate,
    original_network,
    original_step,
    our_loss,
    our_network,
    our_step,
    peak_of,
    random_batch,
    shared_parser,
    step_flops,
    synchronise,
)
from torch import nn
from torch.profiler import ProfilerActivity, profile

from eomt.inference.graphs import compile_network
from eomt.loss.mask_classification import MaskClassificationLoss
from eomt.model.eomt import EoMT
from eomt.model.outputs import QueryOutput

ROWS = ("step", "memory", "loss", "network")
SIDES = ("ours", "transformers", "original")
SCALES = {
    "queries": (50, 100, 200, 400, 800),
    "targets": (1, 10, 50, 100, 300),
    "pixels": (256, 512, 768, 1024, 1280),
    "batch": (1, 2, 4, 8),
}
SECONDS = 8  # at least, of each side at each point of --scaling


class Setting(NamedTuple):
    """Both sides' networks with equal weights, and the steps of the chosen sides."""

    device: torch.device
    dtype: torch.dtype | None
    batch: Batch
    network: EoMT
    loss: MaskClassificationLoss
    theirs: nn.Module | None
    steps: dict[str, Callable]


def build(options: argparse.Namespace, *sides: str) -> Setting:
    """Networks, inputs and steps of `sides`."""
    device, dtype = torch.device(options.device), PRECISIONS[options.precision]
    batch = random_batch(options.batch, options.pixels, options.targets, device)
    network = our_network(options.size, options.pixels, options.queries)
    theirs = huggingface_network(network).to(device).train() if "transformers" in sides else None
    steps, models = {}, [theirs]
    if "original" in sides:
        original, original_loss = (m.to(device).train() for m in original_network(options.original, network))
        steps["original"] = lambda: original_step(original, original_loss, batch, dtype)
        models.append(original)
    network, loss = network.to(device).train(), MaskClassificationLoss()
    if options.compile:
        compile_network(network, True)
        for model in filter(None, models):
            model.compile(dynamic=False)
    if "ours" in sides:
        steps["ours"] = lambda: our_step(network, loss, batch, dtype)
    if "transformers" in sides:
        steps["transformers"] = lambda: huggingface_step(theirs, network, batch, dtype)
    return Setting(device, dtype, batch, network, loss, theirs, steps)


def one_side(options: argparse.Namespace) -> dict[str, float]:
    """Peak MiB of one side's step, and with --scaling its median seconds."""
    setting = build(options, options.side)
    step, seconds = setting.steps[options.side], [float("nan")]
    peak = peak_of(step, setting.device)
    if options.scaling is not None:
        seconds.clear()
        while len(seconds) < options.rounds or sum(seconds) < SECONDS:
            synchronise(setting.device)
            start = clock(setting.device)
            step()
            synchronise(setting.device)
            seconds.append(clock(setting.device) - start)
    return {"seconds": statistics.median(seconds), "mib": peak}


def loss_alone(options: argparse.Namespace, setting: Setting) -> dict[str, Callable]:
    """Both sides' masks and losses from the same mask embeddings and features of all outputs.

    As in a step, inputs are of the autocast type, and transformers' part stays under autocast.
    """
    device, dtype, batch, network, loss, theirs, _ = setting
    generator = torch.Generator(device).manual_seed(1)
    count, side, dim = network.num_masked_blocks + 1, options.pixels // 4, network.backbone.embed_dim

    def leaf(*size: int, scale: float = 1.0) -> torch.Tensor:
        values = torch.randn(options.batch, *size, generator=generator, device=device)
        return (scale * values).to(dtype or torch.float32).requires_grad_()

    queries, classes = options.queries, network.num_classes + 1
    outputs = [
        QueryOutput(leaf(queries, dim, scale=dim**-0.5), leaf(side, side, dim), leaf(queries, classes))
        for _ in range(count)
    ]
    # Their features are channels first.
    features = [
        output.features.detach().permute(0, 3, 1, 2).contiguous().requires_grad_() for output in outputs if theirs
    ]

    def reset() -> None:
        for tensor in (*features, *(part for output in outputs for part in output)):
            tensor.grad = None

    def ours() -> None:
        reset()
        our_loss(network, loss, outputs, batch).backward()

    def transformers() -> None:
        reset()
        total = 0
        for output, feature in zip(outputs, features, strict=True):
            with autocast(device, dtype):
                masks = torch.einsum("bqc, bchw -> bqhw", output.mask_embeddings, feature)
                terms = theirs.get_loss_dict(masks, output.class_logits, batch.masks, batch.labels, None)
                total = total + theirs.get_loss(terms)
        total.backward()

    return {"ours": ours, "transformers": transformers}


def network_alone(setting: Setting) -> dict[str, Callable]:
    """Both mask-free networks on one image."""
    network, theirs = setting.network.eval(), setting.theirs.eval()
    theirs.attn_mask_probs.zero_()
    image = setting.batch.images[:1]
    pixels = (image.float() / 255 - network.pixel_mean) / network.pixel_std

    def run(model: nn.Module, **arguments: torch.Tensor):
        with torch.inference_mode(), autocast(setting.device, setting.dtype):
            return model(**arguments)

    return {
        "ours": lambda: run(network, images=image)[-1].logits(),
        "transformers": lambda: run(theirs, pixel_values=pixels),
    }


def compare(options: argparse.Namespace) -> None:
    """Print the table of both sides' rows."""
    names = SIDES if options.original else SIDES[:2]
    # First: the peak of a process starts from that of its parent.
    peaks = {side: child("--side", side)["mib"] for side in names} if "memory" in options.rows else {}
    setting = build(options, *names)
    print(f"{describe(options)}, batch {options.batch}, {options.targets} targets\n")
    print(f"| | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}")

    def row(name: str, medians: dict[str, float], unit: float = 1e3, digits: int = 1) -> None:
        cells = [f"{medians['ours'] * unit:.{digits}f}"]
        for side in names[1:]:
            theirs = medians.get(side)
            cells.append(f"{theirs * unit:.{digits}f} ({theirs / medians['ours']:.2f} x)" if theirs else "-")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)

    taken = interleaved(setting.steps, setting.device, options.rounds) if "step" in options.rows else None
    if taken:
        row("training step, ms", taken)
    if peaks:
        row("its peak memory, MiB", peaks, 1, 0)
    if "loss" in options.rows:
        sides = loss_alone(options, setting)
        row("masks, matching and losses, ms", interleaved(sides, setting.device, options.rounds))
    if "network" in options.rows:
        sides = network_alone(setting)
        row("network alone, one image, ms", interleaved(sides, setting.device, 3 * options.rounds, 3))
    if taken:
        matched = options.batch * min(options.queries, options.targets)
        flops = step_flops(setting.network, options.batch, options.pixels, setting.loss.num_points, matched)
        rate = matmul_rate(setting.device, setting.dtype)
        print(
            f"\nour step: {flops / 1e9:.0f} GFLOP, {flops / taken['ours'] / 1e9:.0f} GFLOP/s; a large matrix product "
            f"reaches {rate / 1e9:.0f} GFLOP/s, at which it would take {flops / rate * 1e3:.0f} ms"
        )


def scale(options: argparse.Namespace) -> None:
    """Print time and memory of both sides at each point."""
    print(f"{describe(options)}, batch {options.batch}, {options.targets} targets, but for the first column\n")
    print("| | ours: s, MiB | transformers: s, MiB | ratios |\n|---|---|---|---|", flush=True)
    for name in options.scaling or SCALES:
        for value in SCALES[name]:
            ours, theirs = (child(f"--{name}={value}", "--side", side) for side in SIDES[:2])
            cells = [f"{side['seconds']:.3f}, {side['mib']:.0f}" for side in (ours, theirs)]
            ratios = ", ".join(f"{theirs[key] / ours[key]:.2f}" for key in ours)
            print(f"| {name} {value} | {cells[0]} | {cells[1]} | {ratios} |", flush=True)


def write_profile(options: argparse.Namespace) -> None:
    """Print the costliest operations of our step and write a trace into the folder."""
    setting = build(options, "ours")
    step, cuda = setting.steps["ours"], setting.device.type == "cuda"
    for _ in range(3 if cuda else 1):
        step()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] * cuda)]) as profiler:
        step()
        synchronise(setting.device)
    times = {
        event: event.self_device_time_total if cuda else event.self_cpu_time_total for event in profiler.key_averages()
    }
    total = sum(times.values())
    print(f"{describe(options)}: {total / 1e3:.0f} ms\n\n| operation | ms | share | calls |\n|---|---|---|---|")
    for event in sorted(times, key=times.get, reverse=True)[:15]:
        print(f"| {event.key} | {times[event] / 1e3:.1f} | {times[event] / total:.0%} | {event.count} |")
    options.profile.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(options.profile / "training_step.json.gz"))


def main() -> None:
    """Run the chosen measurement."""
    parser = shared_parser(__doc__)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--targets", type=int, default=20, help="segments of each image")
    parser.add_argument("--original", metavar="PATH", help="a checkout of the original, for its step and memory")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--scaling", nargs="*", choices=SCALES, help="how the step grows with these; default all")
    parser.add_argument("--profile", type=Path, metavar="FOLDER")
    parser.add_argument("--side", choices=SIDES, help="measure this side alone and print JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("medium")
    if options.side:
        print(json.dumps(one_side(options)))
    elif options.profile:
        write_profile(options)
    elif options.scaling is not None:
        scale(options)
    else:
        compare(options)


if __name__ == "__main__":
    main()
