"""Weights that this project wrote: a run's checkpoint, an exported folder, a bare state dict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from eomt.classes import Classes
from eomt.errors import InputError
from eomt.model.lora import merged
from eomt.weights.safe_load import EXPORT, Source
from eomt.weights.spec import network_of
from eomt.weights.weights import Chosen, Weights


def read_run(source: Source, chosen: Chosen) -> Weights:
    """Read a training run's checkpoint; low-rank changes are merged into the weights."""
    content, part = source.content, source.descriptions[EXPORT]
    learns, step = part.get("learns") or {}, content.get("global_step")
    known = description(part | {"step": step if isinstance(step, int) and 0 <= step < 2**63 else 0})
    return Weights(
        "checkpoint",
        merged(_own_keys(source.state), learns.get("lora")),
        **known,
        mask_probabilities=content["state_dict"].get("mask_probabilities"),
        resumable=bool(content.get("optimizer_states")),
    )


def read_exported(source: Source, chosen: Chosen) -> Weights:
    """Read an exported folder."""
    return Weights("exported folder", _own_keys(source.state), **description(source.descriptions[EXPORT]))


def read_bare(source: Source, chosen: Chosen) -> Weights:
    """Read a state dict of `EoMT` that comes without a description."""
    state = _own_keys(source.state)
    network, guessed = network_of(state, chosen.network, complete=chosen.complete)
    return Weights("weights", state, network, guessed=guessed)


def description(part: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of `Weights` from the plain values that stand beside ours.

    Args:
        part: the values under "eomt" in a checkpoint, or those of eomt.json.

    Raises:
        InputError: if one is missing or of another type.
    """
    try:
        if not isinstance(part["kind"], str):
            raise TypeError(f"kind is {part['kind']}")
        config = dict(part.get("config") or {})
        if not isinstance(config.get("postprocess") or {}, Mapping):
            raise TypeError("config.postprocess is no mapping")
        return {
            "network": dict(part["network"]),
            "kind": part["kind"],
            "classes": Classes.from_list(part["classes"]),
            "config": config,
            "overrides": tuple(str(override) for override in part.get("overrides") or ()),
            "step": max(0, int(part.get("step") or 0)),
        }
    except (AttributeError, KeyError, TypeError, ValueError, InputError) as error:
        raise InputError(f"its description lacks or garbles a part ({str(error)[:80]})") from None


def _own_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the network's own keys, without the name that a Lightning module has for it."""
    return {key.removeprefix("network."): value for key, value in state.items()}
