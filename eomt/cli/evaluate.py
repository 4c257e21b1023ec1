"""Settings of an evaluation: the checkpoint's configuration, then what is typed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
import torch
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException
from lightning.pytorch.trainer.states import TrainerFn
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from eomt.cli.build import build_data, build_trainer, load_module, make_fast, memory_errors
from eomt.cli.check import plain
from eomt.cli.folders import check_unused, record
from eomt.cli.main import checked, log
from eomt.cli.meanings import CONFIGS
from eomt.cli.meant import in_our_words
from eomt.cli.overrides import key_of, parsed
from eomt.cli.resume import with_references
from eomt.cli.settings import CHOICES, Scored
from eomt.cli.trust import check_config
from eomt.errors import InputError
from eomt.inference.precision import PRECISIONS, with_cast_weights
from eomt.model.outputs import Logits
from eomt.photo import limit_pixels
from eomt.tasks import predict_images, task_of
from eomt.training.callbacks import (
    Listening,
    MetricsFile,
    PredictionPictures,
    Progress,
    ProgressLines,
    Report,
    SavePredictions,
)
from eomt.training.fsdp import ShardedStrategy
from eomt.training.stop import listening
from eomt.views import Tiled, with_mirrored
from eomt.weights.load import read_weights, renumbered
from eomt.weights.spec import CompleteWeights, Weights, check_same_classes

# An evaluation scores all images, also after a limited training.
_NOT_INHERITED = {"data": {"max_images": None, "validate_on_train": False, "validation_loss": False}}
# What it takes of the trainer: it may run on other devices, and writes into a folder of its own.
_OF_TRAINER = ("precision", "deterministic", "benchmark", "inference_mode", "enable_progress_bar")
# Arguments of the network that a chosen model sets.
_NETWORK = ("backbone", "patch_size", "num_masked_blocks", "backbone_options")


def weights_and_settings(cfg: DictConfig) -> tuple[CompleteWeights, DictConfig]:
    """Read weights, and settle under which settings they are evaluated.

    Where a task, model or experiment is typed, the settings are those of its training; otherwise those that the
    weights carry.

    Args:
        cfg: eval.py's configuration.

    Raises:
        InputError: if the weights carry no settings and none are chosen; if they would run code that is not
            trusted; if a setting that is typed is unknown, or has no value of its type.
    """
    chosen = None
    if any(key_of(override) in CHOICES for override in cfg.settings):
        chosen = _composed(["trainer.devices=auto", *cfg.settings])
    settings = classes = None
    if chosen is not None:
        settings = _scored(chosen)
        # Weights that say nothing of their classes are taken to be of those of the data.
        classes = build_data(settings).val_classes
    network = _typed_network(cfg.settings, chosen)
    kind = None if settings is None else settings.kind
    try:
        weights = read_weights(cfg.ckpt, kind=kind, classes=classes, network=network, backbone=cfg.delta_base)
    except InputError as error:
        raise error if chosen is None else InputError(f"{error} (asked for: task={chosen.task_name})") from None
    carried = {} if chosen is not None else _inherited(weights, cfg.run_folder)
    if not cfg.trust_code:
        check_config(cfg.ckpt, weights.kind, carried)
    if settings is None:
        settings = _with_typed(carried, cfg)
    if note := _seen(weights.config.get("data"), plain(settings.data)):
        log.warning(note)
    if "image_size" not in weights.guessed:
        settings.data.image_size = list(weights.network["image_size"])
    checked("scored", settings)
    return weights, settings


def evaluate(cfg: DictConfig, weights: CompleteWeights, settings: DictConfig) -> None:
    """Score a network on the validation set, and write scores, pictures and results into the run folder.

    Args:
        cfg: eval.py's configuration.
        weights: the network's weights.
        settings: those of the evaluation.

    Raises:
        InputError: if the run folder, whose lock is held, has results already.
    """
    limit_pixels(cfg.max_pixels)
    check_unused(cfg.run_folder)
    record(cfg, cfg.run_folder)
    data = build_data(settings)
    weights = replace(weights, classes=renumbered(weights.classes, data.val_classes))
    module = load_module(weights, settings, data.image_size, cfg.unpadded)
    task = with_mirrored(
        task_of(settings.kind, settings.postprocess), module.network.backbone.patch_size, cfg.tta, cfg.unpadded
    )
    module.task = Tiled(task, cfg.tile) if cfg.tile else task
    data.geometry = module.task.geometry
    module.run["environment"] = weights.environment
    callbacks = [
        Progress(),
        ProgressLines(),
        MetricsFile(cfg.run_folder, {key: cfg[key] for key in ("tile", "tta", "unpadded") if cfg[key]}),
        PredictionPictures(cfg.run_folder, cfg.pictures),
        Report(cfg.run_folder, min(3, cfg.pictures), plain(settings)),
    ]
    if cfg.save_predictions:
        callbacks.append(SavePredictions(f"{cfg.run_folder}/predictions"))
    trainer = build_trainer(settings, callbacks, False)
    if not trainer.limit_val_batches:
        raise InputError("trainer.limit_val_batches=0 leaves no image to score: give a larger one, or null for all")
    dtype = PRECISIONS.get(str(trainer.precision).removesuffix("-mixed"))
    if dtype is not None and not isinstance(trainer.strategy, ShardedStrategy):
        module.network = with_cast_weights(module.network, dtype)
    make_fast(module, trainer, settings.compile)
    with listening() as signals, memory_errors(data):
        ours = Listening(signals)
        trainer.callbacks.append(ours)  # pyright: ignore[reportAttributeAccessIssue] Lightning sets it undeclared
        signals.block(trainer.strategy.launcher)
        trainer.validate(module, data, verbose=False)
    if trainer.is_global_zero:
        if cfg.table:
            log.info("%s", _class_table(module.scores_per_class))
        log.info("%s", module.task.table(module.scores))
        log.info("scored: %d of %d images", *data.validated())
        log.info("results: %s", cfg.run_folder)


def scorer(ckpt: str, delta_base: str | None = None) -> Callable[[Callable[[Tensor], Logits]], dict[str, float]]:
    """A function that scores another, from inputs to logits, on the validation set of a checkpoint's settings.

    Raises:
        InputError: see `weights_and_settings`; or if the data are not where the checkpoint says.
    """
    carried = {"ckpt": ckpt, "delta_base": delta_base, "trust_code": False, "run_folder": None, "settings": []}
    weights, settings = weights_and_settings(OmegaConf.create(carried))
    data, task, classes = build_data(settings), task_of(settings.kind, settings.postprocess), weights.classes
    check_same_classes(classes, data.val_classes)
    data.setup(TrainerFn.VALIDATING)

    @torch.no_grad()
    def score(run: Callable[[Tensor], Logits]) -> dict[str, float]:
        metric = task.metric(classes)
        for batch in data.val_dataloader():
            size = tuple(batch.inputs.shape[-2:])
            output = run(batch.inputs)
            found = predict_images(task, output, batch.counts, batch.placements, size, classes)
            for prediction, targets, image_id in zip(found, batch.targets, batch.image_ids, strict=True):
                metric.update(prediction, targets, image_id)
        return {name: float(value) for name, value in metric.compute().items()}

    return score


def _class_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The scores of each class, one a line."""
    names = [name for name in rows[0] if name not in ("id", "name", "isthing")] if rows else []
    width = max((len(row["name"]) for row in rows), default=0)
    lines = [" " * width + "".join(f"{name:>10}" for name in names)]
    for row in rows:
        cells = (f"{row[name]:10.2f}" if isinstance(row[name], float) else f"{row[name]:10}" for name in names)
        lines.append(row["name"].ljust(width) + "".join(cells))
    return "\n".join(lines)


def _composed(overrides: Sequence[str], carried: Mapping[str, Any] | None = None) -> DictConfig:
    """The configuration that train.py would have with these overrides; or what weights carry, with them."""
    if carried is None:
        # Its run folder is Hydra's to say, and there is no Hydra run of it.
        name, overrides = "train", [*overrides, "run_folder=null"]
    else:
        name = "carried"
        ConfigStore.instance().store(name, carried)
    within = GlobalHydra().is_initialized()
    with nullcontext() if within else hydra.initialize_config_dir(CONFIGS, version_base="1.3"):
        try:
            return hydra.compose(name, list(overrides))
        except ConfigCompositionException as error:
            raise in_our_words(error, "eval") from error


def _scored(config: DictConfig) -> DictConfig:
    """The part of a chosen configuration that an evaluation takes."""
    settings = plain(config)
    return OmegaConf.create({key: settings[key] for key in Scored.model_fields})


def _inherited(weights: Weights, run_folder: str) -> dict[str, Any]:
    """The part of the configuration in a checkpoint that an evaluation takes, plain and not checked."""
    settings = {key: weights.config[key] for key in Scored.model_fields if key in weights.config}
    if settings:
        # A configuration of another kind could name a custom task, which `check_config` has not seen.
        settings["kind"] = weights.kind
    trainer, own = settings.get("trainer"), yaml.safe_load(Path(CONFIGS, "trainer", "default.yaml").read_text())
    if isinstance(trainer, Mapping):
        taken = {key: trainer[key] for key in _OF_TRAINER if key in trainer}
        settings["trainer"] = own | taken | {"default_root_dir": run_folder}
    data = settings.get("data")
    if isinstance(data, Mapping):
        # The training set, whose reader and augmentations may be foreign code, is not read.
        settings["data"] = {**data, "train": data.get("val"), "augmentations": []}
    return settings


def _with_typed(carried: Mapping[str, Any], cfg: DictConfig) -> DictConfig:
    """The settings that weights carry, and over them what is typed."""
    if not carried:
        raise InputError(
            f"ckpt={cfg.ckpt} carries no settings: choose its task, as in task=coco_panoptic data.root=DIR"
        )
    merged = plain(OmegaConf.merge(carried, _NOT_INHERITED), resolve=False)
    merged["data"] = with_references(merged["data"], [key_of(override) for override in cfg.settings])
    settings = _composed(cfg.settings, merged)
    # Also with what was typed for it, such as a path that an export has left out.
    settings.data.train = settings.data.get("val")
    return settings


_PLACES = ("images", "annotations", "labels", "names")
"""The keys by which a reader finds its files."""


def _seen(trained: Any, scored: Mapping[str, Any]) -> str | None:
    """The remark that a run was trained on images which are scored, as far as the two configurations of data tell."""
    own, val = trained.get("train") if isinstance(trained, Mapping) else None, scored["val"]
    if not isinstance(own, Mapping) or _files(own) != _files(val) or not any(_files(own)):
        return None
    roots, there, here = {own.get("root"), val.get("root")} - {None}, trained.get("split"), scored.get("split")
    if len(roots) > 1 or (there is not None and there == here):
        return None
    if there is not None:
        return (
            f"note: data.split={here or 'null'} scores images that the run, of data.split={there}, may have been "
            "trained on: leave data.split out to score those that it has not seen"
        )
    key = "images" if "images" in val else "split"
    return (
        f"note: data.val.{key}={val.get(key)} names the images that the run was trained on: all that are scored may "
        f"have been seen in training; data.val.{key}= chooses others"
    )


def _files(reader: Mapping[str, Any]) -> list[Any]:
    """What names a reader's files below its root; `split` does where a name is left to it."""
    given = [reader[key] for key in _PLACES if key in reader] or [None]
    return [reader.get("split") if name is None else name for name in given]


def _typed_network(overrides: Sequence[str], chosen: DictConfig | None) -> dict[str, Any]:
    """Arguments of the network that are typed, or those of a model or an experiment that is; not a task's default."""
    typed = {override.key_or_group: override.value() for override in parsed(overrides)}
    network = {"image_size": typed["data.image_size"]} if "data.image_size" in typed else {}
    if chosen is not None:
        model = plain(chosen.model)
        whole = bool({"model", "experiment"} & typed.keys())
        network |= {key: model[key] for key in _NETWORK if whole or f"model.{key}" in typed}
        if "experiment" in typed:
            network["image_size"] = plain(chosen.data)["image_size"]
    return network
