"""train.py: where runs start, resume and end, in this process and from the command line."""

import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

import train
from eomt.cli import build
from eomt.cli.endings import ENDINGS, explain
from eomt.errors import InputError
from eomt.training.callbacks.curves import read_logs
from eomt.training.optim import two_stage_warmup
from eomt.weights.checkpoint import FORMAT, read_checkpoint
from eomt.weights.load import read_weights
from tests.random_networks import random_network
from tests.running import ROOT, SMALL, configured
from tests.training.callbacks.test_trackers import wandb_records
from tests.weights.sources import SEVEN

pytestmark = pytest.mark.xdist_group("run")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["task=coco_panoptic", "model=tiny"], "data.root"),
        (["data.global_batch=10"], r"data\.global_batch=10.*data\.batch_size=4"),
        (["data.image_size=60"], "multiple of the patch size 8"),
        (["model.backbone=vit_smal"], "vit_smal"),
        (["annealing.windows=[[0,1]]"], "annealing.windows has 1 windows"),
        (["trainer.max_epochs=null"], "the run has no end"),
        (["model.freeze_backbone=4"], r"model\.freeze_backbone=4: the backbone has 3 blocks"),
        (["model.lora.rank=2", "model.freeze_backbone=2"], "model.lora freezes the whole backbone"),
    ],
)
def test_settings_that_do_not_fit_together_end_before_training(options, tmp_path, overrides, words):
    options = [o for o in options if not (overrides[0].startswith("task") and o.startswith("data.root"))]
    with pytest.raises(ENDINGS) as error:
        train.main(configured(tmp_path, *options, *overrides))
    assert re.search(words, explain(error.value))
    assert not list(tmp_path.glob("checkpoints/*"))


def test_resuming_another_model_is_refused(run, options, tmp_path):
    checkpoint = run / "checkpoints" / "last.ckpt"
    with pytest.raises(InputError, match=r"data\.image_size is \[64, 64\] there and \[32, 32\] here.*by weights="):
        train.main(configured(tmp_path, *options, f"ckpt='{checkpoint}'", "data.image_size=32"))
    with pytest.raises(InputError, match=r"of another model: model\.num_queries is 12 there and 7 here"):
        train.main(configured(tmp_path, *options, f"ckpt='{checkpoint}'", "model.num_queries=7"))


@pytest.mark.parametrize("key", ["lr", "weight_decay", "layer_decay"])
def test_other_rates_than_the_optimizer_has_are_refused(run, options, tmp_path, key):
    with pytest.raises(InputError, match=rf"optim\.{key}=0\.5: .* cannot change within a run.*weights="):
        train.main(configured(tmp_path, *options, f"ckpt='{run}/checkpoints/last.ckpt'", f"optim.{key}=0.5"))


def test_a_run_that_has_ended_says_so(run, options, tmp_path, caplog):
    caplog.set_level("INFO", logger="eomt")
    train.main(configured(tmp_path, *options, "postprocess.score_threshold=0", f"ckpt='{run}/checkpoints/last.ckpt'"))
    assert "no step was left to train: the run of ckpt= had ended at step 6" in caplog.text
    assert (tmp_path / "metrics.json").read_text() == (run / "metrics.json").read_text()


@pytest.mark.slow
def test_training_starts_from_other_weights(run, options, tmp_path, caplog):
    """A checkpoint of another kind with other classes; the resumed run does not read them again."""
    caplog.set_level("INFO", logger="eomt")
    weights = f"weights='{run}/checkpoints/last.ckpt'"
    instances = [o for o in options if "max_epochs" not in o] + ["task=shapes_instance", "trainer.max_epochs=1"]
    stopped = ("optim.lr=0", "optim.weight_decay=0", "trainer.limit_val_batches=0")
    train.main(configured(tmp_path, *instances, *stopped, weights))
    assert re.search(r"class_head +new +the classes are others", caplog.text)
    ours, theirs = (read_weights(f / "checkpoints" / "last.ckpt") for f in (tmp_path, run))
    assert ours.kind == "instance"
    for key, value in theirs.state.items():
        assert torch.equal(ours.state[key], value) != key.startswith("class_head."), key
    caplog.clear()
    checkpoint = f"ckpt='{tmp_path}/checkpoints/last.ckpt'"
    train.main(configured(tmp_path / "on", *instances, *stopped, "trainer.max_epochs=2", weights, checkpoint))
    assert "class_head" not in caplog.text
    with pytest.raises(InputError, match=r"strict=true: class_head would be new"):
        train.main(configured(tmp_path / "strict", *instances, weights, "strict=true"))


def test_weights_without_a_run_start_a_new_one(run, options, tmp_path, caplog):
    """`ckpt=` of train.py takes what any `ckpt=` takes."""
    caplog.set_level("INFO", logger="eomt")
    checkpoint = read_checkpoint(run / "checkpoints" / "last.ckpt")
    del checkpoint["optimizer_states"]
    torch.save(checkpoint, tmp_path / "weights.ckpt")
    train.main(configured(tmp_path, *options, "trainer.max_steps=1", f"ckpt='{tmp_path}/weights.ckpt'"))
    assert "no run to resume" in caplog.text
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 1
    assert re.search(r"best\.ckpt has pq \d+\.\d\d, of step 1: predict\.py and eval\.py take that", caplog.text)


@pytest.mark.slow
def test_the_batch_that_fits_is_that_of_the_resumed_run_too(options, tmp_path):
    short = ("trainer.max_steps=1", "trainer.limit_val_batches=0", "data.batch_size=null", "data.global_batch=6")
    train.main(configured(tmp_path, *options, *short))
    own = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")[FORMAT]["config"]
    assert own["data"]["batch_size"] == OmegaConf.load(tmp_path / "config.yaml").data.batch_size == 3


def test_exhausted_memory_says_what_to_type(options, tmp_path, monkeypatch):
    def run_out(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("eomt.training.module.EoMTModule.training_step", run_out)
    with pytest.raises(InputError, match=r"not hold data\.batch_size=4 and .*: try data\.batch_size=2 or data\.eval"):
        train.main(configured(tmp_path, *options))
    data, network = SimpleNamespace(batch_size=4, eval_batch_size=1), random_network()
    network.activation_checkpointing = True
    said = []
    for trained in (network, None):
        with pytest.raises(InputError) as error, build.memory_errors(data, trained):
            run_out()
        said.append(str(error.value).removeprefix("the GPU's memory does not hold "))
    assert said == [
        "data.batch_size=4 and data.eval_batch_size=1: try data.batch_size=2 or a smaller data.image_size; "
        "data.global_batch, images a step, stays",
        "data.eval_batch_size=1: try a smaller data.image_size",
    ]


def test_values_from_the_environment_are_named_in_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setenv("MINE", "hidden")
    cfg = configured(tmp_path, *SMALL, "task_name=${oc.env:MINE}")
    run = build.build_module(cfg, SEVEN, (64, 64)).run
    assert (run["config"]["task_name"], run["environment"]) == ("hidden", ["task_name"])


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_that_is_not_installed_is_named(monkeypatch, tmp_path, name):
    monkeypatch.setattr(f"lightning.pytorch.loggers.{name}._{name.upper()}_AVAILABLE", False)
    with pytest.raises(InputError, match=f"logger={name} is not installed: pip install {name}"):
        build.build_loggers(configured(tmp_path, f"logger={name}"))


def test_prefetch_fills_the_cache_and_ends(options, tmp_path):
    train.main(configured(tmp_path, *options, "prefetch=true"))
    assert not list(tmp_path.iterdir())


def _command(*arguments, cwd):
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cwd, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argument", "words"), [("task=coco", "did you mean coco_instance"), ("hydra.run.dir=/proc/none", "/proc/none")]
)
def test_command_line_errors_are_one_line_and_exit_1(tmp_path, argument, words):
    done = _command(argument, cwd=tmp_path)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert words in lines[0]


@pytest.mark.slow
def test_a_start_that_fails_leaves_no_run_folder(tmp_path):
    done = _command("task=coco_panoptic", "data.root=nowhere", cwd=tmp_path)
    assert done.returncode == 1
    assert "nowhere" in done.stderr
    assert not list(tmp_path.glob("runs/*/*"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    done = _command("task=coco_panoptic", "data.root=nowhere", "hydra.run.dir=mine", cwd=tmp_path)
    assert done.returncode == 1
    assert (tmp_path / "mine" / "notes.txt").exists()


@pytest.mark.slow
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
    logs = read_logs(tmp_path / "my run=1")
    assert list(logs["train/loss"]) == [0, 1, 2, 3, 4]
    longer = two_stage_warmup("head", (2, 2), 5)
    assert [logs["lr/head"][step] for step in (3, 4)] == pytest.approx([3e-3 * longer(step) for step in (3, 4)])


@pytest.mark.slow
def test_devices_without_a_launcher(options, tmp_path):
    """Lightning starts the second process by itself."""
    two = ("trainer.devices=2", "trainer.strategy=ddp", "trainer.accelerator=cpu", f"hydra.run.dir={tmp_path}/ddp")
    done = _command(*options, *two, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "effective batch 8 = 4 per device x 2 devices x 1 accumulated; 6 optimizer steps" in done.stdout
    assert read_checkpoint(tmp_path / "ddp" / "checkpoints" / "last.ckpt")["global_step"] == 6


@pytest.mark.slow
def test_each_run_of_a_sweep_has_its_own_wandb_run(options, tmp_path):
    """One after the other in one process; they are in one group."""
    short = ("logger=wandb", "trainer.max_steps=1", "trainer.limit_val_batches=0")
    done = _command("--multirun", "seed=1,2", *options, *short, "hydra.sweep.dir=mine", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    files = [next((tmp_path / "mine" / name / "wandb").glob("offline-run-*/*.wandb")) for name in ("0", "1")]
    runs = [next(record.run for record in wandb_records(file) if record.HasField("run")) for file in files]
    assert [run.run_group for run in runs] == ["mine", "mine"]
    assert runs[0].run_id != runs[1].run_id
