"""Worker processes that may die or hang: the run goes on, or ends with one line, and never waits for ever."""

from __future__ import annotations

import atexit
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any

from torch.utils.data import DataLoader

from eomt.errors import InputError

log = logging.getLogger("eomt.data")

MOST_DEATHS = 3
FORGIVEN_AFTER = 1000
"""A loader makes up for so many deaths of workers within so many batches. Whatever kills more of them will kill the
next one, too; what kills one a day, such as another program that takes the memory, will not."""


class _WorkerDied(Exception):
    """A worker of the loader that is waited for has ended."""


class _Overdue(Exception):
    """A batch has been waited for too long."""


class WatchedLoader(DataLoader):
    """A DataLoader that notices within seconds when a worker has died, and starts all of them anew.

    What they had read ahead is read again: where a sample depends on its key alone, the batches are those of an
    undisturbed run. PyTorch raises an error of its own wherever the main process happens to be, such as in the
    middle of an optimizer step or of writing a checkpoint; here it is raised while a batch is waited for alone.

    Args:
        dataset: the samples.
        num_workers: processes; 0 reads in the main process, where nothing is watched.
        timeout: seconds to wait for a batch.
        options: further ones of DataLoader.
    """

    def __init__(self, dataset: Any, num_workers: int, timeout: float, **options: Any):
        super().__init__(dataset, num_workers=num_workers, persistent_workers=num_workers > 0, **options)
        # Not DataLoader's own, which does not reach where it fetches tensors from a worker that does not answer.
        self._seconds = timeout
        self._handed_out = 0
        # The number of batches that had been handed out when each of the last workers died.
        self._deaths: list[int] = []

    def watched(self, start_at: Callable[[int], None]) -> Iterator[Any]:
        """All batches that the sampler asks for.

        Args:
            start_at: lets the sampler begin after so many of those batches; called before each start of workers.

        Raises:
            InputError: if a batch is overdue, or workers keep dying.
        """
        done = 0
        while True:
            start_at(done)
            try:
                batches = self._waited_for(super().__iter__)
                while (batch := self._waited_for(partial(next, batches, None))) is not None:
                    done += 1
                    self._handed_out += 1
                    yield batch
                return
            except _WorkerDied:
                self._restart()

    def _waited_for(self, function: Callable[[], Any]) -> Any:
        """What the function returns, which waits for the workers."""
        if not self.num_workers:
            return function()
        workers = self._iterator._workers if self._iterator else ()
        try:
            result = _watch.call(function, workers, self._seconds)
            _watch.install(self._iterator._workers)
            return result
        except _Overdue:
            pass
        except Exception as error:
            # Tensors of a worker that dies cannot be fetched from it any more, which has many names.
            if not isinstance(error, _WorkerDied) and not (workers and _ends(workers)):
                raise
            raise _WorkerDied from None
        self._kill()
        raise InputError(
            f"no batch of data within {self._seconds:g} s (data.timeout): the file system may hang, or one of "
            f"the {self.num_workers} data workers; see that the data can be read, then go on from last.ckpt"
        )

    def _restart(self) -> None:
        self._deaths = [at for at in self._deaths if self._handed_out - at < FORGIVEN_AFTER] + [self._handed_out]
        deaths = len(self._deaths)
        workers = self._iterator._workers
        number, worker = next((n, worker) for n, worker in enumerate(workers) if not worker.is_alive())
        what = f"data worker {number} of {len(workers)} (process {worker.pid}) {_ending(worker.exitcode)}"
        self._kill()
        if deaths > MOST_DEATHS:
            raise InputError(
                f"{what}, the {deaths}th to die within {FORGIVEN_AFTER} batches: with fewer data.num_workers or a "
                "smaller data.batch_size less memory is taken; go on from last.ckpt"
            )
        log.warning(
            "%s; started anew, nothing is lost (%d of at most %d times within %d batches)",
            *(what, deaths, MOST_DEATHS, FORGIVEN_AFTER),
        )

    def _kill(self) -> None:
        """End all workers, also those that hang or wait for a dead one's lock."""
        iterator, self._iterator = self._iterator, None
        if iterator is not None:
            for worker in iterator._workers:
                worker.kill()
            iterator._shutdown_workers()


class _Watch:
    """Raises `_WorkerDied` as soon as one of the watched processes ends, `_Overdue` when the time is up.

    Both come as signals, which reach the main thread wherever it waits; in another thread nothing is watched.
    """

    def __init__(self):
        self._workers: Sequence[BaseProcess] = ()
        self._started: set[BaseProcess] = set()

    def install(self, workers: Sequence[BaseProcess] = ()) -> None:
        """Take the place of PyTorch's own handler, which comes with the first workers of a process."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, self._check)
            signal.signal(signal.SIGALRM, self._time_is_up)
        self._started.update(workers)

    def end_all(self) -> None:
        """Before Python ends, which waits for them: those that hang do not hear that they should end."""
        for worker in self._started:
            worker.kill()

    def call(self, function: Callable[[], Any], workers: Sequence[BaseProcess], seconds: float) -> Any:
        """What the function returns; the workers are watched meanwhile, and the clock."""
        timed = threading.current_thread() is threading.main_thread()
        self.install()
        try:
            self._workers = workers
            self._check()
            if timed:
                signal.setitimer(signal.ITIMER_REAL, seconds)
            return function()
        finally:
            if timed:
                signal.setitimer(signal.ITIMER_REAL, 0)
            self._workers = ()

    def _time_is_up(self, *_: object) -> None:
        raise _Overdue

    def _check(self, *_: object) -> None:
        if _any_ended(self._workers):
            self._workers = ()
            raise _WorkerDied


_watch = _Watch()
atexit.register(_watch.end_all)


def _any_ended(workers: Sequence[BaseProcess]) -> bool:
    return any(not worker.is_alive() for worker in workers)


def _ends(workers: Sequence[BaseProcess], seconds: float = 2) -> bool:
    """Whether one has ended, or does within these seconds."""
    end = time.monotonic() + seconds
    while not _any_ended(workers):
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def _ending(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    name = signal.Signals(-status).name
    reasons = {
        signal.SIGKILL: ", most likely by the system, for want of memory",
        signal.SIGBUS: ": shared memory (/dev/shm) is full, or the data's index in the cache has gone",
    }
    return f"was ended by {name}{reasons.get(-status, '')}"
