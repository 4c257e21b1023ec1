"""LightningDataModule of a training and a validation set."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn

from datasets.batch import EvalBatch, TrainBatch
from datasets.loader import MAX_BAD_IMAGES, TIMEOUT_SECONDS, EvaluationLoader, ResumableLoader
from datasets.readers.base import Reader, Subset, divided, listed
from datasets.readers.chosen import ChosenClasses
from datasets.sampler import EpochBatchSampler
from datasets.samples import EvaluationSet, TrainingSet
from datasets.transforms import TrainTransform
from eomt.classes import Classes, difference
from eomt.errors import InputError
from eomt.postprocess.geometry import Geometry

if TYPE_CHECKING:
    import albumentations

log = logging.getLogger("eomt.data")


class SegmentationData(LightningDataModule):
    """Loaders of a training and a validation set.

    Training goes through the images that have a segment, shuffled by (seed, epoch), and resumes exactly. Validation
    scores every image once for any number of ranks. Give the trainer `use_distributed_sampler=False` and
    `accumulate_grad_batches=data.accumulation(devices)`.

    Args:
        train, val: readers, or functions without argument that open them.
        geometry: how a validation image becomes inputs of the network; the task's.
        image_size: the network's input: the side of a square, or (height, width).
        batch_size: images per device and batch; None until it is known, before training.
        global_batch: images per optimizer step.
        num_workers: reading processes per device and set; 0 reads in the main process.
        seed: determines the order of images and the random transforms; non-negative.
        scale_range, augmentations, mask_resize: see `TrainTransform`.
        eval_batch_size: images per device and batch of validation; default `batch_size`, which must then be given.
        max_images: the number of first images of each set to use; default all.
        max_bad_images: see `ResumableLoader`.
        keep_empty: train on images without a segment, too; see `TrainingSet`.
        timeout: seconds to wait for a batch of the workers.
        split: the part of the images that is trained on, chosen by a digest of their names: the same in every run. The
            others are validated on. `train` and `val` then open the same images.
        validate_on_train: validate on the training images.
        validation_loss: validation batches have what a loss takes.
        only, merge: chosen and merged classes of both sets, see `ChosenClasses`.
    """

    def __init__(
        self,
        train: Reader | Callable[[], Reader],
        val: Reader | Callable[[], Reader],
        geometry: Geometry,
        image_size: int | Sequence[int],
        batch_size: int | None,
        global_batch: int,
        num_workers: int,
        seed: int,
        scale_range: Sequence[float] = (0.1, 2.0),
        augmentations: Sequence[albumentations.BasicTransform | albumentations.BaseCompose] = (),
        eval_batch_size: int | None = None,
        max_images: int | None = None,
        max_bad_images: int = MAX_BAD_IMAGES,
        timeout: float = TIMEOUT_SECONDS,
        keep_empty: bool = False,
        mask_resize: str = "nearest",
        split: float | None = None,
        validate_on_train: bool = False,
        validation_loss: bool = False,
        only: Sequence[object] | None = None,
        merge: Mapping[object, Sequence[object]] | None = None,
    ):
        super().__init__()
        self.geometry = geometry
        height, width = (image_size,) * 2 if isinstance(image_size, int) else image_size
        self.image_size = (height, width)
        self.batch_size = batch_size
        self.global_batch = global_batch
        self.num_workers = num_workers
        self.seed = seed
        low, high = scale_range
        self.scale_range = (low, high)
        self.augmentations = tuple(augmentations)
        batch = batch_size if eval_batch_size is None else eval_batch_size
        if batch is None:
            raise InputError("data.eval_batch_size=null is data.batch_size, which is null, too: give one of them")
        self.eval_batch_size = batch
        self.max_images = max_images
        self.max_bad_images = max_bad_images
        self.timeout = timeout
        self.keep_empty = keep_empty
        self.mask_resize = mask_resize
        self.validation_loss = validation_loss
        self._only, self._merge = only, merge
        self._said: set[str] = set()
        self.split = split
        self._sources = {"train": train, "val": train if validate_on_train else val}
        self._parts = {"train": True, "val": validate_on_train}
        self._readers: dict[str, Reader] = {}
        self._sizes: dict[str, int] = {}

    def reader(self, split: str) -> Reader:
        """The reader of "train" or "val", opened at the first call."""
        if split not in self._readers:
            source = self._sources[split]
            reader = source() if callable(source) else source
            if self._only or self._merge:
                reader = ChosenClasses(reader, self._only, self._merge)
            if self.split is not None:
                reader = Subset(reader, divided(reader, self.split, self._parts[split]))
                _check_one_set(reader, *self._readers.values())
            self._sizes[split] = len(reader)
            self._readers[split] = reader if self.max_images is None else Subset(reader, range(self.max_images))
        return self._readers[split]

    @property
    def classes(self) -> Classes:
        """The classes of the training set, in the order of the network's outputs."""
        return self.reader("train").classes

    @property
    def val_classes(self) -> Classes:
        """The classes of the validation set."""
        return self.reader("val").classes

    def prepare_data(self) -> None:
        """Open the sets in one process per node: it writes the cached index that the others read."""
        self.setup(self.trainer.state.fn if self.trainer and self.trainer.state.fn else "")

    def setup(self, stage: str) -> None:
        """Open both sets to fit, otherwise that of validation.

        Raises:
            InputError: if training and validation differ in their classes.
        """
        classes = self.reader("val").classes
        if stage == TrainerFn.FITTING:
            check_same_classes(self.classes, classes)
        if self._rank_and_size()[0] == 0:
            for split in ("train", "val") if stage == TrainerFn.FITTING else ("val",):
                for line in self.remarks(split):
                    log.warning("data.%s: %s", split, line)

    def remarks(self, split: str) -> Iterator[str]:
        """Lines on what is left out, limited or taken for granted in a set; nothing at a further call."""
        if split in self._said:
            return
        self._said.add(split)
        reader = self.reader(split)
        lines = list(getattr(reader, "remarks", list)())
        if several := [f"{name!r:.60}" for name, count in Counter(reader.classes.names).items() if count > 1]:
            way_out = "each with scores of its own; data.merge joins them"
            lines.append(f"several classes are called {listed(several)}, {way_out}")
        for line in lines:
            if line not in self._said:  # two parts of one set say the same
                self._said.add(line)
                yield line
        if self.split is not None:
            yield f"{self._sizes[split]} images by data.split={self.split:g}, the same in every run"
        empty = int((~reader.has_targets()).sum())
        if split == "train" and empty:
            kept = "negatives (data.keep_empty=true)"
            left_out = "left out; data.keep_empty=true trains on them as negatives"
            yield (
                f"{empty} of {len(reader)} images have no segment, or crowds alone: "
                f"{kept if self.keep_empty else left_out}"
            )

    def _rank_and_size(self) -> tuple[int, int]:
        """The rank of this process and the world size."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def accumulation(self, devices: int) -> int:
        """The number of batches to accumulate so that an optimizer step sees `global_batch` images.

        Args:
            devices: processes that train together, over all nodes.

        Raises:
            InputError: if it is no whole number.
        """
        total, size = self.global_batch, self._known_batch_size()
        if total % (size * devices) == 0:
            return total // (size * devices)
        below = total // (size * devices) * size * devices
        ways = f"data.global_batch={f'{below} or ' if below else ''}{below + size * devices}"
        if total % devices == 0:
            ways += f"; or a data.batch_size that divides {total // devices}"
        raise InputError(
            f"data.global_batch={total} cannot be made of batches of data.batch_size={size} on {devices} devices "
            f"(trainer.devices x trainer.num_nodes); what works: {ways}"
        )

    def train_dataloader(self) -> ResumableLoader:
        """Loader of `TrainBatch`.

        Raises:
            InputError: if the trainer accumulates another number of batches than `global_batch` takes.
        """
        rank, world_size = self._rank_and_size()
        accumulated = self.accumulation(world_size)
        if self.trainer and self.trainer.accumulate_grad_batches != accumulated:
            raise InputError(
                f"trainer.accumulate_grad_batches is {self.trainer.accumulate_grad_batches}, but "
                f"data.global_batch={self.global_batch} takes {accumulated} batches of {self.batch_size} "
                f"on {world_size} devices: leave it to data.global_batch"
            )
        images, batches = self._training()
        if rank == 0 and len(images) < self.global_batch:
            fault = f"data.global_batch={self.global_batch} is more than the {len(images)} training images"
            log.warning("%s: images repeat within a step", fault)
        limit = self._limit(len(batches))
        return ResumableLoader(images, batches, self.num_workers, limit, self.timeout, self.max_bad_images)

    def train_batches(self) -> int:
        """The number of batches that this rank trains on in an epoch.

        Counted without a loader. Lightning restores a loader's position only if none was made before it reads the
        checkpoint, as asking for `trainer.estimated_stepping_batches` would.
        """
        return self._limit(len(self._training()[1]))

    def training_set(self) -> TrainingSet:
        """The training images with their random transform."""
        transform = TrainTransform(self.image_size, self.scale_range, self.augmentations, self.mask_resize)
        return TrainingSet(self.reader("train"), transform, self.seed, self.keep_empty)

    def _training(self) -> tuple[TrainingSet, EpochBatchSampler]:
        rank, world_size = self._rank_and_size()
        images, size = self.training_set(), self._known_batch_size()
        return images, EpochBatchSampler(len(images), size, self.global_batch, self.seed, rank, world_size)

    def _known_batch_size(self) -> int:
        assert self.batch_size is not None, "chosen before training"
        return self.batch_size

    def _limit(self, batches: int, key: str = "limit_train_batches") -> int:
        """The number of batches that the trainer asks for: an int counts them, a float is a share."""
        limit = getattr(self.trainer, key) if self.trainer else None
        if limit is None:
            return batches
        return int(batches * limit) if isinstance(limit, float) else min(limit, batches)

    def val_dataloader(self) -> EvaluationLoader:
        """Loader of `EvalBatch`."""
        ranks, loss = self._rank_and_size(), self.validation_loss
        images = EvaluationSet(self.reader("val"), self.geometry, self.image_size, *ranks, loss)
        limit = self._limit(-(-images.most // self.eval_batch_size), "limit_val_batches")
        return EvaluationLoader(images, self.eval_batch_size, self.num_workers, self.timeout, limit)

    def validated(self) -> tuple[int, int]:
        """The number of images that a validation scores on all ranks, and that of the whole set."""
        images, ranks = len(self.reader("val")), self.trainer.world_size if self.trainer else 1
        limit = self._limit(math.ceil(images / ranks / self.eval_batch_size), "limit_val_batches")
        shares = [len(range(rank, images, ranks)) for rank in range(ranks)]
        return sum(min(share, limit * self.eval_batch_size) for share in shares), self._sizes["val"]

    def transfer_batch_to_device(self, batch: TrainBatch | EvalBatch, device: torch.device, dataloader_idx: int):
        """Move a training batch, or the inputs of a validation batch: its ground truth is compared on the host."""
        if isinstance(batch, EvalBatch):
            shown = batch.shown and super().transfer_batch_to_device(batch.shown, device, dataloader_idx)
            return batch._replace(inputs=batch.inputs.to(device, non_blocking=True), shown=shown)
        return super().transfer_batch_to_device(batch, device, dataloader_idx)


def check_same_classes(train: Classes, val: Classes) -> None:
    """Raise InputError if two sets differ in the meaning of a network's outputs; colours may differ."""
    found = difference(val, train)
    if found is not None:
        here, there = found
        alone = sorted({*train.names} ^ {*val.names})
        only = f" ({listed(alone)} in one of them alone)" if alone else ""
        raise InputError(
            f"data.val has {here} where data.train has {there}{only}: give both the same categories, or choose the "
            "same by data.only"
        )


def _check_one_set(*readers: Reader) -> None:
    """Raise InputError if parts by `data.split` are of different sets, as far as a few names tell."""
    wholes = [reader.whole for reader in readers if isinstance(reader, Subset)]
    names = [[len(whole), *(whole.name(k) for k in (0, len(whole) // 2, len(whole) - 1))] for whole in wholes]
    if any(other != names[0] for other in names):
        raise InputError(
            "data.split divides one set, but data.train and data.val are different ones: name the same files for both, "
            "or set data.split=null"
        )
