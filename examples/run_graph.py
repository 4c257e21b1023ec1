"""Segment an image by an exported graph, by onnxruntime or OpenVINO; nothing of this project is imported.

python export.py ckpt=RUN postprocess=true format=onnx out=DIR        or openvino
python examples/run_graph.py DIR IMAGE [PICTURE.png]

Needs numpy, Pillow, and onnxruntime or openvino.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


def load(folder: Path) -> tuple[Callable[..., dict[str, np.ndarray]], int | None, list[str]]:
    """The graph as a function from its inputs to its outputs by name, the batch that it takes, None for any, and the
    outputs' names."""
    if (folder / "model.xml").is_file():
        import openvino

        # Without the hint some CPUs take bfloat16: faster, and scores change in the third digit.
        model = openvino.Core().compile_model(folder / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        batch = model.inputs[0].partial_shape[0]
        outputs = [output.get_any_name() for output in model.outputs]
        run = lambda *inputs: dict(zip(outputs, model(inputs).to_tuple(), strict=True))  # noqa: E731
        return run, None if batch.is_dynamic else batch.get_length(), outputs
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if hasattr(onnxruntime, "preload_dlls"):  # pip's libraries of CUDA, from version 1.21 on
        onnxruntime.preload_dlls()
    # TensorRT's would build an engine at each start.
    providers = [name for name in available if name != "TensorrtExecutionProvider"]
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=providers)
    names = [value.name for value in session.get_inputs()]
    outputs = [value.name for value in session.get_outputs()]
    batch = session.get_inputs()[0].shape[0]
    run = lambda *inputs: dict(zip(outputs, session.run(None, dict(zip(names, inputs, strict=True))), strict=True))  # noqa: E731
    return run, batch if isinstance(batch, int) else None, outputs


def segment(folder: Path, photo: Image.Image) -> list[tuple[str, float, np.ndarray]]:
    """The segments of an image: name, score, and mask, bool at the image's size."""
    about = json.loads((folder / "eomt.json").read_text(encoding="utf-8"))
    names, size = [c["name"] for c in about["classes"]], about["network"]["image_size"]
    run, batch, outputs = load(folder)
    if not {"map", "masks"} & {*outputs}:
        raise ValueError("the graph ends in logits: export it again with postprocess=true")
    windows = about["kind"] == "semantic"
    # Semantic models see square windows that cover the image, the others all of it, and zeros beside it.
    factor = (max if windows else min)(size[0] / photo.height, size[1] / photo.width)
    height, width = (max(1, round(side * factor)) for side in (photo.height, photo.width))
    scaled = np.array(photo.resize((width, height), Image.Resampling.BILINEAR))

    def see(top: int, left: int) -> dict[str, np.ndarray]:
        part = scaled[top : top + size[0], left : left + size[1]]
        padded = np.zeros((batch or 1, 3, *size), np.uint8)
        padded[0, :, : part.shape[0], : part.shape[1]] = part.transpose(2, 0, 1)
        shown = [] if windows else [np.array([part.shape[:2]] * len(padded), np.int64)]
        return {name: value[0] for name, value in run(padded, *shown).items()}

    def at_full_size(values: np.ndarray) -> np.ndarray:
        return np.array(Image.fromarray(values[:height, :width]).resize(photo.size, Image.Resampling.NEAREST))

    if not windows:
        found = see(0, 0)
        if "masks" in found:
            numbers = np.flatnonzero(found["scores"] >= 0.5)
            masks = [at_full_size(found["masks"][k]) for k in numbers]
        else:
            ids, numbers = at_full_size(found["map"]), np.flatnonzero(found["labels"] >= 0)
            masks = [ids == k + 1 for k in numbers]
        labels, scores = found["labels"][numbers], found["scores"][numbers]
        return [(names[k], float(score), mask) for k, score, mask in zip(labels, scores, masks, strict=True)]

    best, labels = np.full((height, width), -1.0, np.float32), np.zeros((height, width), np.int32)
    for top in starts(height, size[0]):
        for left in starts(width, size[1]):
            found, place = see(top, left), (slice(top, top + size[0]), slice(left, left + size[1]))
            better = found["scores"] > best[place]
            best[place] = np.where(better, found["scores"], best[place])
            labels[place] = np.where(better, found["map"], labels[place])
    classes, best = at_full_size(labels), at_full_size(best)
    return [(names[k], min(1.0, float(best[classes == k].mean())), classes == k) for k in np.unique(classes)]


def rgb(photo: Image.Image) -> Image.Image:
    """An upright RGB image: 16-bit values scaled, those of floating point from 0..1, transparency on white."""
    photo = ImageOps.exif_transpose(photo)
    if photo.mode.startswith("I") or photo.mode == "F":
        # Pillow's own conversion would clip all that is above 255 to white.
        values = np.asarray(photo)
        top, slack = (1, 0.01) if photo.mode == "F" else (65535, 0)
        if not (values.min() >= -slack and values.max() <= top + slack):
            raise ValueError(f"its values go from {values.min()} to {values.max()}, not within 0..{top}")
        photo = Image.fromarray(np.rint(values.clip(0, top) * (255 / top)).astype(np.uint8))
    if photo.has_transparency_data:
        photo = photo.convert("RGBA")
        photo = Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo)
    return photo.convert("RGB")


def starts(length: int, size: int) -> list[int]:
    """The starts of windows that cover a side evenly."""
    count = -(-length // size)
    return [k * (length - size) // max(count - 1, 1) for k in range(count)]


def main(folder: str, image: str, picture: str = "segments.png") -> None:
    photo = rgb(Image.open(image))
    painted = np.array(photo)
    for number, (name, score, mask) in enumerate(segment(Path(folder), photo)):
        print(f"{name}: {score:.2f}, {mask.sum()} pixels")
        painted[mask] = painted[mask] // 2 + np.random.default_rng(number).integers(0, 128, 3, dtype=np.uint8)
    Image.fromarray(painted).save(picture)
    print(f"painted to {picture}")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit("error: give an exported folder and an image: python examples/run_graph.py DIR IMAGE [PICTURE.png]")
    try:
        main(*sys.argv[1:])
    except Exception as error:  # runtimes raise nearly anything on a file that is missing or damaged
        sys.exit(f"error: {error}: give a folder that export.py has made, and an image")
