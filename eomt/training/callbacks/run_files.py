"""Files that a validation leaves: scores, pictures of predictions, and results in the benchmarks' formats."""

from __future__ import annotations

import csv
import math
from collections import deque
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torch import Tensor

from eomt.files import replacing, write_json
from eomt.postprocess.draw import DRAWN_SCORE, contact_sheet, draw_segments, side_by_side
from eomt.postprocess.types import Instances, Segmentation
from eomt.training.callbacks.trackers import Picture, log_pictures, log_table


class MetricsFile(Callback):
    """Writes the scores of a validation, in percent: `metrics.json` and `metrics_per_class.json`; of a semantic one
    also `confusion.csv`, pixels of true classes (rows) by predicted ones.

    A score over no class at all is null.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    @rank_zero_only
    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        scores = {**pl_module.scores, "step": pl_module.step, "mask_free": pl_module.mask_free}
        write_json(self.folder / "metrics.json", _without_nan(scores))
        rows = [_without_nan(row) for row in pl_module.scores_per_class]
        write_json(self.folder / "metrics_per_class.json", rows)
        log_table(trainer.loggers, rows, pl_module.step)
        if pl_module.confusion is not None:
            names = pl_module.classes.names
            with replacing(self.folder / "confusion.csv") as temporary, temporary.open("w", newline="") as file:
                table = csv.writer(file)
                table.writerow(["true class", *names, "none"])
                table.writerows([name, *row] for name, row in zip(names, pl_module.confusion.tolist(), strict=True))


class PredictionPictures(Callback):
    """Writes `pictures/step-N.png` after each validation: image, ground truth and prediction side by side.

    Args:
        folder: the run folder.
        count: the number of images, the first of the validation set.
    """

    def __init__(self, folder: str | Path, count: int = 8):
        self.folder = Path(folder) / "pictures"
        self.count = count
        self._pictures: list[Picture] = []

    def on_validation_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._pictures = []

    @rank_zero_only
    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        missing = 0 if trainer.sanity_checking else self.count - len(self._pictures)
        if missing > 0:
            shown = enumerate(outputs.result()[:missing])
            self._pictures += [_picture(batch, k, one, pl_module) for k, one in shown]

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self._pictures:
            sheet = self.folder / f"step-{pl_module.step:06d}.png"
            with replacing(sheet) as temporary:
                Image.fromarray(contact_sheet([picture.drawn for picture in self._pictures])).save(temporary)
            log_pictures(trainer.loggers, self._pictures, sheet, pl_module.classes, pl_module.step)
            self._pictures = []


class SavePredictions(Callback):
    """Writes each prediction of a validation in the format of the benchmark's server.

    The trainer's data module must be like `SegmentationData`: its `reader("val")` knows all images' names.

    Args:
        folder: the folder of the files.

    Raises:
        InputError: on every rank and before the first image, if the results of two images would have one name.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        # Ranks that were not started by the first one name folders of their own.
        self.folder = trainer.strategy.broadcast(self.folder)
        self._writer = pl_module.task.writer(self.folder, pl_module.classes, trainer.global_rank, trainer.world_size)
        reader = trainer.datamodule.reader("val")
        self._writer.check_names(reader.name(index) for index in range(len(reader)))
        self._unwritten: deque[tuple[Any, Any]] = deque()

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        # One batch late: a GPU's predictions are made while the network runs on the next.
        self._unwritten.append((batch, outputs))
        if len(self._unwritten) > 1:
            self._write(*self._unwritten.popleft())

    def _write(self, batch: Any, outputs: Any) -> None:
        for prediction, name, image_id in zip(outputs.result(), batch.names, batch.image_ids, strict=True):
            self._writer.add(prediction, name, image_id)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        while self._unwritten:
            self._write(*self._unwritten.popleft())
        self._writer.flush()
        trainer.strategy.barrier()
        try:
            if trainer.is_global_zero:
                self._writer.close()
        finally:
            # Also if rank 0 fails, as on a full disk: the others would wait for it.
            trainer.strategy.barrier()


def _without_nan(row: dict) -> dict:
    # JSON has no NaN.
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}


def _picture(
    batch: Any, index: int, prediction: Segmentation | Instances, module: lightning.LightningModule
) -> Picture:
    """Draw one image at the network's resolution: the batch does not hold the original."""
    placement, targets = batch.placements[index], batch.targets[index]
    size = (placement.scaled_height, placement.scaled_width)
    start = sum(batch.counts[:index])
    inputs = batch.inputs[start : start + batch.counts[index]]
    view = module.task.geometry.view(inputs, placement, tuple(inputs.shape[-2:]))
    image = view.permute(1, 2, 0).cpu().numpy()
    truth = targets.ids[0]
    for plane in targets.ids[1:]:
        truth = torch.where(plane > 0, plane, truth)
    shown = prediction.above(DRAWN_SCORE).flat() if isinstance(prediction, Instances) else prediction
    labels, scores = shown.labels.cpu().numpy(), shown.scores.cpu().numpy()
    true_ids, true_labels, ids = _nearest(truth, size), targets.labels.numpy(), _nearest(shown.ids, size)
    left = draw_segments(image, true_ids, true_labels, module.classes)
    right = draw_segments(image, ids, labels, module.classes, scores)
    drawn = side_by_side(image, [(f"{batch.names[index]}: ground truth", left), ("prediction", right)])
    maps = (np.append(-1, own)[segments] for segments, own in ((true_ids, true_labels), (ids, labels)))
    return Picture(batch.names[index], image, *maps, drawn)


def _nearest(ids: Tensor, size: tuple[int, int]) -> np.ndarray:
    return F.interpolate(ids[None, None].to(torch.float32), size, mode="nearest")[0, 0].to(torch.int64).cpu().numpy()
