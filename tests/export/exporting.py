"""Networks and runs of export.py for the tests of exports."""

from typing import Any

import torch
from hydra import compose, initialize_config_dir

import export as entry
from eomt.classes import Classes
from eomt.cli.paths import quote_paths
from eomt.model.eomt import EoMT
from eomt.weights.spec import Weights
from tests.running import CONFIGS
from tests.weights.sources import SEVEN

TINY = {"embed_dim": 48, "depth": 2, "num_heads": 3}


def run(*typed: object) -> None:
    """Run `python export.py *typed` within this process; errors are raised."""
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        entry.main(compose("export", overrides=quote_paths([str(t) for t in typed])))


def weights_of(network: EoMT, classes: Classes = SEVEN, kind: str = "panoptic", **more: Any) -> Weights:
    """A network's weights with everything that an export takes."""
    return Weights("a test's", network.state_dict(), network.spec, kind, classes, **more)


def dinov3_network() -> EoMT:
    """A tiny DINOv3 network for `SEVEN` classes."""
    torch.manual_seed(1)
    return EoMT("vit_small_patch16_dinov3_qkvb", 32, len(SEVEN), 6, 1, 8, TINY).eval()
