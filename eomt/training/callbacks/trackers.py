"""Contents for loggers besides the module's own numbers: settings, code, speed, memory, tables and pictures."""

from __future__ import annotations

import contextlib
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

import eomt
from eomt.classes import Classes
from eomt.export.redact import redact
from eomt.training.callbacks.shown import Shown
from eomt.training.module import EoMTModule

# wandb's masks have a byte per pixel.
_LAST_CLASS = 255


class Trackers(Callback):
    """Logger of what a run is and how it goes, every `trainer.log_every_n_steps` optimizer steps.

    All loggers get images/s and the share of the time that the loop waited for data, both since the last time and
    without validations; peaks of memory; the loss terms of each output; the learning rate of each group of parameters.
    Trackers also get the settings without paths of this machine, and the commit if the code is a clone.

    Args:
        sweep: the name of the sweep that the run is one of, if any.
    """

    def __init__(self, sweep: str | None = None):
        self.sweep = sweep
        self._step = 0
        # The step, time and seconds waited for data of the last numbers.
        self._since: tuple[int, float, float] | None = None
        self._rates: dict[str, float] = {}
        self._validation_began = 0.0

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: EoMTModule) -> None:
        if not trainer.is_global_zero or not pl_module.run:
            return
        settings = redact(pl_module.run["config"], pl_module.run["environment"], dropped=())
        settings |= {"code": _code(), "sweep": self.sweep}
        for logger in trainer.loggers:
            _log_settings(logger, settings)

    def on_train_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        self._step, self._since = trainer.global_step, None

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        # At the end of the batch they are those of the next step.
        groups = trainer.optimizers[0].param_groups
        self._rates = {f"lr_group/{group.get('name', group['stage'])}": group["lr"] for group in groups}

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: EoMTModule, *_: Any) -> None:
        step = trainer.global_step
        every = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue] Lightning sets it undeclared
        if step == self._step or not every:
            return
        self._step, now = step, (step, time.perf_counter(), getattr(trainer.train_dataloader, "waited", 0.0))
        due = step % every == 0 or step == pl_module.total_steps
        if due:
            values = _state(pl_module) | self._rates
            # The first step, in which the network may be compiled, is not timed.
            if self._since:
                steps, seconds, waited = (b - a for a, b in zip(self._since, now, strict=True))
                values["speed/images_per_second"] = steps * pl_module.data.global_batch / seconds
                values["speed/data_wait_share"] = waited / seconds
            # Tensors on the host: Lightning would copy numbers to the device, and wait.
            pl_module.log_dict({name: torch.tensor(value) for name, value in values.items()})
        if due or self._since is None:
            self._since = now

    def on_validation_start(self, *_: Any) -> None:
        self._validation_began = time.perf_counter()

    def on_validation_end(self, *_: Any) -> None:
        if self._since:
            step, began, waited = self._since
            self._since = (step, began + time.perf_counter() - self._validation_began, waited)


def log_table(loggers: Sequence[Logger], rows: Sequence[Mapping[str, Any]], step: int) -> None:
    """Give trackers the scores per class.

    Args:
        loggers: the loggers of a run.
        rows: plain values by name, the same names for each class; None for a score that is over nothing.
        step: the optimizer step.
    """
    columns, values = list(rows[0]) if rows else [], [list(row.values()) for row in rows]
    for logger in loggers if rows else ():
        if isinstance(logger, WandbLogger):
            logger.log_table("classes", columns=columns, data=values, step=step)
        elif isinstance(logger, TensorBoardLogger):
            cells = [columns, ["---"] * len(columns)]
            cells += [[_cell(value) for value in row] for row in values]
            text = "\n".join(f"| {' | '.join(row)} |" for row in cells)
            logger.experiment.add_text("classes", text, step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_dict(logger.run_id, {"classes": list(rows)}, f"classes/step-{step:06d}.json")


def log_pictures(loggers: Sequence[Logger], images: Sequence[Shown], sheet: Path, classes: Classes, step: int) -> None:
    """Give trackers the images that a validation shows; to wandb with masks.

    Args:
        loggers: the loggers of a run.
        images: the images.
        sheet: the file that shows them all.
        classes: the classes' names. Those from the 255th on share a number in wandb's masks.
        step: the optimizer step.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            labels = {k + 1: name for k, name in enumerate(classes.names[:_LAST_CLASS])}
            if len(classes) > _LAST_CLASS:
                labels[_LAST_CLASS] = f"{labels[_LAST_CLASS]} or a later class"
            for k, image in enumerate(images):
                truth, found = (_mask(part, labels) for part in image.class_maps())
                masks = {"ground_truth": truth, "prediction": found}
                logger.log_image(f"pictures/{k}", [image.image], step, caption=[image.name], masks=[masks])
        elif isinstance(logger, TensorBoardLogger):
            for k, image in enumerate(images):
                logger.experiment.add_image(f"pictures/{k}", image.row(classes), step, dataformats="HWC")
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_artifact(logger.run_id, str(sheet), "pictures")


def _cell(value: Any) -> str:
    text = "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|")


def _mask(classes: np.ndarray, labels: dict[int, str]) -> dict[str, Any]:
    return {"mask_data": np.minimum(classes + 1, _LAST_CLASS), "class_labels": labels}


def _log_settings(logger: Logger, settings: dict[str, Any]) -> None:
    if isinstance(logger, CSVLogger):
        return  # config.yaml lies beside it
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_text("settings", f"```yaml\n{yaml.safe_dump(settings, sort_keys=False)}```")
    if isinstance(logger, MLFlowLogger):
        logger.experiment.log_dict(logger.run_id, settings, "config.yaml")
        if settings["sweep"]:
            logger.experiment.set_tag(logger.run_id, "sweep", settings["sweep"])
        if logger.experiment.get_run(logger.run_id).data.params:
            return  # a resumed run: MLflow refuses another value of a parameter
    logger.log_hyperparams(settings)


def _code() -> dict[str, Any]:
    """The package's version, and the commit and the number of changed files if it is a clone."""
    code, root = {"version": eomt.__version__}, Path(__file__).parents[3]
    if (root / ".git").exists():
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            head, changes = (
                subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, timeout=10, check=True).stdout
                for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
            )
            code |= {"commit": head.strip(), "changed_files": len(changes.splitlines())}
    return code


def _state(module: EoMTModule) -> dict[str, float]:
    """Numbers of the last step: losses by output, and peaks of memory in GiB."""
    values = {
        f"loss_{name}/output_{k}": loss
        for name, losses in module.output_losses.items()
        for k, loss in enumerate(losses.tolist(), start=1)
    }
    # Of this process alone, not of its data workers; Linux counts in KiB.
    unit = 2**30 if sys.platform == "darwin" else 2**20
    values["memory/host_peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    if module.device.type == "cuda":
        values["memory/gpu_peak_gib"] = torch.cuda.max_memory_allocated(module.device) / 2**30
    return values
