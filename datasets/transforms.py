"""Random transforms of training images (EoMT, arXiv 2503.19108, and its reference recipe)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from eomt.errors import InputError
from eomt.postprocess.geometry import Placement, windows_of
from eomt.targets import ImageTargets, id_type, runs

if TYPE_CHECKING:
    import albumentations

# An image that is left without a segment is transformed afresh. The original does so for ever.
MAX_TRIES = 10


class TrainTransform:
    """Augmentations of the user's choice, then horizontal flip, large-scale jitter, zero padding and random crop.

    Args:
        size: (height, width) of the result, in pixels.
        scale_range: the image is resized to r times the largest size that fits `size`, r uniform in this range.
            EoMT: (0.1, 2.0); for semantic segmentation (0.5, 2.0).
        augmentations: transforms of albumentations, in their order.
        mask_resize: PyTorch's mode by which masks are resized, see `nearest_pixels`. EoMT: "nearest".

    Raises:
        InputError: if `augmentations` are no such transforms.
    """

    def __init__(
        self,
        size: tuple[int, int],
        scale_range: tuple[float, float] = (0.1, 2.0),
        augmentations: Sequence[albumentations.BasicTransform | albumentations.BaseCompose] = (),
        mask_resize: str = "nearest",
    ):
        self._mask_resize = mask_resize
        self._size = size
        self._scale_range = scale_range
        self._augment = Augmentations(augmentations) if augmentations else None

    def __call__(self, image: np.ndarray, targets: ImageTargets, seed: Sequence[int]) -> tuple[Tensor, ImageTargets]:
        """Transform one image with its targets.

        Args:
            image: uint8 [h, w, 3].
            targets: its segments; crowds are dropped, and so are segments with no pixel left. If none is left, the
                image is transformed afresh, 10 times at most; then it has no target.
            seed: non-negative integers; equal seeds give equal results.

        Returns:
            uint8 [3, height, width], and targets of that size, ids in the smallest type that numbers them.

        Raises:
            InputError: if an augmentation fails.
        """
        generator = np.random.default_rng(seed)
        shown, augmented = image, targets
        for _ in range(1 if targets.crowd.all() else MAX_TRIES):
            if self._augment:
                shown, augmented = self._augment(image, targets, generator.spawn(1)[0])
            height, width, _ = shown.shape
            crop = draw_crop((height, width), self._size, self._scale_range, generator)
            cropped = crop_targets(augmented, crop, self._mask_resize)
            if len(cropped.labels):
                break
        return crop_image(shown, crop), cropped


def has_segment(targets: ImageTargets) -> bool:
    """True if an image shows a pixel of a segment that is no crowd."""
    wanted = np.append(False, ~targets.crowd.numpy())
    return bool(wanted[np.unique(runs(targets.ids.numpy())[0])].any())


class Augmentations:
    """A list of albumentations transforms, applied to an image and the id planes of its segments alike.

    Masks are moved to the nearest pixel; pixels that a transform fills in belong to no segment.

    Args:
        transforms: transforms of albumentations or compositions of them, such as `OneOf`.

    Raises:
        InputError: if one is something else, or takes an argument that it does not know.
    """

    def __init__(self, transforms: Sequence[albumentations.BasicTransform | albumentations.BaseCompose]):
        # Imported here: runs without augmentations need not have it, and it may ask a server for its newest version.
        import albumentations

        for transform in transforms:
            if not isinstance(transform, albumentations.BasicTransform | albumentations.BaseCompose):
                raise InputError(
                    f"data.augmentations holds {transform!r}, which is no transform of albumentations: "
                    "list entries as {_target_: albumentations.HorizontalFlip, p: 0.5}"
                )
        try:
            self._compose = albumentations.Compose(list(transforms), strict=True)
        except ValueError as error:
            raise InputError(f"data.augmentations: {error}") from error

    def __call__(
        self, image: np.ndarray, targets: ImageTargets, generator: np.random.Generator
    ) -> tuple[np.ndarray, ImageTargets]:
        """Transform one image with its targets.

        Args:
            image: uint8 [h, w, 3].
            targets: T segments in id planes of that size.
            generator: the only source of random numbers.

        Returns:
            uint8 [h', w', 3], and targets of that size, of the same segments, some perhaps without a pixel.

        Raises:
            InputError: if a transform fails, or what it returns is no such image.
        """
        # One stream for all transforms: `set_random_seed` would give each the same numbers.
        self._compose.set_random_state(generator, random.Random(int(generator.integers(2**63))))
        try:
            result = self._compose(image=image, masks=targets.ids.numpy())
        except Exception as error:  # transforms raise many types
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(
                f"data.augmentations fail on {image.shape[1]}x{image.shape[0]} pixels ({reason})"
            ) from error
        image, ids = result["image"], np.ascontiguousarray(result["masks"], dtype=np.int16)
        if image.dtype != np.uint8 or image.shape != (*ids.shape[1:], 3):
            raise InputError(
                f"data.augmentations give an image of {image.dtype} {list(image.shape)}, not uint8 [height, width, 3] "
                "of the masks' size: leave out Normalize, ToFloat and ToTensorV2, the network normalises by itself"
            )
        if ids.min() < 0 or ids.max() > len(targets.labels):  # a fill value other than 0
            ids = np.where((ids >= 0) & (ids <= len(targets.labels)), ids, 0)
        return np.ascontiguousarray(image), targets._replace(ids=torch.from_numpy(ids), areas=None, rles=None)


class Crop(NamedTuple):
    """Mirror an image, resize it, and show a window of it at the top left of a canvas.

    Attributes:
        flip: mirror left and right.
        old, scaled: (height, width) of the image before and after it is resized.
        window: first row and row after the last, first column and column after the last, of the resized image.
        size: (height, width) of the canvas, at least the window's; zeros around the window.
    """

    flip: bool
    old: tuple[int, int]
    scaled: tuple[int, int]
    window: tuple[tuple[int, int], tuple[int, int]]
    size: tuple[int, int]


def draw_crop(
    old: tuple[int, int], size: tuple[int, int], scale_range: tuple[float, float], generator: np.random.Generator
) -> Crop:
    """Draw flip, scale and window of a training crop.

    Mirrored with probability 0.5; resized by r * min(height / h, width / w), r uniform in `scale_range`, sides
    truncated to integers, at least 1; the window anywhere with equal chance.

    Args:
        old: (h, w) of the image.
        size: (height, width) of the canvas.
        scale_range: the lowest and the highest r.
        generator: the source of random numbers.
    """
    flip = bool(generator.random() < 0.5)
    factor = generator.uniform(*scale_range) * min(size[0] / old[0], size[1] / old[1])
    scaled = max(int(old[0] * factor), 1), max(int(old[1] * factor), 1)
    top, left = (
        int(generator.integers(max(side - room, 0), endpoint=True)) for side, room in zip(scaled, size, strict=True)
    )
    window = (top, min(top + size[0], scaled[0])), (left, min(left + size[1], scaled[1]))
    return Crop(flip, old, scaled, window, size)


def crop_image(image: np.ndarray, crop: Crop) -> Tensor:
    """Resize bilinearly with antialias, as `torch.nn.functional.interpolate` does on 8-bit pixels, and crop.

    Args:
        image: uint8 [h, w, 3].
        crop: the part to show.

    Returns:
        uint8 [3, *crop.size].
    """
    (top, bottom), (left, right) = crop.window
    # The batch axis must come first, or PyTorch does not see channels last and takes twice as long.
    pixels = torch.from_numpy(cv2.flip(image, 1) if crop.flip else image)[None].permute(0, 3, 1, 2)
    resized = functional.interpolate(pixels, crop.scaled, mode="bilinear", antialias=True)
    below, beside = crop.size[0] - (bottom - top), crop.size[1] - (right - left)
    return functional.pad(resized[0, :, top:bottom, left:right], (0, beside, 0, below)).contiguous()


def crop_targets(targets: ImageTargets, crop: Crop, mode: str = "nearest") -> ImageTargets:
    """Resize to the nearest pixel. Crowds are dropped, and so are segments without a pixel in the window.

    Args:
        targets: the segments of the image.
        crop: the part to show.
        mode: see `nearest_pixels`.

    Returns:
        Targets of the size `crop.size`, ids in `id_type` of what is left, without areas and codes.
    """
    rows, columns = (nearest_pixels(*sides, mode) for sides in zip(crop.old, crop.scaled, crop.window, strict=True))
    if crop.flip:
        columns = crop.old[1] - 1 - columns
    # Pixels that a resize repeats are renumbered once. Lines are copied as a whole, and turning a plane takes less
    # than picking columns pixel by pixel.
    (rows, row_place), (columns, column_place) = (np.unique(pixels, return_inverse=True) for pixels in (rows, columns))
    ids = targets.ids.numpy().take(rows, axis=1)
    ids = np.stack([cv2.transpose(plane).take(columns, axis=0) for plane in ids])

    numbers, lengths = runs(ids)
    keep = np.zeros(len(targets.labels) + 1, dtype=bool)
    keep[numbers] = True
    keep = keep[1:] & ~targets.crowd.numpy()
    new = np.zeros(len(keep) + 1, dtype=id_type(keep.sum()))
    new[1:][keep] = np.arange(1, keep.sum() + 1)
    ids = np.repeat(new[numbers], lengths).reshape(ids.shape)

    used, planes = np.unique(targets.planes.numpy()[keep], return_inverse=True)
    canvas = np.zeros((max(len(used), 1), *crop.size), dtype=new.dtype)
    for plane, k in zip(canvas, used, strict=False):
        lines = cv2.transpose(ids[k].take(column_place, axis=0)).take(row_place, axis=0)
        plane[: len(row_place), : len(column_place)] = lines
    labels = torch.from_numpy(targets.labels.numpy()[keep])
    crowd = torch.zeros(len(labels), dtype=torch.bool)
    return ImageTargets(torch.from_numpy(canvas), labels, torch.from_numpy(planes.astype(np.int64)), crowd)


def shown_targets(targets: ImageTargets, placement: Placement, size: tuple[int, int]) -> tuple[ImageTargets, ...]:
    """The targets that each input of an image in validation shows, see `crop_targets`.

    Args:
        targets: the segments of the image.
        placement, size: see `eomt.postprocess.geometry.Geometry`.
    """
    old, scaled = placement[:2], placement[2:]
    parts = [
        ((rows.start, min(rows.stop, scaled[0])), (columns.start, min(columns.stop, scaled[1])))
        for rows, columns in windows_of(placement, size)
    ]
    return tuple(crop_targets(targets, Crop(False, old, scaled, part, size), "nearest-exact") for part in parts)


def nearest_pixels(old: int, new: int, window: tuple[int, int], mode: str = "nearest") -> np.ndarray:
    """The pixel of `old` that each pixel of window [start, end) shows after a nearest resize to `new`.

    PyTorch's rules, in single precision: "nearest" is floor(i * old / new), by which a mask lies half a pixel of
    `new` beside its image; "nearest-exact" is floor((i + 0.5) * old / new), the pixel at the centre of i.
    """
    scale = np.float32(old) / np.float32(new)
    pixels = (np.arange(*window, dtype=np.float32) + np.float32(0.5 if mode == "nearest-exact" else 0)) * scale
    return np.minimum(pixels.astype(np.int64), old - 1)
