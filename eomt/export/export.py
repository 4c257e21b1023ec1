"""Trained weights in the forms that others read, with a model card."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from eomt.errors import InputError
from eomt.export import ONNX_FORMATS, compare, graph, runtimes
from eomt.export.compare import Check
from eomt.export.graph import Run
from eomt.export.model_card import model_card
from eomt.export.postprocess import output_of
from eomt.export.redact import redact
from eomt.files import ArchiveFile, replacing_folder, write_json
from eomt.inference.sources import load_image
from eomt.model.eomt import EoMT
from eomt.model.outputs import Logits
from eomt.postprocess.geometry import FIT_AND_PAD, WINDOWS
from eomt.tasks import task_of
from eomt.weights.huggingface import to_huggingface
from eomt.weights.original import to_original
from eomt.weights.safe_load import CONFIG, EXPORT, GRAPHS, PROCESSOR, WHOLE, read_json
from eomt.weights.spec import CompleteWeights

FORMATS = ("eomt", "hf", "original", *ONNX_FORMATS, "torch_export")
_DTYPES = {"32": torch.float32, "16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float32}
_CARD = "README.md"
FILES = {*WHOLE, *GRAPHS, "model.onnx.data", "model.bin", EXPORT, CONFIG, PROCESSOR, _CARD}
"""Files of exports; a folder that holds anything else is not replaced."""


def export(
    weights: CompleteWeights,
    format: str,
    out: str | Path,
    *,
    precision: str = "32",
    batch: int | None = 1,
    images: Sequence[Path] = (),
    metrics: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    postprocess: bool = False,
    score: Callable[[Run], Mapping[str, float]] | None = None,
    name: str | None = None,
) -> Check | None:
    """Write a folder with weights and a model card, whole or not at all.

    Args:
        weights: the weights.
        format: - "eomt": ours, `model.safetensors` and `eomt.json`, for `Segmenter`, predict.py and training.
            - "hf": the form that transformers' `from_pretrained` reads.
            - "original": `pytorch_model.bin` under the original's keys; with `eomt.json`, which says what these do
              not, such as the number of heads.
            - "onnx" and "torch_export": graphs of the mask-free network, `model.onnx` and `model.pt2`, from
              uint8 images to float32 logits, each compared with PyTorch; with `eomt.json`.
            - "openvino" and "tensorrt": the ONNX graph as `model.xml` and `model.bin`, or beside its `model.engine`.
        out: the folder; a previous export there is replaced if `overwrite` is set.
        precision: the precision of the weights: "32", "16", "bf16" (not for ONNX and what comes of it), or "int8" (for
            these alone), see `runtimes.quantize`.
        batch: the number of images that a graph takes at a time; None for any number.
        images: files on which a graph is compared, beside noise, and "int8" is calibrated.
        metrics: contents of a run's `metrics.json`, for the card.
        postprocess: append post-processing to the graph, see `eomt.export.postprocess`; for "onnx" and what comes of
            it.
        score: scores a function from inputs to logits; for the card, which then has the scores of PyTorch and graph.
        name: what the card calls the export; default the folder's name.

    Returns:
        The difference between a graph and PyTorch; None for the other formats.

    Raises:
        InputError: if an argument is none of these, `out` is taken or cannot be written, or a graph differs from
            PyTorch.
    """
    path = check_request(format, precision, images, out, overwrite, postprocess)
    config = redact(weights.config, weights.environment)
    metrics = dict(metrics or {})
    state = _rounded(weights.state, _DTYPES[precision])
    description = {
        "kind": weights.kind,
        "classes": weights.classes.to_list(),
        "network": dict(weights.network),
        "config": config,
        "step": weights.step,
        "metrics": metrics,
    }
    check, compared = None, {}
    try:
        with replacing_folder(path, overwrite) as folder:
            if format == "eomt":
                save_file(state, folder / WHOLE[0], {"format": "pt"})
            elif format == "hf":
                parts = to_huggingface(state, weights.network, weights.classes, weights.kind)
                save_file(_own_memory(parts[0]), folder / WHOLE[0], {"format": "pt"})
                write_json(folder / CONFIG, parts[1])
                write_json(folder / PROCESSOR, parts[2])
            elif format == "original":
                with ArchiveFile(folder / WHOLE[1]) as file:
                    torch.save(_own_memory(to_original(state, weights.network)), file)
            else:
                check, compared = _write_graph(
                    folder, weights, state, format, precision, batch, images, postprocess, score
                )
            if format != "hf":
                write_json(folder / EXPORT, description)
            card = model_card(
                weights, config, metrics, format, precision, batch, name or path.name, postprocess, compared
            )
            (folder / _CARD).write_text(card, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        fault = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"out={out} cannot be written ({fault}): free some space or choose another folder") from error
    return check


def check_request(
    format: str, precision: str, images: Sequence[Path], out: str | Path, overwrite: bool, postprocess: bool = False
) -> Path:
    """Check the arguments of `export` that do not depend on the weights.

    Returns:
        The folder to write, as an absolute path.

    Raises:
        InputError: if `export` does not take them, or the format's package is missing, or `out` is a file, or holds
            anything but an export, or holds one and `overwrite` is not set.
    """
    if format not in FORMATS:
        raise InputError(f"format={format} is none of {', '.join(FORMATS)}")
    known = ("32", "16", "int8") if format in ONNX_FORMATS else ("32", "16", "bf16")
    if precision not in known:
        raise InputError(f"precision={precision} cannot be had in format={format}: choose {', '.join(known)}")
    if images and format not in (*ONNX_FORMATS, "torch_export"):
        raise InputError(
            f"images= are for format={', '.join(ONNX_FORMATS)} and torch_export, whose graphs are compared on them, "
            f"not {format}"
        )
    if precision == "int8" and not images:
        raise InputError("precision=int8 is calibrated on photos like those it will see: give some 100 by images=")
    if postprocess and format not in ONNX_FORMATS:
        raise InputError(f"postprocess=true is for format={', '.join(ONNX_FORMATS)}, not {format}")
    runtimes.check_runtime(format)
    # Links are followed: renaming would otherwise replace the link.
    path = Path(out).expanduser().resolve()
    if path.exists() and not path.is_dir():
        raise InputError(f"out={out} is a file: give a folder")
    names = sorted(entry.name for entry in path.iterdir()) if path.exists() else []
    foreign = [name for name in names if name not in FILES]
    if foreign:
        raise InputError(f"out={out} holds {foreign[0]}, which no export wrote: choose another folder")
    if names and overwrite is not True:
        raise InputError(f"out={out} has an export already: choose another folder, or set overwrite=true")
    return path


def metrics_of(source: str | Path) -> dict[str, Any]:
    """The scores recorded beside weights, where there are any.

    Args:
        source: RUN/checkpoints/NAME.ckpt, with the scores in RUN/metrics.json; or an exported folder or its file of
            weights. Any other file beside a description is not described by it.
    """
    path = Path(source).expanduser()
    if path.parent.name == "checkpoints":
        return _scores(path.absolute().parents[1] / "metrics.json")
    if path.name in WHOLE and not path.is_dir():
        path = path.parent
    metrics = _scores(path / EXPORT).get("metrics")
    return metrics if isinstance(metrics, dict) else {}


def _scores(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _write_graph(
    folder: Path,
    weights: CompleteWeights,
    state: dict[str, Tensor],
    format: str,
    precision: str,
    batch: int | None,
    images: Sequence[Path],
    postprocess: bool,
    score: Callable[[Run], Mapping[str, float]] | None,
) -> tuple[Check, dict[str, tuple[float, float]]]:
    """Write a graph and check it: the check, and the scores of network and graph."""
    network = EoMT(**weights.network).eval()
    network.load_state_dict(state)
    written = network if precision in ("32", "int8") else copy.deepcopy(network).to(_DTYPES[precision])
    # Not by the task, which may be code that the weights name.
    geometry = WINDOWS if weights.kind == "semantic" else FIT_AND_PAD

    def inputs(most: int | None = None) -> Iterator[Tensor]:
        return (geometry.prepare(load_image(image), network.image_size)[0] for image in images[:most])

    path = folder / "model.onnx"
    with runtimes.errors(format):
        if format == "torch_export":
            run = graph.write_torch_export(written, folder / "model.pt2", batch)
            network = written
        else:
            graph.write_onnx(written, path, batch)
            if precision == "int8":
                layers = sum(isinstance(layer, nn.Linear) for layer in written.backbone.blocks.modules())
                runtimes.quantize(path, inputs(), batch, layers)
            run = _load(path, format)
        check = compare.check_graph(network, run, batch, inputs(), precision)
    scores = {}
    if score is not None:
        before = score(lambda images: network(images)[-1].logits())
        after = score(lambda images: compare.run_in_batches(run, images, batch))
        # No number where there is nothing to score, such as large objects.
        scores = {name: (value, after[name]) for name, value in before.items() if value == value}
    with runtimes.errors(format):
        if postprocess:
            task = task_of(weights.kind, weights.config.get("postprocess"))
            output = output_of(task, weights.classes, network.image_size)
            noise = graph.noise(network, batch or 2)
            graph.add_postprocess(path, output, run(noise), batch)
            whole = _load(path, format, logits=False)
            compare.check_postprocess(output, run, whole, batch, [noise, *inputs(most=4)])
        if format == "tensorrt":
            runtimes.write_engine(path, batch)
    if format == "openvino":
        path.unlink()
        path.with_name("model.onnx.data").unlink(missing_ok=True)
    return check, scores


def _load(path: Path, format: str, logits: bool = True) -> Callable[..., Any]:
    """A function that runs an ONNX graph, or what OpenVINO makes of it."""
    run = runtimes.load_openvino(runtimes.write_openvino(path)) if format == "openvino" else graph.load_onnx(path)
    return (lambda images: Logits(*run(images))) if logits else run


def _rounded(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights in a precision, none of which may become infinite: they would not load."""
    largest = torch.finfo(dtype).max
    for name, value in state.items():
        if dtype != value.dtype and value.numel() and value.abs().max() > largest:
            raise InputError(f"precision=16 cannot hold {name}, whose values exceed {largest:.0f}: choose bf16 or 32")
    return {name: value.to(dtype).contiguous() for name, value in state.items()}


def _own_memory(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor in memory of its own: writers store, or refuse, what is a part of another."""
    return {name: value.clone(memory_format=torch.contiguous_format) for name, value in state.items()}
