"""A stand-in for a trained network, whose queries are colours: its answers on any part of a picture are exact."""

from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from eomt.classes import Classes
from eomt.model.outputs import Logits

CLASSES = Classes.from_categories(
    [{"id": 3, "name": "cup"}, {"id": 5, "name": "dog"}, {"id": 11, "name": "sky", "isthing": 0}]
)
SKY = (90, 160, 230)


class ColourNetwork(nn.Module):
    """A query per colour of `CLASSES`: dogs are red from 200, cups green from 200, all else is sky."""

    num_classes = len(CLASSES)

    def __init__(self, size: int = 32, colours: int = 12):
        super().__init__()
        self.image_size = (size, size)
        self.backbone = SimpleNamespace(crop_position=False, patch_size=8)
        self.colours = [SKY, *((200 + 5 * k, 0, 0) for k in range(colours // 2))]
        self.colours += [(0, 200 + 5 * k, 0) for k in range(colours // 2)]
        self.register_buffer("one", torch.ones(1))

    def forward(self, images: Tensor) -> list[SimpleNamespace]:
        masks = torch.stack(
            [(images.float() - torch.tensor(c)[:, None, None]).abs().sum(1) < 3 for c in self.colours], 1
        )
        labels = [2 if c == SKY else 1 if c[0] else 0 for c in self.colours]
        certain = torch.full((*masks.shape[:2], self.num_classes + 1), -12.0)
        certain[..., -1] = torch.where(masks.flatten(2).any(-1), -12.0, 12.0)
        certain[:, range(len(labels)), labels] = torch.where(masks.flatten(2).any(-1), 12.0, -12.0)
        output = Logits(40 * masks.float() - 20, certain)
        return [SimpleNamespace(logits=lambda: output)]


def picture(height: int, width: int, discs: int = 12, seed: int = 0) -> tuple[np.ndarray, list[np.ndarray]]:
    """A picture of discs in the network's colours that do not touch, none cut by a straight line into two parts, and
    their masks bool [H, W]."""
    rng = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), SKY, dtype=np.uint8)
    y, x = np.mgrid[:height, :width]
    masks: list[np.ndarray] = []
    for colour in ColourNetwork(colours=discs).colours[1:]:
        for _ in range(1000):
            radius, cy, cx = (
                rng.uniform(2, min(25, min(height, width) / 3)),
                rng.uniform(0, height),
                rng.uniform(0, width),
            )
            distance = np.hypot(y - cy, x - cx)
            mask = distance <= radius
            if mask.any() and not any((distance <= radius + 3)[other].any() for other in masks):
                break
        pixels[mask] = colour
        masks.append(mask)
    return pixels, masks
