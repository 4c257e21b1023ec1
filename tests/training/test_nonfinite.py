"""Numbers that go wrong in a run, and batches that are overfull or empty."""

import math
import subprocess
import sys
from functools import partial

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision

from datasets.module import SegmentationData
from eomt.errors import InputError
from eomt.loss.mask_classification import MaskClassificationLoss
from eomt.model.eomt import EoMT
from eomt.postprocess.geometry import FIT_AND_PAD
from eomt.tasks import task_of
from eomt.training.annealing import Annealing
from eomt.training.callbacks import WeightAverage
from eomt.training.module import EoMTModule
from eomt.training.nonfinite import NonFiniteSteps
from eomt.training.optim import Recipe
from tests.host_syncs import HostSyncs
from tests.memory_reader import MemoryReader
from tests.running import ROOT

pytestmark = [pytest.mark.xdist_group("nonfinite"), pytest.mark.filterwarnings("ignore")]


def module(num_queries=6, **changes):
    torch.manual_seed(0)
    network = EoMT(
        backbone="vit_small_patch14_reg4_dinov2",
        image_size=(32, 32),
        num_classes=5,
        num_queries=num_queries,
        num_masked_blocks=2,
        patch_size=8,
        backbone_options={"embed_dim": 32, "depth": 3, "num_heads": 2},
    )
    classes = MemoryReader().classes
    options = {"annealing": Annealing([[0.2, 0.5], [0.4, 0.7]]), "recipe": Recipe(lr=1e-3, warmup_steps=(1, 1))}
    return EoMTModule(
        network, task_of("panoptic"), classes, MaskClassificationLoss(num_points=32), **(options | changes)
    )


def data(reader=MemoryReader, kind=SegmentationData, num_workers=0):
    options = {"batch_size": 2, "global_batch": 4, "num_workers": num_workers, "seed": 0}
    return kind(reader, reader, FIT_AND_PAD, image_size=32, **options)


class Fault(lightning.Callback):
    """Makes numbers of some steps, counted from 1, bad: a loss term or a gradient; and keeps what came of each."""

    def __init__(self, kind=None, steps=(), value=math.nan):
        self.kind, self.steps, self.value = kind, steps, value
        self.after = {}
        self.logged = {}

    def on_fit_start(self, trainer, pl_module):
        self.loss = pl_module.loss.forward
        pl_module.loss.forward = partial(self._loss, trainer)

    def _loss(self, trainer, *arguments):
        terms = self.loss(*arguments)
        if self.kind in terms and trainer.global_step + 1 in self.steps:
            factor = torch.ones_like(terms[self.kind])
            factor[1] = self.value
            terms[self.kind] = terms[self.kind] * factor
        return terms

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if self.kind == "gradient" and trainer.global_step + 1 in self.steps:
            pl_module.network.class_head.weight.grad[0, 0] = self.value

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        state = pl_module.optimizers().optimizer.state
        self.after[trainer.global_step] = (
            [p.detach().clone() for p in pl_module.network.parameters()],
            [{k: v.clone() for k, v in state[p].items()} for p in state],
            pl_module.lr_schedulers().last_epoch,
            pl_module.mask_probabilities.tolist(),
        )
        self.logged[trainer.global_step] = {k: float(v) for k, v in trainer.callback_metrics.items()}


def run(folder, callbacks=(), model=None, loading=None, ckpt_path=None, steps=6, **changes):
    options = {"precision": "32-true", "devices": 1, "log_every_n_steps": 1, "gradient_clip_val": 0.5}
    options |= {"limit_val_batches": 0, "logger": False} | changes
    loading = loading or data()
    trainer = lightning.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        callbacks=list(callbacks),
        accumulate_grad_batches=loading.accumulation(options["devices"]),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        **options,
    )
    model = model or module()
    trainer.fit(model, loading, ckpt_path=ckpt_path)
    return model


def same(ours, theirs):
    weights, moments, *_ = zip(ours, theirs, strict=True)
    return all(map(torch.equal, *weights)) and all(
        a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in b) for a, b in zip(*moments, strict=True)
    )


FP16 = {"precision": None, "plugins": [MixedPrecision("16-mixed", "cpu")]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "precision", "words"),
    [
        (Fault("dice", {3}), {}, "loss dice (output 1) not finite"),
        (Fault("class", {3}, math.inf), {"precision": "bf16-mixed"}, "loss class (output 1) not finite"),
        (Fault("mask", {3}), FP16, "loss mask (output 1) not finite"),
        (Fault("gradient", {3}), {}, "the gradient of class_head.weight not finite"),
        (Fault("gradient", {3}, -math.inf), {"precision": "bf16-mixed"}, "the gradient of class_head.weight"),
    ],
)
def test_a_step_that_is_not_finite_is_left_out_named_and_counted(tmp_path, caplog, fault, precision, words):
    run(tmp_path, [fault], steps=4, **precision)
    assert same(fault.after[3], fault.after[2])
    assert not same(fault.after[2], fault.after[1])
    assert not same(fault.after[4], fault.after[3])
    assert [fault.after[step][2] for step in (1, 2, 3, 4)] == [1, 2, 3, 4], "the schedule continues"
    assert fault.after[3][3] != fault.after[2][3], "so does annealing"
    (record,) = [r for r in caplog.records if "step left out" in r.message]
    assert record.message.startswith(f"step 3: {words}")
    assert record.message.count("image0") == 4, "all images of the step"
    assert record.message.endswith("step left out, 1 in a row, 1 so far")
    assert [fault.logged[step].get("train/skipped_steps") for step in (2, 3, 4)] == [0, 1, 1]
    assert all(torch.isfinite(p).all() for p in fault.after[4][0])


@pytest.fixture
def on_device(monkeypatch):
    """Behaviour of a GPU: the optimizer leaves steps out, and the host reads later that it did."""
    monkeypatch.setattr(NonFiniteSteps, "is_left_to", lambda self, optimizer, norm: True)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault("dice", {3, 4}), "loss dice (output 1) not finite"),
        (Fault("gradient", {3, 4}), "the gradient of class_head.weight not finite"),
        (Fault("gradient", {3, 4}, math.inf), "the gradient of class_head.weight not finite"),
    ],
)
def test_the_optimizer_leaves_a_step_out_on_the_device(tmp_path, caplog, on_device, fault, words):
    model = run(tmp_path, [fault], steps=4)
    assert same(fault.after[3], fault.after[2])
    assert same(fault.after[4], fault.after[2])
    assert not same(fault.after[2], fault.after[1])
    first, last = [r.message for r in caplog.records if "step left out" in r.message]
    assert first.startswith(f"step 3: {words}")
    assert first.count("image0") == 4, "all images of the step"
    assert last.startswith(f"step 4: {words}"), "the run's last step, too"
    assert last.endswith("step left out, 2 in a row, 2 so far")
    assert model.nonfinite.skipped == 2


def test_a_step_before_a_validation_is_named_by_its_gradients(tmp_path, caplog, on_device):
    run(tmp_path, [Fault("gradient", {3})], steps=4, limit_val_batches=1)
    (line,) = [r.message for r in caplog.records if "step left out" in r.message]
    assert line.startswith("step 3: the gradient of class_head.weight not finite")


@pytest.mark.parametrize("callbacks", [[], [WeightAverage(0.9)]])
def test_a_training_step_waits_for_nothing_but_the_matching(callbacks, tmp_path, on_device):
    model, waits = module(), HostSyncs()

    class Watch(lightning.Callback):
        """All of two steps and a half, also what Lightning does after each."""

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 0:
                waits.__enter__()
            elif batch_idx == 5:
                waits.__exit__(None, None, None)

    run(tmp_path, [*callbacks, Watch()], model, data(num_workers=1), steps=3, log_every_n_steps=50)
    assert not waits.found


@pytest.mark.slow
def test_finite_numbers_are_clipped_as_ever(tmp_path):
    """Bit-equal to PyTorch's own function."""
    ours = Fault()
    run(tmp_path, [ours])
    theirs = Fault()

    class Plain(EoMTModule):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), gradient_clip_val)

    plain = module()
    plain.__class__ = Plain
    run(tmp_path, [theirs], plain)
    for step in range(1, 7):
        assert same(ours.after[step], theirs.after[step])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_are_clipped_by_value(precision, tmp_path):
    largest = []

    class Watch(lightning.Callback):
        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            gradients = [p.grad for p in pl_module.network.parameters() if p.grad is not None]
            largest.extend(float(gradient.abs().max()) for gradient in gradients)

    changes = {"precision": precision, "gradient_clip_algorithm": "value", "gradient_clip_val": 1e-4}
    run(tmp_path, [Watch()], steps=2, **changes)
    assert max(largest) == pytest.approx(1e-4)


def test_an_overflow_of_gradient_scaling_is_no_fault(tmp_path, caplog):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    fault = Fault()
    model = run(tmp_path, [fault], steps=3, precision=None, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    assert scaler.get_scale() < 2.0**60
    assert model.nonfinite.skipped == 0
    assert not [r for r in caplog.records if "left out" in r.message]


@pytest.mark.parametrize("left", [False, True])
def test_too_many_in_a_row_end_the_run(tmp_path, monkeypatch, left):
    monkeypatch.setattr(NonFiniteSteps, "is_left_to", lambda self, optimizer, norm: left)
    fault = Fault("dice", {1, 2, 4, 5, 6})
    with pytest.raises(InputError, match=r"3 optimizer steps in a row were left out .*step 6: loss dice") as error:
        run(tmp_path, [fault], module(max_skipped_steps=3), steps=8)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_resumed_run_counts_on(tmp_path):
    def fault():
        return Fault("dice", {3, 4, 5, 6})

    every = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
    whole = fault()
    run(tmp_path, [whole, every], module(max_skipped_steps=5), steps=8)
    resumed = fault()
    model = run(tmp_path, [resumed], module(max_skipped_steps=5), ckpt_path=str(tmp_path / "step=4.ckpt"), steps=8)
    assert model.nonfinite.skipped == 4
    assert same(resumed.after[8], whole.after[8])
    with pytest.raises(InputError, match=r"3 optimizer steps in a row"):
        run(tmp_path, [fault()], module(max_skipped_steps=3), ckpt_path=str(tmp_path / "step=4.ckpt"), steps=8)


def test_more_targets_than_queries(tmp_path):
    """Each query has a target, and those left over have no part in the loss."""
    model = run(tmp_path, model=module(num_queries=2), steps=2)
    assert model.nonfinite.skipped == 0
    assert all(p.isfinite().all() for p in model.network.parameters())


@pytest.mark.parametrize("size", [(1, 1), (50, 20000)])
def test_extreme_images_in_training_and_validation(tmp_path, size):
    class Extreme(MemoryReader):
        def size(self, index):
            return size if index % 2 else super().size(index)

        def read(self, index):
            import numpy as np

            from eomt.targets import targets_from_id_map

            if index % 2 == 0:
                return super().read(index)
            return np.zeros((*size, 3), np.uint8), targets_from_id_map(np.ones(size, np.int64), [1], [4])

    loading = data(partial(Extreme, count=4))
    model = run(tmp_path, loading=loading, steps=2)
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    trainer.validate(model, loading, verbose=False)
    assert model.nonfinite.skipped == 0
    assert set(model.scores) >= {"pq", "sq", "rq"}


RANKS = """
import os, sys
sys.path.insert(0, {root!r})
import torch
from tests.training import test_nonfinite as t

torch.set_num_threads(1)


def say(*words):
    # One write, or the two ranks' lines mix in the pipe they share.
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())


class OnRank1(t.Fault):
    def _loss(self, trainer, *arguments):
        self.steps = {{2, 4}} if trainer.global_rank == 1 else ()
        say("rank", trainer.global_rank, "step", trainer.global_step + 1, "targets", sum(arguments[1].counts))
        return super()._loss(trainer, *arguments)


class Data(t.SegmentationData):
    # As if all crops of rank 0's first batch had missed their segments.
    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        if self.trainer.global_rank == 0 and self.trainer.global_step == 0:
            none = batch.targets.labels.new_zeros(len(batch.images), 0)
            targets = batch.targets._replace(
                ids=batch.targets.ids * 0, labels=none, planes=none, counts=(0,) * len(batch.images))
            batch = batch._replace(targets=targets)
        return batch


fault = OnRank1("dice")
model = t.run({folder!r}, [fault], t.module(max_skipped_steps=3), t.data(kind=Data), steps=5, devices=2, strategy="ddp")
moved = [not t.same(fault.after[k], fault.after[k - 1]) for k in (2, 3, 4, 5)]
total = sum(float(p.detach().double().sum()) for p in model.network.parameters())
say("rank", model.global_rank, "skipped", model.nonfinite.skipped, "moved", moved, "weights", total)
"""


@pytest.mark.slow
def test_two_ranks_leave_a_step_out_together_and_step_without_targets(tmp_path):
    """NaN on one rank alone; no target at all in a whole batch of the other."""
    script = tmp_path / "ranks.py"
    script.write_text(RANKS.format(root=str(ROOT), folder=str(tmp_path)))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    ends = sorted(line for line in done.stdout.splitlines() if " skipped " in line)
    assert len(ends) == 2, done.stdout
    assert "rank 0 step 1 targets 0" in done.stdout
    assert all("skipped 2 moved [False, True, False, True]" in line for line in ends), ends
    assert ends[0].split("weights")[1] == ends[1].split("weights")[1]
    assert done.stderr.count("step left out") == 2, "the first rank says it"
    assert "step 2: loss dice (output 1) not finite; images of rank 1: image0" in done.stderr
