"""Result files in the benchmarks' formats, written during an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback


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
        self._writer = pl_module.task.writer(self.folder, pl_module.classes, trainer.global_rank, trainer.world_size)
        reader = trainer.datamodule.reader("val")
        self._writer.check_names(reader.name(index) for index in range(len(reader)))

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        for prediction, name, image_id in zip(outputs, batch.names, batch.image_ids, strict=True):
            self._writer.add(prediction, name, image_id)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._writer.flush()
        trainer.strategy.barrier()
        try:
            if trainer.is_global_zero:
                self._writer.close()
        finally:
            # Also if rank 0 fails, as on a full disk: the others would wait for it.
            trainer.strategy.barrier()
