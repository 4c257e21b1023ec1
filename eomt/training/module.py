"""The LightningModule: steps and logging; all that it computes stands in the files it imports."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from eomt.classes import Classes
from eomt.errors import InputError
from eomt.loss.mask_classification import MaskClassificationLoss
from eomt.loss.normalisers import step_normalisers
from eomt.model.eomt import EoMT
from eomt.model.lora import LoRALinear, add_lora
from eomt.model.outputs import Logits
from eomt.postprocess.geometry import Placement
from eomt.postprocess.unpadded import run_unpadded
from eomt.tasks import Task, predict_images
from eomt.training.annealing import Bound, mask_probability, resolve_windows
from eomt.training.nonfinite import FiniteSteps, total_norm
from eomt.training.optim import freeze_backbone, parameter_groups, two_stage_warmup
from eomt.training.seeding import ImageKey, draw_drops, point_seeds
from eomt.training.summary import describe
from eomt.weights.checkpoint import FORMAT, check_same_model


class EoMTModule(lightning.LightningModule):
    """Trains and validates EoMT.

    Args:
        network: what is trained.
        task: how its answers are read and scored.
        classes: the dataset's classes.
        loss: the mask classification loss.
        annealing_windows: when each masked block's attention mask is annealed away, first block first,
            as `resolve_windows` takes them; None trains without attention masks.
        annealing_span: see `resolve_windows`.
        annealing_power: of the annealing polynomial.
        lr: learning rate of the heads and of the last block.
        weight_decay: AdamW's, on all parameters.
        layer_decay: see `parameter_groups`.
        decay_masked_blocks: see `parameter_groups`.
        warmup_steps: optimizer steps of the (head, backbone) warm-up.
        schedule_power: of the learning-rate polynomial.
        max_skipped_steps: see `FiniteSteps`.
        validate_masked: validate under the current attention masks, drops drawn at random, as the
            original does, instead of the mask-free network that is deployed.
        pretrained: what `Backbone.load_pretrained` takes, or False.
        freeze: what of the backbone does not learn, see `freeze_backbone`.
        lora: `rank` and `alpha` of low-rank changes to the blocks' linear layers, see `add_lora`, which learn in
            place of the backbone; None for none.
        unpadded: validate without the patches that only show padding; see `eomt.postprocess.unpadded`.
        seed: of all random draws.
        run: plain values that checkpoints carry along, such as the configuration.
    """

    def __init__(
        self,
        network: EoMT,
        task: Task,
        classes: Classes,
        loss: MaskClassificationLoss,
        annealing_windows: Sequence[Sequence[Bound]] | None,
        annealing_span: Bound = 1,
        annealing_power: float = 0.9,
        lr: float = 1e-4,
        weight_decay: float = 0.05,
        layer_decay: float = 0.8,
        decay_masked_blocks: bool = True,
        warmup_steps: Sequence[int] = (500, 1000),
        schedule_power: float = 0.9,
        max_skipped_steps: int = 10,
        validate_masked: bool = False,
        unpadded: bool = False,
        pretrained: bool | str = False,
        freeze: bool | int = False,
        lora: Mapping[str, Any] | None = None,
        seed: int = 0,
        run: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        if annealing_windows is not None and len(annealing_windows) != network.num_masked_blocks:
            raise InputError(
                f"annealing.windows has {len(annealing_windows)} windows, but model.num_masked_blocks is "
                f"{network.num_masked_blocks}: give one per masked block"
            )
        self.network = network
        self.task = task
        self.classes = classes
        self.loss = loss
        self.annealing_windows = annealing_windows
        self.annealing_span = annealing_span
        self.annealing_power = annealing_power
        self.lr = lr
        self.weight_decay = weight_decay
        self.layer_decay = layer_decay
        self.decay_masked_blocks = decay_masked_blocks
        self.warmup_steps = tuple(warmup_steps)
        self.schedule_power = schedule_power
        self.finite = FiniteSteps(max_skipped_steps)
        self.validate_masked = validate_masked
        self.unpadded = unpadded
        self.network.backbone.crop_position = unpadded
        self.pretrained = pretrained
        self.freeze = freeze
        self.lora = dict(lora) if lora else None
        self.seed = seed
        self.run = dict(run or {})
        self.metric = task.metric(classes)
        self.windows: list[tuple[int, int]] = []
        self.total_steps = 0
        self._prepared = False
        # Optimizer steps of the checkpoint that an evaluation has loaded.
        self.trained_steps = 0
        self.scores: dict[str, float] = {}
        self.scores_per_class: list[dict] = []
        self.validated_at: int | None = None
        # Says of a checkpoint how far masks were annealed: 0 for all blocks is the mask-free network.
        self.register_buffer("mask_probabilities", torch.ones(network.num_masked_blocks))
        # The same on the host, so that no step waits for the device.
        self.probabilities = [1.0] * network.num_masked_blocks

    # Set-up

    def prepare_data(self) -> None:
        """Download pretrained weights: called on one process per machine while the others wait."""
        if self.pretrained is True and not self._resumes():
            self.network.backbone.load_pretrained(True)

    def setup(self, stage: str) -> None:
        if stage != "fit":
            return
        self.prepare_network()
        self.total_steps = self._count_steps()
        if self.annealing_windows is not None:
            self.windows = resolve_windows(self.annealing_windows, self.total_steps, self.annealing_span)
        self._set_mask_probabilities()

    def prepare_network(self) -> None:
        """Load pretrained weights, unless the run is resumed; freeze; add LoRA. A second call changes nothing."""
        if self._prepared:
            return
        self._prepared = True
        if self.pretrained and not self._resumes():
            self.network.backbone.load_pretrained(self.pretrained)
            rank_zero_info(f"backbone: pretrained weights of {self.network.spec['backbone']} loaded")
        if self.lora and self.freeze and self.freeze is not True:
            raise InputError("model.lora freezes the whole backbone: leave model.freeze_backbone at false")
        freeze_backbone(self.network, True if self.lora else self.freeze)
        blocks = self.network.backbone.blocks
        if self.lora and not any(isinstance(layer, LoRALinear) for layer in blocks.modules()):
            add_lora(blocks, **self.lora, seed=self.seed)

    def configure_optimizers(self):
        groups = parameter_groups(self.network, self.lr, self.layer_decay, self.decay_masked_blocks)
        # Under float16 Lightning must unscale gradients before it clips them, which a fused optimizer
        # would do by itself.
        fused = self.trainer.precision != "16-mixed"
        optimizer = torch.optim.AdamW(groups, weight_decay=self.weight_decay, fused=fused)
        multipliers = [
            two_stage_warmup(g["stage"], self.warmup_steps, self.total_steps, self.schedule_power) for g in groups
        ]
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, multipliers)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        rank_zero_info(describe(self))

    def on_train_start(self) -> None:
        # A checkpoint has been read by now: a resumed run begins with its own step's probabilities.
        self._set_mask_probabilities()

    # Training

    def training_step(self, batch, batch_idx: int) -> Tensor:
        counts = batch.targets.counts
        places = self._training_places(len(counts), batch_idx)
        drops = self._draw_drops(places, self.probabilities) if self.windows else None
        outputs = self.network(batch.images, drops)
        seeds = point_seeds(self.seed, places)
        points = self.loss.draw(len(outputs), self.network.num_queries, counts, seeds, self.device)
        normalisers = step_normalisers(self.loss, self.network.num_queries, batch, self.trainer)
        terms = self.loss(outputs, batch.targets, points, *normalisers)
        total = self.loss.total(terms)
        self.finite.watch(batch, terms)
        self._log_step(total, terms, len(counts))
        return total

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        """Clip the total norm over all parameters, and log the norm before it; if it is not finite, drop them."""
        norm = total_norm(self.network)
        if not self.finite.passes(norm):
            trainer = self.trainer
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            self.finite.leave_out(self.network, self.global_step + 1, trainer.default_root_dir, scaler)
            # AdamW passes over what has no gradient: its weights, their decay and their moments.
            optimizer.zero_grad(set_to_none=True)
        elif gradient_clip_algorithm not in (None, "norm"):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            torch.nn.utils.clip_grads_with_norm_(self.network.parameters(), gradient_clip_val, norm)
        self.log("train/gradient_norm", norm)
        self.log("train/skipped_steps", torch.tensor(float(self.finite.skipped)))

    def lr_scheduler_step(self, scheduler, metric) -> None:
        """After each optimizer step: the next learning rate, and the mask probabilities that go with it."""
        super().lr_scheduler_step(scheduler, metric)
        self._set_mask_probabilities()

    # Validation

    def on_validation_start(self) -> None:
        # What was evaluated or resumed may have brought others, in its weights.
        self.probabilities = self.mask_probabilities.tolist()

    def validation_step(self, batch, batch_idx: int) -> list:
        """Score the batch; returns a prediction per image, for those who draw or save them."""
        placements = [p for p, count in zip(batch.placements, batch.counts, strict=True) for _ in range(count)]
        places = self._validation_places(batch.counts, batch_idx)
        output = self.predict(batch.inputs, len(batch.counts), places, placements if self.unpadded else None)
        if not batch.targets:
            # An image that another rank counts: this one had none left, but computes as often.
            return []
        size = tuple(batch.inputs.shape[-2:])
        predictions = predict_images(self.task, output, batch.counts, batch.placements, size, self.classes)
        for prediction, targets, image_id in zip(predictions, batch.targets, batch.image_ids, strict=True):
            self.metric.update(prediction, targets, image_id)
        return predictions

    def on_validation_epoch_end(self) -> None:
        self.scores = {name: float(value) for name, value in self.metric.compute().items()}
        self.scores_per_class = self.metric.per_class()
        self.metric.reset()
        if not self.trainer.sanity_checking:
            self.validated_at = self.step
        for name, value in self.scores.items():
            self.log(name, torch.tensor(value, dtype=torch.float64), prog_bar=name == self.task.monitor, sync_dist=True)

    @cached_property
    def score_names(self) -> tuple[str, ...]:
        """The names of the scores of a validation."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*called before the ``update``.*")
            return tuple(self.task.metric(self.classes).compute())

    @property
    def mask_free(self) -> bool:
        """Whether validation is of the network that is deployed, without attention masks."""
        return not (self.validate_masked and any(self.probabilities))

    @property
    def step(self) -> int:
        """Optimizer steps that the weights have seen."""
        return self.global_step or self.trained_steps

    def predict(
        self, inputs: Tensor, at_once: int, places: Sequence[ImageKey], placements: Sequence[Placement] | None = None
    ) -> Logits:
        """The last output for inputs [N, 3, H, W], of which `at_once` go through the network at a time; given their
        placements, without padding. Their places decide on the drops, if there are any."""
        drops = None if self.mask_free else self._draw_drops(places, self.probabilities)

        def run(images: Tensor, index: Tensor) -> Logits:
            return self.network(images, None if drops is None else drops[:, index])[-1].logits()

        if placements is not None:
            return run_unpadded(run, inputs, placements, self.network.backbone.patch_size, at_once)
        whole = zip(inputs.split(at_once), torch.arange(len(inputs)).split(at_once), strict=True)
        outputs = [run(part, index) for part, index in whole]
        return Logits(*(torch.cat(parts) for parts in zip(*outputs, strict=True)))

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint[FORMAT] = {
            "kind": self.task.kind,
            "classes": self.classes.to_list(),
            "network": self.network.spec,
            "learns": self.learns,
            **self.run,
        }
        checkpoint["finite"] = self.finite.state_dict()

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        check_same_model(checkpoint, self.task.kind, self.classes, self.network.spec)
        if "finite" in checkpoint:
            self.finite.load_state_dict(checkpoint["finite"])

    @property
    def learns(self) -> dict[str, Any]:
        """What checkpoints say of what learns: `freeze_backbone` and `lora`."""
        return {"freeze_backbone": self.freeze, "lora": self.lora}

    # Parts

    def _count_steps(self) -> int:
        """Optimizer steps of the whole run."""
        trainer = self.trainer
        ends = [trainer.max_steps] if trainer.max_steps != -1 else []
        if trainer.max_epochs != -1:
            # Not `estimated_stepping_batches`: it makes the loader before a checkpoint can restore its place.
            per_epoch = math.ceil(trainer.datamodule.train_batches() / trainer.accumulate_grad_batches)
            ends.append(per_epoch * trainer.max_epochs)
        if not ends:
            raise InputError("the run has no end: set trainer.max_epochs or trainer.max_steps")
        return min(ends)

    def _resumes(self) -> bool:
        return getattr(self.trainer, "ckpt_path", None) is not None

    def _set_mask_probabilities(self) -> None:
        probabilities = [mask_probability(self.global_step, *w, self.annealing_power) for w in self.windows]
        self.probabilities = probabilities or [0.0] * self.network.num_masked_blocks
        self.mask_probabilities.copy_(torch.tensor(self.probabilities))

    def _training_places(self, count: int, batch_idx: int) -> list[ImageKey]:
        """Of the images of this rank's batch: their numbers within the optimizer step."""
        batch = batch_idx % self.trainer.accumulate_grad_batches * self.trainer.world_size + self.global_rank
        return [(self.step, batch * count + k) for k in range(count)]

    def _validation_places(self, counts: Sequence[int], batch_idx: int) -> list[ImageKey]:
        """Of the inputs that show the images of this rank's batch: the image's number in the set, and the input's."""
        if self.mask_free:
            return []
        first = batch_idx * self.trainer.datamodule.eval_batch_size
        numbers = ((first + k) * self.trainer.world_size + self.global_rank for k in range(len(counts)))
        return [(self.step, n, k) for n, count in zip(numbers, counts, strict=True) for k in range(count)]

    def _draw_drops(self, places: Sequence[ImageKey], probabilities: Sequence[float]) -> Tensor:
        drops = draw_drops(self.seed, places, probabilities, self.network.num_queries)
        return drops.to(self.device, non_blocking=True)

    def _log_step(self, total: Tensor, terms: Sequence[Mapping[str, Tensor]], batch_size: int) -> None:
        values = {"loss": total.detach()}
        values |= {f"loss_{name}": sum(output[name].detach() for output in terms) for name in terms[0]}
        if self.trainer.world_size > 1:
            # Of all ranks' images, in one reduction.
            mean = self.trainer.strategy.reduce(torch.stack(list(values.values())), reduce_op="mean")
            values = dict(zip(values, mean.unbind(), strict=True))
        for name, value in values.items():
            self.log(f"train/{name}", value, prog_bar=name == "loss", batch_size=batch_size)
        # As tensors of the host: Lightning would copy numbers to the device, and wait.
        rates = {"head": 0.0, "backbone": 0.0}
        for group in self.optimizers().param_groups:
            rates[group["stage"]] = max(rates[group["stage"]], group["lr"])
        for stage, rate in rates.items():
            self.log(f"lr/{stage}", torch.tensor(rate), prog_bar=True, batch_size=batch_size)
        for block, probability in enumerate(self.probabilities):
            self.log(f"mask_probability/{block}", torch.tensor(probability), prog_bar=True, batch_size=batch_size)
