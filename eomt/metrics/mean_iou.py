"""Mean intersection over union of classes, counted over all pixels of a dataset (Everingham et al., IJCV 2015)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from eomt.classes import Classes
from eomt.metrics.panoptic_quality import shared_pixels
from eomt.postprocess.types import Segmentation
from eomt.targets import ImageId, ImageTargets


class MeanIoU(Metric):
    """Mean IoU, mean accuracy and pixel accuracy.

    The rules of ADE20K and Cityscapes: all pixels of the dataset that are not void in the ground truth are counted in
    one confusion matrix. A pixel for which no class is predicted is missed by its true class. Classes that are neither
    true nor predicted anywhere are left out of the mean IoU, classes that are nowhere true out of the mean accuracy.

    Args:
        classes: the dataset's classes.
    """

    pixels: Tensor  # int64 [C, C + 1]: true class, predicted class; in the last column no class is predicted

    def __init__(self, classes: Classes):
        super().__init__()
        self.classes = classes
        empty = torch.zeros(len(classes), len(classes) + 1, dtype=torch.int64)
        self.add_state("pixels", empty, dist_reduce_fx="sum")

    def update(self, segmentation: Segmentation, targets: ImageTargets, image_id: ImageId | None = None) -> None:
        """Add one image.

        Args:
            segmentation: the prediction.
            targets: the ground truth at the same size: ids int16 [1, H, W] where 0 is void.
            image_id: not used; other metrics need it.

        Raises:
            InputError: if true segments overlap (more than one plane), or the sizes differ.
        """
        overlap = shared_pixels(segmentation, targets, "mean IoU")
        predicted = np.append(len(self.classes), segmentation.labels.cpu().numpy())
        pixels = np.zeros(self.pixels.shape, dtype=np.int64)
        np.add.at(pixels, (targets.labels.cpu().numpy()[:, None], predicted), overlap[1:])
        self._image = torch.from_numpy(pixels)
        self.pixels += self._image.to(self.pixels.device)

    def image_score(self) -> float:
        """The mean IoU in percent of the classes in the image added last; NaN if it has none."""
        return float(_class_scores(self._image.double())[0].nanmean())

    def confusion(self) -> Tensor:
        """The confusion matrix, int64 [C, C + 1] on the host: pixels of each true class by predicted class; in the
        last column no class is predicted. Every rank must call it."""
        with self.sync_context():
            return self.pixels.cpu()

    def compute(self) -> dict[str, Tensor]:
        """The scores in percent, each a float64 scalar on the host: miou, mean_accuracy and pixel_accuracy; NaN where
        nothing was counted."""
        pixels = self.pixels.cpu().double()
        iou, accuracy = _class_scores(pixels)
        right = pixels.diagonal().sum() / pixels.sum()
        return {"miou": iou.nanmean(), "mean_accuracy": accuracy.nanmean(), "pixel_accuracy": 100 * right}

    def per_class(self) -> list[dict]:
        """The classes that are true or predicted anywhere: id, name, iou, accuracy (percent; NaN for a class that is
        nowhere true), pixels (true ones). Every rank must call it."""
        pixels = self.confusion()
        iou, accuracy = _class_scores(pixels.double())
        return [
            {
                "id": item.id,
                "name": item.name,
                "iou": float(iou[k]),
                "accuracy": float(accuracy[k]),
                "pixels": int(pixels[k].sum()),
            }
            for k, item in enumerate(self.classes)
            if not iou[k].isnan()
        ]


def _class_scores(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and accuracy of each class in percent, float64 [C]; NaN where there is nothing to divide by."""
    right, true, predicted = pixels.diagonal(), pixels.sum(1), pixels[:, :-1].sum(0)
    return 100 * right / (true + predicted - right), 100 * right / true
