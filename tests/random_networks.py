"""Tiny networks with random weights, checkpoints of them, and pictures to run them on."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from eomt.classes import Classes
from eomt.inference.result import Result
from eomt.model.eomt import EoMT

CLASSES = Classes.from_categories(
    [{"id": 3, "name": "cup"}, {"id": 5, "name": "dog"}, {"id": 11, "name": "sky", "isthing": 0}]
)
KINDS = ("semantic", "instance", "panoptic")
# Scores of random weights are low: keep what the default thresholds would drop.
OPTIONS = {"semantic": {}, "instance": {"top_k": 7}, "panoptic": {"score_threshold": 0.0, "overlap_threshold": 0.0}}

# The published networks: backbone, number of masked blocks.
PUBLISHED = [
    ("vit_small_patch14_reg4_dinov2", 3),
    ("vit_base_patch14_reg4_dinov2", 3),
    ("vit_large_patch14_reg4_dinov2", 4),
    ("vit_giant_patch14_reg4_dinov2", 5),
    ("vit_small_patch16_dinov3_qkvb", 3),
    ("vit_base_patch16_dinov3_qkvb", 3),
    ("vit_large_patch16_dinov3_qkvb", 4),
]


def random_network() -> EoMT:
    """A network for `CLASSES` on 32 x 32 pixels whose predictions differ between images."""
    torch.manual_seed(0)
    options = {"embed_dim": 32, "depth": 2, "num_heads": 2}
    network = EoMT("vit_small_patch14_reg4_dinov2", 32, len(CLASSES), 6, 1, 8, options)
    with torch.no_grad():
        network.class_head.weight.mul_(40)
        network.mask_head[-1].weight.mul_(10)
    return network


def tiny(backbone: str, **changes: object) -> EoMT:
    """A network of a backbone's family with all parameters random, also those that start as constants."""
    torch.manual_seed(0)
    options = {"embed_dim": 48, "depth": 3, "num_heads": 3}
    network = EoMT(backbone, 32, 4, 5, 2, 16, {**options, **changes}).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.2)
    return network


def published(backbone: str, num_masked_blocks: int) -> EoMT:
    """A network of published size, without memory for its weights."""
    with torch.device("meta"):
        return EoMT(backbone, 640, 133, 200, num_masked_blocks)


def write_checkpoint(path: Path, kind: str, network: EoMT | None = None, **more: object) -> Path:
    """Write a training checkpoint's weights and description; `more` goes into the description."""
    network = network or random_network()
    own = {"kind": kind, "classes": CLASSES.to_list(), "network": network.spec}
    weights = {f"network.{name}": value for name, value in network.state_dict().items()}
    weights["mask_probabilities"] = torch.zeros(1)
    torch.save({"eomt": own | more, "state_dict": weights, "global_step": 0}, path)
    return path


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth noise, uint8 [H, W, 3]: a network sees shapes in it, and sizes do not change it much."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def same_state(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Equal keys and bit-equal tensors of two state dicts."""
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def assert_same(one: Result, other: Result, tolerance: float = 0.0) -> None:
    """Equal segments; scores within `tolerance`."""
    assert one.size == other.size
    assert np.array_equal(one.labels, other.labels)
    assert np.abs(one.scores - other.scores).max(initial=0) <= tolerance
    assert np.array_equal(one.map, other.map)
    assert np.array_equal(one.areas, other.areas)
