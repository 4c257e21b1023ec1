"""Trained weights with everything known about them: completed by the caller's choices, and checked before use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from eomt.classes import Classes, difference
from eomt.errors import InputError
from eomt.published_classes import classes_by_count, classes_by_names, dataset_of, kind_of
from eomt.weights.spec import POSITION, check_spec, check_state, check_values, network_of

_SIZES = {"small_plus": "S+", "small": "S", "base": "B", "large": "L", "huge_plus": "H+", "giant": "g"}


@dataclass(frozen=True)
class Weights:
    """The content of a file, a folder or a repository of the Hugging Face Hub.

    Attributes:
        origin: form and place, for messages: "original weights FILE".
        state: tensors under the keys of `EoMT.state_dict()`, without pixel mean and deviation.
        network: arguments of `EoMT`, see `EoMT.spec`; before `complete_weights` those that the source says.
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


def complete_weights(
    weights: Weights, kind: str | None, classes: Classes | None, network: Mapping[str, Any], complete: bool
) -> Weights:
    """Complete weights by what is chosen and what their shapes tell, and check that all fits together.

    Args:
        weights: the content of a source, as unsafe as the source.
        kind, classes, network, complete: see `read_weights`; `network` without None, `image_size` as [height, width].

    Returns:
        The weights with all arguments of `EoMT`; under `complete`, with kind and classes.

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
    if complete and classes is None:
        raise InputError(
            f"it does not name its {spec['num_classes']} classes, which are of no published dataset: choose its task "
            "and data, or give classes="
        )
    if complete:
        kind = kind or kind_of(classes)
    check_state(weights.state, spec)
    check_values(weights.state)
    guessed = guessed - network.keys() - {"classes"}
    probabilities = weights.mask_probabilities
    # A loss of information at worst: the network is mask-free without them.
    fits = isinstance(probabilities, Tensor) and probabilities.shape == (spec["num_masked_blocks"],)
    return replace(
        weights,
        network=spec,
        kind=kind,
        classes=classes,
        guessed=guessed | {"classes"} if by_number and classes is not None else guessed,
        mask_probabilities=probabilities.float().nan_to_num(0).clamp(0, 1) if fits else None,
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
    own_sizes = "backbone_options" in guessed and options
    free = guessed | ({"backbone"} if own_sizes else set())
    for key, value in chosen.items():
        if key in spec and key not in free and spec[key] != value:
            raise InputError(f"another network: {key} is {spec[key]} there, and {value} was chosen")
        spec[key] = {**spec["backbone_options"], **options} if key == "backbone_options" and own_sizes else value
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
        check_same_classes(said, chosen)
    return said
