"""Stopping a run: signals that ask for it, and ranks that agree on the step after which they stop.

The command line listens to signals while the heavy packages are being imported, so torch is imported where it is used.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from eomt.errors import Stopped
from eomt.training.slurm import ENDING

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import Work


class StopSignals:
    """Handlers of SIGTERM, SIGUSR1, SIGUSR2 and, while training, SIGINT.

    A checkpoint taken inside a signal handler would hold a half-updated optimizer. While `training`, the handler
    therefore only sets `received`; before and after, when there is nothing to save, it raises Stopped. A second
    Ctrl-C, or one after another signal, ends the run at once.

    Attributes:
        received: the number of the first signal, or 0.
        training: whether a training loop reads `received`.
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
            # The command line ignores signals from its last message on.
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, handler)
        self._before = {}

    def install(self, *numbers: int) -> None:
        """Handle these signals, in place of whatever handles them now."""
        for number in numbers:
            self._before.setdefault(number, signal.signal(number, self._note))

    def _note(self, number: int, frame: object) -> None:
        if os.getpid() != self._process:
            return  # a data worker, which inherits handlers; the run tells it when to end
        again = self.received
        self.received = again or number
        # Raised, as Python's own handler of Ctrl-C does: nothing else ends an import, a download or the indexing of
        # a dataset between two of their statements.
        if number == signal.SIGINT and (again or not self.training):
            raise KeyboardInterrupt
        if not self.training and not again:
            raise Stopped(f"stopped by {signal.Signals(number).name} while no step was under way", number)


class Agreement:
    """Common decision of all ranks to stop at the same step, though a signal reaches them at different times.

    Each call of `ask` starts a reduction that the next call reads, over the hosts' own network: no step waits
    for the device, nor for other ranks beyond the step before. All ranks must call it equally often.

    Args:
        world_size: the number of ranks; a single one agrees with itself at once.
    """

    def __init__(self, world_size: int):
        self._group = None
        self._pending: tuple[Work, Tensor] | None = None
        if world_size > 1:
            from torch import distributed

            self._group = distributed.new_group(backend="gloo")

    def ask(self, received: int) -> int:
        """Return the highest signal that any rank had received at the call before; 0 if none had.

        Args:
            received: the number of the signal that this rank has received, or 0.
        """
        if self._group is None:
            return received
        import torch

        agreed = self.close()
        value = torch.tensor(received)
        work = torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MAX, group=self._group, async_op=True)
        self._pending = (work, value)
        return agreed

    def close(self) -> int:
        """Finish the last reduction, so that no rank leaves while another one waits for it; return its result."""
        if self._pending is None:
            return 0
        (work, value), self._pending = self._pending, None
        work.wait()
        return int(value)
