"""What several test files need."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

# Two test workers share two cores, and the order of sums, which bit-equal runs need, hangs on the threads.
torch.set_num_threads(1)

GOLDEN = Path(__file__).parent / "golden"
SHARED = Path(__file__).parents[2] / "shared"


def golden_json(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())


def golden_tensors(name):
    return load_file(GOLDEN / f"{name}.safetensors")


def golden_network(name, dtype=torch.float32):
    """The recorded tiny network with the original's weights."""
    from eomt.network import EoMT
    from eomt.weights.original import from_original

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


@pytest.fixture(scope="session")
def shared_data():
    """The small real sets beside the checkout."""
    if not (SHARED / "data").is_dir():
        pytest.skip("the shared real data is not beside this checkout")
    return SHARED / "data"
