"""The mask-free network as a graph that runs without our code: ONNX and torch.export."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from eomt.errors import InputError
from eomt.export.postprocess import Output
from eomt.files import ArchiveFile
from eomt.model.eomt import EoMT
from eomt.model.outputs import Logits

# The first version that has GELU as one operator; onnxruntime reads it since 1.17.
OPSET = 20
LOGITS = ("mask_logits", "class_logits")

Run = Callable[[Tensor], Logits]


class FinalOutput(nn.Module):
    """The prediction of the mask-free network: mask and class logits in float32."""

    def __init__(self, network: EoMT):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [B, 3, H, W] to [B, Q, h, w] and [B, Q, C + 1]."""
        output = self.network(images)[-1]
        return output.mask_logits.float(), output.class_logits.float()


def write_onnx(network: EoMT, path: Path, batch: int | None) -> None:
    """Write an ONNX graph; weights of more than 2 GB go into a file beside it.

    Args:
        network: a network on the CPU in evaluation mode; float32 or float16.
        path: the file to write.
        batch: the number of images that the graph takes at a time; None for any number.

    Raises:
        InputError: if the packages that this needs are not installed.
    """
    _save_onnx(FinalOutput(network), (noise(network, batch or 2),), ("images",), LOGITS, path, batch)


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


def noise(network: EoMT, count: int, seed: int = 0) -> Tensor:
    """Random inputs uint8 [count, 3, H, W]."""
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
