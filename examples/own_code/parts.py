"""A custom loss, optimizer, callback and backbone, each on the task of circles.py. From this folder:

PYTHONPATH=. python ../../train.py --config-dir . task=circles loss._target_=parts.EarlyOutputs +loss.early=0.5
PYTHONPATH=. python ../../train.py --config-dir . task=circles optim._target_=parts.Lion optim.lr=3e-4
PYTHONPATH=. python ../../train.py --config-dir . task=circles +callbacks.segments._target_=parts.SegmentsPerImage
EOMT_IMPORT=parts PYTHONPATH=. python ../../train.py --config-dir . task=circles model.backbone=vit_rms
"""

from collections.abc import Mapping

import timm.optim
from lightning import Callback, LightningModule, Trainer
from timm.layers import RmsNorm
from timm.models import VisionTransformer, register_model
from torch import Tensor
from torch.optim import Optimizer

from eomt.loss.mask_classification import MaskClassificationLoss
from eomt.training.optim import Recipe


class EarlyOutputs(MaskClassificationLoss):
    """The loss in which outputs before the last count less.

    Args:
        early: their weight.
        options: those of the loss.
    """

    def __init__(self, early: float = 0.5, **options):
        super().__init__(**options)
        self.early = early

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        early, last = ({name: values[part] for name, values in terms.items()} for part in (slice(-1), slice(-1, None)))
        return self.early * super().total(early) + super().total(last)


class Lion(Recipe):
    """The recipe, rates and warm-up as they are, with another optimizer."""

    def optimizer(self, groups: list[dict], fused: bool) -> Optimizer:
        return timm.optim.Lion(groups, weight_decay=self.weight_decay)


class SegmentsPerImage(Callback):
    """The number of segments an image has, on average over a validation."""

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        for prediction in outputs.result():  # of this batch; another thread may still be at it
            pl_module.log("segments_per_image", float(len(prediction.labels)), batch_size=1, sync_dist=True)


@register_model
def vit_rms(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, **options):
    """A ViT with RMSNorm. timm finds it by its name once this file is imported, as EOMT_IMPORT=parts does."""
    return VisionTransformer(**{"norm_layer": RmsNorm, "reg_tokens": 4, "no_embed_class": True, **options})
