"""Our weights in transformers' form: model.safetensors, config.json and preprocessor_config.json."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from eomt.classes import Classes
from eomt.errors import InputError
from eomt.model.backbone import Backbone
from eomt.weights.huggingface import DINOV2, DINOV3, MODEL_TYPES, OURS, UPSCALE, names_of
from eomt.weights.key_maps import block_to_transformers, convert_blocks, first_block, inverted, is_gated, renamed

# Options of a backbone that transformers has, too.
_OPTIONS = {
    *("embed_dim", "depth", "num_heads", "mlp_ratio", "reg_tokens", "num_reg_tokens"),
    *("init_values", "rope_temperature"),
    # Of training alone.
    *("drop_path_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate"),
}
_WAY_OUT = "export the original's format (format=original) or our own instead"


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
    dinov3 = config["model_type"] == DINOV3
    weights = convert_blocks(state, "backbone.vit.blocks.", "layers.", partial(block_to_transformers, dinov3=dinov3))
    upscale = partial(renamed, names=inverted(UPSCALE))
    weights = convert_blocks(weights, "upscale.", "upscale_block.block.", upscale)
    weights = renamed(weights, inverted(names_of(config["model_type"])))
    if "embeddings.position_embeddings.weight" in weights:
        weights["embeddings.position_embeddings.weight"] = weights["embeddings.position_embeddings.weight"][0]
    class_weights = torch.ones(network["num_classes"] + 1)
    class_weights[-1] = config["no_object_weight"]
    weights["criterion.empty_weight"] = class_weights
    weights["attn_mask_probs"] = torch.zeros(network["num_masked_blocks"])
    return weights, config, _preprocessor(network["image_size"][0], kind)


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
        "num_attention_heads": backbone.blocks[0].attn.num_heads,
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
