"""A custom dataset and task outside the checkout. From this folder:

PYTHONPATH=. python ../../train.py --config-dir . task=circles
PYTHONPATH=. python ../../eval.py ckpt=RUN/checkpoints/best.ckpt trust_code=true
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from eomt.classes import Classes
from eomt.targets import targets_from_id_map
from eomt.tasks import PanopticTask


class Circles:
    """A `datasets.readers.base.Reader`: a bright disc somewhere on a dark ground."""

    def __init__(self, split: str, count: int, size: int = 64):
        self.classes = Classes.from_categories(
            [{"id": 1, "name": "disc"}, {"id": 2, "name": "ground", "isthing": 0, "color": [90, 90, 90]}]
        )
        self.split, self.count, self.side = split, count, size

    def __len__(self) -> int:
        return self.count

    def has_targets(self) -> np.ndarray:
        return np.ones(self.count, dtype=bool)

    def name(self, index: int) -> str:
        return f"{self.split}-{index:04d}"

    def image_id(self, index: int) -> int:
        return index

    def read(self, index: int):
        generator = np.random.default_rng((self.split == "val", index))
        y, x = np.mgrid[: self.side, : self.side]
        row, column, radius = generator.uniform((0.3, 0.3, 0.1), (0.7, 0.7, 0.3)) * self.side
        disc = np.hypot(y - row, x - column) < radius
        image = generator.integers(0, 60, (self.side, self.side, 3), dtype=np.uint8) + disc[..., None] * np.uint8(150)
        return image, targets_from_id_map(np.where(disc, 1, 2), segment_ids=[1, 2], labels=[0, 1])


@dataclass(frozen=True)
class ThingsFirst(PanopticTask):
    """Panoptic segmentation whose best checkpoint is the one with the best things."""

    kind: ClassVar[str] = "circles.ThingsFirst"
    monitor: ClassVar[str] = "pq_things"
