"""A training run from its configuration to its last validation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger
from omegaconf import DictConfig, OmegaConf

from eomt.cli.build import (
    build_callbacks,
    build_data,
    build_loggers,
    build_module,
    build_trainer,
    description,
    make_fast,
    memory_errors,
)
from eomt.cli.folders import check_unused, record, sweep_name, task_by_default
from eomt.cli.main import log
from eomt.cli.resume import choose_checkpoint, continue_logs
from eomt.errors import InputError, reason
from eomt.files import replacing
from eomt.training.callbacks import Listening, ProgressLines, Trackers
from eomt.training.checkpoint import BestCheckpoint, LastCheckpoint
from eomt.training.fsdp import ShardedStrategy
from eomt.training.memory import largest_batch
from eomt.training.module import EoMTModule
from eomt.training.restore import check_same_rates, check_same_run
from eomt.training.stop import StopSignals
from eomt.weights.checkpoint import FORMAT, PREVIOUS, read_checkpoint
from eomt.weights.load import read_incomplete
from eomt.weights.spec import Weights
from eomt.weights.transfer import table, transfer


def fit(cfg: DictConfig, signals: StopSignals) -> None:
    """Train and validate under train.py's configuration, from the start or from a checkpoint.

    Args:
        cfg: train.py's configuration.
        signals: requests to stop.

    Raises:
        InputError: if the run folder, whose lock is held, has the results of another run.
    """
    sweep = sweep_name()
    for settings in (cfg.logger or {}).values():
        if sweep and settings and settings.get("group", "") is None:
            settings.group = sweep
    choose_checkpoint(cfg)
    if not (cfg.ckpt or cfg.prefetch):
        check_unused(cfg.run_folder)  # before the data is indexed
    data = build_data(cfg)
    resume, weights = starting_point(cfg)
    if resume:
        # Before the network is built: of a file's configuration, it could be of any size.
        checkpoint = read_checkpoint(resume, mmap=True)
        averages = ((cfg.callbacks.get("ema") or {}).get("decay")) is not None
        check_same_run(checkpoint, description(cfg, data.classes, data.image_size), averages)
        check_same_rates(checkpoint, cfg.optim)
    lightning.seed_everything(cfg.seed, verbose=False)
    module = build_module(cfg, data.classes, data.image_size)
    if not cfg.prefetch:
        check_unused(cfg.run_folder, resume)
        record(cfg, cfg.run_folder)
    if weights:
        _start_from(weights, module, cfg)
    if (module.freeze_backbone or module.lora) and not (module.pretrained or weights or resume):
        log.warning(
            "note: the frozen part of the backbone is random: start from weights=, or from model.pretrained=true"
        )
    if cfg.prefetch:
        data.setup("fit")
        if module.pretrained:
            module.network.backbone.load_pretrained(module.pretrained)
        log.info("the data's index and the pretrained weights are in the cache")
        return
    listening = Listening(signals)
    callbacks = [listening, Trackers(sweep), *build_callbacks(cfg)]
    for callback in callbacks:
        if isinstance(callback, LastCheckpoint):
            callback.signals = signals
    if resume:
        module.run["environment"] += checkpoint[FORMAT].get("environment") or []
        continue_logs(cfg, checkpoint)
        resumed_at = checkpoint.get("global_step")
        del checkpoint  # mapped, it would keep its room on the disk after newer ones have taken its names
    trainer = build_trainer(cfg, callbacks, build_loggers(cfg) or False)
    if data.batch_size is None:
        device, sharded = trainer.strategy.root_device, isinstance(trainer.strategy, ShardedStrategy)
        data.batch_size = largest_batch(module.network, device, data.global_batch, trainer.world_size, sharded)
        # The checkpoint's, too: a run is resumed with the batches that it has begun with.
        module.run["config"]["data"]["batch_size"] = cfg.data.batch_size = data.batch_size
    trainer.accumulate_grad_batches = data.accumulation(trainer.world_size)
    if trainer.is_global_zero:
        with replacing(f"{cfg.run_folder}/config.yaml") as temporary:
            OmegaConf.save(cfg, temporary, resolve=True)
    make_fast(module, trainer, cfg.compile, data.batch_size)
    with memory_errors(data, module.network), _restore_errors(listening, resume):
        signals.block(trainer.strategy.launcher)
        trainer.fit(module, data, ckpt_path=resume)
    if resume and trainer.global_step == resumed_at:
        log.info("no step was left to train: the run of ckpt= had ended at step %d", trainer.global_step)
    trial = trainer.fast_dev_run  # pyright: ignore[reportAttributeAccessIssue] Lightning sets it undeclared
    if module.validated_at != trainer.global_step and trainer.limit_val_batches and not trial:
        # The run ended within an epoch, or in one that is not validated.
        with memory_errors(data):
            trainer.validate(module, data, verbose=False)
    _close_wandb(trainer)
    if trainer.is_global_zero:
        _say_results(module, callbacks, cfg.run_folder)


def starting_point(cfg: DictConfig) -> tuple[str | None, Weights | None]:
    """The checkpoint to resume from, or the weights to start from; one of them, or neither."""
    source = cfg.ckpt or cfg.weights
    if not source:
        return None, None
    weights = read_incomplete(source, backbone=cfg.delta_base)
    if cfg.ckpt and weights.resumable:
        return cfg.ckpt, None
    if cfg.ckpt:
        log.info("ckpt= holds weights, but no run to resume: training starts from those")
    return None, weights


def _start_from(weights: Weights, module: EoMTModule, cfg: DictConfig) -> None:
    """Take weights into a new network, and say what was taken."""
    rows = transfer(module.network, module.classes, weights, cfg.strict)
    module.pretrained = False
    log.info("starts from %s:\n%s", weights.origin, table(rows))
    theirs = (weights.kind, weights.classes and weights.classes.names)
    if task_by_default(cfg) and theirs != (cfg.kind, module.classes.names):
        log.warning(
            "note: no task= is typed, and task=%s is trained; the weights are of %s segmentation of %d classes",
            *(cfg.task_name, weights.kind or "some", weights.network["num_classes"]),
        )


def _close_wandb(trainer: lightning.Trainer) -> None:
    """End wandb's run: otherwise the next one of a sweep, in this process, would be logged into it."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            run = logger.experiment
            run.finish()
            if trainer.is_global_zero and run.offline:
                log.info("wandb: offline, nothing was sent; `wandb sync '%s'` sends it", Path(run.dir).parent)


def _say_results(module: EoMTModule, callbacks: Sequence[Callback], folder: str) -> None:
    """Say the scores of a run that has ended, and where its results are."""
    for callback in callbacks:
        if isinstance(callback, ProgressLines) and len(callback.validations) > 1:
            log.info("validations:\n%s", callback.table())
    if module.scores:
        log.info("%s", module.task.table(module.scores))
    best = next((callback for callback in callbacks if isinstance(callback, BestCheckpoint)), None)
    if best and best.step is not None and Path(folder, "checkpoints", "best.ckpt").is_file():
        said = (best.monitor, best.score, best.step)
        log.info("best.ckpt has %s %.2f, of step %s: predict.py and eval.py take that of this folder", *said)
    log.info("run folder: %s", folder)


@contextmanager
def _restore_errors(listening: Listening, ckpt: str | None) -> Iterator[None]:
    """Turn errors while a checkpoint is restored, on which libraries raise anything, into one line."""
    try:
        yield
    except (InputError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if not (ckpt and listening.restoring):
            raise
        raise InputError(
            f"ckpt={ckpt} cannot be resumed ({type(error).__name__}: {reason(error)}): it is damaged or of another "
            f"version; take {PREVIOUS} beside it, or start another run from its weights by weights="
        ) from error
