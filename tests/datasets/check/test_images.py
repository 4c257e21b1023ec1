"""Facts of images, and breaches of the `Reader` interface."""

import numpy as np

from datasets.check.images import ExaminedImages
from tests.memory_reader import MemoryReader


def examined(reader):
    return ExaminedImages(reader)[0]


def test_custom_readers_are_held_to_their_interface():
    class Wrong(MemoryReader):
        def read(self, index):
            image, targets = super().read(index)
            return self.spoil(image, targets)

    reader = Wrong(1)
    spoilers = {
        "uint8": lambda image, t: (image.astype(np.float32), t),
        "image's size": lambda image, t: (image[1:], t),
        "0 to 3, the number": lambda image, t: (image, t._replace(labels=t.labels[:3])),
        "0 to 4, found 1 to 5": lambda image, t: (image, t._replace(labels=t.labels + (t.labels == 4))),
        "failed with ZeroDivisionError": lambda image, t: 1 // 0,
    }
    for what, spoil in spoilers.items():
        reader.spoil = spoil
        assert what in examined(reader).what
    reader.spoil = lambda *both: both
    assert examined(reader).pixels.tolist() == [8 * 10] * 4
