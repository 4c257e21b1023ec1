"""Signals that ask a run to stop: noticed at once, obeyed where its state is whole."""

from __future__ import annotations

import os
import signal
import threading

from eomt.errors import Stopped
from eomt.training.slurm import ENDING


class StopSignals:
    """Notes SIGTERM, SIGUSR1, SIGUSR2 and, while training, SIGINT.

    A checkpoint taken inside a signal handler would hold a half-updated optimizer. While `training` the handler
    therefore only sets `received`; before and after, when there is nothing to save, it raises Stopped. Ctrl-C
    after any of them ends the run at once.

    Attributes:
        received: the number of the first signal, or 0.
        training: whether someone reads `received`.
    """

    def __init__(self):
        self.received = 0
        self.training = False
        self._process = os.getpid()
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        self.install(*ENDING)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            # Whoever ends the program has chosen to hear of this no more.
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, handler)
        self._before = {}

    def install(self, *numbers: int) -> None:
        """Take these signals over, also from whoever took them over meanwhile."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in numbers:
            handler = signal.signal(number, self._note)
            self._before.setdefault(number, handler)

    def _note(self, number: int, frame: object) -> None:
        if os.getpid() != self._process:
            return  # a data worker, which inherits handlers; the run tells it when to end
        again = self.received
        self.received = again or number
        if number == signal.SIGINT and (again or not self.training):
            raise KeyboardInterrupt
        if not self.training and not again:
            raise Stopped(f"stopped by {signal.Signals(number).name} while no step was under way", number)
