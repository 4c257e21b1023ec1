"""The one place where the kinds of segmentation differ.

A task names how an image goes into the network, how an answer comes out, how it is scored and how it
is written for the benchmark's server. Everything else is shared.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from eomt.classes import Classes
from eomt.errors import InputError
from eomt.inference.geometry import Placement
from eomt.inference.panoptic import Segmentation, panoptic_segmentation
from eomt.inference.results import PanopticWriter
from eomt.network import Output

if TYPE_CHECKING:
    from eomt.metrics.panoptic_quality import PanopticQuality


class Task(Protocol):
    """One kind of segmentation.

    Attributes:
        kind: its name.
        monitor: the metric by which the best checkpoint is chosen, higher is better.
    """

    kind: str
    monitor: str

    def metric(self, classes: Classes) -> PanopticQuality:
        """A torchmetrics metric that is updated with (prediction, targets of one image)."""

    def writer(self, folder: Path, classes: Classes, rank: int, world_size: int) -> PanopticWriter:
        """Writes predictions as the benchmark's server takes them."""

    def predict(self, output: Output, index: int, placement: Placement, size: tuple[int, int], classes: Classes):
        """The prediction for the index-th image of a batch, at the image's own size."""


class PanopticTask:
    """Every pixel belongs to at most one segment; things are told apart one by one."""

    kind = "panoptic"
    monitor = "pq"

    def metric(self, classes: Classes) -> PanopticQuality:
        # torchmetrics belongs to training: inference does without it.
        from eomt.metrics.panoptic_quality import PanopticQuality

        return PanopticQuality(classes)

    def writer(self, folder: Path, classes: Classes, rank: int = 0, world_size: int = 1) -> PanopticWriter:
        return PanopticWriter(folder, classes, rank, world_size)

    def predict(
        self, output: Output, index: int, placement: Placement, size: tuple[int, int], classes: Classes
    ) -> Segmentation:
        is_thing = torch.tensor(classes.is_thing, device=output.class_logits.device)
        return panoptic_segmentation(output.mask_logits[index], output.class_logits[index], placement, size, is_thing)

    def table(self, scores: Mapping[str, float]) -> str:
        rows = [("", "PQ", "SQ", "RQ")]
        for title, suffix in (("all", ""), ("things", "_things"), ("stuff", "_stuff")):
            rows.append((title, *(f"{scores[f'{name}{suffix}']:.2f}" for name in ("pq", "sq", "rq"))))
        return "\n".join(f"{row[0]:<8}" + "".join(f"{value:>8}" for value in row[1:]) for row in rows)


_TASKS = {task.kind: task for task in (PanopticTask(),)}


def task_of(kind: str) -> Task:
    """The task of a kind, such as "panoptic".

    Raises:
        InputError: if there is no such kind.
    """
    if kind not in _TASKS:
        raise InputError(f"kind={kind} is no kind of segmentation; there are: {', '.join(_TASKS)}")
    return _TASKS[kind]
