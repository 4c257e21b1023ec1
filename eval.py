"""Evaluate a checkpoint on its validation set.

python eval.py ckpt=RUN/checkpoints/last.ckpt
python eval.py ckpt=RUN/checkpoints/best.ckpt data.root=DIR save_predictions=true
python eval.py ckpt=tue-mps/coco_panoptic_eomt_large_640 task=coco_panoptic data.root=DIR
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from eomt.cli.main import command, log, training_config
from eomt.errors import InputError

if TYPE_CHECKING:
    from eomt.weights.weights import Weights

# Where it was trained says nothing of where it is evaluated.
HERE = {"trainer": {"accelerator": "auto", "strategy": "auto", "devices": "auto", "num_nodes": 1}}


def main(cfg: DictConfig) -> None:
    """Score weights; what is not null in `cfg` takes the place of the settings that they carry."""
    from eomt.cli.build import build_data, build_trainer, check_types, compile_network, load_module
    from eomt.training.callbacks import MetricsFile, PredictionPictures, Progress, SavePredictions
    from eomt.weights.checkpoint import foreign_code
    from eomt.weights.load import read_weights
    from eomt.weights.validate import check_same_classes

    check_types(cfg)
    if cfg.ckpt is None:
        raise InputError("ckpt is not set: give a checkpoint, as in ckpt=RUN/checkpoints/best.ckpt")
    chosen = _chosen(cfg)
    settings = OmegaConf.merge(chosen, HERE, _given(cfg)) if chosen else None
    # Weights that say nothing of their classes are taken to be of those of the data.
    classes = build_data(settings).val_classes if chosen else None
    network = _network(cfg, settings)
    kind = settings.kind if chosen else None
    weights = read_weights(cfg.ckpt, kind=kind, classes=classes, network=network, backbone=cfg.delta_base)
    foreign = foreign_code(weights.kind, weights.config)
    if foreign and not cfg.trust_code:
        raise InputError(f"ckpt= would run {', '.join(foreign)}: if you trust it, say so by trust_code=true")
    if not chosen:
        settings = _settings(cfg, weights)
    if "image_size" not in weights.guessed:
        settings.data.image_size = list(weights.network["image_size"])
    data = build_data(settings)
    module = load_module(weights, settings, data.image_size)
    check_same_classes(module.classes, data.val_classes)
    callbacks = [Progress(), MetricsFile(cfg.run_folder), PredictionPictures(cfg.run_folder, cfg.pictures)]
    if cfg.save_predictions:
        callbacks.append(SavePredictions(f"{cfg.run_folder}/predictions"))
    trainer = build_trainer(settings, callbacks, False)
    compile_network(module, trainer, settings.get("compile"))
    trainer.validate(module, data, verbose=False)
    if trainer.is_global_zero:
        log.info("%s", module.task.table(module.scores))
        log.info("results: %s", cfg.run_folder)


def _chosen(cfg: DictConfig) -> DictConfig | None:
    """The settings of the task, model and experiment that were chosen; None if none was."""
    names = [f"{group}={name}" for group, name in cfg.recipe.items() if name]
    chosen = training_config(names) if names else None
    if chosen is not None:
        # What is given to evaluate has keys of its own.
        OmegaConf.set_struct(chosen, False)
    return chosen


def _network(cfg: DictConfig, settings: DictConfig | None) -> dict:
    """What was chosen of the network: by a model or an experiment, not by a task's default; or typed."""
    chosen = {}
    if cfg.recipe.model or cfg.recipe.experiment:
        model = OmegaConf.to_container(settings.model, resolve=True)
        chosen = {key: model[key] for key in ("backbone", "patch_size", "num_masked_blocks", "backbone_options")}
    if cfg.recipe.experiment:
        chosen["image_size"] = settings.data.image_size
    typed = OmegaConf.to_container(cfg.network, resolve=True)
    return chosen | {key: value for key, value in typed.items() if value is not None}


def _settings(cfg: DictConfig, weights: Weights) -> DictConfig:
    """The settings that weights carry, and over them what was given."""
    if not weights.config:
        raise InputError(
            f"ckpt={cfg.ckpt} carries no settings: choose its task, as in task=coco_panoptic data.root=DIR"
        )
    return OmegaConf.merge(weights.config, HERE, {"kind": weights.kind}, _given(cfg))


def _given(cfg: DictConfig) -> dict:
    """The entries of `cfg` that are not null, at any depth."""

    def given(values: dict) -> dict:
        nested = {k: given(v) if isinstance(v, dict) else v for k, v in values.items()}
        return {k: v for k, v in nested.items() if v is not None and v != {}}

    values = OmegaConf.to_container(cfg, resolve=True)
    return given({k: v for k, v in values.items() if k not in ("recipe", "network")})


if __name__ == "__main__":
    command("eval", main)
