"""Runs of the entry points within the test's process, and comparisons of what they leave."""

import importlib
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from datasets.layout.find import find_layout
from eomt.cli.arguments import split_for_eval
from eomt.cli.layout import with_layout
from eomt.cli.paths import quote_paths

ROOT = Path(__file__).parents[1]
CONFIGS = str(ROOT / "configs")

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


def composed(name: str, *overrides: str) -> DictConfig:
    """The configuration of an entry point ("train", "eval", ...) with overrides in Hydra's grammar."""
    overrides = split_for_eval(overrides) if name == "eval" else list(overrides)
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        return compose(name, overrides=overrides)


def configured(folder: Path, *overrides: str, name: str = "train") -> DictConfig:
    """A composed configuration whose run folder is `folder`."""
    return composed(name, *overrides, f"run_folder='{folder}'")


def typed(name: str, *arguments: object) -> None:
    """Call an entry point's `main` with arguments as a user types them; its errors are raised."""
    overrides = quote_paths([str(argument) for argument in arguments])
    if name in ("train", "check_data"):
        overrides = with_layout(overrides, find_layout)
    importlib.import_module(name).main(composed(name, *overrides))


def equal(ours: Any, theirs: Any) -> bool:
    """Bit-equality of nested dictionaries and lists of tensors and plain values."""
    if isinstance(theirs, torch.Tensor):
        return torch.equal(ours, theirs)
    if isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(equal(ours[key], value) for key, value in theirs.items())
    if isinstance(theirs, list | tuple):
        return len(ours) == len(theirs) and all(map(equal, ours, theirs))
    return ours == theirs


def logged(folder: Path) -> dict[str, dict[int, float]]:
    """The series of a run's logs that its configuration decides: without those of time and memory."""
    # Lightning, imported before pytest has its handlers, would keep its messages from them.
    from eomt.training.callbacks.curves import read_logs

    return {name: rows for name, rows in read_logs(folder).items() if not name.startswith(("speed/", "memory/"))}
