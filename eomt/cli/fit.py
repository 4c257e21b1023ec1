"""A training run from its configuration to its last validation."""

from __future__ import annotations

import lightning
from lightning.pytorch.loggers import WandbLogger
from omegaconf import DictConfig, OmegaConf

from eomt.cli.build import (
    build_callbacks,
    build_data,
    build_loggers,
    build_module,
    build_trainer,
    compile_network,
    load_start,
    starting_point,
    typed_overrides,
)
from eomt.cli.main import log
from eomt.cli.resume import check_unused, choose_checkpoint, continue_logs
from eomt.files import replacing
from eomt.training.callbacks import WeightAverage
from eomt.training.checkpoint import LastCheckpoint, check_same_run
from eomt.training.module import EoMTModule
from eomt.training.stop import StopSignals
from eomt.weights.checkpoint import read_checkpoint


def fit(cfg: DictConfig, signals: StopSignals) -> None:
    """Train and validate under train.py's configuration, from the start or from a checkpoint.

    Args:
        cfg: train.py's configuration.
        signals: requests to stop.
    """
    choose_checkpoint(cfg, typed_overrides())
    data = build_data(cfg)
    lightning.seed_everything(cfg.seed, verbose=False)
    module = build_module(cfg, data.classes, data.image_size)
    resume, weights = starting_point(cfg)
    if not (resume or cfg.prefetch):
        check_unused(cfg.run_folder)
    if weights:
        load_start(module, weights, cfg.strict)
    if (module.freeze or module.lora) and not (module.pretrained or weights or resume):
        log.warning(
            "note: the frozen part of the backbone is random: start from weights=, or from model.pretrained=true"
        )
    if cfg.prefetch:
        _prefetch(module, data)
        return
    callbacks = build_callbacks(cfg)
    for callback in callbacks:
        if isinstance(callback, LastCheckpoint):
            callback.signals = signals
    if resume:
        continue_logs(cfg)
    trainer = build_trainer(cfg, callbacks, build_loggers(cfg) or False)
    trainer.accumulate_grad_batches = data.accumulation(trainer.world_size)
    if resume:
        checkpoint = read_checkpoint(resume, mmap=True)
        check_same_run(checkpoint, module.description(), any(isinstance(c, WeightAverage) for c in callbacks))
    if trainer.is_global_zero:
        with replacing(f"{cfg.run_folder}/config.yaml") as temporary:
            OmegaConf.save(cfg, temporary, resolve=True)
    compile_network(module, trainer, cfg.compile)
    trainer.fit(module, data, ckpt_path=resume)
    if resume and trainer.global_step == checkpoint["global_step"]:
        log.info("no step was left to train: the run of ckpt= had ended at step %d", trainer.global_step)
    if module.validated_at != trainer.global_step and trainer.limit_val_batches and not trainer.fast_dev_run:
        # The run ended within an epoch, or in one that is not validated.
        trainer.validate(module, data, verbose=False)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            # Otherwise the next run of a sweep, in this process, would be logged into this one.
            logger.experiment.finish()
    if trainer.is_global_zero:
        if module.scores:
            log.info("%s", module.task.table(module.scores))
        log.info("run folder: %s", cfg.run_folder)


def _prefetch(module: EoMTModule, data: lightning.LightningDataModule) -> None:
    """Fetch pretrained weights and build the data's index."""
    data.setup("fit")
    if module.pretrained:
        module.network.backbone.load_pretrained(module.pretrained)
    log.info("the data's index and the pretrained weights are in the cache")
