"""Pictures of predictions beside the ground truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from PIL import Image
from torch import Tensor

from eomt.files import replacing
from eomt.postprocess.draw import DRAWN_SCORE, contact_sheet, draw_segments, side_by_side
from eomt.postprocess.types import Instances, Segmentation
from eomt.targets import ImageTargets


class PredictionPictures(Callback):
    """Writes `pictures/step-N.png` after each validation: image, ground truth and prediction side by side.

    Args:
        folder: the run folder.
        count: the number of images, the first of the validation set.
    """

    def __init__(self, folder: str | Path, count: int = 8):
        self.folder = Path(folder) / "pictures"
        self.count = count
        self._rows: list[np.ndarray] = []

    def on_validation_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._rows = []

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        for index, prediction in enumerate(outputs):
            if len(self._rows) >= self.count:
                return
            self._rows.append(_row(batch, index, prediction, pl_module))

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.sanity_checking or not self._rows:
            return
        with replacing(self.folder / f"step-{pl_module.step:06d}.png") as temporary:
            Image.fromarray(contact_sheet(self._rows)).save(temporary)
        self._rows = []


def _row(batch: Any, index: int, prediction: Segmentation | Instances, module: lightning.LightningModule) -> np.ndarray:
    """Draw one image at the network's resolution: the batch does not hold the original."""
    placement, targets = batch.placements[index], batch.targets[index]
    size = (placement.scaled_height, placement.scaled_width)
    start = sum(batch.counts[:index])
    inputs = batch.inputs[start : start + batch.counts[index]]
    view = module.task.geometry.view(inputs, placement, tuple(inputs.shape[-2:]))
    image = view.permute(1, 2, 0).cpu().numpy()
    truth = draw_segments(image, _nearest(_flat(targets), size), targets.labels.numpy(), module.classes)
    shown = prediction.above(DRAWN_SCORE).flat() if isinstance(prediction, Instances) else prediction
    predicted = draw_segments(
        image, _nearest(shown.ids, size), shown.labels.cpu().numpy(), module.classes, shown.scores.cpu().numpy()
    )
    return side_by_side(image, [(f"{batch.names[index]}: ground truth", truth), ("prediction", predicted)])


def _flat(targets: ImageTargets) -> Tensor:
    """Flatten overlapping targets to one id map [H, W]: segments of later planes hide those of earlier ones."""
    flat = targets.ids[0]
    for plane in targets.ids[1:]:
        flat = torch.where(plane > 0, plane, flat)
    return flat


def _nearest(ids: Tensor, size: tuple[int, int]) -> np.ndarray:
    return F.interpolate(ids[None, None].to(torch.float32), size, mode="nearest")[0, 0].to(torch.int64).cpu().numpy()
