"""A dataset in memory whose images encode their own targets."""

import numpy as np

from eomt.classes import Classes
from eomt.errors import InputError
from eomt.targets import targets_from_id_map

CATEGORIES = [{"id": k + 1, "name": f"class {k}", "isthing": int(k < 3)} for k in range(5)]


def segment_image(height, width, seed):
    """An image of four rectangles and its targets; the pixels of class n have the value 40 n."""
    generator = np.random.default_rng(seed)
    id_map = np.zeros((height, width), dtype=np.int64)
    for number in range(1, 5):  # one in each quarter
        top, left = generator.integers(0, height // 6), generator.integers(0, width // 6)
        top, left = top + (number > 2) * height // 2, left + number % 2 * width // 2
        id_map[top : top + height // 3, left : left + width // 3] = number
    image = np.repeat((40 * id_map).astype(np.uint8)[..., None], 3, axis=2)
    return image, targets_from_id_map(id_map, range(1, 5), range(1, 5))


class MemoryReader:
    """A reader of `count` images of various sizes; `broken` ones cannot be read, `bare` ones have no segment."""

    def __init__(self, count=12, broken=(), bare=(), categories=CATEGORIES):
        self.classes = Classes.from_categories(categories)
        self.count = count
        self.broken = set(broken)
        self.bare = set(bare)

    def __len__(self):
        return self.count

    def has_targets(self):
        return np.array([index not in self.bare for index in range(self.count)])

    def name(self, index):
        return f"image{index:03d}"

    def image_id(self, index):
        return 1000 + index

    def size(self, index):
        return 24 + index % 5, 32 - index % 3

    def read(self, index):
        if index in self.broken:
            raise InputError(f"{self.name(index)}.jpg is cut short: fetch it again")
        image, targets = segment_image(*self.size(index), seed=index)
        if index in self.bare:
            targets = targets_from_id_map(np.zeros(self.size(index), dtype=np.int64), [], [])
        return image, targets
