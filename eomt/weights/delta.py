"""The original's delta files: its DINOv3 networks as trained backbone minus pretrained backbone."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from eomt.errors import InputError
from eomt.weights.key_maps import block_to_transformers, convert_blocks
from eomt.weights.original import BACKBONE

_PIXEL = ("network.encoder.pixel_mean", "network.encoder.pixel_std")
# transformers' name, the original's; timm's name, the original's.
_TRANSFORMERS = {"embeddings.": "patch_embed."}
_TIMM = {
    "cls_token": "patch_embed.cls_token",
    "reg_token": "patch_embed.register_tokens",
    "patch_embed.proj.": "patch_embed.patch_embeddings.",
}


def is_delta(state: Mapping[str, Tensor]) -> bool:
    """Whether the original's weights are a delta file: whether the pixels' deviation in it is 0.

    The original subtracts its whole encoder, with the pixel statistics in it, and stores these in every file;
    no absolute file has a deviation of 0. Where the deviation was taken out of a delta file, this cannot
    be seen; in files of `to_original` it is missing because they are absolute.
    """
    deviation = state.get(_PIXEL[1])
    return deviation is not None and not deviation.any()


def add_backbone(state: Mapping[str, Tensor], backbone_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Make a delta file absolute.

    Args:
        state: the original's delta file, keys `network.*`. What is not in the backbone is absolute already.
        backbone_state: of the pretrained DINOv3 that the training began with, under transformers' names
            (the file model.safetensors of `facebook/dinov3-vitl16-pretrain-lvd1689m`) or timm's. What EoMT
            does not have, such as the mask token, is not used. Biases of queries and values that it lacks
            are 0, as they are in timm's files without `qkvb`.

    Returns:
        The original's state dict, fit for `from_original`, without the pixel statistics.

    Raises:
        InputError: if the two do not fit each other.
    """
    base = _original_names(backbone_state)
    depth, base_depth = _depth(state, BACKBONE), _depth(base)
    if depth != base_depth:
        raise InputError(
            f"the delta weights have a backbone of {depth} blocks, the pretrained backbone {base_depth}: "
            "take the DINOv3 of the size that they were trained from"
        )
    absolute = {}
    for key, value in state.items():
        if key in _PIXEL:
            continue
        name = key.removeprefix(BACKBONE)
        absolute[key] = value if name == key else value + _base_weight(base, name, value)
    return absolute


def _base_weight(base: Mapping[str, Tensor], name: str, delta: Tensor) -> Tensor:
    weight = base.get(name)
    if weight is None:
        if name.endswith(("q_proj.bias", "v_proj.bias")):
            return delta.new_zeros(delta.shape)
        raise InputError(f"the pretrained backbone lacks {name}: it is not the DINOv3 that the delta weights need")
    if weight.shape != delta.shape:
        raise InputError(
            f"{name} is {list(weight.shape)} in the pretrained backbone, {list(delta.shape)} in the delta weights: "
            "take the DINOv3 of the size that they were trained from"
        )
    return weight.to(delta.device)


def _original_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if any(key.startswith("blocks.") for key in state):
        names = _TIMM
        state = convert_blocks(state, "blocks.", "blocks.", lambda block: block_to_transformers(block, dinov3=True))
    else:
        names = _TRANSFORMERS
        # transformers 5 calls the encoder "model".
        for prefix in ("layer.", "model.layer."):
            state = convert_blocks(state, prefix, "blocks.", dict)
    renamed = {}
    for key, value in state.items():
        for old, new in names.items():
            if key.startswith(old):
                key = new + key.removeprefix(old)
                break
        renamed[key] = value
    return renamed


def _depth(state: Mapping[str, Tensor], prefix: str = "") -> int:
    blocks = f"{prefix}blocks."
    return len({key.removeprefix(blocks).split(".")[0] for key in state if key.startswith(blocks)})
