"""The result for an image: plain arrays on the host, pictures, and the forms that other tools take."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# PyTorch types its own methods in part only.

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from eomt.classes import Classes
from eomt.errors import InputError
from eomt.files import replacing
from eomt.inference.checks import check_threshold
from eomt.inference.sources import ImageSource
from eomt.inference.windows import load_thinned
from eomt.photo import MAX_PIXELS
from eomt.postprocess.draw import DRAWN_SCORE, draw_segments
from eomt.postprocess.geometry import outlines
from eomt.postprocess.instance import encode_masks
from eomt.postprocess.types import Instances, Segmentation
from eomt.postprocess.writers import ids_to_rgb, object_rows, panoptic_row
from eomt.targets import ImageId

if TYPE_CHECKING:
    from supervision import Detections  # pyright: ignore[reportMissingImports]

_LARGE_SIDE = 4096  # pixels of the pictures of very large images
_NOTEBOOK_SIDE = 1024  # pixels; a notebook keeps its pictures


class Segment(NamedTuple):
    """One segment of a result.

    Attributes:
        label: the class, an index into the result's `classes`.
        name: the class's name.
        score: 0..1.
        area: pixels.
        box: left, top, right, bottom; right and bottom are the first pixels outside.
        mask: bool [H, W].
    """

    label: int
    name: str
    score: float
    area: int
    box: tuple[int, int, int, int]
    mask: NDArray[np.bool_]


@dataclass(frozen=True, repr=False)
class Result:
    """The S segments of one image: classes present, objects, or panoptic segments.

    Objects are sorted by falling score: `result[:3]` are the best three. Panoptic segments are in no order
    of scores, semantic ones in that of their classes.

    `len(result)` is S. Iteration gives a `Segment` after the other, and so does `result[0]`; `result[result.scores >
    0.7]`, by a bool array, `result[:3]` and `result[[4, 1]]` give a result.

    Attributes:
        prediction: the result of post-processing, on the host.
        classes: the network's classes.
        source: the image as it was given: a path, or the caller's own object, which lives as long as the result.
        threshold: segments with lower scores are not painted and not printed, but all else has them; default 0.5 for
            instances, of which there are a hundred, most of them unlikely, otherwise 0.
        content: the bytes that `source` gave where it is an address or an open file, for pictures.
    """

    prediction: Segmentation | Instances
    classes: Classes
    source: ImageSource | None = None
    threshold: float | None = None
    content: bytes | None = None

    def __len__(self) -> int:
        return len(self.prediction.labels)

    def __iter__(self) -> Iterator[Segment]:
        return (self[number] for number in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Segment: ...
    @overload
    def __getitem__(self, index: slice | NDArray[Any] | torch.Tensor | Sequence[int | bool]) -> Result: ...
    def __getitem__(self, index: int | slice | NDArray[Any] | torch.Tensor | Sequence[int | bool]) -> Segment | Result:
        numbers = np.arange(len(self))
        try:
            wanted = np.asarray(index) if not isinstance(index, slice) else index
            # An empty list is of no integer type.
            chosen = numbers[wanted.astype(int) if isinstance(wanted, np.ndarray) and wanted.size == 0 else wanted]
        except IndexError as error:
            raise IndexError(f"a result of {len(self)} segments: {error}") from error
        if chosen.ndim == 0:
            return self._segment(int(chosen))
        if chosen.ndim != 1 or len(np.unique(chosen)) < len(chosen):
            raise IndexError("a result is indexed by a number, a slice, bool [S], or numbers that differ")
        return replace(self, prediction=self.prediction.select(torch.from_numpy(chosen.copy())))

    def __repr__(self) -> str:
        height, width = self.size
        shown = self.scores >= self._threshold
        names = [name for name, show in zip(self.names, shown.tolist(), strict=True) if show]
        found = ", ".join(f"{count} {name}" for name, count in Counter(names).items())
        hidden = len(self) - len(names)
        less = f"; {hidden} below {self._threshold:g}" if hidden else ""
        return f"Result({height}x{width}: {found or 'nothing'}{less})"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self.prediction.size

    @property
    def labels(self) -> NDArray[np.int64]:
        """int64 [S]: the class of each segment, an index into `classes`."""
        return self.prediction.labels.numpy()

    @property
    def names(self) -> list[str]:
        """The name of each segment's class."""
        return [self.classes[label].name for label in self.prediction.labels.tolist()]

    @property
    def scores(self) -> NDArray[np.float32]:
        """float32 [S], 0..1: see `Segmentation` and `Instances`."""
        return self.prediction.scores.numpy()

    @cached_property
    def areas(self) -> NDArray[np.int64]:
        """int64 [S]: pixels."""
        return self.prediction.areas.numpy()

    @cached_property
    def boxes(self) -> NDArray[np.int64]:
        """int64 [S, 4]: left, top, right, bottom; right and bottom are the first pixels outside. All 0 for an empty
        mask."""
        boxes = self.prediction.boxes()
        return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)

    @property
    def masks(self) -> NDArray[np.bool_]:
        """bool [S, H, W], made anew at each call."""
        return self.prediction.masks().numpy()

    @cached_property
    def polygons(self) -> list[list[NDArray[np.int64]]]:
        """The outlines of each segment, int64 [N, 2] of x and y each: exact, along the pixels' edges.

        Outer outlines run clockwise as seen, those of holes the other way. Filled by the even-odd rule they are the
        mask.
        """
        return [outlines(self.prediction.mask(number)) for number in range(len(self))]

    @property
    def map(self) -> NDArray[np.int32]:
        """int32 [H, W]: s + 1 where segment s is, 0 where none is. Smaller instances hide larger ones; of equal
        areas the higher score shows."""
        return self.prediction.flat().ids.numpy()

    @property
    def label_map(self) -> NDArray[np.int32]:
        """int32 [H, W]: the class of each pixel, -1 where no segment is."""
        return np.concatenate([[-1], self.labels]).astype(np.int32)[self.map]

    def above(self, threshold: float) -> Result:
        """The segments with a score of at least `threshold`, all of which are painted and printed."""
        check_threshold(threshold)
        return replace(self, prediction=self.prediction.above(threshold), threshold=threshold)

    def picture(
        self, image: ImageSource | None = None, alpha: float = 0.5, threshold: float | None = None
    ) -> Image.Image:
        """Paint the segments over the image, with outlines, names and scores.

        Args:
            image: the image to paint on; default the image that was given, a file being read again.
            alpha: 0 shows the image alone, 1 the colours alone.
            threshold: segments with lower scores are left out; default the result's.

        Returns:
            RGB, of the image's size; images smaller than 384 pixels are enlarged by a whole factor, and those of more
            than 178,956,970 pixels are shown by each `shrinking`-th pixel.

        Raises:
            InputError: if there is no image, or it cannot be read or has another size.
        """
        source = (self.content or self.source) if image is None else image
        if source is None:
            raise InputError("this result has no image: give one, as in picture(image)")
        if threshold is not None:
            check_threshold(threshold)
        step = self.shrinking
        pixels, prediction = load_thinned(source, step), self.prediction.thinned(step)
        if pixels.shape[:2] != prediction.size:
            found = [step * side for side in pixels.shape[:2]]
            raise InputError(f"picture() needs an image of {self.size}, height and width, found {found}")
        flat = prediction.above(self._threshold if threshold is None else threshold).flat()
        return Image.fromarray(draw_segments(pixels, flat.ids, flat.labels, self.classes, flat.scores, alpha))

    def show(self) -> None:
        """Show the picture: in a notebook below the cell, otherwise in the system's viewer."""
        self.picture().show()

    def save(self, path: str | Path, synced: bool = True) -> None:
        """Write the picture, whole or not at all; the suffix tells the format, such as .png or .jpg.

        Args:
            path: the file; its folder is made. A file of that name is replaced.
            synced: wait for the disk, see `replacing`.

        Raises:
            InputError: if Pillow has no such format; otherwise see `picture`.
        """
        path = Path(path)
        if path.suffix.lower() not in Image.registered_extensions():
            raise InputError(f"{path}: no format of pictures is called {path.suffix or 'so'}: use .png or .jpg")
        painted = self.picture()
        with replacing(path, synced) as draft:
            # Without chroma subsampling names and outlines stay sharp.
            if path.suffix.lower() in (".jpg", ".jpeg"):
                painted.save(draft, quality=92, subsampling=0)
            else:
                painted.save(draft)

    def _repr_png_(self) -> bytes | None:
        """The picture in a notebook; None where there is no image to paint on."""
        try:
            painted = self.picture()
        except InputError:
            return None
        painted.thumbnail((_NOTEBOOK_SIDE, _NOTEBOOK_SIDE))
        file = io.BytesIO()
        painted.save(file, "PNG")
        return file.getvalue()

    def to_coco(self, image_id: ImageId = 1) -> list[dict[str, Any]]:
        """A row per segment in COCO's result format, plain values fit for JSON; see `object_rows`."""
        if isinstance(self.prediction, Instances):
            rles = self.prediction.rles
        else:
            ids = self.prediction.ids
            # One mask at a time: all those of a large image would take gigabytes.
            rles = [encode_masks((ids == s + 1)[None])[0] for s in range(len(self))]
        labels, scores = self.prediction.labels.tolist(), self.prediction.scores.tolist()
        return object_rows(rles, labels, scores, self.classes, image_id)

    def to_coco_panoptic(self, image_id: ImageId, file_name: str) -> tuple[dict[str, Any], NDArray[np.uint8]]:
        """A row and a picture in COCO's panoptic format.

        Args:
            image_id: the id of the image.
            file_name: the name under which the picture will be saved, as PNG.

        Returns:
            The image's row, see `panoptic_row`; and uint8 [H, W, 3], segment ids as colours.

        Raises:
            InputError: for instances, which may overlap.
        """
        if isinstance(self.prediction, Instances):
            raise InputError("instances may overlap, which COCO's panoptic format cannot hold: use to_coco")
        return panoptic_row(self.prediction, self.classes, image_id, file_name), ids_to_rgb(self.map)

    def to_supervision(self) -> Detections:  # pyright: ignore[reportUnknownParameterType]
        """All segments as supervision's `Detections`: boxes, masks, scores, class ids (`labels`) and `class_name`.

        Raises:
            InputError: if supervision is not installed, which is no requirement of this package.
        """
        try:
            from supervision import Detections  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise InputError(f"to_supervision() needs supervision ({error}): pip install supervision") from error
        return Detections(
            xyxy=self.boxes.astype(np.float32),
            mask=self.masks,
            confidence=self.scores,
            class_id=self.labels,
            data={"class_name": np.array(self.names, dtype=str)},
        )

    @property
    def shrinking(self) -> int:
        """The whole factor by which pictures are smaller than the image: 1 up to 178,956,970 pixels."""
        return 1 if self.size[0] * self.size[1] <= MAX_PIXELS else -(-max(self.size) // _LARGE_SIDE)

    @property
    def _threshold(self) -> float:
        if self.threshold is not None:
            return self.threshold
        return DRAWN_SCORE if isinstance(self.prediction, Instances) else 0

    def _segment(self, number: int) -> Segment:
        left, top, right, bottom = self.boxes[number].tolist()
        label = int(self.labels[number])
        score, area = float(self.scores[number]), int(self.areas[number])
        box = (left, top, right, bottom)
        return Segment(label, self.classes[label].name, score, area, box, self.prediction.mask(number))
