"""`best.ckpt` where the last validation comes after the training."""

from __future__ import annotations

import shutil
from pathlib import Path

import lightning
from lightning.pytorch.callbacks import ModelCheckpoint

from eomt.files import replacing


def keep_best(trainer: lightning.Trainer, scores: dict[str, float]) -> None:
    """Let a validation after the end of the training count, too: `ModelCheckpoint` sees those within it alone.

    Where the score is the best so far, or the first, `last.ckpt` is copied to the best checkpoint.

    Args:
        trainer: whose training has ended.
        scores: of that validation, higher is better.
    """
    for callback in trainer.checkpoint_callbacks:
        if not isinstance(callback, ModelCheckpoint) or callback.monitor not in scores:
            continue
        folder = Path(callback.dirpath)
        last, best = folder / "last.ckpt", folder / f"{callback.filename}.ckpt"
        before = callback.best_model_score
        if last.is_file() and (before is None or scores[callback.monitor] > float(before)):
            with replacing(best) as temporary:
                shutil.copyfile(last, temporary)
