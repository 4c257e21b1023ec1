"""Ranks that decide together, without a step that waits for the device."""

from __future__ import annotations

import torch
from torch import distributed


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
