"""A real run of the default task, made small: what it leaves and logs."""

import csv
import json
import zipfile
from types import SimpleNamespace

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

import train
from eomt.loss.mask_classification import MaskClassificationLoss
from eomt.training.annealing import mask_probability, resolve_windows
from eomt.training.module import EoMTModule
from eomt.training.optim import two_stage_warmup
from eomt.weights.checkpoint import FORMAT, read_checkpoint
from tests.running import SMALL, configured
from tests.training import test_nonfinite

pytestmark = pytest.mark.xdist_group("run")


def test_run_folder_is_complete(run):
    for name in ("config.yaml", "metrics.json", "metrics_per_class.json", "curves.png"):
        assert (run / name).is_file(), name
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    scores = json.loads((run / "metrics.json").read_text())
    assert {"pq", "sq", "rq", "pq_things", "pq_stuff", "step", "mask_free"} <= scores.keys()
    assert scores["step"] == 6
    assert scores["mask_free"] is True
    assert 0 <= scores["pq"] <= 100
    with Image.open(run / "pictures" / "step-000006.png") as picture:
        assert min(picture.size) > 100
    with Image.open(run / "curves.png") as picture:
        assert min(picture.size) > 200


def test_log_holds_loss_rates_and_mask_probabilities(run):
    with (run / "csv" / "version_0" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    # Two micro-batches make a step, and each row is logged after its step.
    assert [int(row["step"]) for row in rows] == list(range(6))
    windows = resolve_windows([[0.2, 0.5], [0.4, 0.7]], 6)
    rates = {stage: two_stage_warmup(stage, (2, 2), 6) for stage in ("head", "backbone")}
    for step, row in enumerate(rows):
        for block, window in enumerate(windows):
            assert float(row[f"mask_probability/{block}"]) == pytest.approx(mask_probability(step, *window))
        for stage, multiplier in rates.items():
            assert float(row[f"lr/{stage}"]) == pytest.approx(3e-3 * multiplier(step))
        assert float(row["train/loss"]) > 0
        assert float(row["train/gradient_norm"]) > 1


def test_checkpoint_carries_all_that_evaluation_needs(run):
    saved = read_checkpoint(run / "checkpoints" / "last.ckpt")[FORMAT]
    assert saved["kind"] == "panoptic"
    seen = {row["name"] for row in json.loads((run / "metrics_per_class.json").read_text())}
    assert seen <= {row["name"] for row in saved["classes"]}
    assert saved["network"]["patch_size"] == 8
    assert saved["config"]["task_name"] == "shapes_panoptic"


def test_a_stop_between_two_rows_leaves_a_row_of_its_own_step(tmp_path):
    """All else is logged every `trainer.log_every_n_steps` optimizer steps alone."""
    losses = []

    class Stop(lightning.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            losses.append((trainer.global_step, float(pl_module.last_step.loss)))
            trainer.should_stop = trainer.global_step == 5

    test_nonfinite.run(tmp_path, [Stop()], steps=9, log_every_n_steps=3, logger=CSVLogger(tmp_path, ""))
    with (tmp_path / "version_0" / "metrics.csv").open() as file:
        rows = {int(row["step"]) + 1: float(row["train/loss"]) for row in csv.DictReader(file)}
    expected = dict(reversed(losses))  # those of a step's last batch: the next one's first ends at the same step
    assert rows == pytest.approx({step: expected[step] for step in (3, 5)})


def test_numbers_of_training_can_be_monitored_between_two_rows(tmp_path):
    seen = []

    class Watch(EarlyStopping):
        def on_validation_end(self, trainer, pl_module):
            super().on_validation_end(trainer, pl_module)
            seen.append((float(trainer.callback_metrics["train/loss"]), float(pl_module.last_step.loss)))

    watch = Watch("train/loss", patience=9, check_on_train_epoch_end=False)
    test_nonfinite.run(tmp_path, [watch], steps=6, log_every_n_steps=50, limit_val_batches=1)
    assert len(seen) == 2
    assert [logged for logged, _ in seen] == pytest.approx([loss for _, loss in seen])


def test_no_numbers_of_a_step_that_is_not_done_are_logged(tmp_path):
    """A stop at the first of two batches of the second step, where no row was due before."""
    logged = []

    class Stop(lightning.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trainer.should_stop = batch_idx == 2

        def on_train_end(self, trainer, *_):
            logged.extend(trainer.callback_metrics)

    model = test_nonfinite.run(tmp_path, [Stop()], steps=9, log_every_n_steps=3)
    assert model.global_step == 1
    assert "train/loss" not in logged


def test_a_stop_before_the_first_step_is_no_fault(tmp_path):
    class Stop(lightning.Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop = True

    saves = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1)
    test_nonfinite.run(tmp_path, [saves], steps=4, log_every_n_steps=3)
    test_nonfinite.run(tmp_path, [Stop()], steps=9, log_every_n_steps=3, ckpt_path=tmp_path / "last.ckpt")


@pytest.mark.parametrize(("precision", "expected"), [("bf16-mixed", "highest"), ("32-true", "medium")])
def test_post_processing_has_full_precision_where_the_network_has_autocasts(precision, expected, tmp_path):
    seen = []

    class Watch(lightning.Callback):
        def on_train_batch_end(self, *_):
            seen.append(torch.get_float32_matmul_precision())

        on_validation_batch_end = on_train_batch_end

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        test_nonfinite.run(tmp_path, [Watch()], steps=4, limit_val_batches=1, precision=precision)
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == [*["medium"] * 6, expected, *["medium"] * 2]


@pytest.mark.slow
def test_checkpoint_holds_its_own_steps_mask_probabilities(options, tmp_path):
    windows = "annealing.windows=[[1,9],[3,5]]"
    train.main(configured(tmp_path, *options, "trainer.limit_val_batches=0", windows, "trainer.max_steps=4"))
    saved = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["state_dict"]["mask_probabilities"]
    assert saved.tolist() == pytest.approx([mask_probability(4, 1, 9), mask_probability(4, 3, 5)])


@pytest.mark.slow
def test_real_coco_archives_train_and_validate(tmp_path, shared_data):
    overrides = [o for o in SMALL if "backbone_options" not in o]
    overrides += ["model.backbone_options={embed_dim: 32, depth: 3, num_heads: 2}", "trainer.max_epochs=1"]
    root = f"data.root='{shared_data}/coco'"
    train.main(configured(tmp_path, "task=coco_panoptic", "model=tiny", *overrides, root))
    scores = json.loads((tmp_path / "metrics.json").read_text())
    assert scores["step"] == 1
    seen = json.loads((tmp_path / "metrics_per_class.json").read_text())
    with zipfile.ZipFile(shared_data / "coco" / "panoptic_annotations_trainval2017.zip") as archive:
        annotations = json.loads(archive.read("annotations/panoptic_val2017.json"))["annotations"]
    wanted = sum(not s["iscrowd"] for a in annotations for s in a["segments_info"])
    assert sum(row["tp"] + row["fn"] for row in seen) == wanted, "all 8 images, without crowds"


def test_the_divisor_of_mask_terms_is_the_mean_over_ranks(monkeypatch):
    """Ranks with 9 and with 3 matched masks both divide by 6; a query can match one target only."""
    other_rank = 3.0

    def all_reduce(value):
        value += other_rank

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    module = SimpleNamespace(network=SimpleNamespace(num_queries=12), loss=MaskClassificationLoss(), device="cpu")
    module.trainer = SimpleNamespace(world_size=2)
    module._sum_over_ranks = lambda *arguments: EoMTModule._sum_over_ranks(module, *arguments)

    def normalisers(*counts):
        return EoMTModule._normalisers(module, SimpleNamespace(targets=SimpleNamespace(counts=counts)))

    assert normalisers(4, 5) == (6, None)
    assert normalisers(400, 0) == ((12 + 3) / 2, None)
    other_rank = 0.0
    assert normalisers(0, 0) == (1, None)


def test_more_segments_than_queries_are_said_once(caplog):
    caplog.set_level("INFO")
    module = SimpleNamespace(network=SimpleNamespace(num_queries=20), _said_too_many=False)
    for counts in ((), (20, 3), (4, 21), (30, 25)):
        EoMTModule._say_too_many_segments(module, ("a.jpg", "b.jpg"), counts)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "the first 21 (b.jpg): raise model.num_queries=20" in line
