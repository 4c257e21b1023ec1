"""Run an exported ONNX model with onnxruntime and this project's post-processing; no model code is imported.

python export.py ckpt=RUN/checkpoints/best.ckpt format=onnx out=DIR
python examples/onnx_panoptic.py DIR IMAGE [PICTURE.png]

For models of any kind, panoptic or not, with a batch of any size. Needs: pip install onnxruntime
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from eomt.classes import Classes
from eomt.errors import InputError
from eomt.inference.result import Result
from eomt.model.outputs import Logits
from eomt.photo import load_image
from eomt.tasks import predict_images, task_of


def segment(folder: str | Path, image: str | Path) -> Result:
    """Segment an image file by the model in an exported folder.

    Raises:
        InputError: if the folder holds no ONNX model, or the image cannot be read.
    """
    graph = Path(folder, "model.onnx")
    if not graph.is_file():
        raise InputError(f"{folder} holds no model.onnx: export one by format=onnx")
    about = json.loads(Path(folder, "eomt.json").read_text(encoding="utf-8"))
    classes, size = Classes.from_list(about["classes"]), tuple(about["network"]["image_size"])
    if about["kind"] not in ("semantic", "instance", "panoptic"):
        sys.exit(f"error: kind={about['kind']} would run code of its own, which this example does not")
    task = task_of(about["kind"], about["config"].get("postprocess"))
    providers = onnxruntime.get_available_providers()
    session = onnxruntime.InferenceSession(graph, providers=providers)
    # Semantic models take an image as several square windows, the others as one padded input.
    inputs, placement = task.geometry.prepare(load_image(image), size)
    output = run(session, inputs.numpy())
    (prediction,) = predict_images(task, output, [len(inputs)], [placement], size, classes)
    return Result(prediction, classes, image)


def run(session: onnxruntime.InferenceSession, inputs: np.ndarray) -> Logits:
    """Mask and class logits of inputs uint8 [N, 3, H, W]; a batch of fixed size is filled up with black ones."""
    batch = session.get_inputs()[0].shape[0]
    batch = batch if isinstance(batch, int) else len(inputs)
    parts = []
    for start in range(0, len(inputs), batch):
        part = inputs[start : start + batch]
        padded = np.pad(part, ((0, batch - len(part)), (0, 0), (0, 0), (0, 0)))
        parts.append([logits[: len(part)] for logits in session.run(None, {"images": padded})])
    return Logits(*(torch.from_numpy(np.concatenate(logits)) for logits in zip(*parts, strict=True)))


def main(folder: str, image: str, picture: str = "segments.png") -> None:
    result = segment(folder, image)
    for name, score, area in zip(result.names, result.scores, result.areas, strict=True):
        print(f"{name}: {score:.2f}, {area} pixels")
    result.picture().save(picture)
    print(f"{result}; painted to {picture}")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(
            "error: give an exported folder and an image: python examples/onnx_panoptic.py DIR IMAGE [PICTURE.png]"
        )
    try:
        main(*sys.argv[1:])
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
