"""A real run of the default task, made small: trained once, then read, evaluated, resumed and damaged."""

import csv
import json
import re
import subprocess
import sys
import zipfile

import lightning
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

import eval as evaluation
import export
import train
from eomt.cli import build as assemble
from eomt.cli import main
from eomt.errors import InputError
from eomt.training.annealing import mask_probability, resolve_windows
from eomt.training.callbacks.curves import read_logs
from eomt.training.optim import two_stage_warmup
from eomt.weights.checkpoint import FORMAT, read_checkpoint
from eomt.weights.load import read_weights
from eomt.weights.original import to_original
from tests.running import CONFIGS, ROOT, SMALL, configured

pytestmark = pytest.mark.xdist_group("module")


@pytest.fixture(scope="session")
def run(options, tmp_path_factory):
    """The run folder of an undisturbed run of two epochs of three steps."""
    folder = tmp_path_factory.mktemp("run")
    # So short a run is sure of nothing; without the threshold there are predictions to compare.
    train.main(configured(folder, *options, "postprocess.score_threshold=0"))
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


def test_evaluation_gives_the_number_of_the_last_validation(run, tmp_path, caplog):
    caplog.set_level("INFO", logger="eomt")
    checkpoint = run / "checkpoints" / "last.ckpt"
    evaluation.main(configured(tmp_path, f"ckpt='{checkpoint}'", "save_predictions=true", name="eval"))
    for name in ("metrics.json", "metrics_per_class.json"):
        assert json.loads((tmp_path / name).read_text()) == json.loads((run / name).read_text()), name
    counted = json.loads((tmp_path / "metrics_per_class.json").read_text())
    assert sum(row["tp"] + row["fp"] for row in counted) > 10, "there must be predictions to compare"
    assert "things" in caplog.text
    results = json.loads((tmp_path / "predictions" / "panoptic.json").read_text())
    assert len(results["annotations"]) == 10
    assert len(list((tmp_path / "predictions" / "panoptic").glob("*.png"))) == 10


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["task=coco_panoptic", "model=tiny"], "data.root"),
        (["data.global_batch=10"], r"data\.global_batch=10.*data\.batch_size=4"),
        (["data.image_size=60"], "multiple of the patch size 8"),
        (["model.backbone=vit_smal"], "vit_smal"),
        (["annealing.windows=[[0,1]]"], "annealing.windows has 1 windows"),
        (["kind=semantics"], "kind=semantics"),
        (["seed=abc"], "seed=abc must be a whole number"),
        (["optim.lr=-1"], r"optim\.lr=-1 must be a number of at least 0"),
        (["compile=maybe"], "compile=maybe must be true or false"),
        (["activation_checkpointing=1"], "activation_checkpointing=1 must be true or false"),
        (["data.batch_size=abc"], r"data\.batch_size=abc must be a whole number"),
        (["optim.lr=abc"], r"optim\.lr=abc must be a number"),
        (["optim.warmup_steps=5"], "must be a list of 2 values, each a whole number"),
        (["trainer.max_epochs=null"], "the run has no end"),
        (["trainer.precision=nonsense"], r"trainer\.precision=nonsense must be 16-mixed"),
    ],
)
def test_bad_settings_end_before_training(options, tmp_path, overrides, words):
    cfg_options = [o for o in options if not (overrides[0].startswith("task") and o.startswith("data.root"))]
    with pytest.raises(main.ENDINGS) as error:
        train.main(configured(tmp_path, *cfg_options, *overrides))
    line = main.explain(error.value)
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("task=coco",), "task/coco"),
        (("trainer.max_step=3",), "trainer.max_step is no key"),
        (("trainer.accumulate_grad_batches=2",), "data.global_batch"),
        (("hydra.run.dir=/proc/none",), "/proc/none"),
    ],
)
def test_command_line_errors_are_one_line_and_exit_1(tmp_path, arguments, words):
    done = _command(*arguments, cwd=tmp_path)
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
    assert list(read_logs(tmp_path / "my run=1")["train/loss"]) == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_checkpoint_holds_its_own_steps_mask_probabilities(run, options, tmp_path):
    windows = "annealing.windows=[[1,9],[3,5]]"
    train.main(configured(tmp_path, *options, "trainer.limit_val_batches=0", windows, *_save_at(4)))
    saved = read_checkpoint(tmp_path / "checkpoints" / "step4.ckpt")["state_dict"]["mask_probabilities"]
    assert saved.tolist() == pytest.approx([mask_probability(4, 1, 9), mask_probability(4, 3, 5)])


@pytest.mark.slow
def test_evaluation_under_masks(run, options, tmp_path):
    """Dropped masks are drawn by the step of the checkpoint, as in the original's validation."""
    early = (*options, "trainer.max_steps=2", "annealing.validate_masked=true", "annealing.windows=[[5,9],[5,9]]")
    train.main(configured(tmp_path / "run", *early))
    during = json.loads((tmp_path / "run" / "metrics_per_class.json").read_text())
    checkpoint = f"ckpt='{tmp_path}/run/checkpoints/last.ckpt'"
    for masked, folder in ((True, "masked"), (False, "free")):
        overrides = (checkpoint, f"annealing.validate_masked={str(masked).lower()}")
        evaluation.main(configured(tmp_path / folder, *overrides, name="eval"))
        assert json.loads((tmp_path / folder / "metrics.json").read_text())["mask_free"] is not masked
        after = json.loads((tmp_path / folder / "metrics_per_class.json").read_text())
        if masked:
            assert after == during


@pytest.mark.parametrize("key", ["data.timeout", "data.eval_batch_size", "data.num_workers", "data.max_images"])
def test_evaluation_refuses_text_for_numbers(run, tmp_path, key):
    arguments = (f"ckpt='{run / 'checkpoints' / 'last.ckpt'}'", f"{key}=abc")
    with pytest.raises(InputError, match=f"{re.escape(key)}=abc must be a "):
        evaluation.main(configured(tmp_path, *arguments, name="eval"))


def test_evaluation_reads_the_root_that_is_given(run, tmp_path):
    checkpoint = f"ckpt='{run}/checkpoints/last.ckpt'"
    with pytest.raises(InputError, match="nowhere"):
        evaluation.main(configured(tmp_path, checkpoint, "data.root=/nowhere", name="eval"))


def test_evaluation_refuses_other_classes(run, tmp_path, shared_data):
    checkpoint = f"ckpt='{run}/checkpoints/last.ckpt'"
    with pytest.raises(InputError, match="trained on other classes"):
        evaluation.main(configured(tmp_path, checkpoint, f"data.root='{shared_data}/coco'", name="eval"))


def test_a_logger_that_is_not_installed_names_its_extra(monkeypatch, tmp_path):
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", False)
    with pytest.raises(InputError, match=r"\[train,wandb\]"):
        assemble.build_loggers(configured(tmp_path, "logger=wandb"))


def test_prefetch_fills_the_cache_and_ends(options, tmp_path):
    train.main(configured(tmp_path, *options, "prefetch=true"))
    assert not list(tmp_path.iterdir())


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


def test_gradients_are_clipped_by_their_total_norm(run):
    weights = read_weights(run / "checkpoints" / "last.ckpt")
    module = assemble.load_module(weights, OmegaConf.create(weights.config), weights.network["image_size"])
    logged = {}
    module.trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    module.log = lambda name, value: logged.update({name: float(value)})
    for parameter in module.network.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    module.configure_gradient_clipping(None, 0.01, "norm")
    total = sum(p.grad.square().sum() for p in module.network.parameters()).sqrt()
    assert float(total) == pytest.approx(0.01, rel=1e-3)
    count = sum(p.numel() for p in module.network.parameters())
    assert logged["train/gradient_norm"] == pytest.approx(3 * count**0.5, rel=1e-4)


@pytest.mark.slow
def test_two_processes_train_and_score_each_image_once(run, options, tmp_path):
    """The counts of two ranks, each with half of the images, are those of a single process."""
    folder = tmp_path / "ddp"
    two = ("trainer.devices=2", "trainer.strategy=ddp", "trainer.accelerator=cpu")
    done = _command(*options, *two, f"hydra.run.dir={folder}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "effective batch 8 = 4 per device x 2 devices x 1 accumulated; 6 optimizer steps" in done.stdout
    checkpoint = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert checkpoint["global_step"] == 6
    # Sure of everything, so that there is something to count.
    checkpoint["state_dict"]["network.class_head.weight"] *= 100
    checkpoint["state_dict"]["network.class_head.bias"][-1] = -1000
    torch.save(checkpoint, tmp_path / "sure.ckpt")
    arguments = (f"ckpt={tmp_path}/sure.ckpt", "save_predictions=true", f"hydra.run.dir={tmp_path}/two")
    done = _command(*arguments, *two, script="eval.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    evaluation.main(configured(tmp_path / "one", arguments[0], "trainer.accelerator=cpu", name="eval"))
    counts = [json.loads((tmp_path / f / "metrics_per_class.json").read_text()) for f in ("one", "two")]
    assert counts[0] == counts[1]
    assert sum(row["fp"] for row in counts[0]) > 10
    rows = json.loads((tmp_path / "two" / "predictions" / "panoptic.json").read_text())["annotations"]
    assert len({row["image_id"] for row in rows}) == len(rows) == 10


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
    train.main(
        configured(
            tmp_path / "on", *instances, "trainer.max_epochs=2", "trainer.limit_val_batches=0", weights, checkpoint
        )
    )
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


@pytest.mark.slow
def test_evaluation_of_weights_from_elsewhere(run, shapes, tmp_path):
    """Weights that carry no settings are evaluated on the task that is chosen, with the same score."""
    pytest.importorskip("transformers", reason="the Hugging Face form needs transformers")
    out = tmp_path / "hf"
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        overrides = [f"ckpt='{run}/checkpoints/last.ckpt'", "format=hf", f"out='{out}'"]
        export.main(compose("export", overrides=overrides))
    ckpt, root = f"ckpt='{out}'", f"data.root='{shapes}'"
    with pytest.raises(InputError, match="choose its task"):
        evaluation.main(configured(tmp_path, ckpt, root, name="eval"))
    options = ("task=shapes_panoptic", "trainer.accelerator=cpu", "postprocess.score_threshold=0.0")
    evaluation.main(configured(tmp_path / "eval", ckpt, root, *options, name="eval"))
    ours, theirs = (json.loads((f / "metrics_per_class.json").read_text()) for f in (tmp_path / "eval", run))
    assert ours == theirs


@pytest.mark.slow
def test_evaluation_of_original_weights(run, shapes, tmp_path):
    """Weights that name neither kind nor classes, of sizes that nobody published: the chosen model says them."""
    weights = read_weights(run / "checkpoints" / "last.ckpt")
    ckpt = f"ckpt='{tmp_path}/original.bin'"
    torch.save(to_original(weights.state, weights.network), tmp_path / "original.bin")
    options = [
        *("task=shapes_panoptic", f"data.root='{shapes}'"),
        *("trainer.accelerator=cpu", "postprocess.score_threshold=0.0"),
    ]
    network = "model.backbone_options={embed_dim: 32, depth: 3, num_heads: 2, init_values: 1.0}"
    with pytest.raises(InputError, match="num_heads"):
        evaluation.main(configured(tmp_path, ckpt, *options, name="eval"))
    evaluation.main(configured(tmp_path / "eval", ckpt, *options, network, name="eval"))
    ours, theirs = (json.loads((f / "metrics_per_class.json").read_text()) for f in (tmp_path / "eval", run))
    assert ours == theirs


def test_evaluation_on_other_classes_of_the_same_number_is_refused(run, tmp_path):
    """Colours and counts agree, names do not."""
    example = tmp_path / "data"
    for folder, mode in (("images", "RGB"), ("labels", "L")):
        (example / folder / "val").mkdir(parents=True)
        Image.new(mode, (8, 8)).save(example / folder / "val" / "a.png")
    weights = read_weights(run / "checkpoints" / "last.ckpt")
    checkpoint = read_checkpoint(run / "checkpoints" / "last.ckpt")
    checkpoint[FORMAT] |= {"kind": "semantic", "config": {}}
    torch.save(checkpoint, tmp_path / "semantic.ckpt")
    names = [*weights.classes.names[1:], "other"]
    options = (f"data.root='{example}'", f"data.classes=[{','.join(names)}]", "task=folder_semantic")
    with pytest.raises(InputError, match="trained on other classes"):
        evaluation.main(configured(tmp_path / "eval", f"ckpt='{tmp_path}/semantic.ckpt'", *options, name="eval"))
