"""The LightningModule: training steps, validation and what is logged."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, NamedTuple

import lightning
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, distributed
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from eomt.classes import Classes
from eomt.errors import InputError
from eomt.inference.background import Background
from eomt.inference.graphs import FixedBatches
from eomt.loss.mask_classification import MaskClassificationLoss, num_matched
from eomt.model.eomt import EoMT
from eomt.model.lora import add_lora
from eomt.model.outputs import Logits
from eomt.postprocess.geometry import Placement, run_unpadded
from eomt.postprocess.types import Instances, Segmentation
from eomt.targets import ImageId
from eomt.tasks import Task, predict_images
from eomt.training.annealing import Annealing, mask_probability, resolve_windows
from eomt.training.checkpoint import validates_after
from eomt.training.nonfinite import NonFiniteSteps, total_norm
from eomt.training.optim import Recipe, freeze_backbone, total_steps
from eomt.training.restore import check_state
from eomt.training.seeding import ImageKey, draw_dropped_masks, point_seeds, training_keys, validation_keys
from eomt.training.step_graph import StepGraph
from eomt.training.summary import summary
from eomt.training.validation_loss import ValidationLoss
from eomt.views import Tiled
from eomt.weights.safe_load import FORMAT

DEFAULT_RECIPE = Recipe()


class LastStep(NamedTuple):
    """Numbers of a training batch of this rank.

    Attributes:
        loss: the total.
        terms: its terms before they are weighted, [O] by name.
        rates: the largest learning rate of the heads and of the backbone.
        probabilities: see `EoMTModule`.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    rates: dict[str, float]
    probabilities: list[float]


class EoMTModule(lightning.LightningModule):
    """Training and validation of EoMT.

    Args:
        network: the network.
        task: the kind of segmentation: how outputs become predictions, and how these are scored.
        classes: the classes of the dataset.
        loss: the mask classification loss.
        annealing: when each masked block's attention mask is annealed away; None trains without attention masks.
        recipe: optimizer and schedule.
        max_skipped_steps: see `NonFiniteSteps`.
        validate_masked: validate under the current attention masks, drawn at random, as the original does, instead of
            the mask-free network that is deployed.
        unpadded: validate without the patches that only show padding; see `run_unpadded`.
        pretrained: the argument of `Backbone.load_pretrained`, or False.
        freeze: the frozen part of the backbone, see `freeze_backbone`.
        lora: `rank` and `alpha` of low-rank changes to the blocks' linear layers, see `add_lora`, which learn in
            place of the backbone; None for none.
        seed: the seed of all random numbers.
        run: plain values that checkpoints carry along, such as the configuration.

    Attributes:
        probabilities: the probability that each masked block masks a query's attention, at the current step.
        scores: the scores of the last validation, in percent.
        scores_per_class: its table of classes.
        image_scores: the scores of the images of this rank in the current validation by id, where the metric has them.
        confusion: the confusion matrix of the last validation, where the metric has one.
        last_step: numbers of the last batch; None before the first.
        output_losses: the last logged batch's loss terms, [O] by name, means over the ranks.
        trained_steps: optimizer steps of a checkpoint that is evaluated.
        validated_at: the optimizer step of the last validation; None before the first.
        compiled: True if the network is compiled: a validation fills smaller batches up, see `FixedBatches`.
        graphs: True to validate by CUDA graphs.
        step_graphs: True to train by CUDA graphs, see `StepGraph`.
    """

    mask_probabilities: Tensor

    def __init__(
        self,
        network: EoMT,
        task: Task | Tiled,
        classes: Classes,
        loss: MaskClassificationLoss,
        annealing: Annealing | None = None,
        recipe: Recipe = DEFAULT_RECIPE,
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
        if annealing is not None and len(annealing.windows) != network.num_masked_blocks:
            raise InputError(
                f"annealing.windows has {len(annealing.windows)} windows, but model.num_masked_blocks is "
                f"{network.num_masked_blocks}: give one per masked block"
            )
        self.network = network
        self.task = task
        self.classes = classes
        self.loss = loss
        self.annealing = annealing
        self.recipe = recipe
        self.nonfinite = NonFiniteSteps(max_skipped_steps)
        self.validate_masked = validate_masked
        self.unpadded = unpadded
        self.network.backbone.crop_position = unpadded
        self.pretrained = pretrained
        self.freeze_backbone = freeze
        self.lora = dict(lora) if lora else None
        self.seed = seed
        self.run = dict(run or {})
        self.metric = task.metric(classes)
        self.windows: list[tuple[int, int]] = []
        self.total_steps = 0
        self.trained_steps = 0
        self.last_step: LastStep | None = None
        self.output_losses: dict[str, Tensor] = {}
        self.scores: dict[str, float] = {}
        self.scores_per_class: list[dict] = []
        self.image_scores: dict[ImageId, float] = {}
        self.confusion: Tensor | None = None
        self.validated_at: int | None = None
        self.compiled = self.graphs = self.step_graphs = False
        self._prepared = self._said_too_many = False
        self._batches: FixedBatches | None = None
        self._step_graph: StepGraph | None = None
        self._background: Background | None = None
        # The gradient's norm of a step that is not logged.
        self._norm: Tensor | None = None
        # What the precision of matrix products is to be again after a validation.
        self._matmul_precision = torch.get_float32_matmul_precision()
        self._unscored: deque[Future] = deque()
        # Tells from a checkpoint how far masks were annealed: 0 for all blocks is the mask-free network.
        self.register_buffer("mask_probabilities", torch.ones(network.num_masked_blocks))
        # The same on the host, so that no step waits for the device.
        self.probabilities = [1.0] * network.num_masked_blocks

    # Set-up

    def prepare_data(self) -> None:
        """Download pretrained weights: called in one process per machine while the others wait."""
        if self.pretrained is True and not self._resumes:
            self.network.backbone.load_pretrained(True)

    def setup(self, stage: str) -> None:
        if stage != "fit":
            return
        self.prepare_network()
        self.total_steps = total_steps(self.trainer)
        if self.annealing is not None:
            self.windows = resolve_windows(self.annealing.windows, self.total_steps, self.annealing.span)
        self._set_mask_probabilities()

    def prepare_network(self) -> None:
        """Load pretrained weights, unless the run is resumed; freeze; add LoRA. A second call changes nothing."""
        if self._prepared:
            return
        self._prepared = True
        if self.pretrained and not self._resumes:
            self.network.backbone.load_pretrained(self.pretrained)
            rank_zero_info(f"backbone: pretrained weights of {self.network.spec['backbone']} loaded")
        if self.lora and self.freeze_backbone and self.freeze_backbone is not True:
            raise InputError("model.lora freezes the whole backbone: leave model.freeze_backbone at false")
        freeze_backbone(self.network, True if self.lora else self.freeze_backbone)
        if self.lora:
            add_lora(self.network.backbone.blocks, **self.lora, seed=self.seed)

    @property
    def _resumes(self) -> bool:
        return self.trainer.ckpt_path is not None

    @property
    def data(self) -> Any:
        """The trainer's data module, like `SegmentationData`."""
        return self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue] Lightning sets it undeclared

    def configure_optimizers(self) -> dict[str, Any]:
        # Under float16 Lightning must unscale gradients before it clips them, which a fused optimizer
        # would do by itself.
        fused = self.trainer.precision != "16-mixed"
        optimizer, schedule = self.recipe.build(self.network, self.total_steps, fused)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        rank_zero_info(summary(self))

    def on_train_start(self) -> None:
        # A checkpoint has been read by now: a resumed run starts with the probabilities of its own step, and with the
        # learning rates of its own length and schedule, which may have been changed.
        self._set_mask_probabilities()
        self._step_graph = StepGraph(self.network) if self.step_graphs else None
        for schedule in (config.scheduler for config in self.trainer.lr_scheduler_configs):
            assert isinstance(schedule, LambdaLR)  # of Recipe
            groups = zip(schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True)
            for group, rate, multiplier in groups:
                group["lr"] = rate * multiplier(schedule.last_epoch)

    # Training

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        counts, self._norm = batch.targets.counts, None
        self._say_too_many_segments(batch.names, counts)
        keys = training_keys(self.trainer, batch_idx, len(counts))
        outputs = (self._step_graph or self.network)(batch.images, self._dropped_masks(keys) if self.windows else None)
        seeds = point_seeds(self.seed, keys)
        points = self.loss.draw(len(outputs), self.network.num_queries, counts, seeds, self.device)
        terms = self.loss(outputs, batch.targets, points, *self._normalisers(batch))
        total = self.loss.total(terms)
        # By now the device works on this step: it is past the last one's end.
        self.nonfinite.read(self.network)
        self.nonfinite.watch(batch.names, terms)
        rates = {"head": 0.0, "backbone": 0.0}
        for group in self.trainer.optimizers[0].param_groups:
            rates[group["stage"]] = max(rates[group["stage"]], group["lr"])
        detached = {name: term.detach() for name, term in terms.items()}
        self.last_step = LastStep(total.detach(), detached, rates, self.probabilities)
        return total

    def _say_too_many_segments(self, names: Sequence[str], counts: Sequence[int]) -> None:
        """Say once that an image has more segments than there are queries, which can learn no more."""
        most, queries = max(counts, default=0), self.network.num_queries
        if most > queries and not self._said_too_many:
            self._said_too_many = True
            rank_zero_info(
                f"images show more segments than can be found, the first {most} ({names[counts.index(most)]}): "
                f"raise model.num_queries={queries}; check_data.py names all"
            )

    def _normalisers(self, batch: Any) -> tuple[Tensor, float | Tensor | None]:
        """Return the divisors of the loss's sums over masks and over classes.

        As published: the number of matched masks, averaged over ranks, at least 1; and None, this batch's class
        weights. With `loss.global_normaliser`, those of the whole step: Lightning takes the mean over accumulated
        batches and ranks where a big batch has the sum, so each gets a share.
        """
        queries, ranks = self.network.num_queries, self.trainer.world_size
        if not self.loss.global_normaliser:
            return (self._sum_over_ranks(num_matched(queries, batch.targets.counts)) / ranks).clamp(min=1), None
        parts = ranks * self.trainer.accumulate_grad_batches
        matched = self._sum_over_ranks(num_matched(queries, batch.step_counts))
        weights = self.loss.class_weight_sum(queries, len(batch.step_counts) * ranks, matched)
        return matched.clamp(min=1) / parts, weights / parts

    def _sum_over_ranks(self, values: float | Tensor) -> Tensor:
        """The sum of each rank's values, on the device; before Lightning's own the host waits for all ranks."""
        if not isinstance(values, Tensor):
            values = torch.full((), float(values), device=self.device)
        if not distributed.is_initialized():  # one process, or TPUs
            return self.trainer.strategy.reduce(values, reduce_op="sum")
        distributed.all_reduce(values)
        return values

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the total norm over all parameters; if it is not finite, skip the step. Log the step where it is due."""
        norm = total_norm(self.network)
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if not self.nonfinite.passes(norm, self.network, optimizer, self.global_step + 1, scaler):
            # AdamW passes over parameters without a gradient: their weights, weight decay and moments.
            optimizer.zero_grad(set_to_none=True)
        elif gradient_clip_val and gradient_clip_algorithm == "value":
            # Lightning refuses this for a fused optimizer in mixed precision, which has unscaled nothing here.
            torch.nn.utils.clip_grad_value_(self.network.parameters(), gradient_clip_val)
        elif gradient_clip_val:
            # A norm that is not finite must not spread to gradients that are: it tells which are not.
            limited = norm.nan_to_num(nan=torch.inf, posinf=torch.inf)
            torch.nn.utils.clip_grads_with_norm_(self.network.parameters(), gradient_clip_val, limited)
        self._norm = norm
        every, step = self.trainer.log_every_n_steps, self.global_step + 1  # pyright: ignore[reportAttributeAccessIssue]
        if every and (step % every == 0 or step == self.total_steps):
            self._log_step()

    def lr_scheduler_step(self, scheduler: LRScheduler, metric: Any) -> None:
        """Set the learning rates of the next optimizer step, and its mask probabilities."""
        super().lr_scheduler_step(scheduler, metric)
        self._set_mask_probabilities()

    def _set_mask_probabilities(self) -> None:
        self.probabilities = [0.0] * self.network.num_masked_blocks
        if self.annealing is not None:
            power = self.annealing.power
            self.probabilities = [mask_probability(self.global_step, *window, power) for window in self.windows]
        self.mask_probabilities.copy_(torch.tensor(self.probabilities), non_blocking=True)

    def _dropped_masks(self, keys: Sequence[ImageKey]) -> Tensor:
        dropped = draw_dropped_masks(self.seed, keys, self.probabilities, self.network.num_queries)
        return dropped.to(self.device, non_blocking=True)

    def _log_step(self) -> None:
        """Log the numbers of the last step: all ranks together, as they are means over all ranks' images."""
        assert self.last_step is not None
        assert self._norm is not None
        loss, terms, rates, probabilities = self.last_step
        each = torch.cat(list(terms.values()))
        # In one reduction.
        sums = torch.stack([loss, *(term.sum() for term in terms.values())])
        means = self._sum_over_ranks(torch.cat([sums, each])) / self.trainer.world_size
        sums, each = means.split((len(sums), len(each)))
        self.output_losses = dict(zip(terms, each.chunk(len(terms)), strict=True))
        names = ["train/loss", *(f"train/loss_{name}" for name in terms)]
        values = dict(zip(names, sums.unbind(), strict=True)) | {"train/gradient_norm": self._norm}
        # Tensors on the host: Lightning would copy numbers to the device, and wait.
        values["train/skipped_steps"] = torch.tensor(float(self.nonfinite.skipped))
        values |= {f"lr/{stage}": torch.tensor(rate) for stage, rate in rates.items()}
        values |= {f"mask_probability/{k}": torch.tensor(value) for k, value in enumerate(probabilities)}
        self.log_dict(values)
        self._norm = None

    def on_train_batch_end(self, *_: Any) -> None:
        # Lightning writes a row at a stop, too, and a callback may monitor a number of training at a validation.
        if self._norm is not None and (self.trainer.should_stop or validates_after(self.trainer)):
            self._log_step()

    def on_train_end(self) -> None:
        self._step_graph = None
        self.nonfinite.read(self.network)

    # Validation

    def on_validation_model_zero_grad(self) -> None:
        # A step that was left out is named by its gradients.
        self.nonfinite.read(self.network)
        super().on_validation_model_zero_grad()

    def on_validation_start(self) -> None:
        # The weights of an evaluation or of a resumed run bring their own.
        self.probabilities = self.mask_probabilities.tolist()
        self._batches = self._batches or FixedBatches(self.network, self.compiled, self.graphs)
        self._unscored.clear()
        self.image_scores = {}
        self._validation_loss = ValidationLoss(self.loss, self.seed, self.global_rank, self.device)
        self._background = self._background or Background(self.device, threads=1)
        self._matmul_precision = torch.get_float32_matmul_precision()
        if str(self.trainer.precision).endswith("-mixed"):
            # The network is autocast's; post-processing has the precision that predictions have elsewhere.
            torch.set_float32_matmul_precision("highest")

    def on_validation_end(self) -> None:
        torch.set_float32_matmul_precision(self._matmul_precision)
        # Graphs would take memory from the training, in which weights may also move to other addresses.
        assert self._batches is not None
        self._batches.release()

    def validation_step(self, batch: Any, batch_idx: int) -> Future[list[Segmentation | Instances]]:
        """Score a batch, on a GPU while the network runs on the next ones.

        Returns:
            A prediction per image, for callbacks that draw or save them; without a wait for the device.
        """
        assert self._background is not None
        keys: list[ImageKey] = []
        if not self.mask_free:
            size = self.data.eval_batch_size
            keys = validation_keys(self.trainer, self.step, batch_idx, size, batch.counts)
        images = batch.counts, batch.placements, tuple(batch.inputs.shape[-2:]), self.classes
        predict: Callable[[], list[Segmentation | Instances]]
        if isinstance(self.task, Tiled):

            def run(chosen: slice, placements: Sequence[Placement], counts: Sequence[int]) -> Logits:
                return self.predict_inputs(batch.inputs[chosen], placements, counts, keys[chosen])

            found = self.task.segment(run, self._background.submit, *images, self.data.eval_batch_size)
            predict = found.copy
        else:
            output = self.predict_inputs(batch.inputs, batch.placements, batch.counts, keys)
            if batch.shown is not None:
                self._validation_loss.add(output, batch.shown, batch_idx)
            predict = partial(predict_images, self.task, output, *images)
        if not batch.targets:
            # An image that another rank counts: this one had none left, but computes as often.
            return self._background.submit(list)
        self._unscored.append(self._background.submit(predict, partial(self._score, batch)))
        if len(self._unscored) > 1:
            self._unscored.popleft().result()
        return self._unscored[-1]

    def _score(self, batch: Any, predictions: list[Segmentation | Instances]) -> list[Segmentation | Instances]:
        for prediction, targets, image_id in zip(predictions, batch.targets, batch.image_ids, strict=True):
            self.metric.update(prediction, targets, image_id)
            if (image_score := getattr(self.metric, "image_score", None)) is not None:
                self.image_scores[image_id] = image_score()
        return predictions

    def on_validation_epoch_end(self) -> None:
        while self._unscored:
            self._unscored.popleft().result()
        self.scores = {name: float(value) for name, value in self.metric.compute().items()}
        self.scores_per_class = self.metric.per_class()
        confusion = getattr(self.metric, "confusion", None)
        self.confusion = None if confusion is None else confusion()
        self.metric.reset()
        if getattr(self.data, "validation_loss", False):
            self.log_dict(self._validation_loss.means(self.trainer.strategy))
        if not self.trainer.sanity_checking:
            self.validated_at = self.step
        for name, value in self.scores.items():
            self.log(name, torch.tensor(value, dtype=torch.float64), sync_dist=True)

    def predict_inputs(
        self, inputs: Tensor, placements: Sequence[Placement], counts: Sequence[int], keys: Sequence[ImageKey]
    ) -> Logits:
        """Compute the last output for the inputs of B images, B at a time.

        Args:
            inputs: [N, 3, H, W], image after image.
            placements: the placement of each image.
            counts: the number of inputs of each image, N in all.
            keys: the keys of the inputs' random numbers; needed unless `mask_free`.
        """
        usable = self.mask_free and not self.unpadded
        batches = self._batches if usable and self._batches is not None and self._batches.fixed else None
        at_once = len(counts) if batches is None else self.data.eval_batch_size

        def run(images: Tensor, index: Tensor) -> Logits:
            if batches is not None:
                return batches(images, at_once)
            dropped = None if self.mask_free else self._dropped_masks([keys[k] for k in index.tolist()])
            return self.network(images, dropped)[-1].logits()

        if self.unpadded:
            each = [placement for placement, count in zip(placements, counts, strict=True) for _ in range(count)]
            return run_unpadded(run, inputs, each, self.network.backbone.patch_size, len(counts))
        parts = zip(inputs.split(at_once), torch.arange(len(inputs)).split(at_once), strict=True)
        return Logits(*(torch.cat(values) for values in zip(*(run(*part) for part in parts), strict=True)))

    @property
    def mask_free(self) -> bool:
        """True if the network is validated as it is deployed, without attention masks."""
        return not (self.validate_masked and any(self.probabilities))

    @property
    def step(self) -> int:
        """Optimizer steps that the weights have seen."""
        return self.global_step or self.trained_steps

    def teardown(self, stage: str) -> None:
        # Threads, locks and graphs are no part of a model that is copied or saved.
        self._batches = self._background = None

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[FORMAT] = {**self.description(), **self.run}
        self.nonfinite.read(self.network)
        checkpoint["nonfinite"] = self.nonfinite.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_state(checkpoint)
        if "nonfinite" in checkpoint:
            self.nonfinite.load_state_dict(checkpoint["nonfinite"])

    def description(self) -> dict[str, Any]:
        """Return the plain values by which a checkpoint tells its model: what another run needs to resume it."""
        return {
            "kind": self.task.kind,
            "classes": self.classes.to_list(),
            "network": self.network.spec,
            "learns": {"freeze_backbone": self.freeze_backbone, "lora": self.lora},
        }
