"""A real run of the default task, made small: trained once, then read, evaluated, resumed and damaged."""

import csv
import json
import re
import subprocess
import sys

import pytest
import torch
from PIL import Image

import eval as evaluation
import launch
import train
from eomt.checkpoint import FORMAT, AtomicCheckpointIO, read_checkpoint
from eomt.errors import InputError
from tests.conftest import ROOT, configured

pytestmark = pytest.mark.xdist_group("train")


@pytest.fixture(scope="session")
def run(options, tmp_path_factory):
    """The run folder of an undisturbed run of two epochs of three steps."""
    folder = tmp_path_factory.mktemp("run")
    train.main(configured(folder, *options))
    return folder


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
    assert len(rows) == 6
    assert float(rows[0]["mask_probability/0"]) == 1
    assert float(rows[-1]["mask_probability/0"]) == 0
    assert float(rows[0]["lr/head"]) == 0
    assert all(float(row["train/loss"]) > 0 for row in rows)


def test_checkpoint_carries_all_that_evaluation_needs(run):
    saved = read_checkpoint(run / "checkpoints" / "last.ckpt")[FORMAT]
    assert saved["kind"] == "panoptic"
    seen = {row["name"] for row in json.loads((run / "metrics_per_class.json").read_text())}
    assert seen <= {row["name"] for row in saved["classes"]}
    assert saved["network"]["patch_size"] == 8
    assert saved["config"]["task_name"] == "shapes_panoptic"


def test_evaluation_gives_the_number_of_the_last_validation(run, tmp_path, capsys):
    checkpoint = run / "checkpoints" / "last.ckpt"
    evaluation.main(configured(tmp_path, f"ckpt='{checkpoint}'", "save_predictions=true", name="eval"))
    during = json.loads((run / "metrics.json").read_text())
    after = json.loads((tmp_path / "metrics.json").read_text())
    for name in ("pq", "sq", "rq", "pq_things", "pq_stuff"):
        assert after[name] == during[name], name
    assert "things" in capsys.readouterr().out
    results = json.loads((tmp_path / "predictions" / "panoptic.json").read_text())
    assert len(results["annotations"]) == 10
    assert len(list((tmp_path / "predictions" / "panoptic").glob("*.png"))) == 10


def test_resumed_run_ends_where_the_undisturbed_one_does(run, options, tmp_path):
    """Stopped in the middle of an epoch: weights, optimizer and schedule end bit for bit the same."""
    checkpoints = tmp_path / "checkpoints"
    train.main(configured(tmp_path, *options, "trainer.limit_val_batches=0", *_save_at(4)))
    middle = checkpoints / "step4.ckpt"
    assert read_checkpoint(middle)["global_step"] == 4
    resumed = tmp_path / "resumed"
    train.main(configured(resumed, *options, f"ckpt='{middle}'"))
    ours, theirs = (read_checkpoint(f / "checkpoints" / "last.ckpt") for f in (resumed, run))
    assert ours["global_step"] == theirs["global_step"] == 6
    for key, value in theirs["state_dict"].items():
        assert torch.equal(ours["state_dict"][key], value), key
    for state, other in zip(
        ours["optimizer_states"][0]["state"].values(),
        theirs["optimizer_states"][0]["state"].values(),
        strict=True,
    ):
        assert all(torch.equal(state[k], other[k]) for k in other)
    assert ours["lr_schedulers"] == theirs["lr_schedulers"]


def _save_at(step):
    callback = (
        "{_target_: lightning.pytorch.callbacks.ModelCheckpoint, dirpath: '${run_folder}/checkpoints', "
        f"filename: step{step}, save_top_k: -1, every_n_train_steps: {step}, enable_version_counter: false}}"
    )
    return (f"+callbacks.save={callback}", "callbacks.best=null", "callbacks.last=null")


def test_resuming_another_model_is_refused(run, options, tmp_path):
    checkpoint = run / "checkpoints" / "last.ckpt"
    with pytest.raises(InputError, match=r"of another model: num_queries is 12 there and 7 here"):
        train.main(configured(tmp_path, *options, f"ckpt='{checkpoint}'", "model.num_queries=7"))


@pytest.mark.parametrize("damage", ["truncated", "text", "pickle", "absent"])
def test_damaged_checkpoints_are_named(run, tmp_path, damage):
    path = tmp_path / "bad.ckpt"
    content = (run / "checkpoints" / "last.ckpt").read_bytes()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "text":
        path.write_text("no checkpoint at all")
    elif damage == "pickle":
        torch.save({FORMAT: {}, "code": _Opens(str(tmp_path / "opened"))}, path)
    with pytest.raises(InputError, match=r"bad\.ckpt") as error:
        evaluation.main(configured(tmp_path, f"ckpt='{path}'", name="eval"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "opened").exists(), "code from the file was run"


class _Opens:
    """Pickles to a call that leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_failed_save_leaves_the_checkpoint_whole(run, tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({FORMAT: 1}, path)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="No space left"):
        AtomicCheckpointIO().save_checkpoint({FORMAT: 2}, path)
    assert read_checkpoint(path)[FORMAT] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["task=coco_panoptic", "model=tiny"], "data.root"),
        (["data.global_batch=10"], r"data\.global_batch=10.*data\.batch_size=4"),
        (["data.image_size=60"], "multiple of the patch size 8"),
        (["model.backbone=vit_smal"], "vit_smal"),
        (["annealing.windows=[[0,1]]"], "annealing.windows has 1 windows"),
        (["kind=semantics"], "kind=semantics"),
    ],
)
def test_bad_settings_end_before_training(options, tmp_path, overrides, words):
    cfg_options = [o for o in options if not (overrides[0].startswith("task") and o.startswith("data.root"))]
    with pytest.raises(launch.ENDINGS) as error:
        train.main(configured(tmp_path, *cfg_options, *overrides))
    line = launch.explain(error.value)
    assert re.search(words, line), line
    assert not list(tmp_path.glob("checkpoints/*"))


def _command(*arguments, script="train.py", cwd=None, **options):
    return subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=cwd,
        check=False,
        **options,
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("task=coco",), "task/coco"),
        (("trainer.max_step=3",), "max_step"),
        (("data.image_size=abc",), "image_size"),
    ],
)
def test_command_line_errors_are_one_line_and_exit_1(tmp_path, arguments, words):
    done = _command(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert words in lines[0]


def test_fresh_run_and_resume_from_the_command_line(options, tmp_path):
    """From another folder, with the checkpoint as the only argument of the second run."""
    done = _command(*options, "trainer.max_steps=3", "hydra.run.dir=my run=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    checkpoint = tmp_path / "my run=1" / "checkpoints" / "last.ckpt"
    assert read_checkpoint(checkpoint)["global_step"] == 3
    assert (tmp_path / "my run=1" / "train.log").is_file()
    done = _command(f"ckpt={checkpoint}", "trainer.max_steps=5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert read_checkpoint(checkpoint)["global_step"] == 5
    versions = sorted(p.name for p in (tmp_path / "my run=1" / "csv").iterdir())
    assert versions == ["version_0", "version_1"]


def test_two_processes_train_and_score_each_image_once(options, tmp_path):
    """The score of two ranks, each with half of the images, is the one that a single process gives."""
    folder = tmp_path / "ddp"
    done = _command(*options, "trainer.devices=2", "trainer.strategy=ddp", f"hydra.run.dir={folder}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "effective batch 8 = 4 per device x 2 devices x 1 accumulated; 6 optimizer steps" in done.stdout
    during = json.loads((folder / "metrics.json").read_text())
    checkpoint = folder / "checkpoints" / "last.ckpt"
    evaluation.main(configured(tmp_path / "eval", f"ckpt='{checkpoint}'", "trainer.devices=1", name="eval"))
    after = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert during["pq"] == pytest.approx(after["pq"], abs=1e-9)
    assert during["step"] == 6
