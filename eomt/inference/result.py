"""The result for an image: plain arrays on the host, pictures, and COCO's result rows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from PIL import Image

from eomt.classes import Classes
from eomt.errors import InputError
from eomt.photo import ImageSource, load_image
from eomt.postprocess.draw import DRAWN_SCORE, draw_segments
from eomt.postprocess.instance import encode_masks
from eomt.postprocess.types import Instances, Segmentation
from eomt.postprocess.writers import ids_to_rgb, object_rows, panoptic_row
from eomt.targets import ImageId


@dataclass(frozen=True, repr=False)
class Result:
    """The S segments of one image: classes present, objects, or panoptic segments.

    Attributes:
        prediction: the result of post-processing, on the host.
        classes: the network's classes.
        source: the image as it was given: a path, or the caller's own object, which lives as long as the result.
    """

    prediction: Segmentation | Instances
    classes: Classes
    source: ImageSource | None = None

    def __len__(self) -> int:
        return len(self.prediction.labels)

    def __repr__(self) -> str:
        height, width = self.size
        found = ", ".join(f"{count} {name}" for name, count in Counter(self.names).items())
        return f"Result({height}x{width}: {found or 'nothing'})"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self.prediction.size

    @property
    def labels(self) -> np.ndarray:
        """int64 [S]: the class of each segment, an index into `classes`."""
        return self.prediction.labels.numpy()

    @property
    def names(self) -> list[str]:
        """The name of each segment's class."""
        return [self.classes[label].name for label in self.labels.tolist()]

    @property
    def scores(self) -> np.ndarray:
        """float32 [S], 0..1: see `Segmentation` and `Instances`."""
        return self.prediction.scores.numpy()

    @cached_property
    def areas(self) -> np.ndarray:
        """int64 [S]: pixels."""
        return self.prediction.areas.numpy()

    @cached_property
    def boxes(self) -> np.ndarray:
        """int64 [S, 4]: left, top, right, bottom; right and bottom are the first pixels outside. All 0 for an empty
        mask."""
        boxes = self.prediction.boxes()
        return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)

    @property
    def masks(self) -> np.ndarray:
        """bool [S, H, W], made anew at each call."""
        return self.prediction.masks().numpy()

    @property
    def map(self) -> np.ndarray:
        """int32 [H, W]: s + 1 where segment s is, 0 where none is. Smaller instances hide larger ones; of equal
        areas the higher score shows."""
        return self.prediction.flat().ids.numpy()

    @property
    def label_map(self) -> np.ndarray:
        """int32 [H, W]: the class of each pixel, -1 where no segment is."""
        return np.concatenate([[-1], self.labels]).astype(np.int32)[self.map]

    def above(self, threshold: float) -> Result:
        """The segments with a score of at least `threshold`."""
        return replace(self, prediction=self.prediction.above(threshold))

    def picture(
        self, image: ImageSource | None = None, alpha: float = 0.5, threshold: float | None = None
    ) -> Image.Image:
        """Paint the segments over the image, with outlines, names and scores.

        Args:
            image: the image to paint on; default the image that was given, a file being read again.
            alpha: 0 shows the image alone, 1 the colours alone.
            threshold: segments with lower scores are left out; default 0.5 for instances, otherwise 0.

        Returns:
            RGB, of the image's size; images smaller than 384 pixels are enlarged by a whole factor.

        Raises:
            InputError: if there is no image, or it cannot be read or has another size.
        """
        source = self.source if image is None else image
        if source is None:
            raise InputError("this result has no image: give one, as in picture(image)")
        pixels = load_image(source)
        if pixels.shape[:2] != self.size:
            raise InputError(f"picture() needs an image of {self.size}, height and width, found {pixels.shape[:2]}")
        if threshold is None:
            threshold = DRAWN_SCORE if isinstance(self.prediction, Instances) else 0
        flat = self.prediction.above(threshold).flat()
        return Image.fromarray(draw_segments(pixels, flat.ids, flat.labels, self.classes, flat.scores, alpha))

    def to_coco(self, image_id: ImageId) -> list[dict]:
        """A row per segment in COCO's result format, plain values fit for JSON; see `object_rows`."""
        if isinstance(self.prediction, Instances):
            rles = self.prediction.rles
        else:
            ids = self.prediction.ids
            # One mask at a time: all those of a large image would take gigabytes.
            rles = [encode_masks((ids == s + 1)[None])[0] for s in range(len(self))]
        return object_rows(rles, self.labels.tolist(), self.scores.tolist(), self.classes, image_id)

    def to_coco_panoptic(self, image_id: ImageId, file_name: str) -> tuple[dict, np.ndarray]:
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
