"""Objects from a configuration: data, model and trainer."""

from __future__ import annotations

import warnings

import lightning
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from datasets.module import SegmentationData, accumulation
from eomt.callbacks import LastCheckpoint
from eomt.checkpoint import FORMAT, AtomicCheckpointIO
from eomt.classes import Classes
from eomt.errors import InputError
from eomt.module import EoMTModule
from eomt.network import EoMT
from eomt.tasks import task_of


def build_data(cfg: DictConfig) -> SegmentationData:
    """The data module of a configuration; `data.root` is for its readers."""
    settings = OmegaConf.to_container(cfg.data, resolve=True)
    settings.pop("root", None)
    return instantiate(settings, _convert_="all")


def build_module(cfg: DictConfig, classes: Classes, image_size: tuple[int, int]) -> EoMTModule:
    """A new network with its loss and recipe."""
    model = OmegaConf.to_container(cfg.model, resolve=True)
    pretrained = model.pop("pretrained")
    return EoMTModule(
        network=EoMT(image_size=image_size, num_classes=len(classes), **model),
        task=task_of(cfg.kind),
        classes=classes,
        loss=instantiate(cfg.loss),
        annealing_windows=OmegaConf.to_container(cfg.annealing.windows, resolve=True)
        if cfg.annealing.windows is not None
        else None,
        annealing_power=cfg.annealing.power,
        validate_masked=cfg.annealing.validate_masked,
        pretrained=pretrained,
        seed=cfg.seed,
        run={"config": OmegaConf.to_container(cfg, resolve=True), "overrides": _typed_overrides()},
        **OmegaConf.to_container(cfg.optim, resolve=True),
    )


def load_module(checkpoint: dict) -> EoMTModule:
    """The trained network of a checkpoint, ready to evaluate.

    Raises:
        InputError: if the weights do not fit the network that the checkpoint describes.
    """
    saved = checkpoint[FORMAT]
    cfg = OmegaConf.create(saved["config"])
    module = EoMTModule(
        network=EoMT(**saved["network"]),
        task=task_of(saved["kind"]),
        classes=Classes.from_list(saved["classes"]),
        loss=instantiate(cfg.loss),
        annealing_windows=cfg.annealing.windows,
        validate_masked=cfg.annealing.validate_masked,
        seed=cfg.seed,
    )
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except (KeyError, RuntimeError) as error:
        raise InputError(f"ckpt= holds other weights than its network has: {error}") from error
    return module


def build_trainer(
    cfg: DictConfig, data: SegmentationData, callbacks: list, loggers: list | bool
) -> lightning.Trainer:
    """The Lightning trainer, with the accumulation that makes up the global batch."""
    settings = OmegaConf.to_container(cfg.trainer, resolve=True)
    if settings["precision"] is None:
        on_gpu = torch.cuda.is_available() and settings["accelerator"] in ("auto", "gpu", "cuda")
        settings["precision"] = "bf16-mixed" if on_gpu else "32-true"
    unwanted = [] if settings["enable_progress_bar"] else [ProgressBar]
    unwanted += [] if settings["enable_checkpointing"] else [ModelCheckpoint, LastCheckpoint]
    callbacks = [callback for callback in callbacks if not isinstance(callback, tuple(unwanted))]
    plugins = [AtomicCheckpointIO(), *(settings.pop("plugins") or [])]
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision(cfg.matmul_precision)
    # What we count on and Lightning warns of: our loaders shard by themselves, and few steps may be wanted.
    for words in ("does not have many workers", "the number of training batches", "exists and is not empty"):
        warnings.filterwarnings("ignore", f".*{words}.*")
    try:
        trainer = lightning.Trainer(
            **settings, callbacks=callbacks, logger=loggers, plugins=plugins, use_distributed_sampler=False
        )
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise InputError(f"trainer: {error}") from error
    trainer.accumulate_grad_batches = accumulation(data.global_batch, data.batch_size, trainer.world_size)
    return trainer


def _typed_overrides() -> list[str]:
    """What was typed to start this run, without Hydra's own keys."""
    if not HydraConfig.initialized():
        return []
    return [o for o in HydraConfig.get().overrides.task if not o.startswith(("ckpt=", "prefetch="))]
