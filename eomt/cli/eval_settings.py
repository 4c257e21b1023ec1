"""Settings of an evaluation: the checkpoint's configuration or that of a chosen training, then what is typed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf

from eomt.cli.build import build_data
from eomt.cli.check import plain
from eomt.cli.main import checked, log
from eomt.cli.meanings import CONFIGS
from eomt.cli.meant import in_our_words
from eomt.cli.overrides import key_of, parsed
from eomt.cli.resume import with_references
from eomt.cli.settings import CHOICES, Scored
from eomt.cli.trust import check_config
from eomt.errors import InputError
from eomt.weights.load import read_weights
from eomt.weights.spec import CompleteWeights, Weights

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
    chosen = settings = kind = classes = None
    if any(key_of(override) in CHOICES for override in cfg.settings):
        chosen = _composed(["trainer.devices=auto", *cfg.settings])
        training = plain(chosen)
        settings = OmegaConf.create({key: training[key] for key in Scored.model_fields})
        # Weights that say nothing of their classes are taken to be of those of the data.
        kind, classes = settings.kind, build_data(settings).val_classes
    network = _typed_network(cfg.settings, chosen)
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
    """Names of a reader's files below its root; `split` does where a name is left to it."""
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
