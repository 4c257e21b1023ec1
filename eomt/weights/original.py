"""Weights under the original implementation's keys (`network.*`)."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

# The original stores these beside the weights; in delta files the pixel statistics are even wrong.
_NO_WEIGHTS = re.compile(r"^(criterion\.|network\.attn_mask_probs$|network\.encoder\.pixel_(mean|std)$)")

_RENAMED = (
    (r"^network\.q\.weight$", "queries"),
    (r"^network\.upscale\.(\d+)\.conv1\.", r"upscale.\1.transposed."),
    (r"^network\.upscale\.(\d+)\.conv2\.", r"upscale.\1.depthwise."),
    (r"^network\.encoder\.backbone\.", "backbone.vit."),
    (r"^network\.", ""),
    # DINOv3 backbones carry transformers' names.
    (r"\.patch_embed\.cls_token$", ".cls_token"),
    (r"\.patch_embed\.register_tokens$", ".reg_token"),
    (r"\.patch_embed\.patch_embeddings\.", ".patch_embed.proj."),
    (r"\.layer_scale(\d)\.lambda1$", r".gamma_\1"),
    (r"\.mlp\.up_proj\.", ".mlp.fc1."),
    (r"\.mlp\.down_proj\.", ".mlp.fc2."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
)


def from_original(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the original's weights to ours.

    Args:
        state: the original's state dict, keys `network.*`, with a DINOv2 backbone under timm's names or
            a DINOv3 backbone under transformers' names. Not delta weights.

    Returns:
        a state dict for `EoMT`; what is no weight (pixel statistics, mask probabilities, the loss's
        class weights) is left out.
    """
    renamed = {}
    for key, value in state.items():
        if _NO_WEIGHTS.match(key):
            continue
        for pattern, replacement in _RENAMED:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    return _fuse_qkv(renamed)


def _fuse_qkv(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join transformers' three projections to timm's one; the key has no bias."""
    fused = dict(state)
    for key in state:
        if not key.endswith(".attention.q_proj.weight"):
            continue
        block = key.removesuffix(".attention.q_proj.weight")
        parts = [fused.pop(f"{block}.attention.{part}_proj.weight") for part in "qkv"]
        fused[f"{block}.attn.qkv.weight"] = torch.cat(parts)
        for part in "qv":
            fused[f"{block}.attn.{part}_bias"] = fused.pop(f"{block}.attention.{part}_proj.bias")
    return fused
