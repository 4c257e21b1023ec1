"""Evaluate a checkpoint on its validation set.

python eval.py ckpt=RUN/checkpoints/last.ckpt
python eval.py ckpt=RUN/checkpoints/best.ckpt data.root=DIR save_predictions=true
python eval.py ckpt=tue-mps/coco_panoptic_eomt_large_640 task=coco_panoptic data.root=DIR
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from eomt.errors import InputError
from launch import command, log, training_config

if TYPE_CHECKING:
    from eomt.weights.weights import Weights


def main(cfg: DictConfig) -> None:
    """Score weights; what is not null in `cfg` takes the place of the settings that they carry."""
    from assemble import build_data, build_trainer, load_module
    from eomt.callbacks import MetricsFile, PredictionPictures, Progress, SavePredictions
    from eomt.checkpoint import check_same_classes, foreign_code
    from eomt.weights.source import read_weights

    if cfg.ckpt is None:
        raise InputError("ckpt is not set: give a checkpoint, as in ckpt=RUN/checkpoints/best.ckpt")
    chosen = _chosen(cfg)
    # An experiment says all of the network, a task only its default.
    network = {"image_size": chosen.data.image_size} if cfg.recipe.experiment else None
    weights = read_weights(cfg.ckpt, kind=chosen.get("kind"), network=network, backbone=cfg.delta_base)
    foreign = foreign_code(weights.kind, weights.config)
    if foreign and not cfg.trust_code:
        raise InputError(f"ckpt= would run {', '.join(foreign)}: if you trust it, say so by trust_code=true")
    settings = _settings(cfg, chosen or weights.config, weights)
    data = build_data(settings)
    module = load_module(weights, settings, data.val_classes)
    check_same_classes(module.classes, data.val_classes)
    callbacks = [Progress(), MetricsFile(cfg.run_folder), PredictionPictures(cfg.run_folder, cfg.pictures)]
    if cfg.save_predictions:
        callbacks.append(SavePredictions(f"{cfg.run_folder}/predictions"))
    trainer = build_trainer(settings, callbacks, False)
    trainer.validate(module, data, verbose=False)
    if trainer.is_global_zero:
        log.info("%s", module.task.table(module.scores))
        log.info("results: %s", cfg.run_folder)


def _chosen(cfg: DictConfig) -> dict | DictConfig:
    """The settings of the task, model and experiment that were chosen; empty if none was."""
    names = [f"{group}={name}" for group, name in cfg.recipe.items() if name]
    return training_config(names) if names else {}


def _settings(cfg: DictConfig, base: Mapping, weights: Weights) -> DictConfig:
    """What is evaluated how: `base`, and over it the network that the weights are of and what was given."""
    if not base:
        raise InputError(
            f"ckpt={cfg.ckpt} carries no settings: choose its task, as in task=coco_panoptic data.root=DIR"
        )
    # Where it was trained says nothing of where it is evaluated.
    here = {"trainer": {"accelerator": "auto", "strategy": "auto", "devices": "auto", "num_nodes": 1}}
    base = OmegaConf.merge(base, here)
    OmegaConf.set_struct(base, False)
    base.kind = weights.kind
    base.data.image_size = list(weights.network["image_size"])
    return OmegaConf.merge(base, _given(OmegaConf.to_container(cfg, resolve=True)))


def _given(values: dict) -> dict:
    """The entries that are not null, at any depth."""
    nested = {k: _given(v) if isinstance(v, dict) else v for k, v in values.items()}
    return {k: v for k, v in nested.items() if v is not None and v != {}}


if __name__ == "__main__":
    command("eval", main)
