"""Batch sampler of training: batches as a function of (seed, epoch) alone, so that a run resumes anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

# Streams of random numbers that must not meet although they are keyed by the same numbers.
_ORDER, _REPLACEMENT, _AUGMENTATION = 1, 2, 3


class SampleKey(NamedTuple):
    """The key of a training sample; with the seed it determines the image and its random transform.

    Attributes:
        epoch: 0, 1, ...
        index: the index of the image among the training images.
        repeat: the number of times that the image came before in this epoch: 0, unless the set is smaller than a step.
    """

    epoch: int
    index: int
    repeat: int

    def augmentation_seed(self, seed: int) -> tuple[int, ...]:
        """The seed of the sample's transform."""
        return (_AUGMENTATION, seed, *self)

    def replacement(self, seed: int, attempt: int, count: int) -> int:
        """The index, 0..count-1, of the image to read after `attempt` (1, 2, ...) images failed."""
        return int(np.random.default_rng((_REPLACEMENT, seed, *self, attempt)).integers(count))


class EpochBatchSampler:
    """Lists of `SampleKey`, one per batch of this rank.

    An epoch is a shuffle by (seed, epoch), cut into global batches; the last incomplete one is dropped. A global
    batch, the images of one optimizer step, does not depend on how many ranks and accumulated batches share it. A set
    smaller than a global batch is shuffled again and again to fill one.

    Args:
        count: the number of training images, at least 1.
        batch_size: images per batch and rank.
        global_batch: images per optimizer step, a multiple of batch_size * world_size.
        seed: non-negative.
        rank, world_size: this process among those that train together.
    """

    def __init__(self, count: int, batch_size: int, global_batch: int, seed: int, rank: int = 0, world_size: int = 1):
        self.count = count
        self.batch_size = batch_size
        self.global_batch = global_batch
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self._start = (0, 0)

    @property
    def _samples(self) -> int:
        """Samples of an epoch over all ranks."""
        return max(self.count // self.global_batch, 1) * self.global_batch

    def __len__(self) -> int:
        """Batches of this rank in an epoch."""
        return self._samples // (self.batch_size * self.world_size)

    @property
    def accumulated(self) -> int:
        """Batches of this rank in an optimizer step."""
        return self.global_batch // (self.batch_size * self.world_size)

    def start_at(self, epoch: int, batches: int) -> None:
        """Let the next iteration yield the batches of `epoch`, without the first `batches` of them."""
        self._start = (epoch, batches)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch, done = self._start
        generator = np.random.default_rng((_ORDER, self.seed, epoch))
        shuffles = -(-self._samples // self.count)
        order = np.concatenate([generator.permutation(self.count) for _ in range(shuffles)])
        for batch in range(done, len(self)):
            first = (batch * self.world_size + self.rank) * self.batch_size
            samples = range(first, first + self.batch_size)
            yield [SampleKey(epoch, int(order[k]), k // self.count) for k in samples]

    def layout(self) -> dict[str, int]:
        """The values that two runs must share for the middle of an epoch to be the same position in both."""
        return {
            "images": self.count,
            "seed": self.seed,
            "global_batch": self.global_batch,
            "batch_size": self.batch_size,
            "devices": self.world_size,
        }
