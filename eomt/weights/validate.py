"""Whether weights fit the network that is said to be theirs, found out without building it in memory."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.models import Eva, VisionTransformer
from torch import Tensor

from eomt.errors import InputError
from eomt.model.eomt import EoMT

_NUMBERS = ("num_classes", "num_queries", "num_masked_blocks", "patch_size")
_KEYS = ("backbone", "image_size", *_NUMBERS, "backbone_options")
_LARGEST = 2**16
_BLOCK = re.compile(r"^backbone\.vit\.blocks\.(\d+)\.")
# Of the model alone: timm's factory would take more, such as a file to unpickle.
_OPTIONS = frozenset().union(*(inspect.signature(vit.__init__).parameters for vit in (VisionTransformer, Eva)))


def check_spec(spec: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The arguments of `EoMT`, checked before anything is built from them.

    Args:
        spec: may come from a file that nobody has looked at.
        name: what messages call the source.

    Raises:
        InputError: if one is missing, unknown, or no plain value of its kind.
    """
    spec = {"patch_size": 16, "backbone_options": {}} | dict(spec)
    missing = [key for key in _KEYS if spec.get(key) is None]
    if missing:
        raise InputError(
            f"{name} does not say its network's {', '.join(missing)}: choose its task and model, or give "
            f"network.{missing[0]}="
        )
    unknown = [key for key in spec if key not in _KEYS]
    if unknown:
        raise InputError(f"{name} says {str(unknown[0])[:80]!r} of its network, which is no part of it")
    spec["image_size"] = size_of(spec["image_size"])
    numbers = [(key, spec[key]) for key in _NUMBERS] + [("image_size", side) for side in spec["image_size"]]
    for key, value in numbers:
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _LARGEST:
            raise InputError(
                f"{name}: its network's {key} is {str(value)[:80]!r}, which is no number from 1 to {_LARGEST}"
            )
    if not isinstance(spec["backbone"], str):
        raise InputError(f"{name}: its network's backbone is {str(spec['backbone'])[:80]!r}, which is no name")
    options = spec["backbone_options"]
    if not isinstance(options, Mapping):
        raise InputError(f"{name}: its network's backbone_options are no mapping")
    for key, value in options.items():
        if key not in _OPTIONS or not _plain(value):
            raise InputError(
                f"{name}: its network has the backbone_options {str(key)[:80]!r}, which is no size of a ViT"
            )
    return {key: spec[key] for key in _KEYS}


def check_state(state: Mapping[str, Tensor], spec: Mapping[str, Any], name: str) -> None:
    """Raise InputError unless these are all weights of `EoMT(**spec)`, in its shapes."""
    blocks = 1 + max((int(found[1]) for found in map(_BLOCK.match, state) if found), default=-1)
    depth = spec["backbone_options"].get("depth", blocks)
    if depth != blocks:
        raise InputError(f"{name} says that its backbone has {str(depth)[:20]} blocks and holds {blocks}")
    try:
        # Shapes alone: no memory, no random numbers drawn.
        with torch.device("meta"):
            expected = EoMT(**spec).state_dict()
    except InputError as error:
        # Without a cause: the command line shows the innermost InputError.
        raise InputError(f"{name}: {error}") from None
    except Exception as error:
        # timm raises anything on options that do not go together.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise InputError(f"{name}: its network cannot be built ({reason})") from error
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    if missing or unexpected:
        faults = [f"{what} {_some(keys)}" for what, keys in (("lacks", missing), ("has unknown", unexpected)) if keys]
        raise InputError(f"{name} holds other weights than its network has: it {' and '.join(faults)}")
    for key, value in state.items():
        if value.shape != expected[key].shape:
            raise InputError(
                f"{name} holds other weights than its network has: {key} is {list(value.shape)}, and "
                f"{list(expected[key].shape)} in {spec['backbone']} as it is described"
            )


def check_values(state: Mapping[str, Tensor], name: str) -> None:
    """Raise InputError unless all weights are finite floating-point numbers of at least 16 bits."""
    for key, value in state.items():
        if not value.is_floating_point() or value.element_size() < 2:
            raise InputError(f"{name}: {key} is of {value.dtype}, weights are of float32, float16 or bfloat16")
        # An infinite or undefined entry shows in the extremes, which cost no memory.
        if value.numel() and not all(torch.isfinite(extreme) for extreme in torch.aminmax(value)):
            raise InputError(
                f"{name}: {key} holds values that are infinite or no numbers: its training has diverged or the "
                "file is damaged; take an earlier checkpoint or another copy"
            )


def size_of(image_size: Any) -> list:
    """[height, width] of a side or a pair."""
    if isinstance(image_size, Sequence) and not isinstance(image_size, str):
        sides = list(image_size)
        return sides if len(sides) == 2 else sides * 2 if len(sides) == 1 else [None]
    return [image_size, image_size]


def _plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) <= 8 and all(_plain(part) for part in value)
    return value is None or isinstance(value, str | bool | int | float)


def _some(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(key[:80] for key in keys[:3]) + more
