"""Weights as transformers has them: `EomtForUniversalSegmentation` (DINOv2) and `EomtDinov3ForUniversalSegmentation`.

They are state dicts, config.json and preprocessor_config.json; transformers itself is not needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from eomt.classes import Classes
from eomt.errors import InputError
from eomt.model.backbone import Backbone
from eomt.weights.key_maps import Names, block_names, first_block, from_ours, is_gated, to_ours
from eomt.weights.safe_load import CONFIG, PROCESSOR, Source
from eomt.weights.spec import POSITION, Weights, network_of

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
_NAMES: Names = (
    ("queries", "query.weight"),
    ("class_head.", "class_predictor."),
    ("mask_head.0.", "mask_head.fc1."),
    ("mask_head.2.", "mask_head.fc2."),
    ("mask_head.4.", "mask_head.fc3."),
    ("backbone.vit.norm.", "layernorm."),
    ("backbone.vit.cls_token", "embeddings.cls_token"),
    ("backbone.vit.reg_token", "embeddings.register_tokens"),
    (POSITION, "embeddings.position_embeddings.weight"),
    ("upscale.*.transposed.", "upscale_block.block.*.conv1."),
    ("upscale.*.depthwise.", "upscale_block.block.*.conv2."),
    ("upscale.*.norm.", "upscale_block.block.*.layernorm2d."),
)
# Options of a backbone that transformers has, too.
_OPTIONS = {
    *("embed_dim", "depth", "num_heads", "mlp_ratio", "reg_tokens", "num_reg_tokens"),
    *("init_values", "rope_temperature"),
    # Of training alone.
    *("drop_path_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate"),
}
_WAY_OUT = "export the original's format (format=original) or our own instead"


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
    gated = any(".mlp.gate_proj." in key or ".mlp.weights_in." in key for key in weights)
    weights = to_ours(weights, _names(config["model_type"] == DINOV3, gated))
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


def to_huggingface(
    state: Mapping[str, Tensor], network: Mapping[str, Any], classes: Classes | None, kind: str | None
) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """Rename our weights to transformers' and describe the network.

    Args:
        state: the state dict of an `EoMT`.
        network: its `spec`.
        classes: the classes of its outputs; None where they are not known.
        kind: "panoptic", "instance" or "semantic"; None where it is not known.

    Returns:
        The contents of `model.safetensors`, `config.json` and `preprocessor_config.json`. Mask probabilities
        are 0, so that transformers computes the mask-free network.

    Raises:
        InputError: if transformers has no such network.
    """
    config = _config(state, network, classes, kind)
    weights = {key: value[0] if key == POSITION else value for key, value in state.items()}
    weights = from_ours(weights, _names(config["model_type"] == DINOV3, is_gated(first_block(state))))
    class_weights = torch.ones(network["num_classes"] + 1)
    class_weights[-1] = config["no_object_weight"]
    weights["criterion.empty_weight"] = class_weights
    weights["attn_mask_probs"] = torch.zeros(network["num_masked_blocks"])
    return weights, config, _preprocessor(network["image_size"][0], kind)


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


def _names(dinov3: bool, gated: bool) -> tuple:
    patches = "embeddings.patch_embeddings." if dinov3 else "embeddings.patch_embeddings.projection."
    return *_NAMES, ("backbone.vit.patch_embed.proj.", patches), *block_names("layers.*.", dinov3, gated)


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


def _config(
    state: Mapping[str, Tensor], network: Mapping[str, Any], classes: Classes | None, kind: str | None
) -> dict[str, Any]:
    """config.json; kind and classes go into `id2label` and, with ids, colours and things, into a part of our own."""
    height, width = network["image_size"]
    if height != width:
        raise InputError(f"image_size={[height, width]}: transformers' EoMT takes squares only; {_WAY_OUT}")
    block, name, options = first_block(state), network["backbone"], network["backbone_options"]
    dinov3, gated = "dinov3" in name, is_gated(block)
    others = [key for key, value in options.items() if key not in _OPTIONS or value is None]
    if others or not ("reg4_dinov2" in name or (dinov3 and not gated)):
        raise InputError(
            f"model.backbone={name} with {options}: transformers' EoMT has only DINOv2 with registers (reg4_dinov2) "
            f"and DINOv3 without gated MLPs; {_WAY_OUT}"
        )
    with torch.device("meta"):
        backbone = Backbone(name, (height, width), network["patch_size"], options)
    model_type = DINOV3 if dinov3 else DINOV2
    if classes is not None and len(classes) != network["num_classes"]:
        raise InputError(f"the network has {network['num_classes']} classes, the list of classes {len(classes)}")
    names = [f"LABEL_{k}" for k in range(network["num_classes"])] if classes is None else classes.names
    return {
        "architectures": [MODEL_TYPES[model_type]],
        "model_type": model_type,
        "dtype": str(state["queries"].dtype).removeprefix("torch."),
        "hidden_size": backbone.embed_dim,
        "num_hidden_layers": len(backbone.blocks),
        "num_attention_heads": backbone.vit.blocks[0].attn.num_heads,
        "hidden_act": "gelu",
        "layer_norm_eps": backbone.norm.eps,
        "image_size": height,
        "patch_size": network["patch_size"],
        "num_channels": 3,
        "num_register_tokens": backbone.num_prefix_tokens - 1,
        "num_queries": network["num_queries"],
        "num_blocks": network["num_masked_blocks"],
        "num_upscale_blocks": sum(key.startswith("upscale.") and key.endswith(".norm.weight") for key in state),
        "no_object_weight": 0.1,
        "id2label": {str(k): name for k, name in enumerate(names)},
        "label2id": {name: k for k, name in enumerate(names)},
        **(_dinov3_part(backbone, block) if dinov3 else _dinov2_part(backbone, block)),
        OURS: {"kind": kind, "classes": None if classes is None else classes.to_list()},
    }


def _preprocessor(image_size: int, kind: str | None) -> dict[str, Any]:
    """preprocessor_config.json: semantic images are cut into windows along their longer side, others are fitted into
    the square and padded."""
    windows = kind == "semantic"
    return {
        "image_processor_type": "EomtImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": image_size, "longest_edge": None if windows else image_size},
        "resample": 2,
        "do_split_image": windows,
        "do_pad": not windows,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(IMAGENET_DEFAULT_MEAN),
        "image_std": list(IMAGENET_DEFAULT_STD),
        "ignore_index": None,
    }


def _dinov2_part(backbone: Backbone, block: Mapping[str, Tensor]) -> dict[str, Any]:
    dim, gated = backbone.embed_dim, is_gated(block)
    hidden = block["mlp.fc2.weight"].shape[1]
    for ratio in range(1, 17):
        # A gated MLP has two thirds of the width, rounded up to a multiple of 8.
        width = (int(dim * ratio * 2 / 3) + 7) // 8 * 8 if gated else dim * ratio
        if width == hidden:
            return {"mlp_ratio": ratio, "use_swiglu_ffn": gated}
    raise InputError(
        f"backbone of width {dim} with an MLP of width {hidden}: transformers' EoMT takes whole ratios only; {_WAY_OUT}"
    )


def _dinov3_part(backbone: Backbone, block: Mapping[str, Tensor]) -> dict[str, Any]:
    has_bias = "attn.q_bias" in block
    return {
        "intermediate_size": block["mlp.fc1.weight"].shape[0],
        "use_gated_mlp": False,
        "query_bias": has_bias,
        "key_bias": False,
        "value_bias": has_bias,
        "proj_bias": True,
        "mlp_bias": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": backbone.vit.rope.temperature},
        # Augmentations in training, which are off in ours and in the original.
        "pos_embed_shift": None,
        "pos_embed_jitter": None,
        "pos_embed_rescale": None,
    }
