"""Compilation and CUDA graphs, and the mask-free network on batches of fixed sizes, which both need."""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import torch
from torch import Tensor

from eomt.errors import InputError, reason
from eomt.files import cache_path
from eomt.model.eomt import EoMT
from eomt.model.outputs import Logits

log = logging.getLogger("eomt")

# Modes of torch.compile by the value of `compile=`. The graphs here take the place of those that it would make.
COMPILE_MODES = {True: None, "max-autotune": "max-autotune-no-cudagraphs"}


def compile_network(network: EoMT, wanted: bool | str, one_size: bool = True) -> None:
    """Compile a network in place by `torch.compile` at its first calls.

    Args:
        network: the network.
        wanted: True, or "max-autotune", which measures more kernels and takes minutes; False leaves it as it is.
        one_size: compile anew for each size of input, each fast; otherwise once more for all sizes.

    Raises:
        InputError: if `wanted` is none of these.
    """
    if wanted:
        if wanted not in list(COMPILE_MODES):
            raise InputError(f"compile={wanted} is none of true, false, max-autotune")
        # The next run takes the code of this one. Where that folder cannot be written, PyTorch chooses one.
        with suppress(OSError, RuntimeError):
            folder = cache_path().expanduser().absolute() / "compiled"
            folder.mkdir(parents=True, exist_ok=True)
            # PyTorch sets it to a temporary folder by itself, which a restart or a job's end empties.
            given = os.environ.get("TORCHINDUCTOR_CACHE_DIR", "")
            own = not given or Path(given).name.startswith("torchinductor_")
            if own and os.access(folder, os.W_OK):
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
        log.info("network: torch.compile takes a minute at the first batches, less once its cache is filled")
        network.compile(  # pyright: ignore[reportUnknownMemberType]
            mode=COMPILE_MODES[wanted], dynamic=False if one_size else None
        )


class FixedBatches:
    """The mask-free network on batches of fixed sizes; smaller ones are filled up.

    Graphs save launches: at batch 1 these take twice the time of the kernels. A size's first batch is also run without
    a graph; where a graph cannot be made, or gives something else, the network runs without, and a line says so.

    Args:
        network: the network, on its device.
        fill: fill smaller batches up, as a compiled network must not see another size.
        graphs: replay CUDA graphs; implies `fill`. Weights may change in place between calls, but not move.

    Attributes:
        fixed: False if batches are run as they are.
    """

    def __init__(self, network: EoMT, fill: bool, graphs: bool):
        self.network = network
        self.fixed = fill or graphs
        self.graphs = graphs
        # Code that was compiled with autocast's cache is compiled again without.
        self._uncached = graphs
        # A graph has one place for its input: threads that share a network take turns.
        self._lock = threading.Lock()
        self._captured: dict[tuple[int, ...], Callable[[Tensor], Logits]] = {}
        self._seen: set[tuple[int, ...]] = set()
        self._said: set[tuple[int, ...]] = set()

    def __call__(self, images: Tensor, size: int) -> Logits:
        """Run the network under the caller's autocast and grad mode.

        Args:
            images: uint8 [n, 3, H, W], n <= size.
            size: the number of images that the network takes.
        """
        if not self.fixed:
            return self._direct(images)
        count = len(images)
        # Also a whole batch is copied: compiled code tells tensors of inference mode from others.
        images = torch.cat((images, images.new_zeros(size - count, *images.shape[1:])))
        shape = tuple(images.shape)
        with self._lock:
            if shape in self._captured:
                output = self._captured[shape](images)
            elif shape in self._seen:
                output = self._direct(images)
            else:
                self._seen.add(shape)
                output = self._first(images)
        return Logits(*(logits[:count] for logits in output))

    def release(self) -> None:
        """Let go of the graphs' memory; they are made anew at the next batches."""
        self._captured.clear()
        self._seen.clear()

    def _direct(self, images: Tensor) -> Logits:
        with autocast_without_cache(images.device.type) if self._uncached else nullcontext():
            return self.network(images)[-1].logits()

    def _first(self, images: Tensor) -> Logits:
        """Run a size's first batch, and capture its graph."""
        start = time.perf_counter()
        output = self._direct(images)
        if self.graphs:
            replay = None
            try:
                replay = capture(self._direct, images)
                same = alike(replay(images), output)
                fault = "" if same else "it gives other logits"
            except RuntimeError as error:  # also of a graph that does not fit into the memory
                fault = capture_fault(error)
            if fault or replay is None:
                self.graphs = False
                self._captured.clear()
                log.warning("network: runs without CUDA graphs (%s); compile=false leaves them out", fault)
            else:
                self._captured[tuple(images.shape)] = replay
        if images.shape not in self._said:
            self._said.add(images.shape)
            graph = ", as a CUDA graph" if self.graphs else ""
            log.info("network: ready for batches of %d after %.1f s%s", len(images), time.perf_counter() - start, graph)
        return output


def capture(run: Callable[[Tensor], Logits], images: Tensor) -> Callable[[Tensor], Logits]:
    """Capture the kernels of `run` on inputs like `images` as a CUDA graph.

    Returns:
        A function like `run`, which copies its input into the graph's and the graph's outputs out of it.
    """
    # Not the images themselves: a graph that did not read its input would then go unnoticed.
    given = torch.zeros_like(images)
    graph = torch.cuda.CUDAGraph()
    with ONE_CAPTURE, torch.cuda.device(images.device):
        warm_up(lambda: run(given))
        with capturing(graph):
            outputs = run(given)

    def replay(images: Tensor) -> Logits:
        given.copy_(images)
        graph.replay()
        return Logits(*(logits.clone() for logits in outputs))

    return replay


def autocast_without_cache(kind: str) -> torch.autocast:
    """Autocast as it is on devices of a kind, without its cache of cast weights: a graph repeats only casts in it."""
    return torch.autocast(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind), cache_enabled=False)


def warm_up(run: Callable[[], object]) -> None:
    """Run on the capturing stream what a graph is to capture: libraries choose kernels and take their workspaces."""
    stream = _capturing_stream(torch.cuda.current_device())
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)


@contextmanager
def capturing(graph: torch.cuda.CUDAGraph) -> Generator[None]:
    """Capture what is launched on the current device into a graph with memory of its own.

    After an error, also one for which the device gives the capture up, memory and streams are used as before.
    """
    before, device, pool = torch.cuda.current_stream(), torch.cuda.current_device(), torch.cuda.graph_pool_handle()
    try:
        # Threads that read images may pin memory meanwhile.
        with torch.cuda.graph(graph, pool, _capturing_stream(device), capture_error_mode="thread_local"):
            yield
    except BaseException:
        # A capture that was given up cannot be ended: PyTorch then keeps its stream as the current one, takes memory
        # from its pool for ever, and asks the graph whose memory that is. No public call ends this.
        torch.cuda.set_stream(before)
        with suppress(RuntimeError):  # it has been ended
            torch._C._cuda_endAllocateToPool(device, pool)  # pyright: ignore[reportPrivateUsage]
            torch._C._cuda_releasePool(device, pool)  # pyright: ignore[reportPrivateUsage]
            _GIVEN_UP.append(graph)
        raise


ONE_CAPTURE = threading.Lock()
"""Held from the warm-up to the end of a capture: there is one stream for them."""
_GIVEN_UP: list[torch.cuda.CUDAGraph] = []


def capture_fault(error: RuntimeError) -> str:
    """Reason for a failed capture: the error within it, rather than that of its end."""
    return reason(error.__context__ or error)[:200]


@functools.cache
def _capturing_stream(device: int) -> torch.cuda.Stream:
    """One for each device: libraries keep a workspace for each stream. PyTorch's own is that of the first device."""
    return torch.cuda.Stream(device)


def alike(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """True if tensors differ by no more than rounding: libraries may choose another kernel in a graph."""
    for one, other in zip(found, expected, strict=True):
        tolerance = (1e-2 if other.dtype.itemsize < 4 else 1e-3) * other.float().nan_to_num().abs().max()
        if one.shape != other.shape or not torch.allclose(one.float(), other.float(), 0, float(tolerance), True):
            return False
    return True
