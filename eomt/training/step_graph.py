"""A small network's forward and backward pass in training, replayed as CUDA graphs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from eomt.inference.graphs import ONE_CAPTURE, alike, autocast_without_cache, capture_fault, capturing, warm_up
from eomt.model.eomt import EoMT
from eomt.model.outputs import QueryOutput

log = logging.getLogger("eomt")

# Floating point operations of a step: three milliseconds of an H100, where launches take ten to thirty.
SMALL = 1e12
# Of a gradient's norm, and of that of all: half precision and another order of sums.
_TOLERANCE, _LEAST = 5e-2, 1e-3


def is_small(network: EoMT, batch_size: int) -> bool:
    """True if the kernels of a training step take less time than their launches."""
    height, width = network.image_size
    tokens = network.num_queries + height * width // network.backbone.patch_size**2
    weights = sum(weight.numel() for weight in network.backbone.blocks.parameters())
    return 6 * weights * tokens * batch_size < SMALL


class Passes(NamedTuple):
    """A network's two passes on inputs of one shape. What they return holds until they run again.

    Attributes:
        forward: from inputs to outputs that do not track gradients.
        backward: from the gradients of the outputs to those of the parameters, None where one is not used.
    """

    forward: Callable[[Sequence[Tensor]], tuple[Tensor, ...]]
    backward: Callable[[Sequence[Tensor]], tuple[Tensor | None, ...]]


class StepGraph:
    """The network in training, its forward and its backward pass a CUDA graph each.

    The first batch runs both ways; where graphs cannot be made, or give something else, the network runs without, and
    a line says so. A gradient's memory is that of the next step's: set gradients to None before each backward pass, and
    do not accumulate them over batches.

    Args:
        network: the network in training, on its device; its parameters change in place between steps.
    """

    def __init__(self, network: EoMT):
        self.network = network
        self._passes: Passes | None = None
        self._parameters: list[Tensor] = []
        # The images' shape, and each weight's address and whether it learns, that the graphs were made for.
        self._made_for: tuple[Any, ...] = ()
        self._weights = list(network.parameters())
        self._failed = False

    def __call__(self, images: Tensor, dropped_masks: Tensor | None) -> list[QueryOutput]:
        """Run the network, see `EoMT.forward`, under the caller's autocast."""
        inputs = (images,) if dropped_masks is None else (images, dropped_masks)
        if not self._failed and self._made_for != self._key(images):
            self._make(inputs)
        if self._passes is None:
            return self.network(*inputs)
        values: tuple[Tensor, ...] = _Replay.apply(self._passes, len(inputs), *inputs, *self._parameters)
        return [QueryOutput(*values[k : k + 3]) for k in range(0, len(values), 3)]

    def _key(self, images: Tensor) -> tuple[Any, ...]:
        return (images.shape, *((weight.data_ptr(), weight.requires_grad) for weight in self._weights))

    def _make(self, inputs: Sequence[Tensor]) -> None:
        start = time.perf_counter()
        self._passes = None
        self._parameters = [weight for weight in self._weights if weight.requires_grad]
        self._made_for = self._key(inputs[0])
        try:
            passes = capture_passes(self._run, inputs, self._parameters)
            fault = "" if self._same(passes, inputs) else "they give something else"
        except RuntimeError as error:  # also of graphs that do not fit into the memory
            passes, fault = None, capture_fault(error)
        if fault:
            self._failed = True
            log.warning("training: runs without CUDA graphs (%s); compile=true compiles the network instead", fault)
        else:
            self._passes = passes
            log.info("training: the network as CUDA graphs after %.1f s", time.perf_counter() - start)

    def _run(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        with autocast_without_cache(inputs[0].device.type):
            return tuple(value for output in self.network(*inputs) for value in output)

    def _same(self, passes: Passes, inputs: Sequence[Tensor]) -> bool:
        """True if both passes give what the network gives, but for rounding."""
        outputs = self._run(*inputs)
        # As if the loss were the outputs' squares; small enough for float16.
        given = [output.detach() / output.numel() ** 0.5 for output in outputs]
        expected = _gradients(outputs, self._parameters, given)
        if not alike(passes.forward(inputs), [output.detach() for output in outputs]):
            return False
        found = passes.backward(given)
        if [value is None for value in found] != [value is None for value in expected]:
            return False
        pairs = zip(found, expected, strict=True)
        norms = [torch.stack(((a - b).norm(), b.norm())) for a, b in pairs if a is not None and b is not None]
        errors, sizes = torch.stack(norms).float().T
        return bool((errors <= _TOLERANCE * sizes + _LEAST * sizes.norm()).all())


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, passes: Passes, count: int, *values: Tensor) -> tuple[Tensor, ...]:
        ctx.passes, ctx.count = passes, count
        return passes.forward(values[:count])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *(None,) * ctx.count, *ctx.passes.backward(gradients))


def capture_passes(
    run: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor], parameters: Sequence[Tensor]
) -> Passes:
    """Capture `run` on inputs like `inputs`, and its backward pass to `parameters`, as two CUDA graphs.

    Unlike `torch.cuda.make_graphed_callables` it lets other threads pin memory meanwhile, as those of a DataLoader do.
    """
    # Not the inputs themselves: a graph that did not read its input would then go unnoticed.
    given = [torch.zeros_like(value) for value in inputs]
    forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()

    def both() -> None:
        outputs = run(*given)
        _gradients(outputs, parameters, [torch.zeros_like(output) for output in outputs])

    with ONE_CAPTURE, torch.cuda.device(inputs[0].device):
        warm_up(both)
        with capturing(forward):
            outputs = run(*given)
        gradients = [torch.zeros_like(output) for output in outputs]
        # Not into the memory of the forward pass, which runs again before gradients are let go.
        with capturing(backward):
            found = _gradients(outputs, parameters, gradients)
    results = tuple(output.detach() for output in outputs)

    def replay_forward(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        for own, value in zip(given, inputs, strict=True):
            own.copy_(value)
        forward.replay()
        return tuple(result.detach() for result in results)

    def replay_backward(gradients_of_outputs: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        for own, value in zip(gradients, gradients_of_outputs, strict=True):
            own.copy_(value)
        backward.replay()
        return tuple(None if value is None else value.detach() for value in found)

    return Passes(replay_forward, replay_backward)


def _gradients(
    outputs: Sequence[Tensor], parameters: Sequence[Tensor], gradients: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """Gradients of the parameters, without autocast, as Lightning runs backward passes."""
    with torch.autocast(outputs[0].device.type, enabled=False):
        return torch.autograd.grad(outputs, parameters, gradients, allow_unused=True)
