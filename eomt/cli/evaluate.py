"""An evaluation: scores, pictures and results of weights on a validation set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from eomt.cli.build import build_data, build_trainer, load_module, make_fast, memory_errors
from eomt.cli.check import plain
from eomt.cli.eval_settings import weights_and_settings
from eomt.cli.folders import record
from eomt.cli.main import log
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
from eomt.training.stop import listening
from eomt.views import Tiled, with_mirrored
from eomt.weights.load import renumbered
from eomt.weights.spec import CompleteWeights, check_same_classes


def evaluate(cfg: DictConfig, weights: CompleteWeights, settings: DictConfig) -> None:
    """Score a network on the validation set, and write scores, pictures and results into the run folder, which is
    held and free.

    Args:
        cfg: eval.py's configuration.
        weights: the network's weights.
        settings: those of the evaluation.

    Raises:
        InputError: if settings do not go together or with an evaluation; see `build_data` and `Tiled`.
    """
    if settings.trainer.strategy == "fsdp2":
        raise InputError(
            "trainer.strategy=fsdp2 shares out what training holds, and eval.py trains nothing: leave it out"
        )
    limit_pixels(cfg.max_pixels)
    if cfg.tile and settings.data.validation_loss:
        raise InputError("data.validation_loss=true is the loss of whole inputs: leave tile= out")
    record(cfg, cfg.run_folder)
    data = build_data(settings)
    weights = replace(weights, classes=renumbered(weights.classes, data.val_classes))
    module = load_module(weights, settings, data.image_size, cfg.unpadded)
    assert not isinstance(module.task, Tiled)
    task = with_mirrored(module.task, module.network.backbone.patch_size, cfg.tta, cfg.unpadded)
    module.task = Tiled(task, cfg.tile) if cfg.tile else task
    data.geometry = module.task.geometry
    module.run["environment"] = weights.environment
    views = {key: cfg[key] for key in ("tile", "tta", "unpadded") if cfg[key]}
    callbacks = [
        Progress(),
        ProgressLines(),
        MetricsFile(cfg.run_folder, views),
        PredictionPictures(cfg.run_folder, cfg.pictures),
        Report(cfg.run_folder, min(3, cfg.pictures), {**views, **plain(settings)}),
    ]
    if cfg.save_predictions:
        callbacks.append(SavePredictions(f"{cfg.run_folder}/predictions"))
    trainer = build_trainer(settings, callbacks, False)
    if not trainer.limit_val_batches:
        raise InputError("trainer.limit_val_batches=0 leaves no image to score: give a larger one, or null for all")
    dtype = PRECISIONS.get(str(trainer.precision).removesuffix("-mixed"))
    if dtype is not None:
        module.network = with_cast_weights(module.network, dtype)
    make_fast(module, trainer, settings.compile, data.eval_batch_size)
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
