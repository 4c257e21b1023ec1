"""The model card that goes along with exported weights: a README.md as the Hugging Face Hub reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from eomt.weights.huggingface import DINOV2, DINOV3, MODEL_TYPES
from eomt.weights.spec import CompleteWeights, entry

TEMPLATE = Path(__file__).with_name("model_card.md")
DINOV3_LICENCE = "https://ai.meta.com/resources/models-and-libraries/dinov3-license/"

# Beginnings of task names, and the terms of their data.
_DATA_TERMS = {
    "coco": "if these were COCO's images: annotations CC BY 4.0, images under Flickr's terms of use",
    "ade20k": "ADE20K's terms of use: images for non-commercial research and education alone",
    "cityscapes": "Cityscapes' own licence agreement: non-commercial purposes alone",
    "shapes": "drawn by this project, Apache-2.0",
}

_INT8 = "int8 in the blocks' linear layers, float32 elsewhere"


def model_card(
    weights: CompleteWeights,
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    format: str,
    precision: str,
    batch: int | None = None,
    name: str = "",
    postprocess: bool = False,
    compared: Mapping[str, tuple[float, float]] | None = None,
) -> str:
    """Markdown with a YAML head: task, data, metrics, configuration, use and licences.

    Args:
        weights: the exported weights.
        config: the configuration of their training, fit to be shown (see `redact`).
        metrics: contents of a run's `metrics.json`, may be empty.
        format, precision: the form of the export.
        batch: images that an exported graph takes at a time; None for any number.
        name: the name of the exported folder, or of its repository.
        postprocess: whether a graph ends in post-processing.
        compared: scores of PyTorch in float32 and of the graph, by name.
    """
    network, classes, task = weights.network, weights.classes, str(config.get("task_name") or weights.kind)
    height, width = network["image_size"]
    shown = {key: value for key, value in metrics.items() if key not in ("step", "mask_free")}
    licence, words = _licence(network["backbone"], config)
    # Scores of another step, or of tiles or mirrored images, are shown, but are no results of these weights alone.
    own = {key: value for key, value in shown.items() if isinstance(value, int | float)}
    alone = metrics.get("step") == weights.step and not {"tile", "tta", "unpadded"} & metrics.keys()
    own = own if alone and precision != "int8" else {}
    own = {key: after for key, (_, after) in (compared or {}).items()} or own
    data = ModelCardData(
        model_name=(name.rpartition("/")[2] or "eomt") if own else None,
        pipeline_tag="image-segmentation",
        library_name="transformers" if format == "hf" else None,
        tags=["eomt", f"{weights.kind}-segmentation"],
        eval_results=[EvalResult("image-segmentation", task, task, key, value) for key, value in own.items()] or None,
        **licence,
    )
    things, reader = sum(classes.is_thing), entry(config, "data", "train", "_target_")
    kinds = "" if weights.kind == "semantic" else f" ({things} things, {len(classes) - things} stuff)"
    batch_size, rate = entry(config, "data", "global_batch"), entry(config, "optim", "lr")
    training = f"{weights.step} steps" + (
        f" of {_plain(batch_size)} images, learning rate {_plain(rate)}" if config else ""
    )
    facts = {
        "task": _plain(task),
        "segmentation": weights.kind,
        "classes": f"{len(classes)}{kinds}",
        "data": _plain(reader) if reader else "unknown",
        "backbone": f"{network['backbone']}, patch {network['patch_size']}",
        "image size": f"{height} x {width}",
        "queries": f"{network['num_queries']}, in the last {network['num_masked_blocks']} blocks",
        "training": training if config or weights.step else "unknown",
        "weights": {"32": "float32", "16": "float16", "bf16": "bfloat16", "int8": _INT8}[precision],
    }
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        kind=weights.kind,
        facts=facts,
        format=format,
        folder=name,
        transformers_model=MODEL_TYPES[DINOV3 if "dinov3" in network["backbone"] else DINOV2],
        batch="B" if batch is None else batch,
        height=height,
        width=width,
        scores={_plain(key): value if isinstance(value, float) else _plain(value) for key, value in shown.items()},
        compared=compared,
        int8=precision == "int8",
        postprocess=postprocess,
        mask_free=metrics.get("mask_free"),
        scored_step=_plain(metrics.get("step")),
        step=_plain(weights.step),
        weights_licence=words,
        data_terms=next((terms for start, terms in _DATA_TERMS.items() if task.startswith(start)), "see its terms"),
        classes=", ".join(map(_plain, classes.names)),
        config=json.dumps(config, indent=1) if config else None,
    )
    return str(card)


def _licence(backbone: str, config: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The licence of the weights, as the card's metadata and in words.

    It depends on the weights that training started from: a pretrained backbone, unless the configuration says random
    ones; or others, which bring a licence of their own. A resumed run does not say what its first start was.
    """
    source = config.get("weights") or config.get("ckpt")
    random = entry(config, "model", "pretrained") is False
    others = bool(config.get("weights") or (random and config.get("ckpt")))
    if random and not others:
        return {}, "trained from random weights: no licence of pretrained weights applies"
    if "dinov3" in backbone:
        licence = {"license": "other", "license_name": "dinov3-license", "license_link": DINOV3_LICENCE}
        pretrained = f"DINOv3 weights, which are under Meta's [DINOv3 License]({DINOV3_LICENCE}), not Apache-2.0"
    else:
        licence = {} if others else {"license": "apache-2.0"}
        pretrained = "DINOv2 weights, Apache-2.0"
    if not others:
        return licence, f"derived from {pretrained}"
    words = f"training started from other weights ({_plain(source)}), whose licence applies; they may be derived from "
    return licence, words + pretrained


def _plain(text: Any) -> str:
    """A text of a file, such as a class's name, as Markdown that shows it and does nothing: without its end if long."""
    line = " ".join(str(text).split())
    return re.sub(r"[\\`*_\[\]<>|&~$#!]", r"\\\g<0>", line if len(line) <= 80 else f"{line[:77]}...")
