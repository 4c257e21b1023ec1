"""Weights of the original implementation, under its keys `network.*`, and its delta files.

A delta file is a DINOv3 network whose backbone is the trained one minus the pretrained one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eomt.errors import InputError
from eomt.weights.checkpoint import description
from eomt.weights.hub import local_path
from eomt.weights.key_maps import Names, block_names, first_block, from_ours, is_gated, to_ours
from eomt.weights.safe_load import EXPORT, Source, read_source
from eomt.weights.spec import Weights

BACKBONE = "network.encoder.backbone."
PROBABILITIES = "network.attn_mask_probs"
# The original stores these beside the weights; in delta files the pixel statistics are even wrong.
_NO_WEIGHTS = re.compile(
    r"^(network\.attn_mask_probs$|network\.encoder\.pixel_(mean|std)$"
    r"|network\.encoder\.backbone\.(patch_embed\.mask_token$|rope_embeddings\.)|criterion\.)"
)
_NAMES: Names = (
    ("queries", "network.q.weight"),
    ("class_head.", "network.class_head."),
    ("mask_head.", "network.mask_head."),
    ("upscale.*.transposed.", "network.upscale.*.conv1."),
    ("upscale.*.depthwise.", "network.upscale.*.conv2."),
    ("upscale.", "network.upscale."),
    ("backbone.vit.", BACKBONE),
)
# The width of a DINOv3 and the pretrained one that the original started from.
_PRETRAINED = {
    width: f"facebook/dinov3-vit{size}16-pretrain-lvd1689m" for width, size in ((384, "s"), (768, "b"), (1024, "l"))
}
_ADDED_BIASES = (".attn.q_bias", ".attn.v_bias")


def is_original(state: Mapping[str, Tensor]) -> bool:
    """True for a state dict of the original, whether absolute or a delta file."""
    return "network.q.weight" in state and any(key.startswith(BACKBONE) for key in state)


def is_delta(state: Mapping[str, Tensor]) -> bool:
    """True for a delta file of the original.

    The original subtracts its whole encoder, with the pixel statistics in it, and stores these in every file: no
    absolute file has a deviation of 0. Where it was taken out of a delta file, this cannot be seen.
    """
    deviation = state.get("network.encoder.pixel_std")
    return deviation is not None and not deviation.any()


def read_original(source: Source) -> Weights:
    """Read the original's weights; what these do not say is in the eomt.json of our own export, or to be chosen."""
    state, probabilities = from_original(source.state), source.state.get(PROBABILITIES)
    known: dict[str, Any] = {"network": {} if probabilities is None else {"num_masked_blocks": len(probabilities)}}
    if EXPORT in source.descriptions:
        known = description(source.descriptions[EXPORT])
        state = _without_added_biases(state, known["network"])
    return Weights("original weights", state, **known, mask_probabilities=probabilities)


def read_delta(source: Source, backbone: str | Path | None) -> Weights:
    """Read a delta file and the pretrained backbone that it is relative to, by default Meta's.

    Raises:
        InputError: if the backbone cannot be had or is of another size.
    """
    name = str(backbone or _PRETRAINED.get(source.state["network.q.weight"].shape[-1], ""))
    if not name:
        raise InputError("delta weights of an unknown DINOv3: give the pretrained one by delta_base=FILE")
    path = local_path(name)
    if not path.exists():
        raise InputError(f"delta_base={name}: no such file or folder")
    weights = read_original(source)
    state = add_backbone(weights.state, read_source(path).state)
    return replace(weights, origin="original delta weights", state=state)


def from_original(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the original's weights to ours.

    Args:
        state: keys `network.*`, with a DINOv2 backbone under timm's names or a DINOv3 backbone under transformers'
            names. The backbone of delta weights is still relative: see `add_backbone`.

    Returns:
        A state dict for `EoMT`, without pixel statistics, mask probabilities and the loss's class weights.

    Raises:
        InputError: if a block of the backbone is incomplete.
    """
    weights = {key: value for key, value in state.items() if not _NO_WEIGHTS.match(key)}
    return to_ours(weights, (*_names_in(weights, BACKBONE, "patch_embed.", "blocks.*."), *_NAMES))


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
    names = _NAMES
    if "dinov3" in network["backbone"]:
        fused = {key.removesuffix("qkv.weight"): value for key, value in state.items() if key.endswith("qkv.weight")}
        zeros = {f"{key}{part}_bias": value.new_zeros(len(value) // 3) for key, value in fused.items() for part in "qv"}
        state = zeros | dict(state)
        backbone = _dinov3_names(BACKBONE, "patch_embed.", "blocks.*.", is_gated(first_block(state)))
        names = (*backbone, *_NAMES)
    class_weights = torch.ones(network["num_classes"] + 1)
    class_weights[-1] = 0.1
    return from_ours(state, names) | {
        PROBABILITIES: torch.zeros(network["num_masked_blocks"]),
        "criterion.empty_weight": class_weights,
    }


def add_backbone(state: Mapping[str, Tensor], backbone_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Make delta weights absolute.

    Args:
        state: delta weights under our names. Weights outside the backbone are absolute already.
        backbone_state: the pretrained DINOv3 that the training started from, under transformers' names
            (the file model.safetensors of `facebook/dinov3-vitl16-pretrain-lvd1689m`) or timm's. Parts that EoMT
            does not have, such as the mask token, are not used. Biases of queries and values that it lacks
            are 0, as they are in timm's files without `qkvb`.

    Raises:
        InputError: if the two do not fit each other.
    """
    delta = {key: value for key, value in state.items() if key.startswith("backbone.")}
    base = {key: torch.zeros_like(value) for key, value in delta.items() if key.endswith(_ADDED_BIASES)}
    encoder = "model.layer.*." if any(key.startswith("model.layer.") for key in backbone_state) else "layer.*."
    # The norm, and all names of timm's, are ours within the backbone.
    names = (*_names_in(backbone_state, "", "embeddings.", encoder), ("backbone.vit.", ""))
    base |= to_ours(backbone_state, names)
    for name in (*delta, *(name for name in base if name.startswith("backbone.vit.blocks."))):
        there, here = (list(weights[name].shape) if name in weights else "missing" for weights in (base, delta))
        if there != here:
            raise InputError(
                f"the pretrained backbone is not the DINOv3 of the size that the delta weights were trained from: "
                f"{name} is {there} in it and {here} in the delta weights"
            )
    return dict(state) | {name: value + base[name] for name, value in delta.items()}


def _names_in(state: Mapping[str, Tensor], backbone: str, embeddings: str, blocks: str) -> tuple:
    """The rows of a backbone that carries transformers' names; none for timm's."""
    if not any(key.endswith(".attention.o_proj.weight") for key in state):
        return ()
    return _dinov3_names(backbone, embeddings, blocks, any(".mlp.gate_proj." in key for key in state))


def _dinov3_names(backbone: str, embeddings: str, blocks: str, gated: bool) -> tuple:
    return (
        ("backbone.vit.cls_token", f"{backbone}{embeddings}cls_token"),
        ("backbone.vit.reg_token", f"{backbone}{embeddings}register_tokens"),
        ("backbone.vit.patch_embed.proj.", f"{backbone}{embeddings}patch_embeddings."),
        *block_names(backbone + blocks, True, gated),
    )


def _without_added_biases(state: Mapping[str, Tensor], network: Mapping[str, Any]) -> dict[str, Tensor]:
    """Leave out the zeros that `to_original` adds to a DINOv3 backbone without biases of queries and values."""
    if (network.get("backbone_options") or {}).get("qkv_bias", "qkvb" in network["backbone"]):
        return dict(state)
    return {key: value for key, value in state.items() if not key.endswith(_ADDED_BIASES) or value.any()}
