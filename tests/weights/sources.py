"""Small networks of ours and the recorded ones of the original, written in every form that weights come in."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from eomt.classes import Classes
from eomt.model.eomt import EoMT
from eomt.weights.huggingface import to_huggingface
from eomt.weights.original import from_original
from tests.golden_numbers import golden_json, golden_tensors

SEVEN = Classes.from_categories({"id": 10 + k, "name": f"class {k}", "isthing": k < 4} for k in range(7))
ONE_HEAD = {"backbone_options": {"num_heads": 1}}


def golden(version: int = 2) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """The original's recorded weights, the same under our keys, and the arguments of their network."""
    record = golden_json(f"dinov{version}_tiny")
    spec = {
        "backbone": record["backbone"],
        "image_size": record["img_size"],
        "num_classes": 7,
        "num_queries": 10,
        "num_masked_blocks": 3,
        "patch_size": 16,
        "backbone_options": record["backbone_kwargs"],
    }
    state = golden_tensors(f"dinov{version}_tiny_original_state")
    return state, from_original(state), spec


def small(num_classes: int = 3, backbone: str = "vit_small_patch14_reg4_dinov2", **options: Any) -> EoMT:
    """A square network of ours, which every format can hold."""
    torch.manual_seed(0)
    options = {"embed_dim": 64, "depth": 2, "num_heads": 1} | options
    return EoMT(backbone, 32, num_classes, 6, 1, 8, options)


def part_of(network: EoMT, kind: str = "panoptic", classes: Classes = SEVEN) -> dict[str, Any]:
    """The description that a checkpoint or eomt.json carries."""
    return {"kind": kind, "classes": classes.to_list(), "network": network.spec}


def write_folder(folder: Path, state: dict[str, Tensor], description: Any = None, name: str = "eomt.json") -> Path:
    """Write model.safetensors and a description beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in state.items()}, folder / "model.safetensors")
    if description is not None:
        (folder / name).write_text(json.dumps(description))
    return folder


def write_huggingface(folder: Path, network: EoMT, classes: Classes | None = None, kind: str | None = None) -> Path:
    """Write a Hugging Face folder."""
    state, config, preprocessor = to_huggingface(network.state_dict(), network.spec, classes, kind)
    write_folder(folder, state, config, "config.json")
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


def assert_equal(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Equal keys, dtypes and bits."""
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        assert state[key].dtype == value.dtype, key
        assert torch.equal(state[key], value), key
