"""Data loaders: images are read, transformed and batched in worker processes; training resumes exactly."""

from __future__ import annotations

import logging
import os
import resource
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any, ClassVar

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from datasets.batch import EvalBatch, TrainBatch, collate_eval, collate_train
from datasets.notes import ImageNotes
from datasets.sampler import EpochBatchSampler
from datasets.samples import EvaluationSet, TrainingSet
from eomt.errors import InputError, worker_failure

log = logging.getLogger("eomt.data")

# Broken images of a run since it was last started. A set with more of them needs a look before hours are spent on it.
MAX_BAD_IMAGES = 10

# A batch takes milliseconds to seconds; a restart of a file server takes minutes.
TIMEOUT_SECONDS = 300.0

# Workers send each tensor as an open file: 16 of them, at batches of 16 images with five tensors, some 2,500.
OPEN_FILES = 1 << 16


class BatchLoader(DataLoader):
    """A DataLoader whose failures are errors of one line.

    Args:
        dataset: the samples; an `InputError` in place of a sample stands for its batch.
        collate: turns a list of samples into a batch.
        num_workers: reading processes; 0 reads in the main process.
        timeout: seconds to wait for a batch of the workers.
        at_once: the number of batches that are asked for together; as many are read ahead.
        options: further ones of DataLoader.

    Attributes:
        waited: seconds that were spent on waiting for batches so far.
    """

    on_dead_worker: ClassVar[Callable | None] = None

    def __init__(
        self,
        dataset: Dataset,
        collate: Callable[[Sequence], Any],
        num_workers: int,
        timeout: float,
        at_once: int = 1,
        **options: Any,
    ):
        if num_workers:
            _allow_open_files()
        with warnings.catch_warnings():
            # PyTorch counts the cores; the number of workers is a setting of the user's.
            warnings.filterwarnings("ignore", ".*worker processes in total.*")
            super().__init__(
                dataset,
                num_workers=num_workers,
                timeout=timeout if num_workers else 0,
                persistent_workers=num_workers > 0,
                prefetch_factor=max(2, -(-at_once // num_workers)) if num_workers else None,
                collate_fn=partial(_collate, collate),
                pin_memory=torch.cuda.is_available(),
                worker_init_fn=start_worker,
                # Otherwise every epoch draws from PyTorch's global generator.
                generator=torch.Generator(),
                **options,
            )
        self.waited = 0.0

    def __iter__(self) -> Iterator[Any]:
        """Batches.

        Raises:
            InputError: if a sample is an error, a batch takes longer than `timeout`, or a worker ends. PyTorch
                raises RuntimeError where a worker ends while no batch is waited for: see `worker_failure`.
        """
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*worker processes in total.*")
                batches = super().__iter__()
            if self.num_workers:
                _notice_dead_workers()
            while (batch := self._timed_next(batches)) is not None:
                if isinstance(batch, InputError):
                    # A new one: an error that its own frame holds keeps the workers alive until garbage is
                    # collected, when they can no longer be told to stop.
                    raise InputError(str(batch))
                yield batch
        except (RuntimeError, OSError, EOFError) as error:
            # An error in the dataset's own code keeps its stack trace: "Caught ... in DataLoader worker process 0".
            if not self.num_workers or str(error).startswith("Caught "):
                raise
            raise worker_failure(error, self.timeout) from None

    def _timed_next(self, batches: Iterator[Any]) -> Any:
        began = time.perf_counter()
        batch = next(batches, None)
        self.waited += time.perf_counter() - began
        return batch


class EvaluationLoader(BatchLoader):
    """Batches of an `EvaluationSet`, the same number on every rank.

    Ranks that compute together wait for each other's batches, and Lightning accepts no rank without a batch.
    Where other ranks have a batch more, the last one holds a repeated image without targets, which is not scored.

    Iterating raises InputError when an image cannot be read: a score without it would be another score.

    Args:
        dataset: the images.
        batch_size: images per batch.
        num_workers, timeout: see `BatchLoader`.
        limit: the number of batches that will be asked for, if fewer than there are.
    """

    def __init__(
        self,
        dataset: EvaluationSet,
        batch_size: int,
        num_workers: int,
        timeout: float = TIMEOUT_SECONDS,
        limit: int | None = None,
    ):
        missing = -(-dataset.most // batch_size) - -(-len(dataset) // batch_size)
        order = range(len(dataset) + missing)
        super().__init__(dataset, collate_eval, num_workers, timeout, batch_size=batch_size, sampler=order)
        self._limit = min(limit or len(self), len(self))
        self._size, self._is_reduced = dataset.size, dataset.geometry.is_reduced
        self._notes = ImageNotes(dataset.reader, "data.val")

    def __iter__(self) -> Iterator[EvalBatch]:
        for done, batch in enumerate(super().__iter__(), start=1):
            # The repeated image has neither name nor targets.
            for name, targets, placement in zip(batch.names, batch.targets, batch.placements, strict=False):
                self._notes.add((kind, name) for kind, _ in targets.notes)
                if self._is_reduced(placement, self._size):
                    self._notes.add([("reduced", name)])
            if done == self._limit:
                self._notes.say()
            yield batch


class ResumableLoader(BatchLoader):
    """Batches of a `TrainingSet`; stops and resumes anywhere.

    Lightning stores `state_dict` in its checkpoints and gives it back to `load_state_dict`. Batches count when they
    are handed out, not when workers read them ahead.

    Args:
        dataset: the images.
        batch_sampler: the keys of each batch.
        num_workers, timeout: see `BatchLoader`.
        limit: the number of batches of an epoch that will be asked for, if fewer than there are.
        max_bad_images: different images of this rank that may be unreadable since the run was last started, each
            replaced by another one; more end the run with InputError.
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
        accumulated = batch_sampler.accumulated
        super().__init__(dataset, collate_train, num_workers, timeout, accumulated, batch_sampler=batch_sampler)
        self.max_bad_images = max_bad_images
        self._limit = min(limit or len(batch_sampler), len(batch_sampler))
        self._order = batch_sampler
        self._epoch = self._done = 0
        self._bad: set[str] = set()
        self._notes = ImageNotes(dataset.reader, "data.train")

    def __iter__(self) -> Iterator[TrainBatch]:
        """The rest of the epoch, with the segment counts of each optimizer step.

        Takes a step's batches together; the workers have read them ahead anyway.
        """
        self._order.start_at(self._epoch, self._done)
        batches, accumulated = super().__iter__(), self._order.accumulated
        first = done = self._done
        while step := list(islice(batches, min(accumulated - done % accumulated, self._limit - done))):
            done += len(step)
            counts = tuple(count for batch in step for count in batch.targets.counts)
            for batch in step:
                self._report(batch.skipped)
                self._notes.add(batch.notes)
                # Before the last batch is handed out: Lightning knows the length and never asks for the end.
                if self._done in (first, self._limit - 1):
                    self._notes.say()
                self._done += 1
                if self._done == self._limit:
                    self._epoch, self._done = self._epoch + 1, 0
                yield batch._replace(step_counts=counts)

    def _report(self, skipped: Sequence[str]) -> None:
        for message in skipped:
            if message in self._bad:
                continue
            self._bad.add(message)
            if len(self._bad) > self.max_bad_images:
                raise InputError(
                    f"{len(self._bad)} training images cannot be read, more than data.max_bad_images="
                    f"{self.max_bad_images}; the last: {message}; check_data.py names them all"
                )
            log.warning("%s; trained on another image instead (%d so far)", message, len(self._bad))

    def state_dict(self) -> dict[str, Any]:
        """The position of the run, in plain values.

        The first rank saves it for all. Bad images differ between ranks, so they are counted anew after a resume;
        their replacements depend on the keys alone.
        """
        return {"epoch": self._epoch, "batches": self._done, "layout": self._order.layout()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a saved position at the next iteration.

        Raises:
            InputError: if the position is in the middle of an epoch that this run would order otherwise.
        """
        saved, here = state["layout"], self._order.layout()
        changed = [f"{name} was {saved[name]}, is {here[name]}" for name in here if saved[name] != here[name]]
        if state["batches"] and changed:
            raise InputError(
                "the checkpoint is from the middle of an epoch, which this run would go through in another "
                f"order ({'; '.join(changed)}): resume with the same values, or from the end of an epoch"
            )
        self._epoch, self._done = state["epoch"], state["batches"]


def _allow_open_files() -> None:
    """Raise this process's soft limit of open files, often 1,024, to OPEN_FILES, as far as the hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):  # some systems allow fewer than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _notice_dead_workers() -> None:
    """Keep PyTorch's handler of SIGCHLD in place, which reports a dead worker at once instead of after `timeout`.

    PyTorch installs it once in a process, but Lightning puts back what it found before, at the end of every run.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    if callable(handler):
        BatchLoader.on_dead_worker = handler
    elif BatchLoader.on_dead_worker is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, BatchLoader.on_dead_worker)


def _collate(collate: Callable[[Sequence], Any], items: Sequence) -> Any:
    """The batch; or the first item that is an error."""
    error = next((item for item in items if isinstance(item, InputError)), None)
    return collate(items) if error is None else error


def start_worker(worker: int) -> None:
    """Give a worker process a process group of its own and one thread.

    SIGTERM and Ctrl-C go to the run's whole process group, but a run that finishes its step and saves still needs
    its workers, which end when it does. There are as many workers as the user wants busy cores.
    """
    os.setpgid(0, 0)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
