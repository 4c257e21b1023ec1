"""A training step, ours beside transformers': forward pass with masks, matching, losses, backward pass.

    python benchmarks/training_step.py                                     # ViT-S at 640, this machine
    python benchmarks/training_step.py --size large --batch 8 --precision bf16 --compile --device cuda
    python benchmarks/training_step.py --original PATH                     # and the original, from a checkout

Rows: the step; the most memory that it holds beyond the model and the batch, each side in a process of its own;
matching and losses alone (forward and backward, from mask embeddings and features on); the network alone, without
masks. No optimizer step, no data loading. Ratios are of medians of interleaved rounds, with `--threads 1` of processor
time. FLOPs are those of matrix products, convolutions and attention, 2 per multiplication and addition, forward and
backward (computing activations again not counted), by formula; the limit is what a large matrix product reaches on the
same machine in the same precision. Needs `eomt[hf]`.
"""

import argparse
import json
import subprocess
import sys

import torch
from common import (
    PRECISIONS,
    SIZES,
    autocast,
    huggingface_network,
    huggingface_step,
    interleaved,
    matmul_rate,
    original_network,
    original_step,
    our_loss,
    our_network,
    our_step,
    peak_mib,
    random_batch,
    step_flops,
)

from eomt.loss.mask_classification import MaskClassificationLoss
from eomt.model.outputs import QueryOutput


def sides(options):
    """The two sides' steps, and what they are made of."""
    device = torch.device(options.device)
    batch = random_batch(options.batch, options.pixels, options.targets, device)
    network = our_network(options.size, options.pixels, options.queries)
    theirs = huggingface_network(network).to(device).train() if options.side in (None, "transformers") else None
    steps = {}
    if options.original and options.side in (None, "original"):
        original, original_loss = (m.to(device).train() for m in original_network(options.original, network))
        steps["original"] = lambda: original_step(original, original_loss, batch, dtype)
    network, loss = network.to(device).train(), MaskClassificationLoss()
    dtype = PRECISIONS[options.precision]
    if options.compile:
        network.compile()
        if theirs is not None:
            theirs.compile()
        if "original" in steps:
            original.compile()
    steps["ours"] = lambda: our_step(network, loss, batch, dtype)
    steps["transformers"] = lambda: huggingface_step(theirs, network, batch, dtype)
    return device, dtype, batch, network, theirs, loss, steps


def memory(options) -> None:
    """The peak of one side's step above what was there before it, after a first step, as JSON."""
    device, *_, steps = sides(options)
    step = steps[options.side]
    if device.type == "cuda":
        step()
        held = torch.cuda.memory_allocated() / 2**20
        torch.cuda.reset_peak_memory_stats()
    else:
        held = peak_mib(device)
    step()
    print(json.dumps(peak_mib(device) - held))


def peak_of(side: str) -> float:
    command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def loss_alone(options, dtype, batch, network, theirs, loss) -> dict:
    """Both sides' losses on the same mask embeddings and features of L2 + 1 outputs, of which masks are the product.

    As in a step: what the networks give is of `dtype`; theirs goes on under autocast.
    """
    generator = torch.Generator(batch.images.device).manual_seed(1)
    count, side, dim = network.num_masked_blocks + 1, options.pixels // 4, network.backbone.embed_dim

    def leaf(*size, scale=1.0):
        values = torch.randn(options.batch, *size, generator=generator, device=batch.images.device)
        return (scale * values).to(dtype or torch.float32).requires_grad_()

    queries, classes = options.queries, network.num_classes + 1
    parts = [
        QueryOutput(leaf(queries, dim, scale=dim**-0.5), leaf(side, side, dim), leaf(queries, classes))
        for _ in range(count)
    ]
    # Their features are channels first.
    channels_first = [p.features.detach().permute(0, 3, 1, 2).contiguous().requires_grad_() for p in parts]

    def of_ours():
        forget(*(leaf for part in parts for leaf in part))
        our_loss(network, loss, parts, batch).backward()

    def of_theirs():
        forget(*channels_first, *(leaf for part in parts for leaf in part))
        total = 0
        for part, features in zip(parts, channels_first, strict=True):
            with autocast(batch.images.device, dtype):
                masks = torch.einsum("bqc, bchw -> bqhw", part.mask_embeddings, features)
                terms = theirs.get_loss_dict(masks, part.class_logits, batch.masks, batch.labels, None)
                total = total + theirs.get_loss(terms)
        total.backward()

    def forget(*leaves):
        # Nobody adds to a step's gradients where they have been set to None before.
        for leaf in leaves:
            leaf.grad = None

    return {"ours": of_ours, "transformers": of_theirs}


def network_alone(options, dtype, batch, network, theirs) -> dict:
    """Both networks' answers to one image, without masks."""
    network.eval(), theirs.eval()
    theirs.attn_mask_probs.zero_()
    image = batch.images[:1]
    pixels = (image.float() / 255 - network.pixel_mean) / network.pixel_std

    def run(model, **arguments):
        with torch.inference_mode(), autocast(image.device, dtype):
            return model(**arguments)

    return {
        "ours": lambda: run(network, images=image)[-1].logits(),
        "transformers": lambda: run(theirs, pixel_values=pixels),
    }


def row(name: str, medians: dict, unit: float = 1e3, digits: int = 1) -> None:
    ours = medians["ours"]
    cells = [f"{ours * unit:.{digits}f}"]
    for side in ("transformers", "original"):
        if side in medians:
            cells.append(f"{medians[side] * unit:.{digits}f} ({medians[side] / ours:.2f} x)")
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--pixels", type=int, default=640)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--targets", type=int, default=20, help="segments of each image")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of the CPU; default PyTorch's")
    parser.add_argument("--original", metavar="PATH", help="a checkout of the original, for its step and memory")
    parser.add_argument("--rows", nargs="+", choices=("step", "memory", "loss", "network"))
    parser.add_argument(
        "--side", choices=("ours", "transformers", "original"), help="its memory alone, in this process, as JSON"
    )
    options = parser.parse_args()
    rows = options.rows or ["step", "memory", "loss", "network"]
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("medium")
    if options.side:
        memory(options)
        return
    # First: a process's peak begins with that of the process that starts it.
    names = ["ours", "transformers", *(["original"] if options.original else [])]
    peaks = {side: peak_of(side) for side in names} if "memory" in rows else None
    device, dtype, batch, network, theirs, loss, steps = sides(options)
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(
        f"ViT {options.size}, {options.pixels} pixels, batch {options.batch}, {options.queries} queries, "
        f"{options.targets} targets, {options.precision}{', compiled' if options.compile else ''}; {where}, "
        f"torch {torch.__version__}\n"
    )
    print(f"| | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}")
    taken = None
    if "step" in rows:
        taken = interleaved(steps, device, options.rounds)
        row("training step, ms", taken)
    if peaks:
        row("its peak memory, MiB", peaks, 1, 0)
    if "loss" in rows:
        row(
            "matching and losses, ms",
            interleaved(loss_alone(options, dtype, batch, network, theirs, loss), device, options.rounds),
        )
    if "network" in rows:
        alone = interleaved(network_alone(options, dtype, batch, network, theirs), device, 3 * options.rounds, 3)
        row("network alone, batch 1, ms", alone)
    if taken:
        matched = options.batch * min(options.queries, options.targets)
        flops = step_flops(network, options.batch, options.pixels, loss.num_points, matched)
        rate = matmul_rate(device, dtype)
        print(
            f"\nour step: {flops / 1e9:.0f} GFLOP, {flops / taken['ours'] / 1e9:.0f} GFLOP/s; a large matrix product "
            f"reaches {rate / 1e9:.0f} GFLOP/s, at which it would take {flops / rate * 1e3:.0f} ms"
        )


if __name__ == "__main__":
    main()
