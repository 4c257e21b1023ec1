"""Weights as transformers has them: `EomtForUniversalSegmentation` (DINOv2) and `EomtDinov3ForUniversalSegmentation`.

Pure functions on state dicts and on what stands in config.json; transformers itself is not needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from eomt.classes import Classes
from eomt.errors import InputError
from eomt.weights.huggingface_config import (
    DINOV3,
    MODEL_TYPES,
    classes_of,
    config_of,
    network_options,
    preprocessor_of,
)
from eomt.weights.key_maps import block_to_timm, block_to_transformers, convert_blocks
from eomt.weights.spec import network_of

__all__ = ["classes_of", "from_huggingface", "to_huggingface"]

# What its files may hold besides weights.
_NO_WEIGHTS = re.compile(
    r"^(criterion\.|attn_mask_probs$|embeddings\.(mask_token|position_ids)$|rope_embeddings\.|.*\.inv_freq$)"
)
# transformers' name, ours. Upscaling and blocks follow below.
_NAMES = (
    ("query.weight", "queries"),
    ("class_predictor.", "class_head."),
    ("mask_head.fc1.", "mask_head.0."),
    ("mask_head.fc2.", "mask_head.2."),
    ("mask_head.fc3.", "mask_head.4."),
    ("layernorm.", "backbone.vit.norm."),
    ("embeddings.cls_token", "backbone.vit.cls_token"),
    ("embeddings.register_tokens", "backbone.vit.reg_token"),
    ("embeddings.position_embeddings.weight", "backbone.vit.pos_embed"),
)
_PATCHES = {
    "eomt": ("embeddings.patch_embeddings.projection.", "backbone.vit.patch_embed.proj."),
    DINOV3: ("embeddings.patch_embeddings.", "backbone.vit.patch_embed.proj."),
}
_UPSCALE = (("conv1.", "transposed."), ("conv2.", "depthwise."), ("layernorm2d.", "norm."))


def from_huggingface(
    state: Mapping[str, Tensor], config: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Rename transformers' weights to ours.

    Args:
        state: of `model.safetensors`.
        config: of `config.json`. What it leaves out has transformers' defaults.

    Returns:
        A state dict for `EoMT` and its arguments, see `EoMT.spec`. Mask probabilities are left out: the
        network is mask-free, also where the file lacks them and transformers would set them to 1. DINOv3's
        LayerNorm adds 1e-5 to variances, as the original does, also where the config says 1e-6.

    Raises:
        InputError: if the model is of another type, weights are missing or the config has what `EoMT` lacks.
    """
    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        raise InputError(
            f"config.json: model_type={model_type}: the Hugging Face models that can be read are "
            + " and ".join(MODEL_TYPES)
        )
    names = (*_NAMES, _PATCHES[model_type])
    weights = {key: value for key, value in state.items() if not _NO_WEIGHTS.match(key)}
    weights = convert_blocks(weights, "layers.", "backbone.vit.blocks.", block_to_timm)
    weights = convert_blocks(weights, "upscale_block.block.", "upscale.", lambda part: _renamed(part, _UPSCALE))
    weights = _renamed(weights, names)
    if "backbone.vit.pos_embed" in weights:
        weights["backbone.vit.pos_embed"] = weights["backbone.vit.pos_embed"][None]
    options = network_options(config)
    temperature = options.pop("rope_temperature")
    network = network_of(weights, **options)
    if temperature is not None:
        network["backbone_options"]["rope_temperature"] = temperature
    _check_sizes(weights, network)
    return weights, network


def to_huggingface(
    state: Mapping[str, Tensor], network: Mapping[str, Any], classes: Classes | None, kind: str | None
) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """Rename our weights to transformers' and describe the network.

    Args:
        state: of `EoMT`.
        network: its `spec`.
        classes: of the network's outputs; None where they are not known.
        kind: "panoptic", "instance" or "semantic"; None where it is not known.

    Returns:
        What belongs in `model.safetensors`, `config.json` and `preprocessor_config.json`. Mask probabilities
        are 0, so that transformers computes the mask-free network.

    Raises:
        InputError: if transformers has no such network.
    """
    config = config_of(state, network, classes, kind)
    model_type = config["model_type"]
    names = [(ours, theirs) for theirs, ours in (*_NAMES, _PATCHES[model_type])]
    upscale = [(ours, theirs) for theirs, ours in _UPSCALE]
    weights = convert_blocks(
        state, "backbone.vit.blocks.", "layers.", lambda block: block_to_transformers(block, model_type == DINOV3)
    )
    weights = convert_blocks(weights, "upscale.", "upscale_block.block.", lambda part: _renamed(part, upscale))
    weights = _renamed(weights, names)
    if "embeddings.position_embeddings.weight" in weights:
        weights["embeddings.position_embeddings.weight"] = weights["embeddings.position_embeddings.weight"][0]
    class_weights = torch.ones(network["num_classes"] + 1)
    class_weights[-1] = config["no_object_weight"]
    weights["criterion.empty_weight"] = class_weights
    weights["attn_mask_probs"] = torch.zeros(network["num_masked_blocks"])
    return weights, config, preprocessor_of(network["image_size"][0], kind)


def _check_sizes(weights: Mapping[str, Tensor], network: Mapping[str, Any]) -> None:
    """InputError where transformers has a degree of freedom that `EoMT` does not have."""
    registers = weights.get("backbone.vit.reg_token")
    if registers is None or not registers.shape[1]:
        raise InputError("config.json: num_register_tokens=0: EoMT is read with register tokens only")
    patch_size, side = network["patch_size"], network["image_size"][0]
    # From the patch size down to a stride of 4.
    wanted = max(1, patch_size.bit_length() - 3)
    found = sum(key.startswith("upscale.") and key.endswith(".norm.weight") for key in weights)
    if found != wanted:
        raise InputError(f"config.json: num_upscale_blocks={found}: EoMT has {wanted} for patch_size={patch_size}")
    position = weights.get("backbone.vit.pos_embed")
    if position is not None and position.shape[1] != (side // patch_size) ** 2:
        raise InputError(
            f"config.json: image_size={side} with patch_size={patch_size} has {(side // patch_size) ** 2} patches, "
            f"the position embedding {position.shape[1]}: the two files do not belong together"
        )


def _renamed(state: Mapping[str, Tensor], names: Any) -> dict[str, Tensor]:
    renamed = {}
    for key, value in state.items():
        for old, new in names:
            if key.startswith(old):
                key = new + key.removeprefix(old)
                break
        renamed[key] = value
    return renamed
