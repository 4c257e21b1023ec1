"""Renaming weights by prefix, and a backbone's blocks between timm's names and transformers' names.

The original's DINOv3 files, the pretrained DINOv3 models and the Hugging Face port of EoMT all carry
transformers' names for a block; timm's, which are ours, hold queries, keys and values in one matrix.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from eomt.errors import InputError

Names = Sequence[tuple[str, str]]
"""Pairs of an old prefix and the new one; the first that fits a key is taken."""

# transformers' name, timm's name. Norms are called the same.
_DINOV2 = (
    ("attention.out_proj.", "attn.proj."),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
)
_DINOV3 = (
    ("attention.o_proj.", "attn.proj."),
    ("layer_scale1.lambda1", "gamma_1"),
    ("layer_scale2.lambda1", "gamma_2"),
)
_DINOV3_MLP = (("mlp.up_proj.", "mlp.fc1."), ("mlp.down_proj.", "mlp.fc2."))
_DINOV3_GATED_MLP = (
    ("mlp.gate_proj.", "mlp.fc1_g."),
    ("mlp.up_proj.", "mlp.fc1_x."),
    ("mlp.down_proj.", "mlp.fc2."),
)


def renamed(state: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Replace the prefix of every key that has one of these; other keys stay as they are."""
    result = {}
    for key, value in state.items():
        old, new = next((pair for pair in names if key.startswith(pair[0])), ("", ""))
        result[new + key.removeprefix(old)] = value
    return result


def inverted(names: Names) -> Names:
    """The pairs that undo `renamed`."""
    return [(new, old) for old, new in names]


def convert_blocks(
    state: Mapping[str, Tensor], old: str, new: str, convert: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Rename the weights of every block, one block at a time.

    Args:
        state: the weights; those of blocks are under `old` + number + ".", other keys stay as they are.
        old, new: prefixes such as "layers." and "backbone.vit.blocks.".
        convert: renames the weights inside one block.
    """
    blocks: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    result = {}
    for key, value in state.items():
        if key.startswith(old):
            number, _, name = key.removeprefix(old).partition(".")
            blocks[number][name] = value
        else:
            result[key] = value
    for number, block in blocks.items():
        result |= {f"{new}{number}.{name}": value for name, value in convert(block).items()}
    return result


def block_to_timm(block: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a block's weights from transformers' names; a block under timm's names stays as it is.

    DINOv2's gated MLP is read in both forms that transformers has had: gate and value in one matrix
    (`weights_in`) or in two.

    Raises:
        InputError: if a part of the attention is missing, or DINOv3 keys have a bias that is not zero.
    """
    rest = dict(block)
    if "attention.q_proj.weight" not in rest:
        return rest
    result = {"attn.qkv.weight": torch.cat([_take(rest, f"attention.{part}_proj.weight") for part in "qkv"])}
    if "attention.o_proj.weight" in rest:
        key_bias = rest.pop("attention.k_proj.bias", None)
        if key_bias is not None and key_bias.any():
            raise InputError("attention.k_proj.bias is not zero: timm's DINOv3 has no bias for keys")
        if "attention.q_proj.bias" in rest:
            result |= {f"attn.{part}_bias": _take(rest, f"attention.{part}_proj.bias") for part in "qv"}
        names = _DINOV3 + (_DINOV3_GATED_MLP if "mlp.gate_proj.weight" in rest else _DINOV3_MLP)
    else:
        result["attn.qkv.bias"] = torch.cat([_take(rest, f"attention.{part}_proj.bias") for part in "qkv"])
        names = (*_DINOV2, ("mlp.weights_in.", "mlp.fc1."), ("mlp.weights_out.", "mlp.fc2."))
        if "mlp.gate_proj.weight" in rest:
            for kind in ("weight", "bias"):
                halves = [_take(rest, f"mlp.{half}_proj.{kind}") for half in ("gate", "up")]
                result[f"mlp.fc1.{kind}"] = torch.cat(halves)
                result[f"mlp.fc2.{kind}"] = _take(rest, f"mlp.down_proj.{kind}")
    return result | renamed(rest, names)


def block_to_transformers(block: Mapping[str, Tensor], dinov3: bool) -> dict[str, Tensor]:
    """Rename a block's weights to transformers' names, with DINOv2's gated MLP as the two matrices of transformers 5.

    Args:
        block: names and weights inside one block.
        dinov3: whether the block is from timm's `Eva`, otherwise from its `VisionTransformer`.

    Raises:
        InputError: if the block has no fused query, key and value.
    """
    rest = dict(block)
    result = _split(_take(rest, "attn.qkv.weight"), [f"attention.{part}_proj.weight" for part in "qkv"])
    if dinov3:
        result |= {f"attention.{p}_proj.bias": rest.pop(f"attn.{p}_bias") for p in "qv" if f"attn.{p}_bias" in rest}
        return result | renamed(rest, inverted(_DINOV3 + (_DINOV3_GATED_MLP if is_gated(block) else _DINOV3_MLP)))
    result |= _split(_take(rest, "attn.qkv.bias"), [f"attention.{part}_proj.bias" for part in "qkv"])
    if is_gated(block):
        for kind in ("weight", "bias"):
            result |= _split(_take(rest, f"mlp.fc1.{kind}"), [f"mlp.{half}_proj.{kind}" for half in ("gate", "up")])
            result[f"mlp.down_proj.{kind}"] = _take(rest, f"mlp.fc2.{kind}")
    return result | renamed(rest, inverted(_DINOV2))


def first_block(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's first block: names inside it and weights, under timm's names."""
    prefix = "backbone.vit.blocks.0."
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def is_gated(block: Mapping[str, Tensor]) -> bool:
    """True for a block under timm's names with a gated MLP, whose first matrix is twice as wide as its second."""
    if "mlp.fc1_g.weight" in block:
        return True
    first, second = _take(dict(block), "mlp.fc1.weight"), _take(dict(block), "mlp.fc2.weight")
    return first.shape[0] == 2 * second.shape[1]


def _split(fused: Tensor, names: list[str]) -> dict[str, Tensor]:
    return dict(zip(names, fused.chunk(len(names)), strict=True))


def _take(block: dict[str, Tensor], name: str) -> Tensor:
    if name not in block:
        raise InputError(f"a block of the backbone lacks {name}: the file is incomplete or of another model")
    return block.pop(name)
