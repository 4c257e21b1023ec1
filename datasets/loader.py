"""Reading, transforming and batching in worker processes, with exact resume and errors that say what failed.

An exception that crosses from a worker to the main process arrives with a stack trace in its text. Bad
images therefore travel as values, and the loaders raise or report them in the main process.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset, SequentialSampler

from datasets.batch import EvalBatch, EvalItem, TrainBatch, TrainItem, collate_eval, collate_train
from datasets.files.malloc import keep_freed_memory
from datasets.files.retry import read_with_retry
from datasets.readers.base import Reader
from datasets.sampler import EpochBatchSampler, SampleKey
from datasets.transforms import TrainTransform
from datasets.workers import WatchedLoader
from eomt.errors import InputError
from eomt.postprocess.geometry import Geometry

log = logging.getLogger("eomt.data")

# PyTorch counts the cores and warns, once per loader and in six lines; how many workers there are is a setting.
warnings.filterwarnings("ignore", ".*worker processes in total.*")

# Images drawn in place of a broken one before training gives up: more than a few broken files in a row
# mean that the data as a whole is not what the configuration says.
MAX_REPLACEMENTS = 20

# Broken images of a run, since it was last started; a set with more wants looking at before hours are spent on it.
MAX_BAD_IMAGES = 10

# A batch takes milliseconds to seconds; a file server that is being restarted takes minutes.
TIMEOUT_SECONDS = 300.0


class TrainingSet(Dataset):
    """The images of a reader that have at least one segment, transformed.

    Args:
        reader: where images and targets come from.
        transform: the random transform.
        seed: non-negative; with the key of a sample it decides all that is random about it.

    Raises:
        InputError: if no image has a segment.
    """

    def __init__(self, reader: Reader, transform: TrainTransform, seed: int):
        self.reader = reader
        self.transform = transform
        self.seed = seed
        self.indices = np.flatnonzero(reader.has_targets())
        if not len(self.indices):
            raise InputError(
                f"data.train has {len(reader)} images and none has a segment: nothing to train on; "
                "check that its annotations belong to its images"
            )

    @property
    def _read(self) -> Callable:
        return getattr(self.reader, "read_for_training", self.reader.read)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: SampleKey) -> TrainItem | InputError:
        """The sample of a key, or what is wrong if neither its image nor any in its place can be read."""
        skipped: list[str] = []
        index = key.index
        while len(skipped) <= MAX_REPLACEMENTS:
            place = int(self.indices[index])
            try:
                image, targets = read_with_retry(self._read, place)
            except InputError as error:
                skipped.append(_naming(self.reader.name(place), error))
                index = key.replacement(self.seed, len(skipped), len(self))
                continue
            image, targets = self.transform(image, targets, key.augmentation_seed(self.seed))
            return TrainItem(image, targets, self.reader.name(place), tuple(skipped))
        return InputError(f"{len(skipped)} training images drawn in a row could not be read; the last: {skipped[-1]}")


class EvaluationSet(Dataset):
    """This rank's share of a reader's images, each exactly once over all ranks.

    The item after the last is one of the images once more, without targets: for a rank that has nothing left to
    score while others go on, see `EvaluationLoader`.

    Args:
        reader: where images and targets come from.
        geometry: makes of an image what goes into the network.
        size: height and width of the network's input.
        rank, world_size: this process among those that evaluate together.

    Attributes:
        most: images of the rank that has most of them.
    """

    def __init__(self, reader: Reader, geometry: Geometry, size: tuple[int, int], rank: int = 0, world_size: int = 1):
        self.reader = reader
        self.geometry = geometry
        self.size = size
        self.rank = rank
        self.indices = range(rank, len(reader), world_size)
        self.most = -(-len(reader) // world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> EvalItem | InputError:
        """An image with its targets, or what is wrong with it."""
        again = place == len(self)
        index = self.rank % len(self.reader) if again else self.indices[place]
        try:
            image, targets = read_with_retry(self.reader.read, index)
        except InputError as error:
            return InputError(_naming(self.reader.name(index), error))
        inputs, placement = self.geometry.prepare(image, self.size)
        name, image_id = self.reader.name(index), self.reader.image_id(index)
        return EvalItem(inputs, placement, None if again else targets, name, image_id)


class EvaluationLoader(WatchedLoader):
    """Batches of an `EvaluationSet`, as many on every rank.

    Ranks that compute together wait for each other's batches, and Lightning takes none that has no batch at all.
    Where the others have a batch more, a rank's last is of an image that is not counted, without targets.

    Iterating raises InputError, in this process and in one line, when an image cannot be read: a score
    without it would be another score. See `WatchedLoader` for `timeout`.
    """

    def __init__(self, dataset: EvaluationSet, batch_size: int, num_workers: int, timeout: float = TIMEOUT_SECONDS):
        missing = -(-dataset.most // batch_size) - -(-len(dataset) // batch_size)
        self._order = _InOrder(range(len(dataset) + missing))
        super().__init__(
            dataset,
            timeout=timeout,
            batch_size=batch_size,
            sampler=self._order,
            collate_fn=partial(_collate, collate_eval),
            **_process_options(num_workers),
        )

    def __iter__(self) -> Iterator[EvalBatch]:
        for batch, _ in map(_raise_error, self.watched(lambda done: self._order.start_at(done * self.batch_size))):
            yield batch


class _InOrder(SequentialSampler):
    """All places, or those from one on."""

    _start = 0

    def start_at(self, place: int) -> None:
        self._start = place

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._start, len(self)))


class ResumableLoader(WatchedLoader):
    """Batches of a `TrainingSet` that can stop and go on anywhere.

    Lightning stores `state_dict` in its checkpoints and gives it back by `load_state_dict`. What is
    counted are the batches handed out, not those that the workers read ahead.

    Args:
        dataset: the images.
        batch_sampler: what goes into which batch.
        num_workers: reading processes.
        limit: batches of an epoch that will be asked for, if fewer than there are.
        timeout: see `WatchedLoader`.
        max_bad_images: different images of this rank that may be unreadable since the run was last started, each
            replaced by another one; more end it with InputError.

    Attributes:
        replaced: images of this rank that could not be read since then, each replaced by another one.
    """

    def __init__(
        self,
        dataset: TrainingSet,
        batch_sampler: EpochBatchSampler,
        num_workers: int,
        limit: int | None = None,
        timeout: float = TIMEOUT_SECONDS,
        max_bad_images: int = MAX_BAD_IMAGES,
    ):
        super().__init__(
            dataset,
            timeout=timeout,
            batch_sampler=batch_sampler,
            collate_fn=partial(_collate, collate_train),
            **_process_options(num_workers, batch_sampler.accumulated),
        )
        self.replaced = 0
        self._limit = min(limit or len(batch_sampler), len(batch_sampler))
        self._epoch = 0
        self._batches = 0
        self._goes_on = False
        self.max_bad_images = max_bad_images
        self._bad: list[str] = []

    def __iter__(self) -> Iterator[TrainBatch]:
        """The rest of the epoch after `load_state_dict`, otherwise the next whole epoch."""
        if self._batches and not self._goes_on:
            self._begin_next_epoch()
        self._goes_on = False
        epoch, first = self._epoch, self._batches
        batches = map(_raise_error, self.watched(lambda done: self.batch_sampler.start_at(epoch, first + done)))
        for batch, skipped in self._with_step_counts(batches, self._batches):
            self._report(skipped)
            self._batches += 1
            # Before the last batch is handed out: Lightning knows the length and never asks for the end.
            if self._batches == self._limit:
                self._begin_next_epoch()
            yield batch

    def _with_step_counts(self, batches: Iterator[tuple], place: int) -> Iterator[tuple]:
        """Look ahead to the end of the optimizer step: a loss that is normalised by all that the step sees must know
        how much that is before its first batch. The workers read ahead anyway; this keeps one step's batches."""
        accumulated = self.batch_sampler.accumulated
        while True:
            end = place + accumulated - place % accumulated
            step = list(islice(batches, (min(end, self._limit) if place < self._limit else end) - place))
            if not step:
                return
            place += len(step)
            counts = tuple(count for batch, _ in step for count in batch.targets.counts)
            for batch, skipped in step:
                yield batch._replace(step_counts=counts), skipped

    def _begin_next_epoch(self) -> None:
        self._epoch += 1
        self._batches = 0

    def _report(self, skipped: Sequence[str]) -> None:
        for message in skipped:
            self.replaced += 1
            if message in self._bad:
                continue
            self._bad.append(message)
            if len(self._bad) > self.max_bad_images:
                raise InputError(
                    f"{len(self._bad)} training images cannot be read, more than data.max_bad_images="
                    f"{self.max_bad_images}; the last: {message}; check_data.py names them all"
                )
            log.warning("%s; trained on another image instead (%d so far)", message, self.replaced)

    def state_dict(self) -> dict[str, Any]:
        """Where the run is, in plain values.

        It is saved by the first rank for all, whose bad images are no other rank's: those are counted anew. What
        replaces them hangs on their keys alone.
        """
        return {
            "epoch": self._epoch,
            "batches": self._batches,
            "layout": self.batch_sampler.layout(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there at the next iteration.

        Raises:
            InputError: if the state is from the middle of an epoch that this run would order otherwise.
        """
        saved, here = state["layout"], self.batch_sampler.layout()
        changed = [f"{name} was {saved[name]}, is {here[name]}" for name in here if saved[name] != here[name]]
        if state["batches"] and changed:
            raise InputError(
                "the checkpoint is from the middle of an epoch, which this run would go through in another "
                f"order ({'; '.join(changed)}): resume with the same values, or from the end of an epoch"
            )
        self._epoch, self._batches = state["epoch"], state["batches"]
        self._goes_on = True


def _naming(name: str, error: InputError) -> str:
    """The error's message, which names the image: an archive that cannot be read knows nothing of it."""
    return str(error) if name in str(error) else f"{name}: {error}"


def _collate(stack: Callable[[Sequence], Any], items: Sequence) -> tuple[Any, tuple[str, ...]] | InputError:
    """The batch and the messages about images left out, or the first item that is an error."""
    error = next((item for item in items if isinstance(item, InputError)), None)
    if error is not None:
        return error
    return stack(items), tuple(message for item in items for message in getattr(item, "skipped", ()))


def _raise_error(batch: tuple | InputError) -> tuple:
    if isinstance(batch, InputError):
        # A new one: an error that its own frame holds keeps the workers alive until garbage is collected,
        # when they can no longer be told to stop and are waited for in vain.
        raise InputError(str(batch))
    return batch


def _process_options(num_workers: int, at_once: int = 1) -> dict[str, Any]:
    """What loaders share; `at_once` batches are asked for together, and as many read ahead."""
    return {
        "num_workers": num_workers,
        "prefetch_factor": max(2, -(-at_once // num_workers)) if num_workers else None,
        "pin_memory": torch.cuda.is_available(),
        "worker_init_fn": begin_worker,
        # Its own, for otherwise every epoch draws from PyTorch's global generator.
        "generator": torch.Generator(),
    }


def begin_worker(worker: int) -> None:
    """Signals to the run, such as SLURM's SIGTERM or Ctrl-C, go to its whole process group: a run that goes on to
    save its state still needs its workers, which end when it does."""
    os.setpgid(0, 0)
    use_one_thread(worker)
    keep_freed_memory()


def use_one_thread(worker: int) -> None:
    """There are as many workers as the user wants busy cores."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
