"""Our weights in transformers' form: model.safetensors, config.json and preprocessor_config.json."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import LayerScale
from timm.models import Eva
from torch import Tensor, nn

from eomt.classes import Classes
from eomt.errors import InputError
from eomt.model.backbone import Backbone
from eomt.weights.huggingface import DINOV2, DINOV3, MODEL_TYPES, OURS, UPSCALE, names_of
from eomt.weights.key_maps import block_to_transformers, convert_blocks, inverted, is_gated, renamed

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
    with torch.device("meta"):
        backbone = Backbone(network["backbone"], (height, width), network["patch_size"], network["backbone_options"])
    model_type = _model_type(backbone)
    block = {
        key.removeprefix("backbone.vit.blocks.0."): value
        for key, value in state.items()
        if key.startswith("backbone.vit.blocks.0.")
    }
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
        **(_dinov3_part(backbone, block) if model_type == DINOV3 else _dinov2_part(backbone, block)),
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


def _model_type(backbone: Backbone) -> str:
    """The one of transformers' models that a backbone belongs to; InputError if there is none."""
    vit, block = backbone.vit, backbone.blocks[0]
    dinov3 = isinstance(vit, Eva)
    plain = [
        vit.cls_token is not None and vit.reg_token is not None,
        isinstance(vit.norm_pre, nn.Identity) and isinstance(vit.patch_embed.norm, nn.Identity),
        isinstance(vit.norm, nn.LayerNorm) and vit.norm.eps == block.norm1.eps == block.norm2.eps,
        all(isinstance(norm, nn.Identity) for norm in (block.attn.q_norm, block.attn.k_norm, block.attn.norm)),
    ]
    if dinov3:
        rope = vit.rope
        plain += [
            vit.pos_embed is None and block.gamma_1 is not None,
            type(rope).__name__ == "RotaryEmbeddingDinoV3" and block.attn.rotate_half,
            getattr(rope, "temperature", None) is not None and getattr(rope, "normalize_coords", "") == "separate",
            isinstance(getattr(block.mlp, "act", None), nn.GELU) and hasattr(block.mlp, "fc1"),
        ]
    else:
        plain += [
            vit.pos_embed is not None and vit.no_embed_class,
            isinstance(block.ls1, LayerScale) and block.attn.qkv.bias is not None,
            isinstance(block.mlp.act, nn.GELU | nn.SiLU),
        ]
    if not all(plain):
        raise InputError(
            f"model.backbone={backbone.name}: transformers' EoMT has only DINOv2 with registers (reg4_dinov2) and "
            f"DINOv3 without gated MLPs; {_WAY_OUT}"
        )
    return DINOV3 if dinov3 else DINOV2


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
