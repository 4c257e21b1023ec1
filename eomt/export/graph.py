"""The mask-free network as a graph that runs without our code: ONNX and torch.export, checked against PyTorch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from eomt.errors import InputError
from eomt.export.postprocess import Output
from eomt.files import ArchiveFile
from eomt.model.eomt import EoMT
from eomt.model.outputs import Logits

# The first version that has GELU as one operator; onnxruntime reads it since 1.17.
OPSET = 20
# The largest difference between logits.
TOLERANCE = 1e-3
# The same in half precision, in parts of the largest logit: every operation rounds by up to 0.0005 of its result
# (bfloat16: 0.004), and a graph's operations are not those of PyTorch.
HALF_TOLERANCE = 0.05

LOGITS = ("mask_logits", "class_logits")

Run = Callable[[Tensor], Logits]


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


class FinalOutput(nn.Module):
    """The prediction of the mask-free network: mask and class logits in float32."""

    def __init__(self, network: EoMT):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [B, 3, H, W] to [B, Q, h, w] and [B, Q, C + 1]."""
        output = self.network(images)[-1]
        return output.mask_logits.float(), output.class_logits.float()


def write_onnx(network: EoMT, path: Path, batch: int | None) -> Run:
    """Write an ONNX graph; weights of more than 2 GB go into a file beside it.

    Args:
        network: a network on the CPU in evaluation mode; float32 or float16.
        path: the file to write.
        batch: the number of images that the graph takes at a time; None for any number.

    Returns:
        A function that runs the file by onnxruntime on the CPU.

    Raises:
        InputError: if the packages that this needs are not installed.
    """
    _save_onnx(FinalOutput(network), (noise(network, batch or 2),), ("images",), LOGITS, path, batch)
    run = load_onnx(path)
    return lambda images: Logits(*run(images))


def add_postprocess(path: Path, output: Output, logits: Logits, batch: int | None) -> None:
    """Append post-processing to an ONNX graph of `write_onnx`, in place.

    Args:
        path: the graph's file.
        output: see `eomt.export.postprocess`.
        logits: an output of the graph, for its shapes.
        batch: see `write_onnx`.
    """
    import onnx
    from onnx import compose

    sizes = torch.tensor([output.size] * len(logits.mask_logits))
    last = path.with_name("postprocess.onnx")
    _save_onnx(
        output, (*logits, sizes)[: 2 + len(output.inputs)], (*LOGITS, *output.inputs), output.outputs, last, batch
    )
    # Weights of more than 2 GB stay in their file, which `merge_models` would look for.
    model = onnx.load(path, load_external_data=False)
    # Names of values are the exporter's, and equal in both.
    appended = compose.add_prefix(onnx.load(last), "post_", rename_inputs=False, rename_outputs=False).graph
    model.graph.CopyFrom(compose.merge_graphs(model.graph, appended, io_map=[(name, name) for name in LOGITS]))
    onnx.save(model, last)
    # Not over the old one, which a runtime that has loaded it may have mapped.
    last.replace(path)


def load_onnx(path: Path) -> Callable[..., list[Tensor]]:
    """A function that runs an ONNX file on the CPU, from its inputs to its outputs, in their order."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(*inputs: Tensor) -> list[Tensor]:
        given = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return [torch.from_numpy(value) for value in session.run(None, given)]

    return run


def _save_onnx(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    input_names: tuple[str, ...],
    output_names: tuple[str, ...],
    path: Path,
    batch: int | None,
) -> None:
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401  (torch.onnx needs it)
    except ImportError as error:
        raise InputError(f"an ONNX graph needs {error.name}: pip install -e '.[export]'") from error
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            inputs,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(input_names),
            output_names=list(output_names),
            dynamic_shapes=_dynamic_shapes(batch, len(inputs)),
            verbose=False,
        )
        assert program is not None  # as it is of `dynamo=True`
        # The exporter notes the file of this machine that each node comes from.
        for node in program.model.graph:
            node.metadata_props.clear()
        program.save(path)


def write_torch_export(network: EoMT, path: Path, batch: int | None) -> Run:
    """Write an archive of `torch.export`, in any precision, and return a function that runs it; see `write_onnx`."""
    with quiet(), torch.no_grad():
        program = torch.export.export(
            FinalOutput(network), (noise(network, batch or 2),), dynamic_shapes=_dynamic_shapes(batch), strict=False
        )
        # Nodes carry file names of this machine here, too.
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)
        with ArchiveFile(path) as file:
            torch.export.save(program, file)
        loaded = torch.export.load(path).module()
    return lambda images: Logits(*loaded(images))


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


def noise(network: EoMT, count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, *network.image_size), dtype=torch.uint8, generator=generator)


def _dynamic_shapes(batch: int | None, inputs: int = 1) -> tuple | None:
    return ({0: torch.export.Dim("batch")},) * inputs if batch is None else None


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporters' remarks, which tell a user nothing that can be acted upon."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
