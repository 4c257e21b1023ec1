"""Recorded numbers of the original: networks, losses, a trajectory of training."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from eomt.model.eomt import EoMT
from eomt.weights.original import from_original

GOLDEN = Path(__file__).parent / "golden"


class LossPoints:
    """Stands for `RandomPoints` where the points of each output are given, in [0, 1]^2.

    Args:
        outputs: points [B, P, 2] for the matching, candidates [M, N, 2] and further points [M, E, 2].
    """

    def __init__(self, *outputs: Sequence[torch.Tensor]):
        match, candidates, extra = (2 * torch.stack(parts) - 1 for parts in zip(*outputs, strict=True))
        self.match = lambda: match
        self.of_masks = lambda masks: (candidates.flatten(0, 1)[masks], extra.flatten(0, 1)[masks])


def golden_json(name: str) -> Any:
    """Recorded settings and numbers, from tests/golden/NAME.json."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


def golden_tensors(name: str) -> dict[str, torch.Tensor]:
    """Recorded tensors, from tests/golden/NAME.safetensors."""
    return load_file(GOLDEN / f"{name}.safetensors")


def golden_network(name: str, dtype: torch.dtype = torch.float32) -> EoMT:
    """The recorded tiny network with the original's weights."""
    spec = golden_json(name)
    network = EoMT(
        backbone=spec["backbone"],
        image_size=tuple(spec["img_size"]),
        num_classes=spec["num_classes"],
        num_queries=spec["num_queries"],
        num_masked_blocks=spec["num_masked_blocks"],
        patch_size=spec["patch_size"],
        backbone_options=spec["backbone_kwargs"],
    )
    network.load_state_dict(from_original(golden_tensors(f"{name}_original_state")), strict=True)
    return network.to(dtype)
