"""The one door through which weights come in: the form of any source is told by its content."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from eomt.classes import Classes
from eomt.errors import InputError, reason
from eomt.published_classes import classes_by_count, classes_by_names, dataset_of, kind_of
from eomt.weights.checkpoint import read_bare, read_exported, read_run
from eomt.weights.hub import is_hub_id, local_path
from eomt.weights.huggingface import read_huggingface
from eomt.weights.original import is_delta, is_original, read_delta, read_original
from eomt.weights.safe_load import CONFIG, EXPORT, FORMAT, Source, read_source
from eomt.weights.spec import (
    POSITION,
    CompleteWeights,
    Weights,
    check_same_classes,
    check_spec,
    check_state,
    check_values,
    network_of,
)

log = logging.getLogger("eomt")

_SIZES = {"tiny": "Ti", "small_plus": "S+", "small": "S", "base": "B", "large": "L"}
_SIZES |= {"huge_plus": "H+", "giant": "g", "7b": "7B"}


def read_weights(
    source: str | Path,
    *,
    kind: str | None = None,
    classes: Classes | None = None,
    network: Mapping[str, Any] | None = None,
    backbone: str | Path | None = None,
) -> CompleteWeights:
    """Read weights from any source, with all that it takes to run the network; a log line says what they are.

    No code in any file is run: only plain values and tensors are read. Pixel means and deviations are left out.

    Args:
        source: our checkpoint, the folder of a run (its best checkpoint is taken) or an exported folder; an original
            `pytorch_model.bin` or `.ckpt`, also as safetensors; a Hugging Face folder; or the id of a repository on the
            Hugging Face Hub, such as "tue-mps/coco_panoptic_eomt_large_640".
        kind, classes, network: the caller's choices; `network` holds some or all arguments of `EoMT`, in which
            None says nothing. They complete a silent source and must agree with any other, but for the classes' ids.
        backbone: the pretrained DINOv3 to which delta weights are relative, as file, folder or Hub id; default
            Meta's of that size, through the Hub.

    Returns:
        The weights and what is known about them. Tensors stay in the file until they are used, which must not be
        overwritten in place until then.

    Raises:
        InputError: if the source is missing, cannot be had or read, is damaged, would run code, or holds values that
            are not finite; if it differs from a choice of the caller; if the weights are not those of the network; if
            kind, classes or the number of heads stay unknown.
    """
    return CompleteWeights(**vars(_weights(source, kind, classes, network, backbone, True)))


def read_incomplete(
    source: str | Path,
    *,
    kind: str | None = None,
    network: Mapping[str, Any] | None = None,
    backbone: str | Path | None = None,
) -> Weights:
    """Read weights as `read_weights` does, for callers that take the weights alone: kind and classes may stay unknown,
    and the number of heads a guess."""
    return _weights(source, kind, None, network, backbone, False)


def _weights(
    source: str | Path,
    kind: str | None,
    classes: Classes | None,
    network: Mapping[str, Any] | None,
    backbone: str | Path | None,
    complete: bool,
) -> Weights:
    """See `read_weights` and, unless `complete`, `read_incomplete`."""
    chosen = {key: value for key, value in (network or {}).items() if value is not None}
    if isinstance(chosen.get("image_size"), int):
        chosen["image_size"] = [chosen["image_size"]] * 2
    path = local_path(source)
    found = read_source(path)
    try:
        weights = _completed(_read(found, backbone), kind, classes, chosen, complete)
    except InputError as error:
        # Without a cause: the command line shows the innermost InputError.
        raise InputError(f"{source}: {error}") from None
    except Exception as error:
        # Shapes, names or descriptions that make no sense, on which timm raises anything.
        raise InputError(
            f"{source} holds no weights of an EoMT, or damaged ones ({type(error).__name__}: {reason(error)})"
        ) from error
    where = f"{source} of the Hugging Face Hub" if is_hub_id(source) else path
    weights = replace(weights, origin=f"{weights.origin} {where}")
    log.info("weights: %s: %s", weights.origin, _summary(weights))
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


def _completed(
    weights: Weights, kind: str | None, classes: Classes | None, network: Mapping[str, Any], complete: bool
) -> Weights:
    """Complete weights by what is chosen and what their shapes tell, and check that all fits together.

    Args:
        weights: the content of a source, as unsafe as the source.
        kind, classes, network: see `read_weights`; `network` without None, `image_size` as [height, width].
        complete: kind, classes and the number of heads must be known.

    Returns:
        The weights with all arguments of `EoMT`.

    Raises:
        InputError: if something is missing, differs from a choice, or does not fit together.
    """
    spec, guessed = _network(weights, network, complete)
    spec = check_spec(spec)
    if None not in (weights.kind, kind) and weights.kind != kind:
        raise InputError(f"its model is {weights.kind}, and {kind} was chosen: choose its task")
    kind = weights.kind or kind
    by_number = weights.classes is None and classes is None
    classes = _classes(weights, classes, spec["num_classes"])
    if complete:
        if classes is None:
            raise InputError(
                f"it does not name its {spec['num_classes']} classes, which are of no published dataset: choose its "
                "task and data, or give classes="
            )
        kind = kind or kind_of(classes)
    check_state(weights.state, spec)
    check_values(weights.state)
    guessed = guessed - network.keys() - {"classes"}
    probabilities = weights.mask_probabilities
    # A loss of information at worst: the network is mask-free without them.
    if isinstance(probabilities, Tensor) and probabilities.shape == (spec["num_masked_blocks"],):
        probabilities = probabilities.float().nan_to_num(0).clamp(0, 1)
    else:
        probabilities = None
    return replace(
        weights,
        network=spec,
        kind=kind,
        classes=classes,
        guessed=guessed | {"classes"} if by_number and classes is not None else guessed,
        mask_probabilities=probabilities,
    )


def _summary(weights: Weights) -> str:
    """Model, kind, classes, image size and step in one line."""
    backbone, count = weights.network["backbone"], f"{weights.network['num_classes']} classes"
    size = next((letter for word, letter in _SIZES.items() if word in backbone), None)
    family = next((f"DINOv{version}" for version in (2, 3) if f"dinov{version}" in backbone), None)
    options = weights.network["backbone_options"]
    published = size and family and not options
    if weights.classes is not None and "classes" in weights.guessed:
        count += f", taken for {dataset_of(weights.classes)}'s by their number"
    parts = [
        f"EoMT-{size} {family}" if published else f"EoMT on {backbone}{' of other sizes' * bool(options)}",
        weights.kind,
        count,
        "x".join(map(str, weights.network["image_size"])),
        f"step {weights.step}" if weights.step else None,
    ]
    return ", ".join(part for part in parts if part)


def _network(weights: Weights, chosen: Mapping[str, Any], complete: bool) -> tuple[dict[str, Any], frozenset[str]]:
    """Arguments of `EoMT` from the source, or from shapes where it has no description; and those that are a guess.

    What is chosen must not differ, except from a guess.
    """
    spec, guessed = {key: value for key, value in weights.network.items() if value is not None}, weights.guessed
    if "backbone" not in spec:
        guessed = frozenset({"backbone_options", "num_masked_blocks", "image_size"} - spec.keys())
        guessed -= {"image_size"} if POSITION in weights.state else set()
        spec = network_of(weights.state, {**chosen, **spec}, complete)
    # Shapes tell a published backbone; one of other sizes is as the caller describes it.
    options = chosen.get("backbone_options")
    own_sizes = options if "backbone_options" in guessed else None
    free = guessed | ({"backbone"} if own_sizes else set())
    for key, value in chosen.items():
        if key in spec and key not in free and spec[key] != value:
            raise InputError(f"another network: {key} is {spec[key]} there, and {value} was chosen")
        spec[key] = {**spec["backbone_options"], **own_sizes} if key == "backbone_options" and own_sizes else value
    return spec, guessed


def _classes(weights: Weights, chosen: Classes | None, count: int) -> Classes | None:
    """The source's classes if it names them, otherwise those that are chosen or of a published dataset."""
    said = weights.classes
    for classes, what in ((chosen, "were chosen: choose its task and data"), (said, "are named: mend that list")):
        if classes is not None and len(classes) != count:
            raise InputError(f"it tells {count} classes apart, and {len(classes)} {what}")
    if said is None:
        return chosen or classes_by_count(count)
    if "classes" in weights.guessed:
        published = classes_by_names(said.names) or said
        # Without official ids, things and stuff, which the chosen classes bring.
        if chosen is not None and all(
            name in likely for name, *likely in zip(chosen.names, said.names, published.names, strict=True)
        ):
            return chosen
        said = published
    if chosen is not None:
        return renumbered(said, chosen)
    return said


def renumbered(trained: Classes, given: Classes) -> Classes:
    """A checkpoint's classes under the ids that the data has for them, or that are chosen.

    Raises:
        InputError: unless they are the same in the same order, whatever their ids.
    """
    check_same_classes(trained, given, ids=False)
    if trained.ids == given.ids:
        return trained
    log.info(
        "the checkpoint has other category ids for the same classes: results have those of the data, or of classes="
    )
    return given
