"""The network that weights belong to, as far as their shapes tell."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from eomt.errors import InputError
from eomt.weights.key_maps import is_gated

DEFAULT_IMAGE_SIZE = 640
_BLOCKS = "backbone.vit.blocks."
# Masked blocks of the published sizes that do not have 3.
_MASKED_BLOCKS = {"large": 4, "giant": 5}


class _Size(NamedTuple):
    """A published size of a ViT."""

    name: str
    dim: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0


_PLAIN = (_Size("small", 384, 12, 6), _Size("base", 768, 12, 12), _Size("large", 1024, 24, 16))
_DINOV2_GATED = (_Size("giant", 1536, 40, 24, 2.66667 * 2),)
_DINOV3_GATED = (_Size("small_plus", 384, 12, 6), _Size("huge_plus", 1280, 32, 20))


def network_of(
    state: Mapping[str, Tensor],
    chosen: Mapping[str, Any] | None = None,
    num_masked_blocks: int | None = None,
    complete: bool = True,
) -> tuple[dict[str, Any], frozenset[str]]:
    """Arguments of `EoMT` for weights whose configuration is not known.

    Three things are not in every set of weights, and are taken as the published networks have them unless
    chosen: the blocks that queries pass through (by depth and width: S and B 3, L 4, g 5), the image size
    (square; DINOv3 has no position embedding: 640) and, for a published depth and width, the number of heads.

    Args:
        state: weights under our keys, with a DINOv2 or DINOv3 backbone.
        chosen: arguments of `EoMT` that are known from elsewhere.
        num_masked_blocks: L2, where the source says it.
        complete: False takes one head where the number is not known: no shape depends on it.

    Returns:
        All arguments, see `EoMT.spec`, and the names of those that are a guess.

    Raises:
        InputError: if weights are missing, the position embedding is not that of a square, or under `complete` the
            number of heads is not known.
    """
    chosen = chosen or {}
    queries, classes = _weight(state, "queries"), _weight(state, "class_head.weight")
    patch_size = _weight(state, "backbone.vit.patch_embed.proj.weight").shape[-1]
    block = {key.removeprefix(f"{_BLOCKS}0."): value for key, value in state.items() if key.startswith(f"{_BLOCKS}0.")}
    depth = 1 + max((int(key.split(".")[3]) for key in state if key.startswith(_BLOCKS)), default=-1)
    dim = queries.shape[1]
    dinov3, registers = "gamma_1" in block, state.get("backbone.vit.reg_token")
    size = _nearest(dim, depth, dinov3, is_gated(block))
    heads = (chosen.get("backbone_options") or {}).get("num_heads")
    if heads is None:
        heads = size.heads if (dim, depth) == (size.dim, size.depth) else None if complete else 1
    if dinov3:
        name = f"vit_{size.name}_patch16_dinov3" + ("_qkvb" if "attn.q_bias" in block else "")
    else:
        name = f"vit_{size.name}_patch14_" + ("reg4_dinov2" if registers is not None else "dinov2")
    usual = min(_MASKED_BLOCKS.get(size.name, 3), depth)
    network = {
        "backbone": name,
        "image_size": _image_size(state, patch_size, 0 if registers is not None else 1, chosen.get("image_size")),
        "num_classes": classes.shape[0] - 1,
        "num_queries": queries.shape[0],
        "num_masked_blocks": num_masked_blocks or chosen.get("num_masked_blocks") or usual,
        "patch_size": patch_size,
        "backbone_options": _options(size, dim, depth, heads, block, registers, dinov3),
    }
    guessed = {"backbone_options"}
    guessed |= {"num_masked_blocks"} if num_masked_blocks is None else set()
    guessed |= {"image_size"} if "backbone.vit.pos_embed" not in state else set()
    return network, frozenset(guessed)


def _nearest(dim: int, depth: int, dinov3: bool, gated: bool) -> _Size:
    sizes = _PLAIN if not gated else _DINOV3_GATED if dinov3 else _DINOV2_GATED
    return min(sizes, key=lambda size: (abs(size.dim - dim), abs(size.depth - depth)))


def _options(
    size: _Size,
    dim: int,
    depth: int,
    heads: int | None,
    block: Mapping[str, Tensor],
    registers: Tensor | None,
    dinov3: bool,
) -> dict[str, Any]:
    """Arguments that turn timm's model of the nearest size into that of the weights; empty for a published size."""
    options: dict[str, Any] = {}
    if heads is None:
        raise InputError(
            f"a backbone of width {dim} with {depth} blocks is of no published size, and its number of heads cannot be "
            "seen in its weights: give it, as in network.backbone_options={num_heads: 4}, or keep the eomt.json of its "
            "export beside it"
        )
    if dim % heads:
        raise InputError(f"a backbone of width {dim} cannot have {heads} heads: give another num_heads")
    if (dim, depth, heads) != (size.dim, size.depth, size.heads):
        options = {"embed_dim": dim, "depth": depth, "num_heads": heads}
    # timm builds the first matrix with int(width * ratio) rows.
    rows = block["mlp.fc1_g.weight" if "mlp.fc1_g.weight" in block else "mlp.fc1.weight"].shape[0]
    if rows != int(dim * size.mlp_ratio):
        ratio = rows / dim
        options["mlp_ratio"] = ratio if int(dim * ratio) == rows else math.nextafter(ratio, math.inf)
    if registers is not None and registers.shape[1] != 4:
        options["num_reg_tokens" if dinov3 else "reg_tokens"] = registers.shape[1]
    return options


def _image_size(state: Mapping[str, Tensor], patch_size: int, prefix: int, chosen: list[int] | None) -> list[int]:
    """[height, width] as chosen, unless the position embedding contradicts, which then is taken to be square."""
    position = state.get("backbone.vit.pos_embed")
    if position is None:
        return chosen or [round(DEFAULT_IMAGE_SIZE / patch_size) * patch_size] * 2
    patches = position.shape[1] - prefix
    if chosen and chosen[0] // patch_size * (chosen[1] // patch_size) == patches:
        return chosen
    side = math.isqrt(patches)
    if side * side != patches:
        raise InputError(
            f"the position embedding has {patches} patches, which is no square: give the image size in the "
            "configuration (data.image_size=[HEIGHT,WIDTH])"
        )
    return [side * patch_size] * 2


def _weight(state: Mapping[str, Tensor], key: str) -> Tensor:
    if key not in state:
        raise InputError(f"{key} is missing from the weights: the file is incomplete or of another model")
    return state[key]
