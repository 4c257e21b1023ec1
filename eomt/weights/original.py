"""Weights of the original implementation, under its keys `network.*`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from eomt.weights.eomt_format import description
from eomt.weights.key_maps import Names, block_to_timm, block_to_transformers, convert_blocks, inverted, renamed
from eomt.weights.safe_load import EXPORT, Source
from eomt.weights.spec import network_of
from eomt.weights.weights import Chosen, Weights

BACKBONE = "network.encoder.backbone."
PROBABILITIES = "network.attn_mask_probs"
# The original stores these beside the weights; in delta files the pixel statistics are even wrong.
_NO_WEIGHTS = re.compile(
    r"^(network\.attn_mask_probs$|network\.encoder\.pixel_(mean|std)$"
    r"|network\.encoder\.backbone\.(patch_embed\.mask_token$|rope_embeddings\.)|criterion\.)"
)
# The original's name, ours.
_NAMES: Names = (
    ("network.q.weight", "queries"),
    ("network.class_head.", "class_head."),
    ("network.mask_head.", "mask_head."),
    (BACKBONE, "backbone.vit."),
)
_UPSCALE: Names = (("conv1.", "transposed."), ("conv2.", "depthwise."))
# DINOv3 backbones carry transformers' names.
_DINOV3: Names = (
    (f"{BACKBONE}patch_embed.cls_token", "backbone.vit.cls_token"),
    (f"{BACKBONE}patch_embed.register_tokens", "backbone.vit.reg_token"),
    (f"{BACKBONE}patch_embed.patch_embeddings.", "backbone.vit.patch_embed.proj."),
)


def read_original(source: Source, chosen: Chosen) -> Weights:
    """Read the original's weights; what these do not say is in the eomt.json of our own export, or chosen."""
    return weights_of(source.state, "original weights", source, chosen)


def weights_of(state: Mapping[str, Tensor], origin: str, source: Source, chosen: Chosen) -> Weights:
    """The weights in a state dict of the original's.

    Args:
        state: absolute weights, keys `network.*`.
        origin: their form, for messages.
        source: the descriptions beside them.
        chosen: completes what the shapes do not tell.
    """
    ours, probabilities = from_original(state), state.get(PROBABILITIES)
    if EXPORT in source.descriptions:
        known = description(source.descriptions[EXPORT])
        ours = _without_added_biases(ours, known["network"])
        return Weights(origin, ours, **known, mask_probabilities=probabilities)
    count = None if probabilities is None else len(probabilities)
    network, guessed = network_of(ours, chosen.network, count, chosen.complete)
    return Weights(origin, ours, network, mask_probabilities=probabilities, guessed=guessed)


def from_original(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the original's weights to ours.

    Args:
        state: keys `network.*`, with a DINOv2 backbone under timm's names or a DINOv3 backbone under transformers'
            names. Not delta weights: see `delta`.

    Returns:
        A state dict for `EoMT`, without pixel statistics, mask probabilities and the loss's class weights.

    Raises:
        InputError: if a block of the backbone is incomplete.
    """
    weights = {key: value for key, value in state.items() if not _NO_WEIGHTS.match(key)}
    weights = convert_blocks(weights, f"{BACKBONE}blocks.", "backbone.vit.blocks.", block_to_timm)
    weights = convert_blocks(weights, "network.upscale.", "upscale.", partial(renamed, names=_UPSCALE))
    return renamed(weights, (*_DINOV3, *_NAMES))


def to_original(state: Mapping[str, Tensor], network: Mapping[str, Any]) -> dict[str, Tensor]:
    """Rename our weights to the original's: the inverse of `from_original`.

    The original has two things more: the probability of masking attention in each block (here 0: it computes the
    mask-free network) and the loss's class weights. Pixel mean and deviation are left to its own buffers: it
    loads the file with `strict=False`, as it does in its notebook.

    Args:
        state: the state dict of an `EoMT`.
        network: its `spec`. DINOv3 backbones get transformers' names, as the original builds them; biases of
            queries and values, which timm's names without `qkvb` lack, are then zeros.
    """
    dinov3 = "dinov3" in network["backbone"]
    weights = convert_blocks(state, "backbone.vit.blocks.", f"{BACKBONE}blocks.", _dinov3_block if dinov3 else dict)
    weights = convert_blocks(weights, "upscale.", "network.upscale.", partial(renamed, names=inverted(_UPSCALE)))
    weights = renamed(weights, inverted((*_DINOV3, *_NAMES) if dinov3 else _NAMES))
    class_weights = torch.ones(network["num_classes"] + 1)
    class_weights[-1] = 0.1
    return weights | {
        PROBABILITIES: torch.zeros(network["num_masked_blocks"]),
        "criterion.empty_weight": class_weights,
    }


def _dinov3_block(block: Mapping[str, Tensor]) -> dict[str, Tensor]:
    result = block_to_transformers(block, dinov3=True)
    for part in "qv":
        weight = result[f"attention.{part}_proj.weight"]
        result.setdefault(f"attention.{part}_proj.bias", weight.new_zeros(len(weight)))
    return result


def _without_added_biases(state: Mapping[str, Tensor], network: Mapping[str, Any]) -> dict[str, Tensor]:
    """Leave out the zeros that `to_original` adds to a DINOv3 backbone without biases of queries and values."""
    if (network.get("backbone_options") or {}).get("qkv_bias", "qkvb" in network["backbone"]):
        return dict(state)
    added = (".attn.q_bias", ".attn.v_bias")
    return {key: value for key, value in state.items() if not key.endswith(added) or value.any()}
