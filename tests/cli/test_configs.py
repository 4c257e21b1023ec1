"""The configurations: composable in every order, and equal to the published recipes."""

import inspect
from pathlib import Path

import lightning
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from eomt.cli import main
from eomt.errors import InputError
from eomt.training.annealing import resolve_windows
from eomt.weights.checkpoint import FORMAT
from tests.golden_numbers import golden_json
from tests.running import CONFIGS

EXPERIMENTS = sorted(path.stem for path in (Path(CONFIGS) / "experiment").glob("*.yaml"))
TASKS = sorted(path.stem for path in (Path(CONFIGS) / "task").glob("*.yaml"))
MODELS = sorted(path.stem for path in (Path(CONFIGS) / "model").glob("*.yaml"))

# Optimizer steps of the published runs: epochs x batches of 16.
STEPS_PER_EPOCH = {
    ("coco", "panoptic"): 7391,
    ("coco", "instance"): 7329,
    ("ade20k", "semantic"): 1263,
    ("ade20k", "panoptic"): 1263,
    ("cityscapes", "semantic"): 185,
}
MODEL_NAMES = {"s": "small", "b": "base", "l": "large"}


def composed(*overrides, name="train"):
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        return compose(name, overrides=[*overrides, "run_folder=RUN"])


def published():
    """Experiment name -> recipe, for the recipes that have an experiment."""
    recipes = {}
    for recipe in golden_json("recipes"):
        family = "dinov3_" if recipe["backbone_family"] == "dinov3" else ""
        recipes[f"{recipe['dataset']}_{recipe['task']}_{family}{recipe['variant']}"] = recipe
    return recipes


def test_every_published_recipe_is_an_experiment():
    assert set(EXPERIMENTS) == {*published(), "small_set"}


@pytest.mark.parametrize("name", sorted(published()))
def test_experiment_equals_the_published_recipe(name):
    cfg, recipe = composed(f"experiment={name}"), published()[name]
    backbone = recipe["backbone"]
    if backbone.startswith("facebook/dinov3-vit"):
        size = backbone.removeprefix("facebook/dinov3-vit")[0]
        backbone = f"vit_{MODEL_NAMES[size]}_patch16_dinov3_qkvb"
    assert cfg.model.backbone == backbone
    assert cfg.model.pretrained is True
    assert cfg.model.patch_size == 16
    assert cfg.model.num_queries == recipe["num_queries"]
    assert cfg.model.num_masked_blocks == recipe["masked_blocks"]
    assert cfg.data.image_size == recipe["image_size"]
    assert cfg.data.global_batch == 16
    semantic = recipe["task"] == "semantic"
    assert cfg.kind == recipe["task"]
    assert list(cfg.data.scale_range) == ([0.5, 2.0] if semantic else [0.1, 2.0])
    assert bool(cfg.data.augmentations) == (recipe["dataset"] != "coco")
    assert cfg.trainer.max_epochs == recipe["epochs"]
    assert cfg.trainer.check_val_every_n_epoch == recipe["validate_every"]
    assert cfg.trainer.gradient_clip_val == 0.01
    assert cfg.optim.lr == recipe["lr"]
    assert cfg.optim.weight_decay == 0.05
    assert cfg.optim.layer_decay == recipe["layer_decay"]
    assert cfg.optim.decay_masked_blocks == recipe["decay_masked_blocks"]
    assert list(cfg.optim.warmup_steps) == recipe["warmup_steps"]
    total = recipe["epochs"] * STEPS_PER_EPOCH[recipe["dataset"], recipe["task"]]
    starts, ends = zip(*resolve_windows(cfg.annealing.windows, total, cfg.annealing.span), strict=True)
    assert list(starts) == recipe["anneal_start"]
    assert list(ends) == recipe["anneal_end"]
    assert cfg.loss.num_points == 12544
    assert [cfg.loss[f"{k}_weight"] for k in ("mask", "dice", "class", "no_object")] == [5, 5, 2, 0.1]


@pytest.mark.parametrize(
    ("task", "recipe"),
    [
        ("coco_panoptic", "coco_panoptic_large_640"),
        ("coco_instance", "coco_instance_large_640"),
        ("ade20k_semantic", "ade20k_semantic_large_512"),
        ("ade20k_panoptic", "ade20k_panoptic_large_640"),
        ("cityscapes_semantic", "cityscapes_semantic_large_1024"),
    ],
)
def test_the_default_of_a_task_is_its_published_large_recipe(task, recipe):
    task, experiment = composed(f"task={task}"), composed(f"experiment={recipe}")
    assert OmegaConf.to_container(task) == OmegaConf.to_container(experiment)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("model", MODELS)
def test_any_task_takes_any_model_in_either_order(task, model):
    first = composed(f"task={task}", f"model={model}")
    second = composed(f"model={model}", f"task={task}")
    assert first == second
    assert first.task_name == task
    assert len(first.annealing.windows) == first.model.num_masked_blocks


def test_an_experiment_takes_another_model():
    assert composed("experiment=coco_panoptic_small_640", "model=tiny").model.patch_size == 8


def test_every_trainer_option_is_listed():
    known = set(inspect.signature(lightning.Trainer.__init__).parameters)
    # Built from groups of their own, or against what the data modules do.
    ours = {"self", "logger", "callbacks", "use_distributed_sampler", "accumulate_grad_batches"}
    # Lightning's own cloud, which a run must not call.
    ours |= {"model_registry", "enable_autolog_hparams"}
    assert set(composed().trainer) == known - ours


def test_evaluation_overrides_only_what_is_given():
    cfg = composed("ckpt=X", name="eval")
    assert set(cfg.trainer) <= set(composed().trainer)
    assert all(value is None for value in cfg.trainer.values())


@pytest.mark.parametrize("logger", ["csv", "tensorboard", "wandb", "none"])
def test_loggers(logger):
    names = list(composed(f"logger={logger}").logger)
    assert names == ([] if logger == "none" else ["csv"] if logger == "csv" else ["csv", logger])


def test_paths_survive_the_override_grammar(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = "runs (1)/épreuve,a=b/epoch=3-step=100.ckpt"
    typed = [f"ckpt={path}", "data.root=/a b/~c's", "seed=3", "model.pretrained=false", "+data.train.images=a=b"]
    cfg = composed("task=coco_panoptic", *main.quote_paths(typed)[:4])
    assert cfg.ckpt == str(tmp_path / path), "absolute, so that it means the same from any folder"
    assert cfg.data.root == "/a b/~c's"
    assert cfg.seed == 3
    assert cfg.model.pretrained is False
    assert main.quote_paths(typed)[4] == "+data.train.images='a=b'"
    assert main.quote_paths(["ckpt=null"]) == ["ckpt=null"]


def test_a_resumed_run_keeps_what_was_typed_unless_it_is_typed_again(tmp_path):
    path = tmp_path / "it's a run" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    typed = ["task=coco_panoptic", "model=tiny", "model.num_queries=7", "data.root='/a'", "trainer.max_epochs=3"]
    torch.save({FORMAT: {"overrides": typed}}, path)
    ckpt = main.quote_paths([f"ckpt={path}"])[0]
    arguments = main.resumed([ckpt, "trainer.max_epochs=5"])
    folder = main.quote_paths([f"hydra.run.dir={path.parents[1]}"])[0]
    assert arguments == [*typed[:4], ckpt, "trainer.max_epochs=5", folder]
    assert main.resumed([ckpt, "model=small", "hydra.run.dir=x"]) == [
        "task=coco_panoptic",
        "data.root='/a'",
        "trainer.max_epochs=3",
        ckpt,
        "model=small",
        "hydra.run.dir=x",
    ]
    assert main.resumed([ckpt, "task=shapes_panoptic"])[0] == ckpt
    assert main.resumed(["seed=1"]) == ["seed=1"]


def test_slurm_jobs_keep_their_folder_and_interactive_ones_do_not_share_one(monkeypatch):
    for name, value in (("SLURM_JOB_ID", "17"), ("SLURM_PROCID", "3"), ("SLURM_JOB_NAME", "train")):
        monkeypatch.setenv(name, value)
    assert main.run_id() == "slurm-17"
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")
    assert main.run_id() != "slurm-17"


def _fails_within(error):
    try:
        raise error
    except InputError as cause:
        raise RuntimeError("Error in call to target") from cause


def test_error_lines_are_one_line_and_our_own_words_win():
    with pytest.raises(RuntimeError) as error:
        _fails_within(InputError("data.root is not set:\n  set it"))
    assert main.explain(error.value) == "data.root is not set: set it"
    assert main.explain(ValueError("a\n\tb")) == "a b"


def test_code_that_cannot_be_imported_is_named():
    from hydra.utils import instantiate

    with pytest.raises(main.ENDINGS) as error:
        instantiate({"_target_": "circles_nobody_has.Circles"})
    line = main.explain(error.value)
    assert line.startswith("circles_nobody_has.Circles cannot be imported (")
    assert line.endswith("is its folder in PYTHONPATH?")
