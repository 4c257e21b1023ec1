"""Scores of the last validation, flat, in percent: `metrics.json`."""

from __future__ import annotations

import math
from pathlib import Path

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from eomt.files import write_json


class MetricsFile(Callback):
    """Writes `metrics.json` and `metrics_per_class.json` into the run folder after each validation.

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
        write_json(self.folder / "metrics_per_class.json", [_without_nan(row) for row in pl_module.scores_per_class])


def _without_nan(row: dict) -> dict:
    # JSON has no NaN.
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}
