"""The page of a run or an evaluation: `report.html`."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import numpy as np
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from eomt.export.redact import redact
from eomt.postprocess.draw import draw_errors
from eomt.report.page import Example, Page
from eomt.training.callbacks.curves import panels, read_logs
from eomt.training.callbacks.shown import Shown, shown
from eomt.training.module import EoMTModule


class Report(Callback):
    """`report.html` after each validation and at the end of a run: curves, scores, the confusion of classes, the
    best and the worst images, settings without what belongs to the machine.

    Args:
        folder: the run folder.
        images: the number of best and of worst images; of several ranks, the first one's are compared.
        settings: those of an evaluation; default the run's, which the module carries.
    """

    def __init__(self, folder: str | Path, images: int = 3, settings: Mapping[str, Any] | None = None):
        self.folder = Path(folder)
        self.images = images
        self.settings = settings
        self._examples: dict[str, list[Example]] = {}

    def on_validation_start(self, *_: Any) -> None:
        self._heaps: tuple[list, list] = ([], [])
        self._seen = 0
        self._waiting: list[tuple[Any, Any]] = []

    @rank_zero_only
    def on_validation_batch_end(
        self, trainer: lightning.Trainer, pl_module: EoMTModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        if not self.images or trainer.sanity_checking:
            return
        # One batch late: a GPU's predictions are made while the network runs on the next.
        self._compare(pl_module)
        self._waiting = [(batch, outputs)]

    def _compare(self, module: EoMTModule) -> None:
        """Keep the waiting images that are among the best or the worst so far."""
        waiting = ((batch, *each) for batch, outputs in self._waiting for each in enumerate(outputs.result()))
        for batch, index, prediction in waiting:
            score = module.image_scores.get(batch.image_ids[index], math.nan)
            if math.isnan(score):
                continue
            self._seen += 1
            image = None
            for heap, rank in zip(self._heaps, (score, -score), strict=True):
                if len(heap) == self.images and rank <= heap[0][0]:
                    continue
                image = image or shown(batch, index, prediction, module.task.geometry)
                # The number of the image keeps equal scores from comparing pictures.
                (heapq.heappushpop if len(heap) == self.images else heapq.heappush)(heap, (rank, self._seen, image))

    @rank_zero_only
    def on_validation_end(self, trainer: lightning.Trainer, pl_module: EoMTModule) -> None:
        if trainer.sanity_checking:
            return
        self._compare(pl_module)
        best, worst = (sorted(heap, reverse=True) for heap in self._heaps)
        # Few images, or equal scores.
        numbers = {number for _, number, _ in worst}
        best = [entry for entry in best if entry[1] not in numbers]
        self._heaps, self._waiting = ([], []), []
        of = f"of {self._seen} images" + (" of the first rank" if trainer.world_size > 1 else "")
        self._examples = {
            f"{title} {of}": [_example(image, abs(rank), pl_module) for rank, _, image in entries]
            for title, entries in (("Worst", worst), ("Best", best))
        }
        self._write(trainer, pl_module)

    @rank_zero_only
    def on_fit_end(self, trainer: lightning.Trainer, pl_module: EoMTModule) -> None:
        self._write(trainer, pl_module)

    def _write(self, trainer: lightning.Trainer, module: EoMTModule) -> None:
        for logger in trainer.loggers:
            logger.save()
        settings = module.run.get("config", {}) if self.settings is None else self.settings
        Page(
            title=f"EoMT: {settings.get('task_name') or module.task.kind}",
            subtitle=f"{self.folder.resolve().name}, step {module.step}, {len(module.classes)} classes",
            scores=module.scores,
            curves=panels(read_logs(self.folder)),
            rows=module.scores_per_class,
            classes=module.classes.names,
            confusion=None if module.confusion is None else module.confusion.numpy(),
            examples=self._examples,
            settings=redact(settings, module.run.get("environment", [])),
        ).write(self.folder / "report.html")


def _example(image: Shown, score: float, module: EoMTModule) -> Example:
    truth, found = image.drawn(module.classes)
    pictures = [("image", image.image), ("ground truth", truth), ("prediction", found), ("errors", _errors(image))]
    return Example(image.name, score, pictures)


def _errors(image: Shown) -> np.ndarray:
    """Errors by class: of objects everywhere but in crowds, otherwise where there is a true segment."""
    ids, _, crowd = image.truth
    scored = ~np.append(not image.objects, crowd)[ids]
    return draw_errors(image.image, *image.class_maps(), scored)
