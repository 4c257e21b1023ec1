"""Weights with what is known about them; the network that they belong to, as their shapes tell it; and checks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor

from eomt.classes import Classes, difference
from eomt.errors import InputError
from eomt.model.backbone import OPTIONS
from eomt.model.eomt import EoMT
from eomt.weights.key_maps import first_block, is_gated

DEFAULT_IMAGE_SIZE = 640
POSITION = "backbone.vit.pos_embed"
_BLOCKS = "backbone.vit.blocks."
# Masked blocks of the published sizes that do not have 3.
_MASKED_BLOCKS = {"large": 4, "giant": 5, "huge_plus": 5, "7b": 5}
# Rotary embeddings and inputs are as large as the image size, which no weight of a DINOv3 shows.
_MAX_PATCHES, _MAX_PIXELS = 2**20, 2**28


@dataclass(frozen=True)
class Weights:
    """The content of a file, a folder or a repository of the Hugging Face Hub.

    Attributes:
        origin: form and place, for messages: "original weights FILE".
        state: tensors under the keys of `EoMT.state_dict()`, without pixel mean and deviation.
        network: arguments of `EoMT`, see `EoMT.spec`; before `read_weights` those that the source says.
        kind: the kind of segmentation; None where it is not known.
        classes: None where they are not known.
        config: the training run's configuration, plain values; empty where the source has none.
        environment: dotted names of the values in `config` that came from environment variables.
        step: optimizer steps that the weights have seen; 0 where the source does not say.
        mask_probabilities: float32 [L2] in 0..1, one per masked block, see `eomt.training.annealing`; None where they
            are not known.
        guessed: entries of `network` that the source does not say for sure; "classes" where it has their names or
            their number alone.
        resumable: whether a training run can be resumed from the source, with optimizer state and position in the
            data.
    """

    origin: str
    state: Mapping[str, Tensor] = field(repr=False)
    network: Mapping[str, Any] = field(default_factory=dict)
    kind: str | None = None
    classes: Classes | None = field(default=None, repr=False)
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    environment: tuple[str, ...] = ()
    step: int = 0
    mask_probabilities: Tensor | None = field(default=None, repr=False)
    guessed: frozenset[str] = frozenset()
    resumable: bool = False


@dataclass(frozen=True, kw_only=True)
class CompleteWeights(Weights):
    """Weights whose kind and classes are known."""

    kind: str  # pyright: ignore[reportGeneralTypeIssues]: by keyword alone, it needs no default
    classes: Classes = field(repr=False)


def entry(config: Any, *keys: str) -> Any:
    """An entry of nested mappings, such as a configuration of `Weights`; None where one is missing."""
    for key in keys:
        config = config.get(key) if isinstance(config, Mapping) else None
    return config


class _Size(NamedTuple):
    """A published size of a ViT."""

    name: str
    dim: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0


_TINY = _Size("tiny", 192, 12, 3)  # of DINOv3 alone
_PLAIN = (_Size("small", 384, 12, 6), _Size("base", 768, 12, 12), _Size("large", 1024, 24, 16))
_DINOV2_GATED = (_Size("giant", 1536, 40, 24, 2.66667 * 2),)
_DINOV3_GATED = (_Size("small_plus", 384, 12, 6), _Size("huge_plus", 1280, 32, 20), _Size("7b", 4096, 40, 32, 2.0))


def network_of(
    state: Mapping[str, Tensor], known: Mapping[str, Any] | None = None, complete: bool = True
) -> dict[str, Any]:
    """Arguments of `EoMT` for weights whose configuration is not known.

    Three things are not in every set of weights, and are taken as the published networks have them unless
    known: the blocks that queries pass through (by depth and width: S and B 3, L 4, g 5), the image size
    (square; DINOv3 has no position embedding: 640) and, for a published depth and width, the number of heads.

    Args:
        state: weights under our keys, with a DINOv2 or DINOv3 backbone.
        known: arguments of `EoMT` that are known from elsewhere, all of them optional.
        complete: False takes one head where the number is not known: no shape depends on it.

    Returns:
        All arguments, see `EoMT.spec`.

    Raises:
        InputError: if the position embedding is not that of a square, or under `complete` the number of heads is not
            known.
        KeyError: if weights are missing.
    """
    known = known or {}
    queries, classes = state["queries"], state["class_head.weight"]
    patch_size = state["backbone.vit.patch_embed.proj.weight"].shape[-1]
    block, depth, dim = first_block(state), _depth(state), queries.shape[1]
    dinov3, registers = "gamma_1" in block, state.get("backbone.vit.reg_token")
    sizes = _PLAIN if not is_gated(block) else _DINOV3_GATED if dinov3 else _DINOV2_GATED
    size = min(sizes, key=lambda size: (abs(size.dim - dim), abs(size.depth - depth)))
    if dinov3 and not is_gated(block) and (dim, depth) == (_TINY.dim, _TINY.depth):
        size = _TINY
    heads = (known.get("backbone_options") or {}).get("num_heads")
    if heads is None:
        heads = size.heads if (dim, depth) == (size.dim, size.depth) else None if complete else 1
    if heads is None:
        raise InputError(
            f"a backbone of width {dim} with {depth} blocks is of no published size, and its number of heads cannot be "
            "seen in its weights: give it, as in network.backbone_options={num_heads: 4}, or keep the eomt.json of its "
            "export beside it"
        )
    options: dict[str, Any] = {}
    if (dim, depth, heads) != (size.dim, size.depth, size.heads):
        options = {"embed_dim": dim, "depth": depth, "num_heads": heads}
    # timm builds the first matrix with int(width * ratio) rows.
    rows = block["mlp.fc1_g.weight" if "mlp.fc1_g.weight" in block else "mlp.fc1.weight"].shape[0]
    if rows != int(dim * size.mlp_ratio):
        ratio = rows / dim
        options["mlp_ratio"] = ratio if int(dim * ratio) == rows else math.nextafter(ratio, math.inf)
    if registers is not None and registers.shape[1] != 4:
        options["num_reg_tokens" if dinov3 else "reg_tokens"] = registers.shape[1]
    if dinov3:
        name, biased = f"vit_{size.name}_patch16_dinov3", "attn.q_bias" in block
        if biased and timm.is_model(f"{name}_qkvb"):
            name = f"{name}_qkvb"
        elif biased:
            options["qkv_bias"] = True
    else:
        name = f"vit_{size.name}_patch14_" + ("reg4_dinov2" if registers is not None else "dinov2")
    return {
        "backbone": name,
        "image_size": _image_size(state, patch_size, 0 if registers is not None else 1, known.get("image_size")),
        "num_classes": classes.shape[0] - 1,
        "num_queries": queries.shape[0],
        "num_masked_blocks": known.get("num_masked_blocks") or min(_MASKED_BLOCKS.get(size.name, 3), depth),
        "patch_size": patch_size,
        "backbone_options": options,
    }


def check_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Check the arguments of `EoMT`, which may come from a hostile file, before anything is built from them.

    Raises:
        InputError: if one is missing, unknown, or no plain value in its range.
    """
    spec = {"patch_size": 16, "backbone_options": {}} | dict(spec)
    if isinstance(spec.get("image_size"), int):
        spec["image_size"] = [spec["image_size"]] * 2
    missing = [key for key in _RULES if spec.get(key) is None]
    if missing:
        raise InputError(
            f"it does not say its network's {', '.join(missing)}: choose its task and model, or give "
            f"network.{missing[0]}="
        )
    for key, value in spec.items():
        if key not in _RULES or not _RULES[key](value):
            raise InputError(f"no network has {key}={value}")
    pixels = math.prod(spec["image_size"])
    if pixels > min(_MAX_PIXELS, _MAX_PATCHES * spec["patch_size"] ** 2):
        raise InputError(f"no network has image_size={list(spec['image_size'])} and patch_size={spec['patch_size']}")
    return {key: spec[key] for key in _RULES}


def check_same_classes(trained: Classes, given: Classes, *, ids: bool = True) -> None:
    """Raise InputError unless a checkpoint's classes are those of the data, see `difference`."""
    found = difference(trained, given, ids=ids)
    if found is not None:
        there, here = found
        raise InputError(
            f"ckpt= was trained on other classes, {there} where the data has {here}: choose its task and data, and "
            "data.only and data.merge as they were"
        )


def check_state(state: Mapping[str, Tensor], spec: Mapping[str, Any]) -> None:
    """Raise InputError unless these are all weights of `EoMT(**spec)`, in its shapes."""
    blocks, depth = _depth(state), spec["backbone_options"].get("depth")
    if depth not in (None, blocks):
        raise InputError(f"its network has {depth} blocks, its weights {blocks}")
    # Shapes alone: no memory, no random numbers drawn.
    with torch.device("meta"):
        expected = EoMT(**spec).state_dict()
    faults = [f"lacks {key}" for key in expected if key not in state]
    faults += [f"has unknown {key}" for key in state if key not in expected]
    faults += [
        f"has {key} of {list(value.shape)}, not {list(expected[key].shape)}"
        for key, value in state.items()
        if key in expected and value.shape != expected[key].shape
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise InputError(f"other weights than its network's, {spec['backbone']}: it {', '.join(faults[:3])}{more}")


def check_values(state: Mapping[str, Tensor]) -> None:
    """Raise InputError unless all weights are finite floating-point numbers of at least 16 bits."""
    for key, value in state.items():
        if not value.is_floating_point() or value.element_size() < 2:
            raise InputError(f"{key} is of {value.dtype}, weights are of float32, float16 or bfloat16")
        # An infinite or undefined entry shows in the extremes, which cost no memory.
        if value.numel() and not all(torch.isfinite(extreme) for extreme in torch.aminmax(value)):
            raise InputError(
                f"{key} holds values that are infinite or no numbers: its training has diverged or the file is "
                "damaged; take an earlier checkpoint or another copy"
            )


def _image_size(state: Mapping[str, Tensor], patch_size: int, prefix: int, known: list[int] | None) -> list[int]:
    """[height, width] as known, unless the position embedding contradicts, which then is taken to be square."""
    if POSITION not in state:
        return known or [round(DEFAULT_IMAGE_SIZE / patch_size) * patch_size] * 2
    patches = state[POSITION].shape[1] - prefix
    if known and known[0] // patch_size * (known[1] // patch_size) == patches:
        return known
    side = math.isqrt(patches)
    if side * side != patches:
        raise InputError(
            f"the position embedding has {patches} patches, which is no square: give the image size in the "
            "configuration (data.image_size=[HEIGHT,WIDTH])"
        )
    return [side * patch_size] * 2


def _depth(state: Mapping[str, Tensor]) -> int:
    # Counted: a key may claim any number.
    return len({key.split(".")[3] for key in state if key.startswith(_BLOCKS)})


def _is_number(value: Any) -> bool:
    return type(value) is int and 1 <= value <= 2**16


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) <= 8 and all(_is_plain(part) for part in value)
    return value is None or isinstance(value, str) or (isinstance(value, int | float) and value >= 0)


_RULES = {
    "backbone": lambda value: isinstance(value, str),
    "image_size": lambda value: isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_number, value)),
    "num_classes": _is_number,
    "num_queries": _is_number,
    "num_masked_blocks": _is_number,
    "patch_size": _is_number,
    "backbone_options": lambda value: (
        isinstance(value, Mapping) and all(key in OPTIONS and _is_plain(value[key]) for key in value)
    ),
}
