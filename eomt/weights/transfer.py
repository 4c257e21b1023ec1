"""Beginning a training from weights of another set: what fits is taken, and what became of each part is said."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor

from eomt.classes import Classes
from eomt.errors import InputError
from eomt.model.eomt import EoMT
from eomt.weights.weights import Weights

LOADED, RESIZED, NEW, IGNORED = "loaded", "resized", "new", "ignored"
_CLASS_HEAD = "class_head."
_POSITION, _PATCH = "backbone.vit.pos_embed", "backbone.vit.patch_embed.proj.weight"
# Parts that people think in; every other weight is one of its own.
_PARTS = re.compile(r"^(backbone\.vit\.blocks|backbone\.vit\.patch_embed|class_head|mask_head|upscale\.\d+)\.")


class Transfer(NamedTuple):
    """What became of a part of the weights.

    Attributes:
        part: such as "queries" or "backbone.vit.blocks".
        outcome: "loaded", "resized", "new" (begins at random) or "ignored" (has no place in the network).
        detail: why, or from what to what; may be empty.
    """

    part: str
    outcome: str
    detail: str


def transfer(network: EoMT, classes: Classes, weights: Weights, strict: bool = False) -> list[Transfer]:
    """Load weights into a network that may have other classes, queries, sizes or patches.

    The class head is taken only if the classes are the same ones in the same order; of more queries the first
    are taken, of fewer all, and the others begin at random; position and patch embeddings are resampled as
    timm does it for pretrained weights.

    Args:
        network: is written to.
        classes: of the network.
        weights: where they come from.
        strict: refuse unless everything is loaded as it is.

    Returns:
        What became of each part, in the network's order, then what is ignored.

    Raises:
        InputError: if the backbones differ in their shapes, or `strict` and anything else does. The network is
            then as it was.
    """
    given, own = weights.state, network.state_dict()
    _check_backbone(given, own)
    merged: dict[str, Tensor] = {}
    outcomes: dict[str, list[tuple[str, str]]] = {}
    other_classes = None
    if weights.classes is None:
        other_classes = "the weights do not name their classes"
    elif _names(weights.classes) != _names(classes):
        other_classes = "the classes are others"
    for key, value in own.items():
        taken, outcome, detail = _fit(key, value, given, weights.network, network, other_classes)
        merged[key] = taken
        outcomes.setdefault(_part(key), []).append((outcome, detail))
    rows = [_summary(part, entries) for part, entries in outcomes.items()]
    unused = sorted({_part(key) for key in given if key not in own} - outcomes.keys())
    rows += [Transfer(part, IGNORED, "the network has no such part") for part in unused]
    other = [row for row in rows if row.outcome != LOADED]
    if strict and other:
        told = "; ".join(f"{row.part} would be {row.outcome}" + f" ({row.detail})" * bool(row.detail) for row in other)
        raise InputError(f"weights={weights.origin} are not of this network, and strict=true: {told}")
    network.load_state_dict(merged)
    return rows


def table(rows: list[Transfer]) -> str:
    """The rows for people to read."""
    width = max(len(row.part) for row in rows)
    return "\n".join(f"{row.part:<{width}}  {row.outcome:<8}  {row.detail}".rstrip() for row in rows)


def _fit(
    key: str, value: Tensor, given: Mapping[str, Tensor], spec: Mapping, network: EoMT, other_classes: str | None
) -> tuple[Tensor, str, str]:
    """What a weight of the network becomes, the outcome, and its detail."""
    if key.startswith(_CLASS_HEAD) and other_classes:
        return value, NEW, other_classes
    source = given.get(key)
    if source is None:
        return value, NEW, "is not among the weights"
    source = source.to(value.dtype)
    own_size = network.spec["image_size"]
    # Equal shapes are not enough: [80, 40] and [40, 80] pixels have as many patches.
    if key == _POSITION and list(spec.get("image_size") or own_size) != own_size:
        return _resample_position(source, value, spec, network), RESIZED, _sizes(spec, network)
    if source.shape == value.shape:
        return source, LOADED, ""
    if key == "queries":
        kept = min(len(source), len(value))
        detail = f"the first {kept} of {len(source)}" if kept < len(source) else f"{len(value) - kept} more at random"
        return torch.cat([source[:kept], value[kept:]]), RESIZED, detail
    if key == _PATCH:
        resampled = resample_patch_embed(source, list(value.shape[-2:]))
        return resampled, RESIZED, f"from {source.shape[-1]} to {value.shape[-1]} pixels"
    if key == _POSITION:
        return _resample_position(source, value, spec, network), RESIZED, _sizes(spec, network)
    return value, NEW, f"is {list(source.shape)} there and {list(value.shape)} here"


def _resample_position(source: Tensor, value: Tensor, spec: Mapping, network: EoMT) -> Tensor:
    new = list(network.backbone.native_grid)
    # Where prefix tokens have positions of their own, they stand before those of the patches.
    prefix = value.shape[1] - new[0] * new[1]
    # Weights that do not say their image's size are taken to be of a square.
    side = math.isqrt(source.shape[1] - prefix)
    old = [length // spec["patch_size"] for length in spec["image_size"]] if spec.get("image_size") else [side] * 2
    return resample_abs_pos_embed(source, new, old, num_prefix_tokens=prefix)


def _sizes(spec: Mapping, network: EoMT) -> str:
    old, new = (
        "x".join(map(str, s.get("image_size") or ["unknown"])) + f" by {s['patch_size']}" for s in (spec, network.spec)
    )
    return f"from {old} to {new} pixels"


def _check_backbone(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Raise InputError unless the backbones are of one architecture: sizes of images and patches may differ."""
    difference = None
    for key in sorted({key for key in (*given, *own) if key.startswith("backbone.")}):
        here, there = (list(state[key].shape) if key in state else None for state in (own, given))
        # Of the position embedding the width matters, of the patch embedding the channels.
        part = {_POSITION: slice(2, 3), _PATCH: slice(0, 2)}.get(key, slice(None))
        if here is None or there is None:
            difference = f"{key} is only {'among the weights' if here is None else 'in the network'}"
        elif here[part] != there[part]:
            difference = f"{key} is {there} there and {here} here"
        if difference:
            raise InputError(
                f"weights= are of another backbone ({difference}): choose the model that they are of by model=, "
                "other weights, or weights=null"
            )


def _names(classes: Classes) -> list[tuple[str, bool]]:
    """What a class's output means; ids and colours are the dataset's own matter."""
    return [(item.name, item.is_thing) for item in classes]


def _part(key: str) -> str:
    match = _PARTS.match(key)
    return match[1] if match else key


def _summary(part: str, entries: list[tuple[str, str]]) -> Transfer:
    """One outcome for a part: the one that is not "loaded", if there is such."""
    entry = next((e for e in entries if e[0] != LOADED), entries[0])
    return Transfer(part, *entry)
