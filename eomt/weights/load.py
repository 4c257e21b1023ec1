"""The one door through which weights come in: the form of any source is told by its content."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from eomt.classes import Classes
from eomt.errors import InputError, reason
from eomt.weights.checkpoint import read_bare, read_exported, read_run
from eomt.weights.hub import local_path
from eomt.weights.huggingface import read_huggingface
from eomt.weights.original import is_delta, is_original, read_delta, read_original
from eomt.weights.safe_load import CONFIG, EXPORT, FORMAT, Source, read_source
from eomt.weights.types import Weights, complete_weights, summary

log = logging.getLogger("eomt")


def read_weights(
    source: str | Path,
    *,
    kind: str | None = None,
    classes: Classes | None = None,
    network: Mapping[str, Any] | None = None,
    backbone: str | Path | None = None,
    complete: bool = True,
) -> Weights:
    """Read weights from any source, and say in one log line what they are.

    No code in any file is run: only plain values and tensors are read. Pixel means and deviations are left out.

    Args:
        source: our checkpoint or exported folder; an original `pytorch_model.bin` or `.ckpt`, also as safetensors; a
            Hugging Face folder; or the id of a repository on the Hugging Face Hub, such as
            "tue-mps/coco_panoptic_eomt_large_640".
        kind, classes, network: the caller's choices; `network` holds some or all arguments of `EoMT`, in which
            None says nothing. They complete a silent source and must agree with any other.
        backbone: the pretrained DINOv3 to which delta weights are relative, as file, folder or Hub id; default
            Meta's of that size, through the Hub.
        complete: ask for everything that it takes to run the network. False allows that kind and classes stay
            unknown, and the number of heads a guess, for callers that take the weights alone.

    Returns:
        The weights and what is known about them; under `complete`, kind and classes are. Tensors stay in the file until
        they are used, which must not be overwritten in place until then.

    Raises:
        InputError: if the source is missing, cannot be had or read, is damaged, would run code, or holds values that
            are not finite; if it differs from a choice of the caller; if the weights are not those of the network;
            under `complete`, if kind, classes or the number of heads stay unknown.
    """
    chosen = {key: value for key, value in (network or {}).items() if value is not None}
    if isinstance(chosen.get("image_size"), int):
        chosen["image_size"] = [chosen["image_size"]] * 2
    path = local_path(source)
    found = read_source(path)
    try:
        weights = complete_weights(_read(found, backbone), kind, classes, chosen, complete)
    except InputError as error:
        # Without a cause: the command line shows the innermost InputError.
        raise InputError(f"{source}: {error}") from None
    except Exception as error:
        # Shapes, names or descriptions that make no sense, on which timm raises anything.
        raise InputError(
            f"{source} holds no weights of an EoMT, or damaged ones ({type(error).__name__}: {reason(error)})"
        ) from error
    on_hub = " of the Hugging Face Hub" if path != Path(source).expanduser() else ""
    weights = replace(weights, origin=f"{weights.origin} {source}{on_hub}")
    log.info("weights: %s: %s", weights.origin, summary(weights))
    if "image_size" in weights.guessed:
        log.warning("%s does not say its image size: give network.image_size= unless it is this", source)
    return weights


def _read(source: Source, backbone: str | Path | None) -> Weights:
    """Read a source by its form, which its keys and the descriptions beside it tell."""
    state = source.state
    if FORMAT in source.content:
        return read_run(source)
    if is_original(state):
        return read_delta(source, backbone) if is_delta(state) else read_original(source)
    if all(key in state or f"network.{key}" in state for key in ("queries", "class_head.weight")):
        return read_exported(source) if EXPORT in source.descriptions else read_bare(source)
    if CONFIG in source.descriptions:
        return read_huggingface(source)
    hint = f"; Hugging Face weights need their {CONFIG}: give their folder" if "query.weight" in state else ""
    raise InputError(f"it holds no EoMT: its weights are called {', '.join(list(state)[:3])} and so on{hint}")
