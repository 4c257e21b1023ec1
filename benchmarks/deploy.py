"""Exported graphs beside PyTorch: time from uint8 images to segments, of the network alone, and how alike results are.

    python benchmarks/deploy.py                                           # ViT-S at 640, random weights
    python benchmarks/deploy.py --ckpt RUN --images photos                # a trained network, on photos

Each graph is written by `export`, with post-processing, in float32 and in int8 (calibrated on the images), and run by
onnxruntime and, where it is installed, OpenVINO; on a GPU also PyTorch in float32 and bfloat16, and onnxruntime built
for it. Batch 1; medians of alternating rounds; with one thread processor time. Ratios are PyTorch / other.
Alike: of our segments with a score of at least 0.5 (semantic and panoptic: of all), the mean IoU with the graph's best
one of the same class, and the largest difference of their scores. Needs `eomt[export]`.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from common import interleaved, our_network, shared_parser
from PIL import Image
from torch import Tensor

from eomt.classes import Classes
from eomt.export.export import export
from eomt.inference.find_images import find_images
from eomt.inference.result import Result
from eomt.inference.sources import load_image
from eomt.model.eomt import EoMT
from eomt.model.outputs import Logits
from eomt.postprocess.geometry import FIT_AND_PAD, Placement
from eomt.tasks import Task, task_of
from eomt.weights.load import read_weights
from eomt.weights.spec import Weights

Graph = Callable[[Tensor, Tensor], list[np.ndarray]]


def onnx_graph(path: Path, threads: int, provider: str = "CPUExecutionProvider") -> Graph:
    """A graph by onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=[provider])
    names = [value.name for value in session.get_inputs()]
    return lambda *given: session.run(None, {n: x.numpy() for n, x in zip(names, given, strict=False)})


def openvino_graph(path: Path, threads: int) -> Graph:
    """A graph by OpenVINO, in float32."""
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    model = openvino.Core().compile_model(path, "CPU", settings)
    return lambda *given: list(model([x.numpy() for x in given[: len(model.inputs)]]).to_tuple())


def segments(kind: str, found: Sequence[np.ndarray], shown: Placement) -> list[tuple[int, float, np.ndarray]]:
    """Label, score and mask of each segment in the graph's outputs for one image."""
    rows, columns = slice(shown.scaled_height), slice(shown.scaled_width)
    if kind == "instance":
        labels, scores, _, masks = (value[0] for value in found)
        return [(label, score, mask[rows, columns]) for label, score, mask in zip(labels, scores, masks, strict=True)]
    ids = found[0][0][rows, columns]
    if kind == "semantic":
        return [
            (label, min(1, found[1][0][rows, columns][ids == label].mean()), ids == label) for label in np.unique(ids)
        ]
    return [(found[1][0][k], found[2][0][k], ids == k + 1) for k in np.flatnonzero(found[1][0] >= 0)]


def alike(ours: Result, theirs: list[tuple[int, float, np.ndarray]]) -> list[tuple[float, float]]:
    """IoU and difference of scores for each of our segments; 0 and its score where there is none of its class."""
    rows = []
    for segment in ours:
        pairs = [(0.0, segment.score)]
        for label, score, mask in theirs:
            if label == segment.label and (union := (mask | segment.mask).sum()):
                pairs.append(((mask & segment.mask).sum() / union, abs(float(score) - segment.score)))
        rows.append(max(pairs))
    return rows


def inputs_of(images: Sequence[Path], size: tuple[int, int]) -> list[tuple[Tensor, Placement]]:
    """Images as the network takes them; noise where there is none."""
    photos = [load_image(path) for path in images] or [np.array(Image.effect_noise(size[::-1], 90).convert("RGB"))]
    return [FIT_AND_PAD.prepare(photo, size) for photo in photos]


def ours(network: EoMT, task: Task, classes: Classes, one: Tensor, shown: Placement, device: str, bf16: bool) -> Result:
    """Our segments, at the scaled size."""
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=bf16):
        logits = network(one.to(device))[-1].logits()
    scaled = Placement(*shown[2:], *shown[2:])
    prediction = task.predict(Logits(*logits), scaled, network.image_size, classes)
    return Result(prediction._make(x.cpu() if isinstance(x, Tensor) else x for x in prediction), classes)


def main() -> None:
    parser = shared_parser(__doc__)
    parser.add_argument("--ckpt", help="a trained network; default random weights of --size, at --pixels")
    parser.add_argument("--images", help="a file, a folder or a pattern; default noise")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images = find_images(options.images, tempfile.gettempdir())[1] if options.images else []
    if options.ckpt:
        weights = read_weights(options.ckpt)
    else:
        network = our_network(options.size, options.pixels, options.queries)
        classes = Classes.from_categories([{"id": k, "name": str(k)} for k in range(network.num_classes)])
        weights = Weights("", network.state_dict(), network.spec, "instance", classes)
    network = EoMT(**weights.network).eval()
    network.load_state_dict(weights.state)
    task = task_of(weights.kind, weights.config.get("postprocess"))
    inputs = inputs_of(images, network.image_size)
    device = torch.device(options.device)
    network.to(device)

    with tempfile.TemporaryDirectory() as folder:
        graphs: dict[str, tuple[Graph, Graph]] = {}
        formats = ["onnx", *["openvino"] * bool(importlib.util.find_spec("openvino"))]
        calibration = images
        if not images:
            calibration = [Path(folder, "noise.png")]
            Image.fromarray(inputs[0][0][0].permute(1, 2, 0).numpy()).save(calibration[0])
        for format in formats:
            for precision in ("32", "int8"):
                pair = []
                for postprocess in (False, True):
                    out = Path(folder, f"{format}-{precision}-{postprocess}")
                    export(weights, format, out, precision=precision, images=calibration, postprocess=postprocess)
                    make = onnx_graph if format == "onnx" else openvino_graph
                    pair.append(make(out / ("model.onnx" if format == "onnx" else "model.xml"), options.threads))
                graphs[f"{format} {precision}"] = (pair[0], pair[1])
        if device.type == "cuda":
            import onnxruntime

            if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
                paths = [Path(folder, f"onnx-32-{postprocess}", "model.onnx") for postprocess in (False, True)]
                graphs["onnx 32, GPU"] = tuple(onnx_graph(p, options.threads, "CUDAExecutionProvider") for p in paths)
        report(options, weights, network, task, inputs, graphs)


def report(options, weights, network, task, inputs, graphs) -> None:
    device = torch.device(options.device)
    one, shown = inputs[0]
    sizes = torch.tensor([shown[2:]])

    def alone(bf16: bool) -> None:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            network(one.to(device))[-1].logits()

    whole = lambda bf16: ours(network, task, weights.classes, one, shown, device.type, bf16)  # noqa: E731
    sides = {"PyTorch": (lambda: alone(False), lambda: whole(False))}
    if device.type == "cuda":
        sides["PyTorch bf16"] = (lambda: alone(True), lambda: whole(True))
    for name, (logits, every) in graphs.items():
        sides[name] = (lambda logits=logits: logits(one), lambda every=every: every(one, sizes))
    found = [interleaved({n: pair[k] for n, pair in sides.items()}, device, options.rounds) for k in (0, 1)]
    spec = weights.network
    print(f"{weights.kind}, {spec['backbone']}, {spec['image_size']}, {spec['num_queries']} queries, batch 1; ", end="")
    print(f"{options.threads} threads, {device.type}, torch {torch.__version__}; {len(inputs)} images compared")
    print("| | network, ms | ratio | with post-processing, ms | ratio | mean IoU | scores differ by at most |")
    print("|---|---|---|---|---|---|---|")
    for name in sides:
        cells = [f"{1e3 * seconds[name]:.1f} | {seconds['PyTorch'] / seconds[name]:.2f}" for seconds in found]
        if name in graphs:
            rows = []
            for image, place in inputs:
                result = ours(network, task, weights.classes, image, place, device.type, False)
                result = result.above(0.5) if weights.kind == "instance" else result
                output = graphs[name][1](image, torch.tensor([place[2:]]))
                rows += alike(result, segments(weights.kind, output, place))
            overlap, gaps = zip(*rows, strict=True) if rows else ([float("nan")], [float("nan")])
            cells.append(f"{np.mean(overlap):.4f} | {max(gaps):.1e}, of {len(rows)} segments")
        print(f"| {name} | {' | '.join([*cells, *['| '] * (name not in graphs)])} |")


if __name__ == "__main__":
    main()
