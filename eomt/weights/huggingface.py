"""Weights as transformers has them: `EomtForUniversalSegmentation` (DINOv2) and `EomtDinov3ForUniversalSegmentation`.

They are read from state dicts and config.json; transformers itself is not needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from eomt.classes import Classes
from eomt.errors import InputError
from eomt.weights.key_maps import Names, block_to_timm, convert_blocks, renamed
from eomt.weights.safe_load import CONFIG, PROCESSOR, Source
from eomt.weights.spec import POSITION, network_of
from eomt.weights.types import Weights

DINOV2, DINOV3 = "eomt", "eomt_dinov3"
MODEL_TYPES = {DINOV2: "EomtForUniversalSegmentation", DINOV3: "EomtDinov3ForUniversalSegmentation"}

OURS = "eomt"
"""The part of config.json with our kind and classes, which transformers keeps and does not look at."""

THETA = 100.0
"""The base of the rotary embedding in published DINOv3 models."""

# Entries of its files that are no weights.
_NO_WEIGHTS = re.compile(
    r"^(criterion\.|attn_mask_probs$|embeddings\.(mask_token|position_ids)$|rope_embeddings\.|.*\.inv_freq$)"
)
UPSCALE: Names = (("conv1.", "transposed."), ("conv2.", "depthwise."), ("layernorm2d.", "norm."))
"""transformers' name, ours, within an upscaling block."""


def names_of(model_type: str) -> Names:
    """transformers' name, ours, outside the blocks."""
    patches = "projection." if model_type == DINOV2 else ""
    return (
        ("query.weight", "queries"),
        ("class_predictor.", "class_head."),
        ("mask_head.fc1.", "mask_head.0."),
        ("mask_head.fc2.", "mask_head.2."),
        ("mask_head.fc3.", "mask_head.4."),
        ("layernorm.", "backbone.vit.norm."),
        ("embeddings.cls_token", "backbone.vit.cls_token"),
        ("embeddings.register_tokens", "backbone.vit.reg_token"),
        ("embeddings.position_embeddings.weight", "backbone.vit.pos_embed"),
        (f"embeddings.patch_embeddings.{patches}", "backbone.vit.patch_embed.proj."),
    )


def read_huggingface(source: Source) -> Weights:
    """Read a Hugging Face folder."""
    config = source.descriptions[CONFIG]
    state, network = from_huggingface(source.state, config)
    kind, classes = classes_of(config)
    if kind is None and PROCESSOR in source.descriptions:
        windows = source.descriptions[PROCESSOR].get("do_split_image")
        # Images are cut into windows for semantic segmentation alone, which tells ADE20K's two kinds apart.
        if windows is True:
            kind = "semantic"
        elif windows is False and network["num_classes"] == 150:
            kind = "panoptic"
    # Names alone are numbered from 0, as things.
    named = classes is not None and classes.ids == list(range(len(classes))) and all(classes.is_thing)
    guessed = frozenset({"backbone_options", "classes"} if named else {"backbone_options"})
    return Weights("Hugging Face folder", state, network, kind, classes, guessed=guessed)


def from_huggingface(
    state: Mapping[str, Tensor], config: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Rename transformers' weights to ours.

    Args:
        state: the tensors of `model.safetensors`.
        config: the content of `config.json`. Entries that are missing have transformers' defaults.

    Returns:
        A state dict for `EoMT` and its arguments, see `EoMT.spec`. Mask probabilities are left out: the
        network is mask-free, also where the file lacks them and transformers would set them to 1. DINOv3's
        LayerNorm adds 1e-5 to variances, as the original does, also where the config says 1e-6.

    Raises:
        InputError: if the model is of another type, or the config has what `EoMT` lacks.
        KeyError: if weights are missing.
    """
    known = _network_of_config(config)
    weights = {key: value for key, value in state.items() if not _NO_WEIGHTS.match(key)}
    weights = convert_blocks(weights, "layers.", "backbone.vit.blocks.", block_to_timm)
    weights = convert_blocks(weights, "upscale_block.block.", "upscale.", partial(renamed, names=UPSCALE))
    weights = renamed(weights, names_of(config["model_type"]))
    if POSITION in weights:
        weights[POSITION] = weights[POSITION][None]
    network = network_of(weights, known)
    if known["image_size"] != network["image_size"]:
        raise InputError(
            f"config.json: image_size={known['image_size'][0]}, where the position embedding is of "
            f"{network['image_size'][0]} pixels: the two files do not belong together"
        )
    theta = known["backbone_options"]["rope_temperature"]
    if theta != THETA:
        network["backbone_options"]["rope_temperature"] = theta
    return weights, network


def classes_of(config: Mapping[str, Any]) -> tuple[str | None, Classes | None]:
    """Kind of segmentation and classes of a Hugging Face model.

    Args:
        config: the content of `config.json`.

    Returns:
        The kind and classes that our exporter wrote. Without them, or where the labels have been changed since, kind
        None and classes by the labels' names alone: ids are 0, 1, ... and all count as things, since transformers
        does not say. Classes are None where the labels have no names ("LABEL_0").

    Raises:
        InputError: if the kind is no text.
    """
    labels = config.get("id2label") or {}
    names = [str(labels[key]) for key in sorted(labels, key=int)]
    ours = config.get(OURS) or {}
    kind, classes = ours.get("kind"), ours.get("classes")
    if kind is not None and not isinstance(kind, str):
        raise InputError(f"config.json: {OURS}.kind is {kind}, where the name of a kind belongs")
    if classes:
        classes = Classes.from_list(classes)
        if classes.names == names:
            return kind, classes
        kind = None
    if all(name == f"LABEL_{k}" for k, name in enumerate(names)):
        return kind, None
    return kind, Classes.from_categories({"id": k, "name": name} for k, name in enumerate(names))


def _network_of_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `EoMT` that the weights do not show, with `rope_temperature` among the backbone's options.

    Raises:
        InputError: if the config says what `EoMT` cannot be.
    """
    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        raise InputError(f"config.json: model_type={model_type}: what can be read is {' and '.join(MODEL_TYPES)}")
    dinov3 = model_type == DINOV3
    usual = {
        "hidden_act": ("gelu",),
        "layer_norm_eps": (1e-6, 1e-5) if dinov3 else (1e-6,),
        # transformers' has GELU in it where timm's has SiLU.
        "use_gated_mlp": (False,) if dinov3 else (False, True),
    }
    for key, values in usual.items():
        if config.get(key, values[0]) not in values:
            raise InputError(f"config.json: {key}={config[key]}: EoMT has {' or '.join(map(str, values))}")
    size = config.get("image_size", 640)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    if height != width:
        raise InputError(f"config.json: image_size={size}: transformers' EoMT takes squares only")
    rope = config.get("rope_parameters") or {}
    theta = float(rope.get("rope_theta", config.get("rope_theta") or THETA)) if dinov3 else THETA
    heads = int(config.get("num_attention_heads", 16))
    return {
        "image_size": [height] * 2,
        "num_masked_blocks": int(config.get("num_blocks", 4)),
        "backbone_options": {"num_heads": heads, "rope_temperature": theta},
    }
