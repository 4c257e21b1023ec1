"""Starting a training from weights of another set: fitting parts are loaded, each part's outcome is reported."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor

from eomt.classes import Classes
from eomt.errors import InputError
from eomt.model.eomt import EoMT
from eomt.weights.spec import POSITION, Weights

LOADED, RESIZED, NEW, IGNORED = "loaded", "resized", "new", "ignored"
_CLASS_HEAD = "class_head."
_PATCH = "backbone.vit.patch_embed.proj.weight"
# Parts in the table; every other weight is a part of its own.
_PARTS = re.compile(r"^(backbone\.vit\.blocks|backbone\.vit\.patch_embed|class_head|mask_head|upscale\.\d+)\.")


class Transfer(NamedTuple):
    """The outcome for a part of the weights.

    Attributes:
        part: such as "queries" or "backbone.vit.blocks".
        outcome: "loaded", "resized", "new" (starts at random) or "ignored" (not in the network).
        detail: the reason, or the sizes; may be empty.
    """

    part: str
    outcome: str
    detail: str


def transfer(network: EoMT, classes: Classes, weights: Weights, strict: bool = False) -> list[Transfer]:
    """Load weights into a network that may have other classes, queries, sizes or patches.

    The class head is loaded only for the same classes in the same order; of more queries the first
    are loaded, of fewer all, and the others start at random; position and patch embeddings are resampled as
    timm does it for pretrained weights.

    Args:
        network: the network, changed in place.
        classes: its classes.
        weights: the weights to start from.
        strict: refuse unless everything is loaded as it is.

    Returns:
        The outcome of each part, in the network's order, then the ignored parts.

    Raises:
        InputError: if the backbones differ in their shapes, or `strict` and anything else does. The network is
            then unchanged.
    """
    given, own = weights.state, network.state_dict()
    _check_backbone(given, own)
    other_classes = None
    if weights.classes is None:
        other_classes = "the weights do not name their classes"
    # Ids and colours are the dataset's own matter.
    elif (weights.classes.names, weights.classes.is_thing) != (classes.names, classes.is_thing):
        other_classes = "the classes are others"
    state: dict[str, Tensor] = {}
    parts: dict[str, Transfer] = {}
    for key, value in own.items():
        if key.startswith(_CLASS_HEAD) and other_classes:
            state[key], outcome, detail = value, NEW, other_classes
        elif key not in given:
            state[key], outcome, detail = value, NEW, "is not among the weights"
        else:
            state[key], outcome, detail = _fit(key, value, given[key].to(value.dtype), weights.network, network)
        part = _part(key)
        # A part has one row: the first outcome that is not "loaded", if there is one.
        if part not in parts or parts[part].outcome == LOADED:
            parts[part] = Transfer(part, outcome, detail)
    unused = sorted({_part(key) for key in given if key not in own} - parts.keys())
    rows = [*parts.values(), *(Transfer(part, IGNORED, "the network has no such part") for part in unused)]
    other = [row for row in rows if row.outcome != LOADED]
    if strict and other:
        told = "; ".join(f"{row.part} would be {row.outcome}" + f" ({row.detail})" * bool(row.detail) for row in other)
        raise InputError(f"weights={weights.origin} are not of this network, and strict=true: {told}")
    network.load_state_dict(state)
    return rows


def table(rows: list[Transfer]) -> str:
    """The rows as aligned columns."""
    width = max(len(row.part) for row in rows)
    return "\n".join(f"{row.part:<{width}}  {row.outcome:<8}  {row.detail}".rstrip() for row in rows)


def _fit(key: str, value: Tensor, source: Tensor, spec: Mapping, network: EoMT) -> tuple[Tensor, str, str]:
    """The new value of a weight, the outcome and its detail.

    Args:
        key: the weight's name.
        value: its value in the network.
        source: the weight of that name to start from.
        spec: arguments of `EoMT` for the network that `source` is from.
        network: the network.
    """
    size = network.spec["image_size"]
    # Equal shapes are not enough: [80, 40] and [40, 80] pixels have as many patches.
    if key == POSITION and (source.shape != value.shape or list(spec["image_size"]) != size):
        old, new = (f"{'x'.join(map(str, s['image_size']))} by {s['patch_size']}" for s in (spec, network.spec))
        grid = list(network.backbone.native_grid)
        # Positions of prefix tokens, if there are any, stand before those of the patches.
        resampled = resample_abs_pos_embed(  # pyright: ignore[reportCallIssue]: torch.fx.wrap's type
            source,
            grid,
            [length // spec["patch_size"] for length in spec["image_size"]],
            num_prefix_tokens=value.shape[1] - grid[0] * grid[1],
        )
        return resampled, RESIZED, f"from {old} to {new} pixels"
    if source.shape == value.shape:
        return source, LOADED, ""
    if key == "queries":
        kept = min(len(source), len(value))
        detail = f"the first {kept} of {len(source)}" if kept < len(source) else f"{len(value) - kept} more at random"
        return torch.cat([source[:kept], value[kept:]]), RESIZED, detail
    if key == _PATCH:
        resampled = resample_patch_embed(source, list(value.shape[-2:]))
        return resampled, RESIZED, f"from {source.shape[-1]} to {value.shape[-1]} pixels"
    return value, NEW, f"is {list(source.shape)} there and {list(value.shape)} here"


def _check_backbone(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Raise InputError unless the backbones have one architecture: sizes of images and patches may differ."""
    for key in sorted({key for key in (*given, *own) if key.startswith("backbone.")}):
        here, there = (list(state[key].shape) if key in state else None for state in (own, given))
        # The width of the position embedding matters, and the channels of the patch embedding.
        part = {POSITION: slice(2, 3), _PATCH: slice(0, 2)}.get(key, slice(None))
        if here is not None and there is not None and here[part] == there[part]:
            continue
        difference = f"{key} is {there} there and {here} here"
        if here is None or there is None:
            difference = f"{key} is only {'among the weights' if here is None else 'in the network'}"
        raise InputError(
            f"weights= are of another backbone ({difference}): choose the model that they are of by model=, "
            "other weights, or weights=null"
        )


def _part(key: str) -> str:
    match = _PARTS.match(key)
    return match[1] if match else key
