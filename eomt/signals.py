"""Signals that ask a run to stop: noticed at once, obeyed where its state is whole."""

from __future__ import annotations

import os
import signal
import threading

import torch
from torch import distributed

from eomt.errors import Stopped
from eomt.slurm import ENDING


class StopSignals:
    """Notes SIGTERM, SIGUSR1 and, while training, SIGINT.

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


class Agreement:
    """Lets all ranks act on a signal at the same step, though it reaches them at different times, or only one.

    Each call of `ask` starts a reduction that the next call reads, over the hosts' own network: no step waits
    for the device, nor for other ranks beyond the step before. All ranks must call it equally often.

    Args:
        world_size: number of ranks; a single one agrees with itself at once.
    """

    def __init__(self, world_size: int):
        self._group = distributed.new_group(backend="gloo") if world_size > 1 else None
        self._pending: tuple[distributed.Work, torch.Tensor] | None = None

    def ask(self, received: int) -> int:
        """The highest signal that any rank has received, as of the call before; 0 if none has."""
        if self._group is None:
            return received
        agreed = self._last()
        value = torch.tensor(received)
        work = distributed.all_reduce(value, distributed.ReduceOp.MAX, group=self._group, async_op=True)
        self._pending = (work, value)
        return agreed

    def least(self, number: int) -> int:
        """The least of the ranks' numbers."""
        if self._group is None:
            return number
        value = torch.tensor(number)
        distributed.all_reduce(value, distributed.ReduceOp.MIN, group=self._group)
        return int(value)

    def close(self) -> None:
        """Let the last reduction end, so that no rank leaves while another one waits for it."""
        self._last()

    def _last(self) -> int:
        if self._pending is None:
            return 0
        work, value = self._pending
        self._pending = None
        work.wait()
        return int(value)
