"""Random numbers of a step as a function of the seed and an image's key alone.

So a resumed run draws what the undisturbed one would have drawn, and a step draws the same numbers however its
images are divided among ranks and accumulated batches.
"""

from __future__ import annotations

from collections.abc import Sequence

import lightning
import numpy as np
import torch
from torch import Tensor

from eomt.loss.points import hash_keys, uniform

ImageKey = tuple[int, ...]
"""The key of an image's random numbers: (optimizer step, image in that step) in training, (optimizer step, image in the
set, window) in validation; not negative."""

# Streams that must not meet although their keys are the same.
_POINTS, _DROPPED_MASKS = 1, 2


def training_keys(trainer: lightning.Trainer, batch_idx: int, count: int) -> list[ImageKey]:
    """Return the keys of the images of this rank's batch.

    Args:
        trainer: the trainer, in a training step.
        batch_idx: the number of the batch in its epoch.
        count: the number of images in the batch, the same for all batches.
    """
    batch = batch_idx % trainer.accumulate_grad_batches * trainer.world_size + trainer.global_rank
    return [(trainer.global_step, batch * count + k) for k in range(count)]


def validation_keys(
    trainer: lightning.Trainer, step: int, batch_idx: int, batch_size: int, counts: Sequence[int]
) -> list[ImageKey]:
    """Return the keys of the network's inputs for this rank's validation images.

    Args:
        trainer: the trainer; ranks take the images of the set in turn.
        step: the optimizer steps that the weights have seen.
        batch_idx: the number of the batch in this rank's share.
        batch_size: images per batch, but for the last one.
        counts: the number of inputs of each image of the batch.
    """
    first = batch_idx * batch_size
    images = ((first + k) * trainer.world_size + trainer.global_rank for k in range(len(counts)))
    return [(step, image, k) for image, count in zip(images, counts, strict=True) for k in range(count)]


def point_seeds(seed: int, keys: Sequence[ImageKey]) -> list[int]:
    """Return a seed for the loss points of each image, for `MaskClassificationLoss.draw`."""
    return [_state(_POINTS, seed, *key) for key in keys]


def draw_dropped_masks(seed: int, keys: Sequence[ImageKey], probabilities: Sequence[float], num_queries: int) -> Tensor:
    """Draw which attention masks are dropped (arXiv 2503.19108, section 3.3).

    Args:
        seed: the seed of the run.
        keys: the keys of B images.
        probabilities: for each of L2 masked blocks, the probability that a query keeps its mask.
        num_queries: Q.

    Returns:
        bool [L2, B, Q], on the host; True where the mask of a query is dropped in a block.
    """
    seeds = [_state(_DROPPED_MASKS, seed, *key) for key in keys]
    blocks = len(probabilities)
    draws = uniform(hash_keys(seeds, [0] * len(seeds)), blocks * num_queries).view(-1, blocks, num_queries)
    return draws.transpose(0, 1) >= 2 * torch.tensor(probabilities)[:, None, None] - 1


def _state(*key: int) -> int:
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
