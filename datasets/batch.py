"""Batches as the model receives them: named tuples, whose tensors PyTorch pins and Lightning moves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import default_collate

from eomt.postprocess.geometry import Placement
from eomt.targets import BatchTargets, ImageId, ImageTargets, collate_targets


class TrainItem(NamedTuple):
    """One transformed training image.

    Attributes:
        image: uint8 [3, H, W].
        targets: its segments, without crowds.
        name: the image's name.
        skipped: a message for each unreadable image that this one replaces.
        notes: pairs of a key of `datasets.readers.base.NOTES` and the name of an image: this, or one that it replaces.
    """

    image: Tensor
    targets: ImageTargets
    name: str
    skipped: tuple[str, ...]
    notes: tuple[tuple[str, str], ...]


class TrainBatch(NamedTuple):
    """Training images of one size.

    Attributes:
        images: uint8 [B, 3, H, W], 0..255, padded with zeros.
        targets: their segments.
        names: B names.
        step_counts: the number of segments of each image that this rank contributes to the batch's optimizer step,
            in this batch and those accumulated with it; set by the loader.
        skipped: a message for each unreadable image that others replace.
        notes: see `TrainItem`.
    """

    images: Tensor
    targets: BatchTargets
    names: tuple[str, ...]
    step_counts: tuple[int, ...] = ()
    skipped: tuple[str, ...] = ()
    notes: tuple[tuple[str, str], ...] = ()


class EvalItem(NamedTuple):
    """One validation image; fields as in `EvalBatch`, inputs uint8 [N, 3, H, W]. One without targets is not scored."""

    inputs: Tensor
    placement: Placement
    targets: ImageTargets | None
    name: str
    image_id: ImageId
    shown: tuple[ImageTargets, ...] = ()


class EvalBatch(NamedTuple):
    """Validation images, each as one or more inputs of the network.

    An image that only fills up a rank's batches has inputs and placement, but no targets, name and id.

    Attributes:
        inputs: uint8 [sum of counts, 3, H, W], 0..255, image after image.
        counts: the number of inputs of each image.
        placements: the scale of each image.
        targets: the segments at the image's original size, crowds included.
        names: B names.
        image_ids: B ids of the dataset.
        shown: the segments that each input shows, at its size, without crowds, for a loss; None where none is wanted.
    """

    inputs: Tensor
    counts: tuple[int, ...]
    placements: tuple[Placement, ...]
    targets: tuple[ImageTargets, ...]
    names: tuple[str, ...]
    image_ids: tuple[ImageId, ...]
    shown: BatchTargets | None = None


def collate_train(items: Sequence[TrainItem]) -> TrainBatch:
    """Stack transformed images; planes and segments are padded to the largest of the batch."""
    images, targets, names, skipped, notes = zip(*items, strict=True)
    # In a worker this stacks right into the memory that is shared with the main process.
    return TrainBatch(
        default_collate(list(images)), collate_targets(targets), names, (), sum(skipped, ()), sum(notes, ())
    )


def collate_eval(items: Sequence[EvalItem]) -> EvalBatch:
    """Join the images' inputs; targets keep their own sizes."""
    inputs, placements, *_ = zip(*items, strict=True)
    scored = [(i.targets, i.name, i.image_id) for i in items if i.targets is not None]
    targets, names, image_ids = zip(*scored, strict=True) if scored else ((), (), ())
    shown = [part for item in items for part in item.shown]
    joined = collate_targets(shown) if shown else None
    return EvalBatch(torch.cat(inputs), tuple(len(i) for i in inputs), placements, targets, names, image_ids, joined)
