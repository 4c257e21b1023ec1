"""Inference on an image's own patches: those that only show padding do not go through the network.

A 640x480 image in a square of 640 pixels makes 1,200 patches of 1,600. The network was trained with padding, so its
results change a little; an image that fills the square is segmented as before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from eomt.model.outputs import Logits
from eomt.postprocess.geometry import Placement


def run_unpadded(
    run: Callable[[Tensor, Tensor], Logits],
    inputs: Tensor,
    placements: Sequence[Placement],
    patch_size: int,
    at_once: int,
) -> Logits:
    """Run the network on padded inputs without their padding, those of one size together.

    Args:
        run: returns the network's last output. Takes inputs [n, 3, h, w], for which the position embedding must be
            cropped (see `Backbone`), and their indices in `inputs`, int64 [n].
        inputs: uint8 [N, 3, H, W], images at the top left, zeros elsewhere; or windows, which have no padding.
        placements: the placement of each input.
        patch_size: the network's patch size; sides are rounded up to its multiples.
        at_once: the most inputs that the network takes at a time.

    Returns:
        The output for the padded inputs; masks are continued into the padding by their last row and column.
    """
    height, width = inputs.shape[-2:]
    groups: dict[tuple[int, int], list[int]] = {}
    for index, placement in enumerate(placements):
        sides = zip((height, width), (placement.scaled_height, placement.scaled_width), strict=True)
        own = tuple(min(side, -(-scaled // patch_size) * patch_size) for side, scaled in sides)
        groups.setdefault(own, []).append(index)
    outputs, order = [], []
    for (rows, columns), members in groups.items():
        for part in torch.tensor(members).split(at_once):
            order += part.tolist()
            images = torch.stack([inputs[index, :, :rows, :columns] for index in part.tolist()])
            masks, classes = run(images, part)
            below = masks.shape[2] * (height - rows) // rows
            beside = masks.shape[3] * (width - columns) // columns
            masks = F.pad(masks, (0, beside, 0, below), mode="replicate") if below or beside else masks
            outputs.append(Logits(masks, classes))
    back = torch.tensor(order).argsort()
    return Logits(*(torch.cat(parts)[back] for parts in zip(*outputs, strict=True)))
