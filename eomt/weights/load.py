"""The one door through which weights come in: any source is recognised by its content."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eomt.classes import Classes
from eomt.errors import InputError
from eomt.known_classes import classes_by_count, classes_by_names, dataset_of, kind_of
from eomt.weights.checkpoint import check_same_classes
from eomt.weights.detect import Found, Request, recognise
from eomt.weights.hub import fetch, is_hub_id
from eomt.weights.validate import check_spec, check_state, check_values, size_of
from eomt.weights.weights import Weights

log = logging.getLogger("eomt")

_SIZES = {"small_plus": "S+", "small": "S", "base": "B", "large": "L", "huge_plus": "H+", "giant": "g"}


def read_weights(
    source: str | Path,
    *,
    kind: str | None = None,
    classes: Classes | None = None,
    network: Mapping[str, Any] | None = None,
    backbone: str | Path | None = None,
    mmap: bool = True,
    complete: bool = True,
) -> Weights:
    """Read weights from wherever they are, and say in one log line what they are.

    No code of any file is run: only plain values and tensors are read. Pixel means and deviations are left out.

    Args:
        source: our checkpoint or exported folder; an original `pytorch_model.bin` or `.ckpt`, also as safetensors; a
            Hugging Face folder; or the id of a repository of the Hugging Face Hub, such as
            "tue-mps/coco_panoptic_eomt_large_640".
        kind, classes, network: what the caller has chosen; `network` holds some or all arguments of `EoMT`, in which
            None says nothing. They stand in where the source is silent and are compared where it is not.
        backbone: the pretrained DINOv3 to which delta weights are relative, as file, folder or Hub id; default
            Meta's of that size, through the Hub.
        mmap: leave the tensors in the file until they are used, which must then not be overwritten in place.
        complete: ask for all that it takes to run the network. False allows that kind and classes stay unknown, and
            the number of heads a guess, for those who take the weights alone.

    Returns:
        the weights and what is known about them; under `complete`, kind and classes are.

    Raises:
        InputError: if there is nothing, it cannot be had or read, is damaged, would run code, or holds values that
            are no numbers; if it is not what the caller has chosen; if the weights are not those of the network;
            under `complete`, if kind, classes or the number of heads stay unknown.
    """
    name = str(source)
    ask = Request(name, {k: v for k, v in (network or {}).items() if v is not None}, backbone, mmap, complete)
    hub = is_hub_id(source)
    found = recognise(fetch(name) if hub else Path(source).expanduser(), ask)
    spec = check_spec(_settled_network(found, ask), name)
    if found.kind is not None and kind is not None and found.kind != kind:
        raise InputError(f"{name} is of a {found.kind} model, and {kind} was chosen: choose its task")
    kind = found.kind or kind
    by_number = found.classes is None and classes is None
    classes = _settled_classes(found, spec["num_classes"], classes, name)
    if complete:
        kind = _certain_kind(kind, classes, spec["num_classes"], name)
    check_state(found.state, spec, name)
    check_values(found.state, name)
    origin = f"{found.what} {name}" + (" of the Hugging Face Hub" if hub else "")
    guessed = frozenset(found.guessed - ask.network.keys())
    weights = Weights(origin, found.state, spec, kind, classes, guessed=guessed, **found.more)
    log.info("weights: %s: %s", origin, _described(weights, by_number))
    if "image_size" in found.guessed and "image_size" not in ask.network:
        log.warning("%s does not say its image size: give network.image_size= unless it is this", name)
    return weights


def _settled_network(found: Found, ask: Request) -> dict[str, Any]:
    """What the source says of the network, completed by what is chosen, which must not differ."""
    spec = {key: value for key, value in found.network.items() if value is not None}
    # Shapes tell a published backbone; one of sizes of its own is as the caller describes it.
    options = ask.network.get("backbone_options")
    own_sizes = "backbone_options" in found.guessed and options
    free = found.guessed | ({"backbone"} if own_sizes else set())
    for key, value in ask.network.items():
        old, new = (size_of(v) if key == "image_size" else v for v in (spec.get(key), value))
        if key in spec and key not in free and old != new:
            raise InputError(f"{ask.name} is of another network: {key} is {old} there, and {new} was chosen")
        spec[key] = {**spec["backbone_options"], **options} if key == "backbone_options" and own_sizes else value
    return spec


def _settled_classes(found: Found, count: int, chosen: Classes | None, name: str) -> Classes | None:
    """The source's classes if it says them in full, otherwise those that are chosen or of a known dataset."""
    said = found.classes
    if chosen is not None and len(chosen) != count:
        raise InputError(f"{name} tells {count} classes apart, and {len(chosen)} were chosen: choose its task and data")
    if said is None:
        return chosen or classes_by_count(count)
    if len(said) != count:
        raise InputError(
            f"{name} tells {count} classes apart, and its description names {len(said)}: mend its list of classes"
        )
    if found.named:
        known = classes_by_names(said.names) or said
        names = zip(chosen.names, said.names, known.names, strict=True) if chosen is not None else ()
        # Names are all that it says: the chosen classes bring ids, things and stuff.
        if chosen is not None and all(name in likely for name, *likely in names):
            return chosen
        said = known
    if chosen is not None:
        check_same_classes(said, chosen)
    return said


def _certain_kind(kind: str | None, classes: Classes | None, count: int, name: str) -> str:
    if classes is None:
        raise InputError(
            f"{name} does not name its {count} classes, which are of no published dataset: choose its task and data, "
            "or give classes="
        )
    if kind is not None:
        return kind
    try:
        return kind_of(classes)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def _described(weights: Weights, by_number: bool) -> str:
    spec = weights.network
    size = next((letter for word, letter in _SIZES.items() if word in spec["backbone"]), None)
    family = next((f"DINOv{version}" for version in (2, 3) if f"dinov{version}" in spec["backbone"]), None)
    published = size and family and not spec["backbone_options"]
    parts = [f"EoMT-{size} {family}" if published else f"EoMT on {spec['backbone']} of other sizes"]
    parts += [weights.kind] if weights.kind else []
    parts += [f"{spec['num_classes']} classes"]
    if by_number and weights.classes is not None:
        parts[-1] += f", taken for {dataset_of(weights.classes)}'s by their number"
    parts += ["x".join(map(str, spec["image_size"]))]
    parts += [f"step {weights.step}"] if weights.step else []
    return ", ".join(parts)
