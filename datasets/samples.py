"""Samples of a reader's images: transformed for training, or as inputs of the network for validation.

An exception raised in a worker arrives in the main process with a stack trace in its text. Unreadable images
therefore travel as values, and the loaders raise or report them in the main process.
"""

from __future__ import annotations

from itertools import count

import numpy as np
from torch.utils.data import Dataset

from datasets.batch import EvalItem, TrainItem
from datasets.files.source import read_with_retry
from datasets.readers.base import Reader
from datasets.sampler import SampleKey
from datasets.transforms import TrainTransform, has_segment, shown_targets
from eomt.errors import InputError
from eomt.postprocess.geometry import Geometry

# Images drawn in place of a broken one before training gives up: more than a few broken files in a row
# mean that the data as a whole is not what the configuration says.
MAX_REPLACEMENTS = 20


class TrainingSet(Dataset):
    """The images of a reader that have at least one segment, transformed.

    An image whose segments turn out to be without a pixel, as a label PNG of nothing but void, is replaced by another.

    Args:
        reader: the images and their targets.
        transform: the random transform.
        seed: non-negative; with a sample's key it determines all that is random about the sample.
        keep_empty: images without a segment, or of crowds alone, are in the set, too: negatives.

    Raises:
        InputError: if no image has a segment.
    """

    def __init__(self, reader: Reader, transform: TrainTransform, seed: int, keep_empty: bool = False):
        self.reader = reader
        self.transform = transform
        self.seed = seed
        self.keep_empty = keep_empty
        has_targets = reader.has_targets()
        self.indices = np.flatnonzero(has_targets | keep_empty)
        self._empty: set[int] = set()  # which those are does not depend on what was read before
        if not has_targets.any():
            raise InputError(_nothing_to_train(len(reader)))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: SampleKey) -> TrainItem | InputError:
        """The sample of a key, or the error if neither its image nor any replacement can be read, or transformed."""
        skipped: list[str] = []
        notes: list[tuple[str, str]] = []
        for attempt in count():
            if len(skipped) > MAX_REPLACEMENTS:
                break
            if len(self._empty) == len(self):
                return InputError(_nothing_to_train(len(self.reader)))
            place = int(self.indices[key.replacement(self.seed, attempt, len(self)) if attempt else key.index])
            if place in self._empty:
                continue
            name = self.reader.name(place)
            try:
                image, targets = read_with_retry(self.reader.read, place)
            except InputError as error:
                skipped.append(_with_name(name, error))
                continue
            notes += [(kind, name) for kind, _ in targets.notes]
            try:
                image, cropped = self.transform(image, targets, key.augmentation_seed(self.seed))
            except InputError as error:
                return InputError(_with_name(name, error))
            if len(cropped.labels) or self.keep_empty or has_segment(targets):
                return TrainItem(image, cropped, name, tuple(skipped), tuple(notes))
            notes.append(("no_segment", name))
            self._empty.add(place)
        return InputError(f"{len(skipped)} training images drawn in a row could not be read; the last: {skipped[-1]}")


class EvaluationSet(Dataset):
    """This rank's share of a reader's images, each exactly once over all ranks.

    Indices beyond the last give one of the images again, without targets: see `EvaluationLoader`.

    Args:
        reader: the images and their targets.
        geometry: how an image becomes inputs of the network.
        size: (height, width) of an input.
        rank, world_size: this process among those that evaluate together.
        with_shown: also give the segments that each input shows, for a loss.

    Attributes:
        most: the largest number of images of a rank.
    """

    def __init__(
        self,
        reader: Reader,
        geometry: Geometry,
        size: tuple[int, int],
        rank: int = 0,
        world_size: int = 1,
        with_shown: bool = False,
    ):
        self.with_shown = with_shown
        self.reader = reader
        self.geometry = geometry
        self.size = size
        self.rank = rank
        self.indices = range(rank, len(reader), world_size)
        self.most = -(-len(reader) // world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> EvalItem | InputError:
        """An image with its targets, or the error if it cannot be read."""
        again = place >= len(self)
        index = self.rank % len(self.reader) if again else self.indices[place]
        name = self.reader.name(index)
        try:
            image, targets = read_with_retry(self.reader.read, index)
        except InputError as error:
            return InputError(_with_name(name, error))
        inputs, placement = self.geometry.prepare(image, self.size)
        if again:
            return EvalItem(inputs, placement, None, name, self.reader.image_id(index))
        shown = shown_targets(targets, placement, self.size) if self.with_shown else ()
        return EvalItem(inputs, placement, targets, name, self.reader.image_id(index), shown)


def _nothing_to_train(images: int) -> str:
    return (
        f"data.train has {images} images and none has a segment that is no crowd: nothing to train on; "
        "check that its annotations belong to its images, and data.crowd and data.ignore"
    )


def _with_name(name: str, error: InputError) -> str:
    """The error's message with the image's name: an error about an archive does not know it."""
    return str(error) if name in str(error) else f"{name}: {error}"
