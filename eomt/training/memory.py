"""The number of images that a GPU's memory holds in a training step."""

from __future__ import annotations

from functools import partial

import torch
from lightning.pytorch.utilities import rank_zero_info

from eomt.model.eomt import EoMT

# EoMT-L at 640 pixels, compiled, bf16, on an H100: 52.6 GiB for 16 images. Other networks take about in proportion to
# blocks x width x patches.
GIB_PER_IMAGE, _MEASURED = 3.3, 24 * 1024 * 40 * 40
# Weights, gradients and the optimizer's two means, in float32.
BYTES_PER_PARAMETER = 16
USABLE = 0.9  # the rest is for the driver, workspaces and fragments
ON_CPU = 4


def gib_of_step(network: EoMT, batch_size: int, shards: int = 1) -> float:
    """Estimate the memory of a training step in GiB, from what was measured; its weights are in as many shards."""
    backbone = network.backbone
    patches = network.image_size[0] * network.image_size[1] / backbone.patch_size**2
    images = GIB_PER_IMAGE * batch_size * len(backbone.blocks) * backbone.embed_dim * patches / _MEASURED
    return images + BYTES_PER_PARAMETER * sum(p.numel() for p in network.parameters()) / 2**30 / shards


def largest_batch(network: EoMT, device: torch.device, global_batch: int, devices: int, sharded: bool = False) -> int:
    """Choose the images per device and batch: the largest part of a step's that the memory holds.

    Args:
        network: the network.
        device: the device of this process; a CPU is given 4 at most.
        global_batch: images per optimizer step.
        devices: processes that train together.
        sharded: each holds a part of the weights.

    Returns:
        A divisor of each device's share, at least 1.
    """
    share = max(1, global_batch // devices)
    parts = [size for size in range(1, share + 1) if share % size == 0]
    if device.type != "cuda":
        return max(size for size in parts if size <= ON_CPU)
    free, total = torch.cuda.mem_get_info(device)
    # What other programs have left; processes that train together must choose alike.
    own = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    gib = (free + own if devices == 1 else total) / 2**30
    estimate = partial(gib_of_step, network, shards=devices if sharded else 1)
    size = max((size for size in parts if estimate(size) <= USABLE * gib), default=1)
    rank_zero_info(
        f"data.batch_size={size} of the {share} images of a device's step: about {estimate(size):.0f} of "
        f"{gib:.0f} GiB, judged by EoMT-L on an H100; type another if it does not fit"
    )
    return size
