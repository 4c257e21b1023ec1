"""Tables of weights' names, ours and others', by which a state dict is renamed both ways.

The original's DINOv3 files, the pretrained DINOv3 models and the Hugging Face port of EoMT all carry
transformers' names for a block; timm's, which are ours, hold queries, keys and values in one matrix.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from eomt.errors import InputError

Names = Sequence[tuple[str, ...]]
"""Rows of a name of ours and others' names for it: beginnings of keys, in which * stands for a block's number.

Where a row has several others, ours is these one below the other. The first row that fits a key is taken.
"""

BLOCKS = "backbone.vit.blocks.*."

_FUSED = tuple(f"attention.{part}_proj.weight" for part in "qkv")
_DINOV2: Names = (
    ("attn.qkv.weight", *_FUSED),
    ("attn.qkv.bias", *(f"attention.{part}_proj.bias" for part in "qkv")),
    ("attn.proj.", "attention.out_proj."),
    ("ls1.gamma", "layer_scale1.lambda1"),
    ("ls2.gamma", "layer_scale2.lambda1"),
)
# As transformers 5 has them, and as it had them before.
_DINOV2_GATED: Names = (
    ("mlp.fc1.", "mlp.gate_proj.", "mlp.up_proj."),
    ("mlp.fc2.", "mlp.down_proj."),
    ("mlp.fc1.", "mlp.weights_in."),
    ("mlp.fc2.", "mlp.weights_out."),
)
_DINOV3: Names = (
    ("attn.qkv.weight", *_FUSED),
    *((f"attn.{part}_bias", f"attention.{part}_proj.bias") for part in "qkv"),
    ("attn.proj.", "attention.o_proj."),
    ("gamma_1", "layer_scale1.lambda1"),
    ("gamma_2", "layer_scale2.lambda1"),
)
_DINOV3_PLAIN: Names = (("mlp.fc1.", "mlp.up_proj."), ("mlp.fc2.", "mlp.down_proj."))
_DINOV3_GATED: Names = (
    ("mlp.fc1_g.", "mlp.gate_proj."),
    ("mlp.fc1_x.", "mlp.up_proj."),
    ("mlp.fc2.", "mlp.down_proj."),
)


def block_names(blocks: str, dinov3: bool, gated: bool) -> Names:
    """The rows of a backbone's blocks under transformers' names.

    Args:
        blocks: the other's beginning of a block's keys, such as "layers.*.".
        dinov3: whether the backbone is timm's `Eva`, otherwise its `VisionTransformer`.
        gated: whether its MLPs are gated.
    """
    if dinov3:
        names = (*_DINOV3, *(_DINOV3_GATED if gated else _DINOV3_PLAIN))
    else:
        names = (*_DINOV2, *(_DINOV2_GATED if gated else ()))
    # Norms, and the MLP of a DINOv2, are called the same.
    return [(BLOCKS + ours, *(blocks + other for other in others)) for ours, *others in (*names, ("", ""))]


def to_ours(state: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Rename another's weights to ours; keys that no row fits stay as they are.

    Raises:
        InputError: if one of several weights that make up one of ours is missing, or a DINOv3 has a bias for keys.
    """
    parts: dict[str, dict[str, Any]] = {}
    for key, value in state.items():
        ours, *others = _row_of(key, names, slice(1, None))
        parts.setdefault(ours, dict.fromkeys(others))[key] = value
    for found in parts.values():
        for key, value in found.items():
            if value is None:
                raise InputError(f"it lacks {key}: the file is incomplete or of another model")
    result = {key: _joined([*found.values()]) for key, found in parts.items()}
    for key in [key for key in result if key.endswith(".attn.k_bias")]:
        if result.pop(key).any():
            raise InputError(f"the bias of keys {key} is not zero: timm's DINOv3 has none")
    return result


def from_ours(state: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Rename our weights to another's: the inverse of `to_ours`."""
    result = {}
    for key, value in state.items():
        _, *others = _row_of(key, names, slice(1))
        result |= zip(others, value.chunk(len(others)) if len(others) > 1 else [value], strict=True)
    return result


def first_block(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's first block: names inside it and weights, under timm's names."""
    prefix = BLOCKS.replace("*", "0")
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def is_gated(block: Mapping[str, Tensor]) -> bool:
    """True for a block under timm's names with a gated MLP, whose first matrix is twice as wide as its second."""
    if "mlp.fc1_g.weight" in block:
        return True
    for name in ("mlp.fc1.weight", "mlp.fc2.weight"):
        if name not in block:
            raise InputError(f"a block of the backbone lacks {name}: the file is incomplete or of another model")
    return block["mlp.fc1.weight"].shape[0] == 2 * block["mlp.fc2.weight"].shape[1]


def _row_of(key: str, names: Names, columns: slice) -> list[str]:
    """The first row with the beginning of a key in one of its columns, all names completed as the key is."""
    for row in names:
        for name in row[columns]:
            match = _pattern(name).match(key)
            if match:
                return [name.replace("*", "".join(match.groups())) + key[match.end() :] for name in row]
    return [key, key]


def _joined(values: list[Tensor]) -> Tensor:
    # A copy of one alone would leave its file.
    return torch.cat(values) if len(values) > 1 else values[0]


@functools.cache
def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\*", r"(\d+)"))
