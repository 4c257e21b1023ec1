"""Signals that ask a run to stop.

The command line listens to them while the heavy packages are being imported: this file imports none.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from eomt.errors import Stopped
from eomt.training.slurm import ENDING

STOPPING = (signal.SIGINT, *ENDING)

# Seconds: from a signal until the main thread must have noticed it, for an orderly end before the first step, and
# for other ranks to end.
_UNNOTICED, _UNWINDING, _RANKS = 5.0, 20.0, 10.0
# Process id of the first rank, for the ranks that it starts.
_FIRST_RANK = "EOMT_FIRST_RANK"
# Written into the pipe of signals' numbers, of which none is 0, when there is no more to come.
_END = b"\0"

_listeners: list[StopSignals] = []


@contextlib.contextmanager
def listening(last_words: Callable[[Stopped], int] | None = None) -> Iterator[StopSignals]:
    """Handle signals within the block, unless one around it does already; gives the handlers.

    Args:
        last_words: see `StopSignals`.
    """
    if _listeners:
        yield _listeners[0]
        return
    with StopSignals(last_words) as signals:
        _listeners.append(signals)
        try:
            yield signals
        finally:
            _listeners.clear()


class StopSignals:
    """Handlers of SIGINT, SIGTERM, SIGUSR1 and SIGUSR2.

    A checkpoint taken inside a signal handler would hold a half-updated optimizer. While `training`, the handler
    therefore only sets `received`; before and after, when there is nothing to save, it raises Stopped. A second
    Ctrl-C, or one after another signal, ends the training at once.

    Before the first step, ranks cannot agree on a step: the first rank passes a signal on to those that it has started,
    and they to the first. A thread does so, since the main thread may be waiting for other ranks. It also ends the
    process if the main thread does not run its handler in time, or if the first rank is gone.

    Args:
        last_words: says why the process ends, where the thread ends it, and returns the exit status.

    Attributes:
        received: the number of the first signal, or 0.
        training: whether a training loop reads `received`.
        launcher: Lightning's launcher of further ranks, whose `procs` are these; or None.
    """

    def __init__(self, last_words: Callable[[Stopped], int] | None = None):
        self.received = 0
        self.training = False
        self.launcher: Any = None
        self._last_words = last_words or (lambda stopped: stopped.status)
        self._trained = False
        self._process = os.getpid()
        self._before: dict[int, Any] = {}
        self._watcher: threading.Thread | None = None

    def __enter__(self) -> StopSignals:
        self._pipe, self._wakeup = os.pipe()
        os.set_blocking(self._wakeup, False)
        self._wakeup_before = signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        self.install()
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_) -> None:
        if error_type is not None:
            self._end_ranks()
        for number, handler in self._before.items():
            # The command line ignores signals from its last message on.
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, handler)
        self._before = {}
        signal.set_wakeup_fd(self._wakeup_before)
        # Data workers that are still alive hold the pipe open too: its end alone would not be seen.
        os.write(self._wakeup, _END)
        os.close(self._wakeup)
        if self._watcher is not None:
            self._watcher.join()
        os.close(self._pipe)

    def install(self) -> None:
        """Handle the signals, in place of whatever handles them now."""
        for number in STOPPING:
            self._before.setdefault(number, signal.signal(number, self._note))

    def block(self, launcher: Any) -> None:
        """Hold signals back from this thread, and from ranks that it starts until these listen.

        Args:
            launcher: Lightning's launcher of these; None for a single rank, which holds nothing back.
        """
        if launcher is None:
            return
        self.launcher = launcher
        os.environ[_FIRST_RANK] = str(os.getpid())
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)

    def unblock(self) -> None:
        """Let signals through, also those that were held back: they may end the block here."""
        if self._watcher is None:
            self._watcher = threading.Thread(target=self._watch, daemon=True)
            self._watcher.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)

    def start_training(self) -> None:
        """Only note signals from here on."""
        self.training = self._trained = True

    def _note(self, number: int, frame: object) -> None:
        if os.getpid() != self._process:
            return  # a data worker, which inherits handlers; the run tells it when to end
        again = self.received
        self.received = again or number
        # Raised, as Python's own handler of Ctrl-C does: nothing else ends an import, a download or the indexing of
        # a dataset between two of their statements.
        if (again and number == signal.SIGINT) if self.training else not again:
            raise stopped_by(number)

    def _watch(self) -> None:
        """Pass signals on to other ranks, and end the process where its main thread does not."""
        # It takes signals also while the main thread holds them back.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        first = int(os.environ[_FIRST_RANK]) if _is_started_rank() else None
        number, asked, alone = 0, 0.0, 0.0
        while True:
            if select.select([self._pipe], [], [], 0.5)[0]:
                sent = os.read(self._pipe, 64)
                if not number and (ours := [n for n in sent if n in STOPPING]):
                    number, asked = ours[0], time.monotonic()
                    if not self.training:
                        self._pass_on(number, first)
                if _END in sent:
                    return
            grace = _UNWINDING if self.received else _UNNOTICED
            if number and not self._trained and time.monotonic() > asked + grace:
                self._leave(stopped_by(number))
            if first is not None and os.getppid() != first:
                # It would say itself why it ended, had it the time.
                alone = alone or time.monotonic()
                if time.monotonic() > alone + _RANKS:
                    self._leave(None)

    def _pass_on(self, number: int, first: int | None) -> None:
        for process in self._ranks():
            process.send_signal(number)
        if first is not None and os.getppid() == first:
            os.kill(first, number)

    def _leave(self, stopped: Stopped | None) -> None:
        """End the process from another than the main thread, which does not come to it."""
        statuses = []

        def close() -> None:
            statuses.append(self._last_words(stopped) if stopped else 1)
            logging.shutdown()
            sys.stdout.flush()

        # In a thread: the main one may hold a lock of the logs for ever.
        closing = threading.Thread(target=close, daemon=True)
        closing.start()
        closing.join(_RANKS)
        if stopped and not statuses:
            os.write(2, f"{stopped}\n".encode())
            statuses.append(stopped.status)
        self._end_ranks()
        os._exit((*statuses, 1)[0])

    def _end_ranks(self) -> None:
        """End the ranks that this one has started: without it they would wait for it."""
        deadline = time.monotonic() + _RANKS
        for process in self._ranks():
            process.send_signal(self.received or signal.SIGTERM)
        for process in self._ranks():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()

    def _ranks(self) -> list[subprocess.Popen]:
        return [process for process in getattr(self.launcher, "procs", ()) if isinstance(process, subprocess.Popen)]


def stopped_by(number: int, more: str = "") -> Stopped:
    """The end of a run by a signal; `more` says what comes of it."""
    name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    return Stopped(f"stopped by {name}{more}", number)


def _is_started_rank() -> bool:
    """True if another rank has started this process, and not torchrun from the environment of an earlier run."""
    return os.environ.get(_FIRST_RANK) == str(os.getppid()) and os.environ.get("LOCAL_RANK", "0") != "0"


# A data worker that is started by a fork would write into the pipe of the process that it comes from.
os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
