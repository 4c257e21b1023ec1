"""Files that a validation leaves: scores, pictures of predictions, and results in the benchmarks' formats."""

from __future__ import annotations

import csv
import math
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torch import Tensor

from eomt.classes import Classes
from eomt.files import replacing, write_json
from eomt.postprocess.draw import DRAWN_SCORE, contact_sheet, draw_segments, side_by_side
from eomt.postprocess.geometry import Geometry
from eomt.postprocess.types import Instances, Segmentation
from eomt.training.callbacks.trackers import Picture, log_pictures, log_table
from eomt.training.module import EoMTModule


class MetricsFile(Callback):
    """Scores of a validation, in percent: `metrics.json` and `metrics_per_class.json`; of a semantic one
    also `confusion.csv`, pixels of true classes (rows) by predicted ones.

    A score over no class at all is null.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    @rank_zero_only
    def on_validation_end(self, trainer: lightning.Trainer, pl_module: EoMTModule) -> None:
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
    """`pictures/step-N.png` after each validation: image, ground truth and prediction side by side.

    Args:
        folder: the run folder.
        count: the number of images, the first of the validation set.
    """

    def __init__(self, folder: str | Path, count: int = 8):
        self.folder = Path(folder) / "pictures"
        self.count = count
        self._pictures: list[Picture] = []

    def on_validation_epoch_start(self, trainer: lightning.Trainer, pl_module: EoMTModule) -> None:
        self._pictures = []

    @rank_zero_only
    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: EoMTModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        missing = 0 if trainer.sanity_checking else self.count - len(self._pictures)
        if missing > 0:
            images = (shown(batch, k, one, pl_module.task.geometry) for k, one in enumerate(outputs.result()[:missing]))
            self._pictures += [_picture(image, pl_module.classes) for image in images]

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: EoMTModule) -> None:
        if self._pictures:
            sheet = self.folder / f"step-{pl_module.step:06d}.png"
            with replacing(sheet) as temporary:
                Image.fromarray(contact_sheet([picture.drawn for picture in self._pictures])).save(temporary)
            log_pictures(trainer.loggers, self._pictures, sheet, pl_module.classes, pl_module.step)
            self._pictures = []


class SavePredictions(Callback):
    """Each prediction of a validation in the format of the benchmark's server.

    The trainer's data module must be like `SegmentationData`: its `reader("val")` knows all images' names.

    Args:
        folder: the folder of the files.

    Raises:
        InputError: on every rank and before the first image, if the results of two images would have one name.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: EoMTModule) -> None:
        # Ranks that were not started by the first one name folders of their own.
        self.folder = trainer.strategy.broadcast(self.folder)
        self._writer = pl_module.task.writer(self.folder, pl_module.classes, trainer.global_rank, trainer.world_size)
        reader = pl_module.data.reader("val")
        self._writer.check_names(reader.name(index) for index in range(len(reader)))
        self._unwritten: deque[tuple[Any, Any]] = deque()

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: EoMTModule,
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

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: EoMTModule) -> None:
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


class Shown(NamedTuple):
    """An image of a validation at the network's resolution, as the batch does not hold the original.

    Attributes:
        name: the image's name.
        image: uint8 [H, W, 3].
        truth: true segments: int64 [H, W], 0 where none is; the classes of the T segments, and which are crowds.
        found: predicted segments that are drawn: int64 [H, W], the classes and the scores of the S segments.
        objects: whether segments are objects, beside which there is background, and no void.
    """

    name: str
    image: np.ndarray
    truth: tuple[np.ndarray, np.ndarray, np.ndarray]
    found: tuple[np.ndarray, np.ndarray, np.ndarray]
    objects: bool

    def drawn(self, classes: Classes) -> tuple[np.ndarray, np.ndarray]:
        """Ground truth and prediction, see `draw_segments`."""
        truth = draw_segments(self.image, *self.truth[:2], classes)
        return truth, draw_segments(self.image, self.found[0], self.found[1], classes, self.found[2])

    def class_maps(self) -> tuple[np.ndarray, np.ndarray]:
        """The true and the predicted class of each pixel, int64 [H, W]; -1 for none."""
        true, found = (np.append(-1, labels)[ids] for ids, labels, _ in (self.truth, self.found))
        return true, found


def shown(batch: Any, index: int, prediction: Segmentation | Instances, geometry: Geometry) -> Shown:
    """Take one image out of a batch, a copy."""
    placement, targets = batch.placements[index], batch.targets[index]
    size = (placement.scaled_height, placement.scaled_width)
    start = sum(batch.counts[:index])
    inputs = batch.inputs[start : start + batch.counts[index]]
    image = geometry.view(inputs, placement, tuple(inputs.shape[-2:])).permute(1, 2, 0).cpu().numpy().copy()
    truth = targets.ids[0]
    for plane in targets.ids[1:]:
        truth = torch.where(plane > 0, plane, truth)
    objects = isinstance(prediction, Instances)
    drawn = prediction.above(DRAWN_SCORE).flat() if objects else prediction
    return Shown(
        batch.names[index],
        image,
        (_nearest(truth, size), targets.labels.numpy(), targets.crowd.numpy()),
        (_nearest(drawn.ids, size), drawn.labels.cpu().numpy(), drawn.scores.cpu().numpy()),
        objects,
    )


def _picture(image: Shown, classes: Classes) -> Picture:
    left, right = image.drawn(classes)
    drawn = side_by_side(image.image, [(f"{image.name}: ground truth", left), ("prediction", right)])
    return Picture(image.name, image.image, *image.class_maps(), drawn)


def _nearest(ids: Tensor, size: tuple[int, int]) -> np.ndarray:
    return (
        F.interpolate(ids[None, None].to(torch.float32), size, mode="nearest-exact")[0, 0].to(torch.int64).cpu().numpy()
    )
