"""Files that a validation leaves: scores, pictures of predictions, and results in the benchmarks' formats."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from eomt.files import replacing, write_json
from eomt.postprocess.draw import contact_sheet
from eomt.training.callbacks.shown import Shown, shown
from eomt.training.callbacks.trackers import log_pictures, log_table
from eomt.training.module import EoMTModule


class MetricsFile(Callback):
    """Scores of a validation, in percent: `metrics.json` and `metrics_per_class.json`; of a semantic one
    also `confusion.csv`, pixels of true classes (rows) by predicted ones.

    A score over no class at all is null.

    Args:
        folder: the run folder.
        settings: what is not as usual in this evaluation, such as `{"tta": "flip"}`; `metrics.json` says so.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any] | None = None):
        self.folder = Path(folder)
        self.settings = dict(settings or {})

    @rank_zero_only
    def on_validation_end(self, trainer: lightning.Trainer, pl_module: EoMTModule) -> None:
        if trainer.sanity_checking:
            return
        state = {"step": pl_module.step, "mask_free": pl_module.mask_free}
        write_json(self.folder / "metrics.json", _without_nan({**pl_module.scores, **state, **self.settings}))
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
        self._images: list[Shown] = []

    def on_validation_epoch_start(self, *_: Any) -> None:
        self._images = []

    @rank_zero_only
    def on_validation_batch_end(
        self, trainer: lightning.Trainer, pl_module: EoMTModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        missing = 0 if trainer.sanity_checking else self.count - len(self._images)
        if missing > 0:
            found = outputs.result()[:missing]
            self._images += [shown(batch, k, one, pl_module.task.geometry) for k, one in enumerate(found)]

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: EoMTModule) -> None:
        if self._images:
            sheet, classes = self.folder / f"step-{pl_module.step:06d}.png", pl_module.classes
            with replacing(sheet) as temporary:
                Image.fromarray(contact_sheet([image.row(classes) for image in self._images])).save(temporary)
            log_pictures(trainer.loggers, self._images, sheet, classes, pl_module.step)
            self._images = []


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
        self._unwritten: list[tuple[Any, Any]] = []

    def on_validation_batch_end(
        self, trainer: lightning.Trainer, pl_module: EoMTModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        # One batch late: a GPU's predictions are made while the network runs on the next.
        self._write()
        self._unwritten = [(batch, outputs)]

    def _write(self) -> None:
        for batch, outputs in self._unwritten:
            for prediction, name, image_id in zip(outputs.result(), batch.names, batch.image_ids, strict=True):
                self._writer.add(prediction, name, image_id)
        self._unwritten = []

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: EoMTModule) -> None:
        self._write()
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
