"""The original's delta files: its DINOv3 networks as trained backbone minus pretrained backbone."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from eomt.errors import InputError
from eomt.weights.hub import local_path
from eomt.weights.key_maps import Names, block_to_transformers, convert_blocks, renamed
from eomt.weights.original import BACKBONE, weights_of
from eomt.weights.safe_load import Source, read_source
from eomt.weights.weights import Chosen, Weights

# The width of a DINOv3 and the pretrained one that the original started from.
_PRETRAINED = {
    width: f"facebook/dinov3-vit{size}16-pretrain-lvd1689m" for width, size in ((384, "s"), (768, "b"), (1024, "l"))
}
_PIXEL = ("network.encoder.pixel_mean", "network.encoder.pixel_std")
# transformers' name, the original's; timm's name, the original's.
_TRANSFORMERS: Names = (("embeddings.", "patch_embed."),)
_TIMM: Names = (
    ("cls_token", "patch_embed.cls_token"),
    ("reg_token", "patch_embed.register_tokens"),
    ("patch_embed.proj.", "patch_embed.patch_embeddings."),
)


def read_delta(source: Source, chosen: Chosen) -> Weights:
    """Read a delta file and the pretrained backbone that it is relative to.

    Raises:
        InputError: if the backbone cannot be had or is of another size.
    """
    width = source.state["network.q.weight"].shape[-1]
    name = str(chosen.backbone or _PRETRAINED.get(width, ""))
    if not name:
        raise InputError("delta weights of an unknown DINOv3: give the pretrained one by delta_base=FILE")
    path = local_path(name)
    if not path.exists():
        raise InputError(f"delta_base={name}: no such file or folder")
    state = add_backbone(source.state, read_source(path, name).state)
    return weights_of(state, "original delta weights", source, chosen)


def add_backbone(state: Mapping[str, Tensor], backbone_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Make a delta file absolute.

    Args:
        state: the original's delta file, keys `network.*`. Weights outside the backbone are absolute already.
        backbone_state: the pretrained DINOv3 that the training started from, under transformers' names
            (the file model.safetensors of `facebook/dinov3-vitl16-pretrain-lvd1689m`) or timm's. Parts that EoMT
            does not have, such as the mask token, are not used. Biases of queries and values that it lacks
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
        if key not in _PIXEL:
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
        blocks = convert_blocks(state, "blocks.", "blocks.", partial(block_to_transformers, dinov3=True))
        return renamed(blocks, _TIMM)
    # transformers 5 calls the encoder "model".
    return renamed(state, (("layer.", "blocks."), ("model.layer.", "blocks."), *_TRANSFORMERS))


def _depth(state: Mapping[str, Tensor], prefix: str = "") -> int:
    blocks = f"{prefix}blocks."
    return len({key.removeprefix(blocks).split(".")[0] for key in state if key.startswith(blocks)})
