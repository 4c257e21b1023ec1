"""Post-processing in threads and on streams of their own while the network runs on the next batch."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# PyTorch types its own methods in part only.

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger("eomt")


class Background:
    """Runner of functions: those of a GPU's tensors in threads, of other devices' at once, in the caller's thread.

    The first function runs both in a thread and in the caller's: if the results differ, all others run in the caller's
    alone, and a line says so.

    Args:
        device: the device of the functions' tensors.
        threads: the number of threads.
        concurrent: use threads; default for a GPU alone, as a network on a CPU takes all cores.
    """

    def __init__(self, device: torch.device, threads: int, concurrent: bool | None = None):
        self.device = device
        self.concurrent = device.type == "cuda" if concurrent is None else concurrent
        self._pool = ThreadPoolExecutor(threads) if self.concurrent else None
        self._checked = False
        self._own = threading.local()

    def submit(self, function: Callable[[], Any], then: Callable[[Any], Any] | None = None) -> Future[Any]:
        """Compute `function()`, or `then(function())`, without gradients and without autocast.

        Args:
            function: gives the same at each call, from tensors that the caller's stream computes.
            then: called once with the result; with one thread in the order of the calls.
        """
        then = then or (lambda found: found)
        task = lambda: then(function())  # noqa: E731
        # Which threads do not inherit, and which would round what tells queries apart.
        with torch.autocast(self.device.type, enabled=False):
            if self.concurrent and not self._checked:
                self._checked = True
                found, expected = self._submit(function).result(), function()
                if not _same(found, expected):
                    self.concurrent = False
                    log.warning("post-processing beside the network gave another result: it now waits for the network")
                task = lambda: then(expected)  # noqa: E731
            if self.concurrent:
                return self._submit(task)
            done: Future[Any] = Future()
            done.set_result(task())
            return done

    def _submit(self, function: Callable[[], Any]) -> Future[Any]:
        assert self._pool is not None
        ready = torch.cuda.current_stream(self.device).record_event() if self.device.type == "cuda" else None
        return self._pool.submit(self._run, function, ready, torch.is_inference_mode_enabled())

    def _run(self, function: Callable[[], Any], ready: Any, inference: bool) -> Any:
        with torch.inference_mode(inference), torch.no_grad():
            if ready is None:
                return function()
            if not hasattr(self._own, "stream"):
                self._own.stream = torch.cuda.Stream(self.device, priority=-1)  # ahead of the network's
            with torch.cuda.device(self.device), torch.cuda.stream(self._own.stream):
                self._own.stream.wait_event(ready)
                try:
                    return function()
                finally:
                    # Before the function's tensors are let go: the network's stream would take their memory at once.
                    self._own.stream.synchronize()


def _same(one: Any, other: Any) -> bool:
    """True if two results are equal but for the rounding of sums, whose order a GPU leaves open."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        one, other = one.cpu(), other.cpu()
        if not one.is_floating_point():
            return torch.equal(one, other)
        return one.shape == other.shape and torch.allclose(one, other, equal_nan=True)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
