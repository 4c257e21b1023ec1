"""What several test files need."""

import json
import os
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

# Two test workers share two cores, and the order of sums, which bit-equal runs need, hangs on the threads.
torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden"
SHARED = Path(__file__).parents[2] / "shared"

# The default task, made small enough for a test.
SMALL = (
    "data.num_workers=1",
    "data.batch_size=4",
    "data.global_batch=8",
    "data.eval_batch_size=8",
    "data.image_size=64",
    "loss.num_points=64",
    "model.num_queries=12",
    "model.backbone_options={embed_dim: 32, depth: 3, num_heads: 2}",
    "optim.warmup_steps=[2,2]",
    "trainer.enable_progress_bar=false",
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=1",
    "callbacks.pictures.count=2",
)


def golden_json(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())


def golden_tensors(name):
    return load_file(GOLDEN / f"{name}.safetensors")


def golden_network(name, dtype=torch.float32):
    """The recorded tiny network with the original's weights."""
    from eomt.model.eomt import EoMT
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


def configured(folder, *overrides, name="train"):
    """A composed configuration whose run folder is `folder`."""
    from eomt.cli import main as launch

    with initialize_config_dir(launch.CONFIGS, version_base="1.3"):
        return compose(name, overrides=[*overrides, f"run_folder='{folder}'"])


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """24 training and 10 validation images, and a cache of their own."""
    folder = tmp_path_factory.mktemp("cache")
    from datasets.shapes.dataset import ensure_shapes

    patch = pytest.MonkeyPatch()
    patch.setenv("EOMT_CACHE", str(folder))
    yield ensure_shapes(train_images=24, val_images=10, size=48)
    patch.undo()


@pytest.fixture(scope="session")
def options(shapes):
    return (*SMALL, f"data.root='{shapes}'", "trainer.max_epochs=2")


@pytest.fixture(scope="session")
def shared_data():
    """The small real sets beside the checkout."""
    if not (SHARED / "data").is_dir():
        pytest.skip("the shared real data is not beside this checkout")
    return SHARED / "data"
