"""The model card that goes along with exported weights: a README.md as the Hugging Face Hub reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from eomt.weights.weights import Weights

DINOV3_LICENCE = "https://ai.meta.com/resources/models-and-libraries/dinov3-license/"

# What the names of tasks begin with, and the terms of their data.
_DATA_TERMS = {
    "coco": "if these were COCO's images: annotations CC BY 4.0, images under Flickr's terms of use",
    "ade20k": "ADE20K's terms of use: images for non-commercial research and education alone",
    "cityscapes": "Cityscapes' own licence agreement: non-commercial purposes alone",
    "shapes": "drawn by this project, Apache-2.0",
}
_USE = {
    "eomt": """```python
from eomt import Segmenter

answer = Segmenter.load("{folder}")("image.jpg")
```""",
    "original": """`pytorch_model.bin` holds the weights under the keys of the original implementation, which loads
them with `strict=False`: pixel means and deviations are left to its own buffers. So does
`python predict.py ckpt={folder}` here, where `eomt.json` says what the weights do not.""",
    "hf": """```python
from transformers import AutoImageProcessor, {model}

processor = AutoImageProcessor.from_pretrained("{folder}")
model = {model}.from_pretrained("{folder}")
outputs = model(**processor(images=image, return_tensors="pt"))
```

Then `processor.post_process_{kind}_segmentation(outputs, target_sizes=[(height, width)])`. The model is mask-free.""",
    "onnx": """`model.onnx` takes `images`, uint8 [{batch}, 3, {height}, {width}], padded with zeros, and gives
`mask_logits` [B, Q, h, w] and `class_logits` [B, Q, C + 1], float32. onnxruntime runs it in
`python examples/onnx_panoptic.py {folder} image.jpg`.""",
    "torch_export": """`torch.export.load("model.pt2").module()` takes uint8 [{batch}, 3, {height}, {width}], padded
with zeros, and gives mask logits [B, Q, h, w] and class logits [B, Q, C + 1], float32.""",
}


def model_card(
    weights: Weights,
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    format: str,
    precision: str,
    batch: int | None = None,
    name: str = "",
) -> str:
    """Markdown with a YAML head: task, data, metrics, configuration, use and licences.

    Args:
        weights: what is exported.
        config: of its training, fit to be shown (see `portable_config`).
        metrics: contents of a run's `metrics.json`, may be empty.
        format, precision: of the export.
        batch: images that an exported graph takes at a time; None for any number.
        name: of the exported folder.
    """
    height, width = weights.network["image_size"]
    values = {
        "folder": name,
        "kind": weights.kind if weights.kind in ("semantic", "instance", "panoptic") else "panoptic",
        "model": "EomtDinov3ForUniversalSegmentation" if _is_dinov3(weights) else "EomtForUniversalSegmentation",
        "batch": "B" if batch is None else batch,
        "height": height,
        "width": width,
    }
    parts = [
        _head(weights, config, format),
        f"# EoMT: {weights.kind or 'image'} segmentation\n\nAn Encoder-only Mask Transformer ([paper]"
        "(https://arxiv.org/abs/2503.19108)), a plain ViT that segments.",
        _facts(weights, config, precision),
        f"## Use\n\n{_USE[format].format(**values)}",
        f"## Metrics\n\n{_metrics(metrics, weights.step)}",
        f"## Licences\n\n{_licences(weights, config)}",
    ]
    if weights.classes is not None:
        parts.append("## Classes\n\n" + ", ".join(weights.classes.names))
    if config:
        parts.append(f"## Configuration\n\n```json\n{json.dumps(config, indent=1)}\n```")
    return "\n\n".join(parts) + "\n"


def _is_dinov3(weights: Weights) -> bool:
    return "dinov3" in weights.network["backbone"]


def _beginning(config: Mapping[str, Any]) -> str:
    """What training began with: "random" or "pretrained" weights, or "others", which bring a licence of their own.

    Where the source does not say, it was a pretrained backbone. Of a run that went on from a checkpoint it is not
    known what that began with.
    """
    random = (config.get("model") or {}).get("pretrained") is False
    if config.get("weights") or (random and config.get("ckpt")):
        return "others"
    return "random" if random else "pretrained"


def _head(weights: Weights, config: Mapping[str, Any], format: str) -> str:
    lines = ["pipeline_tag: image-segmentation"]
    if format == "hf":
        lines.append("library_name: transformers")
    beginning = _beginning(config)
    if _is_dinov3(weights) and beginning != "random":
        lines += ["license: other", "license_name: dinov3-license", f"license_link: {DINOV3_LICENCE}"]
    elif beginning == "pretrained":
        lines.append("license: apache-2.0")
    tags = ["eomt", *([f"{weights.kind}-segmentation"] if weights.kind else [])]
    return "\n".join(["---", *lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def _facts(weights: Weights, config: Mapping[str, Any], precision: str) -> str:
    network = weights.network
    height, width = network["image_size"]
    count = "unknown" if weights.classes is None else f"{len(weights.classes)}"
    if weights.classes is not None and weights.kind != "semantic":
        things = sum(weights.classes.is_thing)
        count += f" ({things} things, {len(weights.classes) - things} stuff)"
    rows = {
        "task": config.get("task_name") or weights.kind or "unknown",
        "segmentation": weights.kind or "unknown",
        "classes": count,
        "data": _data(config),
        "backbone": f"{network['backbone']}, patch {network['patch_size']}",
        "image size": f"{height} x {width}",
        "queries": f"{network['num_queries']}, in the last {network['num_masked_blocks']} blocks",
        "training": _training(weights, config),
        "weights": {"32": "float32", "16": "float16", "bf16": "bfloat16"}[precision],
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _data(config: Mapping[str, Any]) -> str:
    reader = config.get("data", {}).get("train", {}).get("_target_")
    return f"`{reader}`" if reader else "unknown"


def _training(weights: Weights, config: Mapping[str, Any]) -> str:
    if not config:
        return f"{weights.step} steps" if weights.step else "unknown"
    lr = config.get("optim", {}).get("lr")
    batch = config.get("data", {}).get("global_batch")
    return f"{weights.step} steps of {batch} images, learning rate {lr}"


def _metrics(metrics: Mapping[str, Any], step: int) -> str:
    if not metrics:
        return "None are recorded."
    scores = {name: value for name, value in metrics.items() if name not in ("step", "mask_free")}
    rows = [f"| {name} | {f'{score:.2f}' if isinstance(score, float) else score} |" for name, score in scores.items()]
    words = "On the validation set, in percent"
    words += ", without attention masks, as it is deployed" if metrics.get("mask_free") else ", under attention masks"
    if metrics.get("step") != step:
        words += f". **They belong to step {metrics.get('step')} of the run; these weights are of step {step}**"
    return "\n".join([f"{words}.", "", "| | |", "|---|---|", *rows])


def _licences(weights: Weights, config: Mapping[str, Any]) -> str:
    beginning = _beginning(config)
    if _is_dinov3(weights):
        backbone = f"DINOv3 weights, which are under Meta's [DINOv3 License]({DINOV3_LICENCE}), not Apache-2.0"
    else:
        backbone = "DINOv2 weights, Apache-2.0"
    if beginning == "random":
        origin = "trained from random weights: no licence of pretrained weights applies"
    elif beginning == "others":
        source = config.get("weights") or config.get("ckpt")
        origin = f"training began with other weights (`{source}`), whose licence applies; they may be derived from "
        origin += backbone
    else:
        origin = f"derived from {backbone}"
    name = str(config.get("task_name") or "")
    terms = next((text for begin, text in _DATA_TERMS.items() if name.startswith(begin)), "see the terms of its data")
    return f"- Code: Apache-2.0.\n- Weights: {origin}.\n- Data: {terms}."
