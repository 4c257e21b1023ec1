"""config.json and preprocessor_config.json of transformers' EoMT: the network's sizes, its classes, its way in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import LayerScale
from timm.models import Eva
from torch import Tensor, nn

from eomt.classes import Classes
from eomt.errors import InputError
from eomt.model.backbone import Backbone
from eomt.weights.key_maps import is_gated

DINOV2, DINOV3 = "eomt", "eomt_dinov3"
MODEL_TYPES = {DINOV2: "EomtForUniversalSegmentation", DINOV3: "EomtDinov3ForUniversalSegmentation"}
# Our part of config.json, which transformers keeps and does not look at.
_OURS = "eomt"
_WAY_OUT = "export the original's format (format=original) or our own instead"
_THETA = 100.0


def network_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says that the weights do not show.

    Args:
        config: of `config.json`, its model type one of `MODEL_TYPES`; defaults are transformers'.

    Returns:
        num_heads, num_masked_blocks, image_size (height, width) and rope_temperature, which is None for DINOv3's
        own and for DINOv2.

    Raises:
        InputError: if the config says what `EoMT` cannot be.
    """
    dinov3 = config["model_type"] == DINOV3
    for key, plain in {"hidden_act": ("gelu",), "layer_norm_eps": (1e-6, 1e-5) if dinov3 else (1e-6,)}.items():
        if config.get(key, plain[0]) not in plain:
            raise InputError(f"config.json: {key}={config[key]}: EoMT has {' or '.join(map(str, plain))}")
    if dinov3 and config.get("use_gated_mlp"):
        raise InputError("config.json: use_gated_mlp=true: transformers' EoMT has GELU in it where timm has SiLU")
    sizes = config.get("image_size", 640), config.get("patch_size", 16)
    sizes = [tuple(size) if isinstance(size, list | tuple) else (size, size) for size in sizes]
    for key, size in zip(("image_size", "patch_size"), sizes, strict=True):
        if len(size) != 2 or size[0] != size[1]:
            raise InputError(f"config.json: {key}={list(size)}: transformers' EoMT takes squares only")
    rope = config.get("rope_parameters") or {}
    theta = float(rope.get("rope_theta", config.get("rope_theta") or _THETA)) if dinov3 else _THETA
    return {
        "num_heads": int(config.get("num_attention_heads", 16)),
        "num_masked_blocks": int(config.get("num_blocks", 4)),
        "image_size": sizes[0],
        "rope_temperature": None if theta == _THETA else theta,
    }


def config_of(
    state: Mapping[str, Tensor], network: Mapping[str, Any], classes: Classes | None, kind: str | None
) -> dict[str, Any]:
    """config.json for a network of ours.

    Args:
        state: of `EoMT`; only shapes are looked at.
        network: its `spec`.
        classes, kind: as of `huggingface.to_huggingface`. They go into `id2label` and, with the datasets' ids,
            colours and things, into a part of our own.

    Raises:
        InputError: if transformers has no such network.
    """
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
        _OURS: {"kind": kind, "classes": None if classes is None else classes.to_list()},
    }


def preprocessor_of(image_size: int, kind: str | None) -> dict[str, Any]:
    """preprocessor_config.json for the geometry of a kind: semantic images are cut into windows along their longer
    side, others are fitted into the square and padded."""
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


def classes_of(config: Mapping[str, Any]) -> tuple[str | None, Classes | None]:
    """Kind of segmentation and classes of a Hugging Face model.

    Args:
        config: of `config.json`.

    Returns:
        What our exporter wrote; without it, or where the labels have been changed since, kind None and
        classes by the labels' names alone: their ids are 0, 1, ... and all count as things, since transformers
        does not say. Classes are None where the labels have no names ("LABEL_0").

    Raises:
        InputError: if the kind is no text.
    """
    labels = config.get("id2label") or {}
    names = [str(labels[key]) for key in sorted(labels, key=int)]
    ours = config.get(_OURS)
    ours = ours if isinstance(ours, Mapping) else {}
    kind = ours.get("kind")
    if kind is not None and not isinstance(kind, str):
        raise InputError(f"config.json: {_OURS}.kind is {str(kind)[:80]}, where the name of a kind belongs")
    if ours.get("classes"):
        classes = Classes.from_list(ours["classes"])
        if classes.names == names:
            return kind, classes
        kind = None
    if not names or all(name == f"LABEL_{k}" for k, name in enumerate(names)):
        return kind, None
    return kind, Classes.from_categories({"id": k, "name": name} for k, name in enumerate(names))


def _model_type(backbone: Backbone) -> str:
    """Which of transformers' classes a backbone is; InputError if none."""
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
        # Augmentations of training, which are off in ours and in the original.
        "pos_embed_shift": None,
        "pos_embed_jitter": None,
        "pos_embed_rescale": None,
    }
