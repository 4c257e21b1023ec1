"""Objects from a configuration: data, model and trainer."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from eomt.classes import Classes
from eomt.cli.check import plain
from eomt.cli.nodes import READER_KEYS
from eomt.errors import InputError
from eomt.inference.graphs import compile_network
from eomt.loss.mask_classification import MaskClassificationLoss
from eomt.model.eomt import EoMT
from eomt.tasks import task_of
from eomt.training.annealing import Annealing, complete_windows
from eomt.training.checkpoint import AtomicCheckpointIO
from eomt.training.fsdp import ShardedModule, ShardedStrategy
from eomt.training.module import EoMTModule
from eomt.training.step_graph import is_small
from eomt.weights.spec import CompleteWeights

log = logging.getLogger("eomt")

STAGED_ROOT = "EOMT_STAGED_ROOT"
"""The environment variable that names a node's own copy of `data.root`, as slurm/train.sbatch sets it."""


def build_data(cfg: DictConfig) -> Any:
    """The data module of a configuration: `datasets.module.SegmentationData`, or one that has all that is public there.

    Where the environment names a copy of `data.root`, that is read in its place. The configuration, which checkpoints
    keep, still names the folder outside this job.
    """
    settings: dict[str, Any] = plain(cfg.data) | {"_partial_": True}
    shared = {name: settings.pop(name, None) for name in READER_KEYS}
    for split in ("train", "val"):
        root = settings[split].get("root")
        if root is not None:
            staged = os.environ.get(STAGED_ROOT) if root == shared["root"] else None
            settings[split]["root"] = staged or os.path.expanduser(root)
    # Called here: Hydra would take the geometry, a named tuple, for a list of settings.
    return instantiate(settings, _convert_="all")(geometry=task_of(cfg.kind).geometry)


def build_module(cfg: DictConfig, classes: Classes, image_size: tuple[int, int]) -> EoMTModule:
    """Build a new network with its loss and recipe."""
    if cfg.loss.get("ignore_void") and cfg.kind == "instance":
        raise InputError("loss.ignore_void=true is not for instances: there, what belongs to no object is background")
    model = plain(cfg.model)
    pretrained, freeze, lora = (model.pop(name) for name in ("pretrained", "freeze_backbone", "lora"))
    network = EoMT(image_size=image_size, num_classes=len(classes), **model)
    network.activation_checkpointing = cfg.activation_checkpointing
    module = ShardedModule if cfg.trainer.strategy == "fsdp2" else EoMTModule
    annealing, optim = (plain(part) for part in (cfg.annealing, cfg.optim))
    windows, span, power = (annealing[name] for name in ("windows", "span", "power"))
    max_skipped_steps = optim.pop("max_skipped_steps")
    return module(
        network=network,
        task=task_of(cfg.kind, cfg.postprocess),
        classes=classes,
        loss=instantiate(cfg.loss),
        annealing=Annealing(complete_windows(windows, network.num_masked_blocks), span, power) if windows else None,
        recipe=instantiate(optim, _convert_="all"),
        max_skipped_steps=max_skipped_steps,
        validate_masked=cfg.annealing.validate_masked,
        pretrained=pretrained,
        freeze=freeze,
        lora=lora if lora["rank"] else None,
        seed=cfg.seed,
        run={
            "config": plain(cfg),
            "environment": list(_from_environment(plain(cfg, resolve=False))),
        },
    )


def description(cfg: DictConfig, classes: Classes, image_size: tuple[int, int]) -> dict[str, Any]:
    """The `EoMTModule.description` of a configuration's module, without building it."""
    network = plain(cfg.model)
    _, freeze, lora = (network.pop(name) for name in ("pretrained", "freeze_backbone", "lora"))
    return {
        "kind": cfg.kind,
        "classes": classes.to_list(),
        "network": network | {"image_size": list(image_size), "num_classes": len(classes)},
        "learns": {"freeze_backbone": freeze, "lora": lora if lora["rank"] else None},
    }


def load_module(
    weights: CompleteWeights, cfg: DictConfig, image_size: tuple[int, int], unpadded: bool = False
) -> EoMTModule:
    """A trained network, ready to evaluate under `cfg`.

    Args:
        weights: the network's weights.
        cfg: the settings of an evaluation.
        image_size: height and width of the network's input.
        unpadded: leave patches out that only show padding.
    """
    module = EoMTModule(
        network=EoMT(**{**weights.network, "image_size": image_size}),
        task=task_of(cfg.kind, cfg.postprocess),
        classes=weights.classes,
        loss=MaskClassificationLoss(),
        validate_masked=cfg.annealing.validate_masked,
        seed=cfg.seed,
        unpadded=unpadded,
    )
    module.network.load_state_dict(weights.state)
    if weights.mask_probabilities is not None:
        module.mask_probabilities.copy_(weights.mask_probabilities)
    module.trained_steps = weights.step
    return module


def make_fast(module: EoMTModule, trainer: lightning.Trainer, wanted: bool | str | None, batch_size: int) -> None:
    """Compile the network by `torch.compile`, in place, where it is wanted, and validate by CUDA graphs on a GPU.

    On a CPU compilation gained nothing; without padding each size takes one of its own. A sharded network is gathered
    between blocks, where it would break into pieces. A small network's compilation would take longer than what it
    saves: it is trained by CUDA graphs instead, but for several processes, whose gradients are averaged while others
    are computed, accumulated gradients, and recomputed blocks, which save random states.

    Args:
        module: its network is complete.
        trainer: knows the device.
        wanted: the value of `compile=`; None: on a GPU.
        batch_size: images per device and batch.
    """
    on_gpu = trainer.strategy.root_device.type == "cuda" and not isinstance(trainer.strategy, ShardedStrategy)
    alone = trainer.world_size == 1 and trainer.accumulate_grad_batches == 1
    by_graphs = wanted is None and on_gpu and alone and is_small(module.network, batch_size)
    by_graphs = by_graphs and not module.network.activation_checkpointing
    compiled = (on_gpu and not by_graphs and not module.unpadded) if wanted is None else wanted
    compile_network(module.network, compiled, one_size=not module.unpadded)
    module.compiled, module.graphs = bool(compiled), on_gpu and wanted is not False
    module.step_graphs = by_graphs


@contextmanager
def memory_errors(data: lightning.LightningDataModule, trained: EoMT | None = None) -> Iterator[None]:
    """Turn a GPU's exhausted memory into one line that says what to type; `trained` is the network, if it is."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        sizes = {key: getattr(data, key) for key in ("batch_size", "eval_batch_size")[not trained :]}
        now = " and ".join(f"data.{key}={size}" for key, size in sizes.items())
        ways = [f"data.{key}={size // 2}" for key, size in sizes.items() if size > 1]
        ways += ["activation_checkpointing=true"] if trained and not trained.activation_checkpointing else []
        stays = "; data.global_batch, images a step, stays" if trained else ""
        raise InputError(
            f"the GPU's memory does not hold {now}: try {' or '.join([*ways, 'a smaller data.image_size'])}{stays}"
        ) from error


def build_callbacks(cfg: DictConfig) -> list:
    """The callbacks of a configuration.

    One with a decay or a patience is off where that is null; a monitor that is null is the task's.
    """
    callbacks = []
    for settings in cfg.callbacks.values():
        if settings and not any(settings.get(key, 0) is None for key in ("decay", "patience")):
            task = {"monitor": task_of(cfg.kind).monitor} if settings.get("monitor", "") is None else {}
            callbacks.append(instantiate(settings, **task))
    return callbacks


def build_loggers(cfg: DictConfig) -> list:
    """The loggers of a configuration.

    Raises:
        InputError: if a logger's package is not installed.
    """
    loggers = []
    for name, settings in (cfg.logger or {}).items():
        try:
            loggers.append(instantiate(settings))
        except InstantiationException as error:
            if isinstance(error.__cause__, ModuleNotFoundError):
                raise InputError(f"logger={name} is not installed: pip install {name}") from None
            raise
    return loggers


def build_trainer(cfg: DictConfig, callbacks: list, loggers: list | bool) -> lightning.Trainer:
    """The Lightning trainer."""
    settings = plain(cfg.trainer)
    if settings["max_epochs"] is None:
        settings["max_epochs"] = -1
    if settings["precision"] is None:
        on_gpu = torch.cuda.is_available() and settings["accelerator"] in ("auto", "gpu", "cuda")
        settings["precision"] = "bf16-mixed" if on_gpu else "32-true"
    # A bar is for a terminal.
    settings["enable_progress_bar"] = bool(settings["enable_progress_bar"]) and sys.stdout.isatty()
    unwanted = [] if settings["enable_progress_bar"] else [ProgressBar]
    unwanted += [] if settings["enable_checkpointing"] else [Checkpoint]
    callbacks = [callback for callback in callbacks if not isinstance(callback, tuple(unwanted))]
    _quieten_libraries()
    if settings["strategy"] == "fsdp2":
        settings["strategy"] = ShardedStrategy()
    # Gradients need no copy, and buffers are alike on all ranks. Not `static_graph`: PyTorch's reducer fails with it
    # where batches are accumulated.
    options: dict[str, Any] = {"gradient_as_bucket_view": True, "broadcast_buffers": False}
    StrategyRegistry.register("ddp", DDPStrategy, override=True, **options)
    plugins: list[Any] = [AtomicCheckpointIO()]
    if SLURMEnvironment.detect():
        # Lightning's requeuing saves within the signal handler, that is in the middle of a step.
        plugins.append(SLURMEnvironment(auto_requeue=False))
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision(cfg.matmul_precision)
    try:
        trainer = lightning.Trainer(
            **settings, callbacks=callbacks, logger=loggers, plugins=plugins, use_distributed_sampler=False
        )
    except (MisconfigurationException, TypeError, ValueError) as error:
        chosen = ", ".join(f"trainer.{key}={settings[key]}" for key in ("accelerator", "devices", "strategy"))
        raise InputError(f"trainer: {error} ({chosen}; auto takes what is there)") from error
    return trainer


def _from_environment(value: Any, name: str = "") -> Iterator[str]:
    """Dotted names of the values that an environment variable gives, which exports leave out."""
    if isinstance(value, str) and "${oc.env:" in value:
        yield name
    entries = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield from _from_environment(entry, f"{name}.{key}".lstrip("."))


def _quieten_libraries() -> None:
    """Let libraries say what a user can use, once, and where all else is said."""
    # Messages and warnings of libraries go where all others go, once.
    logging.captureWarnings(True)
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "huggingface_hub"):
        logging.getLogger(name).handlers.clear()
    # Two lines for each retry of each file; what comes of it is said in the end.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    # Lightning's advertisements, its list of devices that nobody asked for, and its remark on `weights_only`, which
    # our checkpoint reader always sets.
    for name in ("utilities.rank_zero", "trainer.connectors.checkpoint_connector"):
        logging.getLogger(f"lightning.pytorch.{name}").addFilter(_is_news)
    # Warnings of Lightning about what is meant: our loaders shard by themselves, few steps may be wanted, and one
    # process may be started by hand where srun exists.
    for words in (
        "does not have many workers",
        "the number of training batches",
        "exists and is not empty",
        "LeafSpec",
        "srun. command is available",
        "Grad strides do not match",  # where no image of a batch has a segment
    ):
        warnings.filterwarnings("ignore", f".*{words}.*")


def _is_news(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    dull = ("litlogger", "litmodels", "`weights_only` was not set", "GPU available: ", "TPU available: ")
    return not any(words in message for words in dull)
