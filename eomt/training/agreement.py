"""Agreement of all ranks on the step after which they stop."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


class Agreement:
    """Common decision of all ranks to stop at the same step, though a signal reaches them at different times.

    Each call of `ask` starts a reduction that the next call reads, over the hosts' own network: no step waits
    for the device, nor for other ranks beyond the step before. All ranks must call it equally often.

    Args:
        world_size: the number of ranks; a single one agrees with itself at once.
    """

    def __init__(self, world_size: int):
        self._group = distributed.new_group(backend="gloo") if world_size > 1 else None
        self._pending: tuple[distributed.Work, Tensor] | None = None

    def ask(self, received: int) -> int:
        """Return the highest signal that any rank had received at the call before; 0 if none had.

        Args:
            received: the number of the signal that this rank has received, or 0.
        """
        if self._group is None:
            return received
        agreed = self.close()
        value = torch.tensor(received)
        work = distributed.all_reduce(value, distributed.ReduceOp.MAX, group=self._group, async_op=True)
        assert work is not None  # as it is async
        self._pending = (work, value)
        return agreed

    def close(self) -> int:
        """Finish the last reduction, so that no rank leaves while another one waits for it; return its result."""
        if self._pending is None:
            return 0
        (work, value), self._pending = self._pending, None
        work.wait()
        return int(value)
