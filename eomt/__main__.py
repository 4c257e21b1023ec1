"""The commands of the installed package: `eomt predict`, `eomt export` and `eomt info`.

Keys and defaults are those of predict.py and export.py, without Hydra, which training alone needs.
"""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import platform
import sys
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version
from typing import Any

import yaml

from eomt import __path__, __version__, namesake
from eomt.errors import InputError, one_line

TEXT, TEXTS, FLAG, MAPPING = "a text", "a text, or a list [a,b]", "true or false", "a mapping {a: 1}"
FLAG_OR_COUNT = "true, false or a whole number of at least 1"
COUNT, NUMBER, SHARE = "a whole number of at least 1", "a whole number of at least 0", "a number from 0 to 1"
_WEIGHTS = {
    "ckpt": (TEXT, None, "a checkpoint or run, an exported folder, an original or Hugging Face file, or a Hub id"),
    "kind": (TEXT, None, "semantic, instance or panoptic, where the weights do not say"),
    "classes": (TEXTS, None, "where the weights do not say: a text file with a name a line, a JSON, or [cat,dog]"),
    "network.backbone": (TEXT, None, "the name of a timm model, where the weights do not say"),
    "network.image_size": (COUNT, None, "pixels of a side, where the weights do not say"),
    "network.num_masked_blocks": (NUMBER, None, "the last blocks that the queries pass through"),
    "network.backbone_options": (MAPPING, None, "sizes of an unpublished backbone"),
    "delta_base": (TEXT, None, "the pretrained DINOv3 that delta weights are relative to"),
}
_PREDICT = {
    "images": (TEXTS, None, "a file, a folder, a pattern in quotes ('photos/**/*.jpg'), or a list [a.jpg,b.png]"),
    "out": (TEXT, None, "receives pictures/, predictions/ and images.json; default runs/predict/TIME"),
    "overwrite": (FLAG, False, "true replaces the results in out"),
    "trust_code": (FLAG, False, "true imports a custom task that the checkpoint names"),
    "device": (TEXT, None, "such as cpu or cuda:1; default a GPU if there is one"),
    "precision": ("32, bf16 or 16", None, "default bf16 on a GPU, 32 on a CPU"),
    "compile": ("true, false or max-autotune", None, "true compiles the network, which takes a minute"),
    "unpadded": (FLAG, False, "true leaves out patches that only show padding"),
    "tile": (
        FLAG_OR_COUNT,
        False,
        "true sees large images in tiles of the network's input size, a number in such tiles",
    ),
    "tta": ("flip", None, "flip sees each image mirrored, too"),
    "max_pixels": (COUNT, 178956970, "larger images are refused"),
    "batch_size": (COUNT, 8, "inputs that the network takes at a time"),
    "num_workers": (NUMBER, 4, "threads that read images, and as many that paint pictures"),
    "threshold": (SHARE, None, "leaves out segments with lower scores; default: pictures show instances from 0.5"),
    "postprocess.max_bytes": (COUNT, None, "the memory of masks at the image's size"),
    "postprocess.top_k": (COUNT, None, "the objects of an image"),
    "postprocess.score_threshold": (SHARE, None, "panoptic: the least class probability"),
    "postprocess.mask_threshold": (SHARE, None, "panoptic: the least mask probability"),
    "postprocess.overlap_threshold": (SHARE, None, "panoptic: the least share of a mask that is left"),
}
_EXPORT = {
    "format": (TEXT, "eomt", "eomt, hf, original, onnx, openvino, tensorrt or torch_export"),
    "out": (TEXT, None, "the folder to write"),
    "overwrite": (FLAG, False, "true replaces a previous export there"),
    "push": (TEXT, None, "a repository USER/NAME of the Hugging Face Hub to upload it to"),
    "public": (FLAG, False, "true lets all read that repository"),
    "precision": (
        "32, bf16, 16 or int8",
        32,
        "of the weights; int8 for onnx, openvino and tensorrt, bf16 not for these",
    ),
    "batch_size": (COUNT, 1, "graphs: images that they take at a time"),
    "dynamic_batch": (FLAG, False, "graphs: true for any number"),
    "postprocess": (FLAG, False, "onnx, openvino, tensorrt: true for labels, scores and masks in place of logits"),
    "images": (TEXTS, None, "graphs: images to compare them on, and to calibrate int8"),
    "score": (FLAG, False, "graphs: true scores PyTorch and the graph on the checkpoint's validation set"),
}
KEYS = {"predict": _WEIGHTS | _PREDICT, "export": _WEIGHTS | _EXPORT, "info": _WEIGHTS}
_NEEDED = {"predict": ("ckpt", "images"), "export": ("ckpt", "out"), "info": ()}
_ABOUT = {
    "predict": "segment images",
    "export": "write a network for others",
    "info": "versions, devices, a checkpoint",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command: the exit status, 1 for bad input."""
    parser = argparse.ArgumentParser("eomt", description=f"EoMT {__version__}, in {__path__[0]}")
    commands = parser.add_subparsers(dest="command", required=True)
    for command, keys in KEYS.items():
        lines = [f"  {key}: {meaning}" for key, (_, _, meaning) in keys.items()]
        own = commands.add_parser(command, help=_ABOUT[command], epilog="\n".join(["keys:", *lines]))
        own.formatter_class = argparse.RawDescriptionHelpFormatter
        own.add_argument("settings", nargs="*", metavar="key=value")
    given, unknown = parser.parse_known_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        if fault := namesake():
            logging.getLogger("eomt").warning("%s", fault)
        run(given.command, settings(given.command, unknown + given.settings))
    except (InputError, OSError) as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def settings(command: str, arguments: Sequence[str]) -> dict[str, Any]:
    """A command's settings, nested. InputError names an argument that is none."""
    found = {key: default for key, (_, default, _) in KEYS[command].items()}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or key not in found:
            near = difflib.get_close_matches(key.strip("-"), found, 1)
            hint = f"did you mean {near[0]}=" if near else f"eomt {command} --help lists them"
            raise InputError(f"{argument} is no key=value of eomt {command}: {hint}")
        kind, default, _ = KEYS[command][key]
        found[key] = None if text == "null" and default is None else _value(kind, key, text)
    for key in _NEEDED[command]:
        if found[key] is None:
            raise InputError(f"{key} is not set: give {key}=, {KEYS[command][key][2]}")
    nested: dict[str, Any] = {}
    for key, value in found.items():
        section, _, name = key.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[name] = value
    return nested


def _value(kind: str, key: str, text: str) -> Any:
    if not text:
        raise InputError(f"{key}= is empty: it must be {kind}")
    if kind in (TEXT, TEXTS):
        listed = kind == TEXTS and text[0] + text[-1] == "[]" and not os.path.exists(text)
        return [entry.strip(" '\"") for entry in text[1:-1].split(",")] if listed else os.path.expanduser(text)
    try:
        value: Any = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    good: dict[str, bool] = {
        FLAG: isinstance(value, bool),
        MAPPING: isinstance(value, dict),
        COUNT: type(value) is int and bool(value >= 1),
        FLAG_OR_COUNT: type(value) in (bool, int) and (value is False or value >= 1),
        NUMBER: type(value) is int and bool(value >= 0),
        SHARE: type(value) in (int, float) and bool(0 <= value <= 1),
    }
    if not good.get(kind, text in kind.replace(" or ", ", ").split(", ")):
        raise InputError(f"{key}={text} must be {kind}")
    return value


def run(command: str, cfg: dict[str, Any]) -> None:
    """Run a command with its settings."""
    if command == "predict":
        from eomt.cli.predict import predict

        predict(cfg | {"out": cfg["out"] or f"runs/predict/{datetime.now():%Y-%m-%d_%H-%M-%S}"})
    elif command == "export":
        from eomt.cli.export import export

        export(cfg)
    else:
        _inform(cfg)


def _inform(cfg: dict[str, Any]) -> None:
    """Print versions and devices, and what a checkpoint holds."""
    import torch

    from eomt.export.export import metrics_of
    from eomt.weights.load import read_incomplete

    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "timm"))
    print(f"EoMT {__version__} in {__path__[0]}; Python {platform.python_version()}, {versions}")
    gpus = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    print(f"GPUs: {', '.join(gpus) or 'none'}; CPU cores: {os.cpu_count()}")
    if cfg["ckpt"] is not None:
        chosen = {"kind": cfg["kind"], "network": cfg["network"], "backbone": cfg["delta_base"]}
        weights = read_incomplete(cfg["ckpt"], **chosen)
        if weights.classes is not None:
            print(f"classes: {', '.join(weights.classes.names)}")
        for name, score in metrics_of(cfg["ckpt"]).items():
            print(f"{name}: {score}")


if __name__ == "__main__":
    sys.exit(main())
