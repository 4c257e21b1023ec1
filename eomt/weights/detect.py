"""Whose weights these are, told by their keys and by what lies beside them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from eomt.classes import Classes
from eomt.errors import InputError
from eomt.known_classes import ADE20K, classes_by_count
from eomt.model.lora import merged
from eomt.weights.checkpoint import FORMAT
from eomt.weights.delta import add_backbone, is_delta
from eomt.weights.hub import fetch, is_hub_id
from eomt.weights.huggingface import classes_of, from_huggingface
from eomt.weights.original import from_original, is_original, without_added_biases
from eomt.weights.safe_load import read_file, read_json, read_shards, read_tensors, tensors_of
from eomt.weights.spec import network_of
from eomt.weights.validate import size_of

EXPORT = "eomt.json"
"""Beside the weights of an exported folder: the part that our checkpoints carry under FORMAT, and `step`."""

WHOLE = ("model.safetensors", "pytorch_model.bin")
"""A folder's own weights, which its description is about."""

_CONFIG, _PROCESSOR = "config.json", "preprocessor_config.json"
# The pretrained DINOv3 of a width, which the original's delta weights are relative to.
_BASES = {
    width: f"facebook/dinov3-vit{size}16-pretrain-lvd1689m" for width, size in ((384, "s"), (768, "b"), (1024, "l"))
}


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        name: what messages call the source.
        network: arguments of `EoMT` that the caller has chosen.
        backbone: the pretrained DINOv3 for delta weights, as file, folder or Hub id; None for Meta's.
        mmap: leave the tensors in the file until they are used.
        runnable: the network is to be run; otherwise the weights alone are taken.
    """

    name: str
    network: Mapping[str, Any]
    backbone: str | Path | None
    mmap: bool
    runnable: bool


@dataclass
class Found:
    """What a source says by itself.

    Attributes:
        what: it is, for people.
        state: under our keys.
        network: arguments of `EoMT`.
        guessed: those of them that the weights do not tell for sure.
        kind, classes: None where it does not say.
        named: whether the classes are names alone, without official ids.
        more: further attributes of `Weights`.
    """

    what: str
    state: Mapping[str, Tensor]
    network: Mapping[str, Any]
    guessed: frozenset[str] = frozenset()
    kind: str | None = None
    classes: Classes | None = None
    named: bool = False
    more: dict[str, Any] = field(default_factory=dict)


def recognise(path: Path, ask: Request) -> Found:
    """Read a file or a folder.

    Raises:
        InputError: if it is neither, holds no EoMT, or cannot be read.
    """
    if path.is_dir():
        return _recognised(_folder_weights(path, ask.name, ask.mmap), path, ask)
    if not path.is_file():
        raise InputError(f"{ask.name}: no such file or folder")
    content = read_file(path, ask.name, ask.mmap)
    if isinstance(content, Mapping) and FORMAT in content:
        return _checkpoint(content, ask.name)
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    # A folder's own file stands for the folder; any other file beside a description is not described by it.
    return _recognised(state, path.parent if path.name in WHOLE else None, ask)


def _recognised(state: Any, folder: Path | None, ask: Request) -> Found:
    if not isinstance(state, Mapping):
        raise InputError(f"{ask.name} holds no weights by name, but {type(state).__name__}")
    state = {str(key).replace("_orig_mod.", ""): value for key, value in state.items()}
    if is_original(state):
        # Beside them lie the loss's and the metrics' buffers.
        state = {key: value for key, value in state.items() if key.startswith("network.")}
        return _original(tensors_of(state, ask.name), folder, ask)
    own = _without_prefix(state)
    if {"queries", "class_head.weight"} <= own.keys():
        own = tensors_of(own, ask.name)
        if folder is not None and (folder / EXPORT).is_file():
            return _own("exported folder", own, read_json(folder / EXPORT, f"{ask.name}/{EXPORT}"), ask.name)
        with _about(ask.name):
            return Found("weights", own, *_derived(own, None, ask))
    if folder is not None and (folder / _CONFIG).is_file():
        return _huggingface(tensors_of(state, ask.name), folder, ask.name)
    some = ", ".join(key[:60] for key in list(state)[:3])
    hint = f"; Hugging Face weights need their {_CONFIG}: give their folder" if "query.weight" in state else ""
    raise InputError(f"{ask.name} holds no EoMT: its weights are called {some} and so on{hint}")


def _checkpoint(content: Mapping[str, Any], name: str) -> Found:
    state = content.get("state_dict")
    if not isinstance(state, Mapping):
        raise InputError(f"{name} is damaged: it lacks its state_dict")
    own = tensors_of(_without_prefix(state), name)
    with _about(name):
        own = merged(own, (content[FORMAT].get("learns") or {}).get("lora"))
    found = _own("checkpoint", own, content[FORMAT], name)
    found.more["step"] = _whole(content.get("global_step"))
    found.more["mask_probabilities"] = _probabilities(state.get("mask_probabilities"))
    found.more["resumable"] = bool(content.get("optimizer_states"))
    return found


def _own(what: str, state: dict, part: Any, name: str) -> Found:
    """Ours, with what stands beside the weights."""
    try:
        found = Found(what, state, dict(part["network"]), kind=part["kind"])
        if not isinstance(found.kind, str):
            raise TypeError(f"kind is {found.kind}")
        found.classes = Classes.from_list(part["classes"])
        found.more = {
            "config": dict(part.get("config") or {}),
            "overrides": tuple(str(override) for override in part.get("overrides") or ()),
            "step": _whole(part.get("step")),
        }
    except (AttributeError, KeyError, TypeError, ValueError, InputError) as error:
        raise InputError(f"{name} is damaged: its description lacks or garbles a part ({str(error)[:80]})") from None
    return found


def _original(state: dict[str, Tensor], folder: Path | None, ask: Request) -> Found:
    what, probabilities = "original weights", state.get("network.attn_mask_probs")
    with _about(ask.name):
        if is_delta(state):
            what = "original delta weights"
            state = add_backbone(state, _backbone_weights(state["network.q.weight"].shape[1], ask))
        ours = from_original(state)
    if folder is not None and (folder / EXPORT).is_file():
        found = _own(what, ours, read_json(folder / EXPORT, f"{ask.name}/{EXPORT}"), ask.name)
        with _about(ask.name):
            found.state = without_added_biases(ours, found.network)
    else:
        with _about(ask.name):
            found = Found(what, ours, *_derived(ours, probabilities, ask))
    found.more["mask_probabilities"] = _probabilities(probabilities)
    return found


def _huggingface(state: dict[str, Tensor], folder: Path, name: str) -> Found:
    config = read_json(folder / _CONFIG, f"{name}/{_CONFIG}")
    with _about(name):
        ours, spec = from_huggingface(state, config)
        kind, classes = classes_of(config)
    if kind is None and (folder / _PROCESSOR).is_file():
        kind = _kind_of_processor(read_json(folder / _PROCESSOR, f"{name}/{_PROCESSOR}"), spec["num_classes"])
    # Names alone are numbered from 0, as things.
    named = classes is not None and classes.ids == list(range(len(classes))) and all(classes.is_thing)
    return Found("Hugging Face folder", ours, spec, frozenset({"backbone_options"}), kind, classes, named)


def _kind_of_processor(processor: Mapping[str, Any], count: int) -> str | None:
    """Images are cut into windows for semantic segmentation alone, which tells ADE20K's two kinds apart."""
    windows = processor.get("do_split_image")
    if windows is False and classes_by_count(count) is ADE20K:
        return "panoptic"
    return "semantic" if windows is True else None


def _derived(
    state: Mapping[str, Tensor], probabilities: Tensor | None, ask: Request
) -> tuple[dict[str, Any], frozenset[str]]:
    """What the weights' shapes tell of their network, helped by what is chosen; and what is a guess in it."""
    chosen = ask.network
    guessed = {"backbone_options"} | ({"num_masked_blocks"} if probabilities is None else set())
    options = chosen.get("backbone_options") or {}
    size = size_of(chosen["image_size"]) if chosen.get("image_size") is not None else None
    position = state.get("backbone.vit.pos_embed")
    if position is None:
        guessed |= {"image_size"}
    elif size is not None:
        patch = state["backbone.vit.patch_embed.proj.weight"].shape[-1]
        fits = size[0] // patch * (size[1] // patch) in (position.shape[1], position.shape[1] - 1)
        size = size if fits else None
    count = chosen.get("num_masked_blocks") if probabilities is None else len(probabilities)
    return network_of(state, count, size, options.get("num_heads"), ask.runnable), frozenset(guessed)


def _folder_weights(folder: Path, name: str, mmap: bool) -> dict[str, Tensor]:
    for file in WHOLE:
        if (folder / file).is_file():
            return read_tensors(folder / file, f"{name}/{file}", mmap)
        if (folder / f"{file}.index.json").is_file():
            return read_shards(folder, f"{file}.index.json", name, mmap)
    if (folder / "checkpoints").is_dir():
        raise InputError(
            f"{name} is a run's folder: give one of its checkpoints, {name}/checkpoints/best.ckpt or last.ckpt"
        )
    raise InputError(f"{name} holds no weights: a folder must have {' or '.join(WHOLE)}")


def _backbone_weights(width: int, ask: Request) -> dict[str, Tensor]:
    """Those of the pretrained backbone to which delta weights are relative."""
    source = str(ask.backbone or _BASES.get(width, ""))
    if not source:
        raise InputError("delta weights of an unknown DINOv3: give the pretrained one by delta_base=FILE")
    path = fetch(source) if is_hub_id(source) else Path(source).expanduser()
    if path.is_dir():
        return _folder_weights(path, source, ask.mmap)
    if not path.is_file():
        raise InputError(f"delta_base={source}: no such file or folder")
    return read_tensors(path, source, ask.mmap)


@contextlib.contextmanager
def _about(name: str) -> Iterator[None]:
    """Say which source an error is about; weights whose shapes or names make no sense are one, too."""
    try:
        yield
    except InputError as error:
        # Without a cause: the command line shows the innermost InputError.
        raise InputError(f"{name}: {error}") from None
    except (ArithmeticError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise InputError(f"{name} holds no weights of an EoMT, or damaged ones ({reason})") from error


def _without_prefix(state: Mapping[str, Any]) -> dict[str, Any]:
    """Lightning calls the network's weights `network.*` and has buffers of its own beside them."""
    own = {key.removeprefix("network."): value for key, value in state.items() if str(key).startswith("network.")}
    return own or dict(state)


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def _probabilities(value: Any) -> Tensor | None:
    """float32, a probability for each masked block; None for anything else."""
    fits = isinstance(value, Tensor) and value.ndim == 1 and value.is_floating_point() and len(value) <= 1000
    return value.float().clamp(0, 1) if fits and bool(value.isfinite().all()) else None
