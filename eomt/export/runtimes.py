"""Other runtimes for an ONNX graph, and integers: OpenVINO, TensorRT, and ONNX Runtime's quantisation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from eomt.errors import InputError, reason
from eomt.export.graph import quiet

log = logging.getLogger("eomt")

TRTEXEC = "trtexec --onnx=model.onnx --saveEngine=model.engine --stronglyTyped"


def check_runtime(format: str) -> None:
    """Raise InputError unless what writes a format is installed, and has the device that it takes."""
    try:
        if format == "openvino":
            import openvino  # noqa: F401
        if format == "tensorrt":
            if not torch.cuda.is_available():
                raise InputError(
                    "format=tensorrt builds on the GPU that will run it, and there is none here: export by "
                    f"format=onnx, and where there is one run `{TRTEXEC}`"
                )
            import tensorrt  # noqa: F401
    except ImportError as error:
        raise InputError(f"format={format} needs {error.name}: pip install -e '.[{format}]'") from error


@contextmanager
def errors(format: str) -> Iterator[None]:
    """Turn errors of exporters and runtimes, which raise nearly anything, into one line."""
    try:
        yield
    except (InputError, MemoryError, OSError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        log.debug("format=%s", format, exc_info=True)
        raise InputError(
            f"format={format}: making or running the graph failed ({type(error).__name__}: {reason(error)[:300]}): "
            "nothing was written; try other versions of torch and the runtime, or another format"
        ) from error


def quantize(path: Path, inputs: Iterable[Tensor], batch: int | None, layers: int) -> None:
    """Quantise the blocks' linear layers of an ONNX graph of `write_onnx` to int8, in place.

    Symmetric, weights by output channel, activations by the range that they have on `inputs`; heads, attention's
    products and all else stay in float32. See ONNX Runtime's static quantisation: nodes of QuantizeLinear and
    DequantizeLinear, which TensorRT and OpenVINO read, too.

    Args:
        path: the graph's file, in float32.
        inputs: images to calibrate on, uint8 [N, 3, H, W].
        batch: the number of images that the graph takes at a time; None for any number.
        layers: the number of linear layers in the blocks, which are the graph's first.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = (part for images in inputs for part in images.split(1))

        def get_next(self) -> dict | None:
            image = next(self.rest, None)
            return None if image is None else {"images": image.expand(batch or 1, -1, -1, -1).numpy()}

    graph = onnx.load(path, load_external_data=False).graph
    weights = {value.name for value in graph.initializer}
    linear = [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    beside = path.with_name(f"{path.name}.data")
    quantised = path.parent / "quantised" / path.name
    quantised.parent.mkdir()
    with quiet():
        quantize_static(
            path,
            quantised,
            Reader(),
            use_external_data_format=beside.exists(),
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=linear[:layers],
            extra_options={"ActivationSymmetric": True},
        )
    beside.unlink(missing_ok=True)
    for file in quantised.parent.iterdir():
        file.replace(path.with_name(file.name))
    quantised.parent.rmdir()


def load_openvino(path: Path) -> Callable[..., list[Tensor]]:
    """A function that runs an OpenVINO file (.xml) on the CPU, from its inputs to its outputs, in their order."""
    import openvino

    # Some CPUs would take bfloat16.
    model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(*inputs: Tensor) -> list[Tensor]:
        found = model([value.numpy() for value in inputs])
        return [torch.from_numpy(found[output].copy()) for output in model.outputs]

    return run


def write_openvino(graph: Path) -> Path:
    """Write an ONNX graph for OpenVINO beside it, `model.xml` and `model.bin`: the path of the first."""
    import openvino

    path = graph.with_suffix(".xml")
    # A graph that was loaded from there has mapped the file.
    path.with_suffix(".bin").unlink(missing_ok=True)
    # Not by `convert_model`, which tells its makers of it.
    try:
        openvino.save_model(openvino.Core().read_model(graph), path, compress_to_fp16=False)
    except RuntimeError as error:  # also of a full disk
        raise OSError(f"OpenVINO: {reason(error)}") from error
    return path


def write_engine(graph: Path, batch: int | None) -> None:
    """Build a TensorRT engine of an ONNX graph beside it, `model.engine`, for this GPU and TensorRT's version.

    Args:
        graph: the ONNX file; its types are the engine's.
        batch: the images that it takes at a time; None for up to 16, made fastest for 1.

    Raises:
        InputError: if TensorRT cannot read or build the graph.
    """
    import tensorrt

    logger = tensorrt.Logger(tensorrt.Logger.ERROR)
    builder = tensorrt.Builder(logger)
    network = builder.create_network(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        raise InputError(f"TensorRT {tensorrt.__version__} cannot read the graph: {parser.get_error(0).desc()}")
    config = builder.create_builder_config()
    if batch is None:
        profile = builder.create_optimization_profile()
        for value in (network.get_input(number) for number in range(network.num_inputs)):
            profile.set_shape(value.name, *((count, *tuple(value.shape)[1:]) for count in (1, 1, 16)))
        config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise InputError(f"TensorRT {tensorrt.__version__} cannot build the graph; its log says why")
    graph.with_suffix(".engine").write_bytes(engine)
