"""A written graph compared with PyTorch, on noise and on images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from eomt.errors import InputError
from eomt.export.graph import FinalOutput, Run, noise
from eomt.export.postprocess import Output
from eomt.model.eomt import EoMT
from eomt.model.outputs import Logits

# The largest difference between logits.
TOLERANCE = 1e-3
# The same in half precision, in parts of the largest logit: every operation rounds by up to 0.0005 of its result
# (bfloat16: 0.004), and a graph's operations are not those of PyTorch.
HALF_TOLERANCE = 0.05


class Check(NamedTuple):
    """A graph's logits against the network's.

    Attributes:
        inputs: the number of inputs that were compared.
        difference: the largest absolute difference.
        largest: the network's largest absolute logit.
    """

    inputs: int
    difference: float
    largest: float

    def __str__(self) -> str:
        return f"{self.inputs} inputs, logits up to {self.largest:.1f} differ by at most {self.difference:.1e}"


@torch.no_grad()
def check_graph(
    network: EoMT, run: Run, batch: int | None, images: Iterable[Tensor] = (), precision: str = "32"
) -> Check:
    """Compare a written graph with its network, on noise and on images.

    Args:
        network: the network with the weights that were written.
        run: runs the graph.
        batch: the number of images that the graph takes at a time; None for any number, of which 1, 2 and 3 are tried.
        images: inputs uint8 [N, 3, H, W].
        precision: that of the graph: "32", "16" or "bf16"; "int8" may differ by anything.

    Raises:
        InputError: if logits differ by more than is allowed.
    """
    inputs = [noise(network, size, seed) for seed, size in enumerate((1, 2, 3) if batch is None else (batch,))]
    count, difference, largest = 0, 0.0, 0.0
    for part in (*inputs, *images):
        reference = FinalOutput(network)(part)
        found = run_in_batches(run, part, batch)
        count += len(part)
        for ours, theirs in zip(reference, found, strict=True):
            gap = (ours - theirs).abs().max().item()
            # A gap that is no number is larger than any other.
            difference = max(difference, gap if gap == gap else float("inf"))
            largest = max(largest, ours.abs().max().item())
    allowed = TOLERANCE if precision == "32" else HALF_TOLERANCE * largest
    if difference > allowed and precision != "int8":
        raise InputError(
            f"the exported graph's logits differ from PyTorch's by up to {difference:.2g}, more than {allowed:.2g}: "
            "nothing was written; try precision=32, other versions of torch and onnxruntime, or format=hf"
        )
    return Check(count, difference, largest)


def check_postprocess(
    output: Output, run: Run, whole: Callable[..., list[Tensor]], batch: int | None, images: Iterable[Tensor]
) -> None:
    """Compare a graph that ends in post-processing with that post-processing of its logits.

    Args:
        output: see `eomt.export.postprocess`.
        run: runs the graph without it.
        whole: runs the graph with it.
        batch, images: see `check_graph`.

    Raises:
        InputError: if more than 1 % of numbers, or of pixels, differ: equals and the nearly equal may swap.
    """
    for part in (part for images in images for part in images.split(1)):
        inputs = part.expand(batch or 1, -1, -1, -1).contiguous()
        sizes = [torch.tensor([output.size] * len(inputs))] * len(output.inputs)
        expected = output(*run(inputs), *sizes)
        for name, ours, theirs in zip(output.outputs, expected, whole(inputs, *sizes), strict=True):
            differ = ((ours.double() - theirs.double()).abs() > TOLERANCE).double().mean().item()
            if differ > 0.01 or ours.dtype != theirs.dtype:
                raise InputError(
                    f"{differ:.1%} of the exported graph's {name} differ from ours: nothing was written; try "
                    "postprocess=false, or other versions of torch and the runtime"
                )


def run_in_batches(run: Run, inputs: Tensor, batch: int | None) -> Logits:
    """Run a graph that takes `batch` images at a time on any number, by filling up with black ones."""
    parts = []
    for part in inputs.split(batch or len(inputs)):
        padded = functional.pad(part, (0, 0, 0, 0, 0, 0, 0, (batch or len(part)) - len(part)))
        parts.append([logits[: len(part)] for logits in run(padded)])
    return Logits(*(torch.cat(logits) for logits in zip(*parts, strict=True)))
