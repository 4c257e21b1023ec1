"""Post-processing as a part of a graph: what `eomt.postprocess` does, for batches and at the input's size.

Shapes are fixed and operators few, so that any runtime can compute it. Equal to `eomt.postprocess` for an image that is
as large as its part of the input, up to the rounding of sums and the order of equals.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eomt.classes import Classes
from eomt.errors import InputError
from eomt.tasks import InstanceTask, PanopticTask, SemanticTask, Task


class SemanticOutput(nn.Module):
    """A class for each pixel of a window: `map` int32 [B, H, W], and its `scores` float32 [B, H, W], at least 0.

    Args:
        size: height and width of the network's input.
    """

    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ("map", "scores")

    def __init__(self, size: tuple[int, int]):
        super().__init__()
        self.size = size

    def forward(self, mask_logits: Tensor, class_logits: Tensor) -> tuple[Tensor, ...]:
        """Post-process float32 [B, Q, h, w] and [B, Q, C + 1]."""
        weights = class_logits.softmax(-1)[..., :-1]
        masks = _resize(mask_logits, self.size).sigmoid()
        scores = (weights.transpose(1, 2) @ masks.flatten(2)).unflatten(2, self.size)
        return scores.argmax(1).int(), scores.amax(1)


class InstanceOutput(nn.Module):
    """The K most probable objects, by falling score: `labels` int64 [B, K], `scores` float32 [B, K],
    `boxes` int64 [B, K, 4] (left, top, right, bottom; the last two are the first pixels outside), `masks` bool
    [B, K, H, W].

    Args:
        size: height and width of the network's input.
        top_k: K, at most the pairs of query and class.
    """

    inputs: tuple[str, ...] = ("sizes",)
    outputs: tuple[str, ...] = ("labels", "scores", "boxes", "masks")

    def __init__(self, size: tuple[int, int], top_k: int):
        super().__init__()
        self.size, self.top_k = size, top_k

    def forward(self, mask_logits: Tensor, class_logits: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """Post-process float32 [B, Q, h, w] and [B, Q, C + 1]; `sizes` int64 [B, 2]: height and width of the images
        within the input, to the right of and below which is padding."""
        probabilities = class_logits.softmax(-1)[..., :-1]
        queries, classes = probabilities.shape[1:]
        scores, order = probabilities.flatten(1).topk(min(self.top_k, queries * classes))
        # From tables: an exporter may divide integers as floating point.
        labels = torch.arange(classes, device=order.device).repeat(queries)[order]
        chosen = torch.arange(queries, device=order.device).repeat_interleave(classes)[order]
        index = chosen[:, :, None, None].expand(-1, -1, *mask_logits.shape[2:])
        logits = _resize(mask_logits.gather(1, index), self.size)
        inside = (logits > 0) & _shown(sizes, self.size)
        areas = inside.float().sum((2, 3))
        means = ((logits.sigmoid() * inside).sum((2, 3)) / (areas + 1e-6)).clamp(max=1)
        scores = scores * means
        order = _falling(scores)
        # By the image's number: indices of the masks' own shape would take eight times their memory.
        images = torch.arange(order.shape[0], device=order.device)[:, None]
        return labels.gather(1, order), scores.gather(1, order), _boxes(inside)[images, order], inside[images, order]


class PanopticOutput(nn.Module):
    """Segments that do not overlap: `map` int32 [B, H, W], s + 1 where segment s is, 0 where none; `labels` int64
    [B, Q], -1 where there is no such segment; `scores` float32 [B, Q].

    Args:
        size: height and width of the network's input.
        is_thing: bool [C].
        task: the thresholds.
    """

    inputs: tuple[str, ...] = ("sizes",)
    outputs: tuple[str, ...] = ("map", "labels", "scores")
    is_thing: Tensor  # bool [C + 1]

    def __init__(self, size: tuple[int, int], is_thing: Tensor, task: PanopticTask):
        super().__init__()
        self.size, self.task = size, task
        # The last one stands for "no object".
        self.register_buffer("is_thing", torch.cat((is_thing, is_thing.new_zeros(1))))

    def forward(self, mask_logits: Tensor, class_logits: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """Post-process as `InstanceOutput.forward` does; a segment's number is that of its query."""
        probabilities = class_logits.softmax(-1)
        scores, labels = probabilities.amax(-1), probabilities.argmax(-1)
        kept = (labels < class_logits.shape[2] - 1) & (scores > self.task.score_threshold)
        shown = _shown(sizes, self.size)
        masks = _resize(mask_logits, self.size).sigmoid()
        winner = torch.where(kept[:, :, None, None], masks * scores[:, :, None, None], -1).argmax(1, keepdim=True)
        inside = (masks >= self.task.mask_threshold) & shown
        numbers = torch.arange(masks.shape[1], device=masks.device)
        won = (winner == numbers[:, None, None]) & shown
        own, all_won, inside_won = (x.float().sum((2, 3)) for x in (inside, won, won & inside))
        # Without a pixel of its own 0 / 0 would be no number.
        share = all_won / own.clamp(min=1)
        valid = kept & (inside_won > 0) & (share >= self.task.overlap_threshold)
        # Stuff of a class goes to the first segment of that class.
        alike = (labels[:, :, None] == labels[:, None]) & valid[:, None] & ~self.is_thing[labels][:, :, None]
        first = torch.where(alike.any(2), alike.float().argmax(2), numbers)
        found = valid & (first == numbers)
        lookup = torch.where(valid, first + 1, 0).int()
        ids = lookup.gather(1, winner.flatten(1)).unflatten(1, self.size)
        return ids * inside.gather(1, winner)[:, 0], torch.where(found, labels, -1), scores * found


Output = SemanticOutput | InstanceOutput | PanopticOutput


def output_of(task: Task, classes: Classes, size: tuple[int, int]) -> Output:
    """The post-processing of a built-in task, with its options, for a network's input of `size`.

    Raises:
        InputError: for a task of the user's own.
    """
    if isinstance(task, SemanticTask):
        return SemanticOutput(size)
    if isinstance(task, InstanceTask):
        return InstanceOutput(size, task.top_k)
    if isinstance(task, PanopticTask):
        return PanopticOutput(size, torch.tensor(classes.is_thing), task)
    raise InputError(f"postprocess=true is for semantic, instance and panoptic models, not for kind={task.kind}")


def _resize(masks: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(masks, size, mode="bilinear", align_corners=False)


def _shown(sizes: Tensor, size: tuple[int, int]) -> Tensor:
    """The pixels of the images without padding, bool [B, 1, H, W]."""
    rows, columns = (torch.arange(side, device=sizes.device) for side in size)
    return (rows[:, None] < sizes[:, 0, None, None, None]) & (columns < sizes[:, 1, None, None, None])


def _falling(scores: Tensor) -> Tensor:
    """The order int64 [B, K] by falling scores float [B, K], of equals the first first, which a runtime's sort may
    leave open: objects with empty masks have score 0 alike."""
    numbers = torch.arange(scores.shape[1], device=scores.device)
    one, other = scores[:, :, None], scores[:, None]
    ranks = ((other > one) | ((other == one) & (numbers < numbers[:, None]))).float().sum(2)
    return (ranks[:, None] == numbers[:, None]).float().argmax(2)


def _boxes(masks: Tensor) -> Tensor:
    """Boxes of bool [B, K, H, W], int64 [B, K, 4]; all 0 for an empty mask."""
    found = masks.float()
    starts, ends = [], []
    for line in (found.amax(2), found.amax(3)):
        count = line.shape[2]
        numbers = torch.arange(1.0, count + 1, device=line.device)
        ends.append((line * numbers).amax(2))
        # From the first pixel to the end; 0 of an empty line.
        starts.append(line.amax(2) * count - (line * (count + 1 - numbers)).amax(2))
    return torch.stack((*starts, *ends), dim=2).long()
