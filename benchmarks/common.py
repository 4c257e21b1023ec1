"""Shared parts of the benchmarks: networks of equal weights, inputs and targets, a clock, operation counts."""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

# Waiting threads that spin take time from other processes; must be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from eomt.loss.mask_classification import MaskClassificationLoss, num_matched
from eomt.model.eomt import EoMT
from eomt.targets import BatchTargets, collate_targets, targets_from_id_map
from eomt.weights.huggingface import to_huggingface
from eomt.weights.original import to_original

SIZES = {
    "small": ("vit_small_patch14_reg4_dinov2", 3),
    "base": ("vit_base_patch14_reg4_dinov2", 3),
    "large": ("vit_large_patch14_reg4_dinov2", 4),
    "giant": ("vit_giant_patch14_reg4_dinov2", 5),
    "dinov3_small": ("vit_small_patch16_dinov3_qkvb", 3),
    "dinov3_base": ("vit_base_patch16_dinov3_qkvb", 3),
    "dinov3_large": ("vit_large_patch16_dinov3_qkvb", 4),
}
# Not a published size: for quick runs.
SIZES["tiny"] = ("vit_small_patch14_reg4_dinov2", 3, {"embed_dim": 192, "depth": 6, "num_heads": 3})
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
NUM_CLASSES = 133


class Batch(NamedTuple):
    """Images and their segments, in the forms that either side takes.

    Attributes:
        images: uint8 [B, 3, P, P].
        targets: the segments as this package's loss takes them.
        masks: float32 [N, P, P] of each image.
        labels: int64 [N] of each image.
    """

    images: Tensor
    targets: BatchTargets
    masks: list[Tensor]
    labels: list[Tensor]


def shared_parser(doc: str | None, **defaults: object) -> argparse.ArgumentParser:
    """A parser with the settings that training_step.py and inference.py share."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--pixels", type=int, default=640, help="side of the network's input")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--compile", action="store_true", help="both sides' networks")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.set_defaults(**defaults)
    return parser


def describe(options: argparse.Namespace) -> str:
    """The settings and the machine, for the line above a table."""
    cuda = torch.device(options.device).type == "cuda"
    where = torch.cuda.get_device_name() if cuda else f"CPU, {options.threads} threads"
    return (
        f"ViT {options.size}, {options.pixels} pixels, {options.queries} queries, {options.precision}"
        f"{', compiled' * options.compile}; {where}, torch {torch.__version__}"
    )


def child(*changes: str) -> dict:
    """Run this script again with further arguments in a process of its own; gives the JSON of its last line."""
    command = [sys.executable, *sys.argv, *changes]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def our_network(size: str, pixels: int, queries: int, seed: int = 0) -> EoMT:
    """A network with random weights."""
    torch.manual_seed(seed)
    backbone, masked_blocks, *backbone_options = SIZES[size]
    return EoMT(backbone, pixels, NUM_CLASSES, queries, masked_blocks, 16, *backbone_options)


def huggingface_network(network: EoMT) -> nn.Module:
    """transformers' EoMT with the same weights."""
    from transformers import AutoConfig, AutoModelForUniversalSegmentation

    state, config, _ = to_huggingface(network.state_dict(), network.spec, None, None)
    model = AutoModelForUniversalSegmentation.from_config(AutoConfig.for_model(**config))
    model.load_state_dict(state)
    return model


def original_network(path: str, network: EoMT) -> tuple[nn.Module, nn.Module]:
    """The original's network and loss from a checkout, with the same weights."""
    sys.path.insert(0, path)
    from models.eomt import EoMT as Original
    from models.vit import ViT
    from training.mask_classification_loss import MaskClassificationLoss as OriginalLoss

    spec = network.spec
    # A given path keeps the original from downloading pretrained weights.
    encoder = ViT(tuple(spec["image_size"]), spec["patch_size"], spec["backbone"], ckpt_path="unused")
    model = Original(encoder, spec["num_classes"], spec["num_queries"], spec["num_masked_blocks"])
    state = to_original(network.state_dict(), spec)
    # The original starts with all masks on.
    del state["network.attn_mask_probs"]
    state = {key.removeprefix("network."): value for key, value in state.items() if key.startswith("network.")}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or set(missing) - {"attn_mask_probs", "encoder.pixel_mean", "encoder.pixel_std"}:
        raise SystemExit(f"{path}: this version of the original has other weights: {missing + unexpected}")
    loss = OriginalLoss(
        num_points=12544,
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
        mask_coefficient=5.0,
        dice_coefficient=5.0,
        class_coefficient=2.0,
        num_labels=spec["num_classes"],
        no_object_coefficient=0.1,
    )
    return model, loss


def random_batch(batch_size: int, pixels: int, num_targets: int, device: torch.device, seed: int = 0) -> Batch:
    """Images of noise, each with `num_targets` segments: the Voronoi cells of random points."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (batch_size, 3, pixels, pixels), generator=generator, dtype=torch.uint8)
    axis = torch.arange(pixels, dtype=torch.float32)
    targets = []
    for _ in range(batch_size):
        y, x = torch.rand(2, num_targets, generator=generator) * pixels
        best, ids = torch.full((pixels, pixels), float("inf")), torch.zeros(pixels, pixels, dtype=torch.int32)
        for k in range(num_targets):
            distance = (axis[:, None] - y[k]) ** 2 + (axis - x[k]) ** 2
            ids = torch.where(distance < best, k + 1, ids)
            best = torch.minimum(distance, best)
        labels = torch.randint(NUM_CLASSES, (num_targets,), generator=generator).tolist()
        targets.append(targets_from_id_map(ids.numpy(), range(1, num_targets + 1), labels))
    return Batch(
        images.to(device),
        to_device(collate_targets(targets), device),
        [t.masks().float().to(device) for t in targets],
        [t.labels.to(device) for t in targets],
    )


def to_device(targets: BatchTargets, device: torch.device) -> BatchTargets:
    """The targets with their tensors on `device`."""
    return targets._replace(**{name: getattr(targets, name).to(device) for name in ("ids", "labels", "planes")})


def our_step(network: EoMT, loss: MaskClassificationLoss, batch: Batch, dtype: torch.dtype | None) -> Tensor:
    """Training step: forward pass with all masks on, matching, losses, backward pass; gives the loss."""
    dropped_masks = torch.zeros(
        network.num_masked_blocks, len(batch.images), network.num_queries, dtype=torch.bool, device=batch.images.device
    )
    with autocast(batch.images.device, dtype):
        outputs = network(batch.images, dropped_masks)
    value = our_loss(network, loss, outputs, batch)
    return _backward(value, network)


def our_loss(network: EoMT, loss: MaskClassificationLoss, outputs: list, batch: Batch) -> Tensor:
    """The total loss of a network's outputs."""
    counts = batch.targets.counts
    points = loss.draw(len(outputs), network.num_queries, counts, device=batch.images.device)
    return loss.total(loss(outputs, batch.targets, points, max(1, num_matched(network.num_queries, counts))))


def huggingface_step(model: nn.Module, network: EoMT, batch: Batch, dtype: torch.dtype | None) -> Tensor:
    """The same training step by transformers, whose forward pass takes the targets and computes the loss."""
    pixels = (batch.images.float() / 255 - network.pixel_mean) / network.pixel_std
    with autocast(batch.images.device, dtype):
        value = model(pixel_values=pixels, mask_labels=batch.masks, class_labels=batch.labels).loss
    return _backward(value, model)


def original_step(model: nn.Module, loss: nn.Module, batch: Batch, dtype: torch.dtype | None) -> Tensor:
    """The same training step by the original, whose loss stays within autocast."""
    weights = {"loss_mask": 5.0, "loss_dice": 5.0, "loss_cross_entropy": 2.0}
    targets = [{"masks": m.bool(), "labels": c} for m, c in zip(batch.masks, batch.labels, strict=True)]
    with autocast(batch.images.device, dtype):
        masks, classes = model(batch.images / 255)
        terms = [
            loss(masks_queries_logits=m, class_queries_logits=c, targets=targets)
            for m, c in zip(masks, classes, strict=True)
        ]
        value = sum(weights[name] * term for output in terms for name, term in output.items())
    return _backward(value, model)


def _backward(value: Tensor, model: nn.Module) -> Tensor:
    """Backward pass of a step; its gradients are dropped, or the next step would add to them."""
    value.backward()
    model.zero_grad(set_to_none=True)
    return value.detach()


def autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Mixed precision in `dtype`; float32 where it is None."""
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def synchronise(device: torch.device) -> None:
    """Wait for a GPU's queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def clock(device: torch.device) -> float:
    """Seconds: processor time on one CPU thread, which other jobs disturb least; wall time elsewhere."""
    return time.process_time() if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter()


def interleaved(sides: dict[str, Callable], device: torch.device, rounds: int, warm_up: int = 1) -> dict[str, float]:
    """Median seconds of each side by `clock`; rounds of all sides alternate."""
    seconds = {name: [] for name in sides}
    for number in range(warm_up + rounds):
        for name, run in sides.items():
            synchronise(device)
            start = clock(device)
            run()
            synchronise(device)
            if number >= warm_up:
                seconds[name].append(clock(device) - start)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def peak_of(step: Callable, device: torch.device) -> float:
    """Peak memory of a step in MiB, above what was held before it."""
    if device.type != "cuda":
        held = peak_mib(device)
        step()
        return peak_mib(device) - held
    step()  # libraries take their workspaces
    held = torch.cuda.memory_allocated() / 2**20
    torch.cuda.reset_peak_memory_stats()
    step()
    return peak_mib(device) - held


def peak_mib(device: torch.device) -> float:
    """Peak memory so far in MiB: of tensors on a GPU, of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**10 if sys.platform == "linux" else 2**20)


def matmul_rate(device: torch.device, dtype: torch.dtype | None, rounds: int = 5) -> float:
    """FLOP/s of a large matrix product on this machine, the practical limit."""
    side = 8192 if device.type == "cuda" else 2048
    a = torch.randn(side, side, device=device, dtype=dtype or torch.float32)
    return 2 * side**3 / interleaved({"": lambda: a @ a}, device, rounds, 2)[""]


def step_flops(network: EoMT, batch_size: int, pixels: int, num_points: int, num_matched: int) -> int:
    """Multiplications and additions of matrix products, convolutions and attention in a training step, by formula.

    A product of [n, k] and [k, m] counts 2 n k m, and twice that in the backward pass. Matching has no backward pass;
    recomputed activations are not counted.

    Args:
        network: L2 + 1 of its outputs are supervised.
        batch_size: the number of images of `pixels` x `pixels`.
        num_points: the points per mask in the loss.
        num_matched: the matched masks of all images.
    """
    backbone, prediction, mask = _flops(network, pixels)
    patches = (pixels // network.backbone.patch_size) ** 2
    matching = 2 * network.num_queries * network.backbone.embed_dim * (num_points + patches)
    outputs = batch_size * (3 * prediction + matching) + 3 * num_matched * mask
    return 3 * batch_size * backbone + (network.num_masked_blocks + 1) * outputs


def network_flops(network: EoMT, pixels: int) -> int:
    """The same count for the mask-free network on one image."""
    backbone, prediction, mask = _flops(network, pixels)
    return backbone + prediction + network.num_queries * mask


def _flops(network: EoMT, pixels: int) -> tuple[int, int, int]:
    """Forward counts for one image: the backbone, an output without its masks, one mask."""
    dim, queries, patch = network.backbone.embed_dim, network.num_queries, network.backbone.patch_size
    patches, blocks = (pixels // patch) ** 2, network.backbone.blocks
    backbone = 2 * 3 * patch**2 * dim * patches
    for index, block in enumerate(blocks):
        tokens = patches + network.backbone.num_prefix_tokens
        tokens += queries * (index >= len(blocks) - network.num_masked_blocks)
        weights = sum(p.numel() for p in block.parameters() if p.ndim == 2)
        backbone += 2 * weights * tokens + 4 * tokens**2 * dim
    # An upscaling: a transposed convolution of 2x2, and a depthwise one of 3x3 on four times the pixels.
    upscaling = sum(2 * (4 * dim + 4 * 9) * dim * patches * 4**k for k in range(len(network.upscale)))
    heads = 2 * queries * dim * (3 * dim + network.num_classes + 1)
    return backbone, upscaling + heads, 2 * dim * patches * 4 ** len(network.upscale)
