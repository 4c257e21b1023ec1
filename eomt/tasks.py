"""The one place where the kinds of segmentation differ. Everything else is shared.

|            | semantic                | instance                | panoptic                     |
|------------|-------------------------|-------------------------|------------------------------|
| a target   | a class in the image    | an object               | an object, or a class of stuff |
| geometry   | windows that cover it   | fitted and padded       | fitted and padded            |
| result     | a class for every pixel | objects, may overlap    | segments, none overlapping   |
| score      | mean IoU                | average precision (COCO)| panoptic quality             |
| files      | label PNGs              | COCO instance JSON      | COCO panoptic JSON and PNGs  |

The dataset's reader makes the targets, `eomt.targets.ImageTargets` for every kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from eomt.classes import Classes
from eomt.errors import InputError
from eomt.model.outputs import Logits
from eomt.postprocess.geometry import FIT_AND_PAD, WINDOWS, Geometry, Placement
from eomt.postprocess.instance import instance_segmentation
from eomt.postprocess.panoptic import panoptic_segmentation
from eomt.postprocess.semantic import class_scores, semantic_segmentation
from eomt.postprocess.types import Instances, Segmentation
from eomt.postprocess.writers import InstanceWriter, PanopticWriter, ResultWriter, SemanticWriter
from eomt.targets import ImageId, ImageTargets


class Metric(Protocol):
    """A score of a dataset. Every rank updates it with its own images; `compute` and `per_class` join the ranks.

    It may have two more methods, for reports: `image_score()`, the score in percent of the image added last, and
    `confusion()`, pixels of true classes by predicted ones, see `MeanIoU`.
    """

    def update(self, prediction: Any, /, targets: ImageTargets, image_id: ImageId) -> None:
        """Add one image: what the task predicts, `Segmentation` or `Instances`, and its ground truth of that size."""
        ...

    def compute(self) -> dict[str, Tensor]:
        """The scores in percent, each a float64 scalar on the host; NaN where there is nothing to score."""
        ...

    def per_class(self) -> list[dict[str, Any]]:
        """A row of scores for each class that was seen, with its id and name."""
        ...

    def reset(self) -> None:
        """Forget all images."""
        ...


class Task(Protocol):
    """One kind of segmentation, with the options of its post-processing.

    Attributes:
        kind: the name of the kind.
        monitor: the score by which the best checkpoint is chosen, higher is better.
        geometry: the way of an image into the network.
        writer: the writer of predictions as the benchmark's server takes them.
    """

    kind: ClassVar[str]
    monitor: ClassVar[str]
    geometry: ClassVar[Geometry]
    writer: ClassVar[type[ResultWriter]]

    def predict(
        self, output: Logits, placement: Placement, size: tuple[int, int], classes: Classes
    ) -> Segmentation | Instances:
        """Post-process the logits of one image, to its own size.

        Args:
            output: the logits for the N inputs that `geometry.prepare` made of the image.
            placement: the image's placement, from `geometry.prepare`.
            size: height and width of the network's input.
            classes: the classes that the network was trained on.
        """
        ...

    def metric(self, classes: Classes) -> Metric:
        """Make the official score."""
        ...

    def table(self, scores: Mapping[str, float]) -> str:
        """Format the scores as a table to read."""
        ...


# Metrics are imported when they are made: they need the `train` extra, inference does not.


@dataclass(frozen=True)
class SemanticTask:
    """Every pixel gets a class.

    Args:
        max_bytes: the memory that the maps upsampled at a time may take.
    """

    kind: ClassVar[str] = "semantic"
    monitor: ClassVar[str] = "miou"
    geometry: ClassVar[Geometry] = WINDOWS
    writer: ClassVar[type[ResultWriter]] = SemanticWriter
    max_bytes: int = 512 * 2**20

    def predict(self, output: Logits, placement: Placement, size: tuple[int, int], classes: Classes) -> Segmentation:
        return semantic_segmentation(output.mask_logits, output.class_logits, placement, size, self.max_bytes)

    def scores(self, output: Logits, placement: Placement, size: tuple[int, int]) -> Tensor:
        """The classes' scores of each pixel on the host, float32 [C, H, W]; see `semantic_segmentation`."""
        scores = torch.empty(output.class_logits.shape[2] - 1, placement.height, placement.width)
        for label, score in enumerate(class_scores(*output, placement, size, self.max_bytes)):
            scores[label] = score
            del score
        return scores

    def metric(self, classes: Classes) -> Metric:
        from eomt.metrics.mean_iou import MeanIoU

        return MeanIoU(classes)

    def table(self, scores: Mapping[str, float]) -> str:
        names = {"mIoU": "miou", "mean accuracy": "mean_accuracy", "pixel accuracy": "pixel_accuracy"}
        return _table(list(names), [("all", [scores[name] for name in names.values()])])


@dataclass(frozen=True)
class InstanceTask:
    """Every object gets a mask and a class; objects may overlap.

    Args:
        top_k: the number of objects in a result, pairs of query and class by class probability.
        max_bytes: the memory that the masks upsampled at a time may take.
    """

    kind: ClassVar[str] = "instance"
    monitor: ClassVar[str] = "ap"
    geometry: ClassVar[Geometry] = FIT_AND_PAD
    writer: ClassVar[type[ResultWriter]] = InstanceWriter
    top_k: int = 100
    max_bytes: int = 256 * 2**20

    def predict(self, output: Logits, placement: Placement, size: tuple[int, int], classes: Classes) -> Instances:
        masks, logits = output.mask_logits[0], output.class_logits[0]
        return instance_segmentation(masks, logits, placement, size, self.top_k, self.max_bytes)

    def metric(self, classes: Classes) -> Metric:
        from eomt.metrics.average_precision import AveragePrecision

        return AveragePrecision(classes)

    def table(self, scores: Mapping[str, float]) -> str:
        precision = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
        recall = ("ar100", "ar1", "ar10", "ar_small", "ar_medium", "ar_large")
        first = _table(["AP", "AP50", "AP75", "small", "medium", "large"], [("all", [scores[n] for n in precision])])
        second = _table(["AR", "AR@1", "AR@10", "small", "medium", "large"], [("all", [scores[n] for n in recall])])
        return f"{first}\n{second}"


@dataclass(frozen=True)
class PanopticTask:
    """Every pixel belongs to at most one segment; every object is a segment, and all stuff of a class is one.

    Args:
        score_threshold: a query is kept if its best class is more probable.
        mask_threshold: the least mask probability of a segment's pixels.
        overlap_threshold: a segment is dropped if it keeps a smaller share of its query's own mask.
        max_bytes: the memory that the masks upsampled at a time may take.
    """

    kind: ClassVar[str] = "panoptic"
    monitor: ClassVar[str] = "pq"
    geometry: ClassVar[Geometry] = FIT_AND_PAD
    writer: ClassVar[type[ResultWriter]] = PanopticWriter
    score_threshold: float = 0.8
    mask_threshold: float = 0.5
    overlap_threshold: float = 0.8
    max_bytes: int = 256 * 2**20

    def predict(self, output: Logits, placement: Placement, size: tuple[int, int], classes: Classes) -> Segmentation:
        return panoptic_segmentation(
            output.mask_logits[0],
            output.class_logits[0],
            placement,
            size,
            torch.tensor(classes.is_thing),
            self.score_threshold,
            self.mask_threshold,
            self.overlap_threshold,
            self.max_bytes,
        )

    def metric(self, classes: Classes) -> Metric:
        from eomt.metrics.panoptic_quality import PanopticQuality

        return PanopticQuality(classes)

    def table(self, scores: Mapping[str, float]) -> str:
        groups = (("all", ""), ("things", "_things"), ("stuff", "_stuff"))
        rows = [(title, [scores[f"{name}{suffix}"] for name in ("pq", "sq", "rq")]) for title, suffix in groups]
        return _table(["PQ", "SQ", "RQ"], rows)


_TASKS = {task.kind: task for task in (SemanticTask, InstanceTask, PanopticTask)}


def task_of(kind: str, options: Mapping[str, Any] | None = None) -> Task:
    """Make the task of a kind, such as "panoptic".

    Args:
        kind: "semantic", "instance" or "panoptic", or the dotted name of a custom `Task`, a frozen dataclass like
            those here.
        options: the options of its post-processing; None leaves one at its published value.

    Raises:
        InputError: if there is no such kind, or it has no such option, or a value is out of its range.
    """
    task = _TASKS.get(kind) or _import(kind)
    given = {name: value for name, value in (options or {}).items() if value is not None}
    known = [field.name for field in fields(task)]
    for name, value in given.items():
        if name not in known:
            raise InputError(f"postprocess.{name} is no option of {kind} segmentation; it has: {', '.join(known)}")
        if name in ("max_bytes", "top_k"):
            good, rule = type(value) is int and value >= 1, "a whole number of at least 1"
        else:
            good, rule = type(value) in (int, float) and 0 <= value <= 1, "a number from 0 to 1"
        if not good:
            raise InputError(f"postprocess.{name}={value} must be {rule}")
    return task(**given)


def predict_images(
    task: Task,
    output: Logits,
    counts: Sequence[int],
    placements: Sequence[Placement],
    size: tuple[int, int],
    classes: Classes,
) -> list[Segmentation | Instances]:
    """Post-process the logits of several images, each to its own size.

    Args:
        output: the logits for the images' inputs, image after image.
        counts: the number of inputs of each image.
        placements: the placement of each image.
        size: height and width of the network's input.
        classes: the classes that the network was trained on.
    """
    parts = (Logits(*part) for part in zip(*(logits.split(list(counts)) for logits in output), strict=True))
    return [task.predict(part, placement, size, classes) for part, placement in zip(parts, placements, strict=True)]


def _import(name: str) -> type[Any]:
    """Import the custom task with a dotted name."""
    module, _, attribute = str(name).rpartition(".")
    if not module:
        raise InputError(
            f"kind={name} is no kind of segmentation; there are: {', '.join(_TASKS)}, and dotted names of your own"
        )
    try:
        task = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"kind={name} cannot be imported ({error}); is its folder in PYTHONPATH?") from error
    if not (isinstance(task, type) and is_dataclass(task) and hasattr(task, "predict")):
        raise InputError(f"kind={name} is no task: it must be a dataclass like those in eomt/tasks.py")
    if getattr(task, "kind", None) != name:
        raise InputError(f"kind={name}: the class must have kind = {name!r}, under which checkpoints name it")
    return task


def _table(columns: list[str], rows: list[tuple[str, list[float]]]) -> str:
    width = max(8, *(len(column) + 2 for column in columns))
    lines = [f"{'':<8}" + "".join(f"{column:>{width}}" for column in columns)]
    lines += [f"{title:<8}" + "".join(f"{value:>{width}.2f}" for value in values) for title, values in rows]
    return "\n".join(lines)
