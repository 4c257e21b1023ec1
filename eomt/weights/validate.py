"""Completing weights by the caller's choices, and checking that all of it fits together before it is used."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from timm.models import Eva, VisionTransformer
from torch import Tensor

from eomt.classes import Classes, difference
from eomt.errors import InputError
from eomt.known_classes import classes_by_count, classes_by_names, dataset_of, kind_of
from eomt.model.eomt import EoMT
from eomt.weights.weights import Chosen, Weights

_NUMBERS = ("num_classes", "num_queries", "num_masked_blocks", "patch_size")
_KEYS = ("backbone", "image_size", *_NUMBERS, "backbone_options")
_LARGEST = 2**16
_SIZES = {"small_plus": "S+", "small": "S", "base": "B", "large": "L", "huge_plus": "H+", "giant": "g"}
_BLOCK = re.compile(r"^backbone\.vit\.blocks\.(\d+)\.")
# Arguments of the models alone: timm's factory would take more, such as a file to unpickle.
_OPTIONS = frozenset().union(*(inspect.signature(vit.__init__).parameters for vit in (VisionTransformer, Eva)))


def validate(weights: Weights, chosen: Chosen, name: str) -> Weights:
    """Complete weights by what is chosen, and check them.

    Args:
        weights: the content of a source that nobody has looked at.
        chosen: the caller's choices.
        name: the source in messages.

    Returns:
        The weights with all arguments of `EoMT`; under `chosen.complete`, with kind and classes.

    Raises:
        InputError: if something is missing, differs from a choice, or does not fit together.
    """
    network = check_spec(_network(weights, chosen, name), name)
    if weights.kind is not None and chosen.kind is not None and weights.kind != chosen.kind:
        raise InputError(f"{name} is of a {weights.kind[:80]} model, and {chosen.kind} was chosen: choose its task")
    kind = weights.kind or chosen.kind
    by_number = weights.classes is None and chosen.classes is None
    classes = _classes(weights, chosen.classes, network["num_classes"], name)
    if chosen.complete:
        if classes is None:
            raise InputError(
                f"{name} does not name its {network['num_classes']} classes, which are of no published dataset: choose "
                "its task and data, or give classes="
            )
        try:
            kind = kind or kind_of(classes)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
    check_state(weights.state, network, name)
    check_values(weights.state, name)
    guessed = weights.guessed - chosen.network.keys() - {"classes"}
    guessed |= {"classes"} if by_number and classes is not None else frozenset()
    probabilities = weights.mask_probabilities
    # A loss of information at worst: the network is mask-free without them.
    fits = isinstance(probabilities, Tensor) and probabilities.shape == (network["num_masked_blocks"],)
    probabilities = probabilities.float().nan_to_num(0).clamp(0, 1) if fits else None
    return replace(
        weights, network=network, kind=kind, classes=classes, guessed=guessed, mask_probabilities=probabilities
    )


def summary(weights: Weights) -> str:
    """Model, kind, classes, image size and step in one line."""
    backbone, count = weights.network["backbone"], f"{weights.network['num_classes']} classes"
    size = next((letter for word, letter in _SIZES.items() if word in backbone), None)
    family = next((f"DINOv{version}" for version in (2, 3) if f"dinov{version}" in backbone), None)
    published = size and family and not weights.network["backbone_options"]
    if "classes" in weights.guessed:
        count += f", taken for {dataset_of(weights.classes)}'s by their number"
    parts = [
        f"EoMT-{size} {family}" if published else f"EoMT on {backbone} of other sizes",
        weights.kind,
        count,
        "x".join(map(str, weights.network["image_size"])),
        f"step {weights.step}" if weights.step else None,
    ]
    return ", ".join(part for part in parts if part)


def check_same_classes(trained: Classes, given: Classes) -> None:
    """Raise InputError unless a checkpoint's classes are those of the data: id, name, thing or stuff."""
    found = difference(trained, given)
    if found is not None:
        there, here = found
        raise InputError(
            f"ckpt= was trained on other classes, {there} where the data has {here}: choose its task and data"
        )


def check_spec(spec: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Check the arguments of `EoMT` before anything is built from them.

    Args:
        spec: may come from a file that nobody has looked at.
        name: the source in messages.

    Raises:
        InputError: if one is missing, unknown, or no plain value in its range.
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
    size, options = spec["image_size"], spec["backbone_options"]
    sides = list(size) if isinstance(size, list | tuple) and len(size) == 2 else [size]
    for key, value in [(key, spec[key]) for key in _NUMBERS] + [("image_size", side) for side in sides]:
        if type(value) is not int or not 1 <= value <= _LARGEST:
            raise InputError(
                f"{name}: its network's {key} is {str(value)[:80]!r}, which is no number from 1 to {_LARGEST}"
            )
    if not isinstance(spec["backbone"], str):
        raise InputError(f"{name}: its network's backbone is {str(spec['backbone'])[:80]!r}, which is no name")
    if not isinstance(options, Mapping):
        raise InputError(f"{name}: its network's backbone_options are no mapping")
    for key, value in options.items():
        if key not in _OPTIONS or not _plain(value):
            raise InputError(
                f"{name}: its network has the backbone_options {str(key)[:80]!r}, which is no size of a ViT"
            )
    return {key: sides * (2 // len(sides)) if key == "image_size" else spec[key] for key in _KEYS}


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


def _network(weights: Weights, chosen: Chosen, name: str) -> dict[str, Any]:
    """Arguments of `EoMT` from the source, completed by what is chosen, which must not differ."""
    spec = {key: value for key, value in weights.network.items() if value is not None}
    # Shapes tell a published backbone; one of other sizes is as the caller describes it.
    options = chosen.network.get("backbone_options")
    own_sizes = "backbone_options" in weights.guessed and options
    free = weights.guessed | ({"backbone"} if own_sizes else set())
    for key, value in chosen.network.items():
        if key in spec and key not in free and spec[key] != value:
            raise InputError(f"{name} is of another network: {key} is {spec[key]} there, and {value} was chosen")
        spec[key] = {**spec["backbone_options"], **options} if key == "backbone_options" and own_sizes else value
    return spec


def _classes(weights: Weights, chosen: Classes | None, count: int, name: str) -> Classes | None:
    """The source's classes if it names them, otherwise those that are chosen or of a published dataset."""
    said = weights.classes
    if chosen is not None and len(chosen) != count:
        raise InputError(f"{name} tells {count} classes apart, and {len(chosen)} were chosen: choose its task and data")
    if said is None:
        return chosen or classes_by_count(count)
    if len(said) != count:
        raise InputError(
            f"{name} tells {count} classes apart, and its description names {len(said)}: mend its list of classes"
        )
    if "classes" in weights.guessed:
        published = classes_by_names(said.names) or said
        # Without official ids, things and stuff, which the chosen classes bring.
        if chosen is not None and all(
            name in likely for name, *likely in zip(chosen.names, said.names, published.names, strict=True)
        ):
            return chosen
        said = published
    if chosen is not None:
        check_same_classes(said, chosen)
    return said


def _plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) <= 8 and all(_plain(part) for part in value)
    return value is None or isinstance(value, str | bool | int | float)


def _some(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(key[:80] for key in keys[:3]) + more
