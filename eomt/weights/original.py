"""Weights under the original implementation's keys (`network.*`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from eomt.weights.key_maps import block_to_timm, block_to_transformers, convert_blocks
from eomt.weights.spec import network_of

BACKBONE = "network.encoder.backbone."
# The original stores these beside the weights; in delta files the pixel statistics are even wrong.
_NO_WEIGHTS = re.compile(
    r"^(criterion\.|network\.attn_mask_probs$|network\.encoder\.pixel_(mean|std)$"
    r"|network\.encoder\.backbone\.(patch_embed\.mask_token$|rope_embeddings\.))"
)
# The original's name, ours.
_HEADS = (
    ("network.q.weight", "queries"),
    ("network.class_head.", "class_head."),
    ("network.mask_head.", "mask_head."),
    ("network.upscale.", "upscale."),
)
_UPSCALE = ((".conv1.", ".transposed."), (".conv2.", ".depthwise."))
# DINOv3 backbones carry transformers' names.
_DINOV3 = (
    ("patch_embed.cls_token", "cls_token"),
    ("patch_embed.register_tokens", "reg_token"),
    ("patch_embed.patch_embeddings.", "patch_embed.proj."),
)


def is_original(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the original's keys."""
    return "network.q.weight" in state and any(key.startswith(BACKBONE) for key in state)


def from_original(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the original's weights to ours.

    Args:
        state: the original's state dict, keys `network.*`, with a DINOv2 backbone under timm's names or
            a DINOv3 backbone under transformers' names. Not delta weights: see `delta`.

    Returns:
        a state dict for `EoMT`; what is no weight (pixel statistics, mask probabilities, the loss's
        class weights) is left out.

    Raises:
        InputError: if a block of the backbone is incomplete.
    """
    weights = {key: value for key, value in state.items() if not _NO_WEIGHTS.match(key)}
    weights = convert_blocks(weights, f"{BACKBONE}blocks.", "backbone.vit.blocks.", block_to_timm)
    return {_our_key(key): value for key, value in weights.items()}


def to_original(state: Mapping[str, Tensor], network: Mapping[str, Any]) -> dict[str, Tensor]:
    """Rename our weights to the original's: the inverse of `from_original`.

    The original has two things more: how likely it masks attention in each block (here 0: it computes the
    mask-free network) and the loss's class weights. Pixel mean and deviation are left to its own buffers: it
    loads the file with `strict=False`, as it does in its notebook.

    Args:
        state: of `EoMT`.
        network: its `spec`. DINOv3 backbones get transformers' names, as the original builds them; biases of
            queries and values, which timm's names without `qkvb` lack, are then zeros.
    """
    dinov3 = "dinov3" in network["backbone"]
    weights = convert_blocks(state, "backbone.vit.blocks.", f"{BACKBONE}blocks.", _dinov3_block if dinov3 else dict)
    weights = {_original_key(key, dinov3): value for key, value in weights.items()}
    class_weights = torch.ones(network["num_classes"] + 1)
    class_weights[-1] = 0.1
    return weights | {
        "network.attn_mask_probs": torch.zeros(network["num_masked_blocks"]),
        "criterion.empty_weight": class_weights,
    }


def without_added_biases(state: Mapping[str, Tensor], network: Mapping[str, Any]) -> dict[str, Tensor]:
    """Leave out the zeros that `to_original` adds to a DINOv3 backbone without biases of queries and values.

    Args:
        state: what `from_original` gives.
        network: what it is said to belong to, see `EoMT.spec`.
    """
    if (network.get("backbone_options") or {}).get("qkv_bias", "qkvb" in network["backbone"]):
        return dict(state)
    added = (".attn.q_bias", ".attn.v_bias")
    return {key: value for key, value in state.items() if not key.endswith(added) or value.any()}


def network_of_original(
    state: Mapping[str, Tensor], image_size: tuple[int, int] | None = None, num_heads: int | None = None
) -> dict[str, Any]:
    """Arguments of `EoMT` for the original's weights, see `EoMT.spec`.

    Args:
        state: the original's state dict; delta weights have the same shapes.
        image_size: (height, width) where it is known; otherwise the square that the position embedding is
            of, and 640 for DINOv3, which has none.
        num_heads: where it is known; otherwise that of the published size.

    Returns:
        The blocks that queries pass through are counted by the stored mask probabilities; without these they
        are those of the published size (S and B 3, L 4, g 5).

    Raises:
        InputError: if weights are missing, the position embedding is not that of a square, or the number of heads is
            not known.
    """
    probabilities = state.get("network.attn_mask_probs")
    count = None if probabilities is None else len(probabilities)
    # Shapes alone: renaming copies some weights.
    shapes = {key: value.to("meta") for key, value in state.items() if not key.endswith("k_proj.bias")}
    return network_of(from_original(shapes), count, image_size, num_heads)


def _our_key(key: str) -> str:
    for old, new in _HEADS:
        if key.startswith(old):
            key = new + key.removeprefix(old)
    if key.startswith("upscale."):
        for old, new in _UPSCALE:
            key = key.replace(old, new)
    if key.startswith(BACKBONE):
        key = key.removeprefix(BACKBONE)
        for old, new in _DINOV3:
            if key.startswith(old):
                key = new + key.removeprefix(old)
        key = f"backbone.vit.{key}"
    return key


def _original_key(key: str, dinov3: bool) -> str:
    if key.startswith("upscale."):
        for old, new in _UPSCALE:
            key = key.replace(new, old)
    for old, new in _HEADS:
        if key.startswith(new):
            return old + key.removeprefix(new)
    if key.startswith("backbone.vit."):
        key = key.removeprefix("backbone.vit.")
        for old, new in _DINOV3 if dinov3 else ():
            if key.startswith(new):
                key = old + key.removeprefix(new)
        return BACKBONE + key
    return key


def _dinov3_block(block: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = block_to_transformers(block, dinov3=True)
    for part in "qv":
        weight = renamed[f"attention.{part}_proj.weight"]
        renamed.setdefault(f"attention.{part}_proj.bias", weight.new_zeros(len(weight)))
    return renamed
