"""The configurations: composable in every order, and equal to the published recipes."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from eomt.training.annealing import complete_windows, resolve_windows
from tests.golden_numbers import golden_json
from tests.running import CONFIGS, configured

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


def composed(*overrides):
    return configured("RUN", *overrides)


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
    windows = complete_windows(cfg.annealing.windows, cfg.model.num_masked_blocks)
    starts, ends = zip(*resolve_windows(windows, total, cfg.annealing.span), strict=True)
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


@pytest.mark.parametrize(
    ("task", "model"), [(task, "tiny") for task in TASKS] + [("coco_panoptic", model) for model in MODELS]
)
def test_any_task_takes_any_model_in_either_order(task, model):
    first = composed(f"task={task}", f"model={model}")
    second = composed(f"model={model}", f"task={task}")
    assert first == second
    assert first.task_name == task
    count = first.model.num_masked_blocks
    assert len(complete_windows(first.annealing.windows, count)) == count


def test_an_experiment_takes_another_model():
    assert composed("experiment=coco_panoptic_small_640", "model=tiny").model.patch_size == 8


def test_debug_wins_over_an_experiment():
    cfg = composed("experiment=small_set", "debug=fast")
    assert (cfg.trainer.max_steps, cfg.trainer.val_check_interval) == (4, None)


@pytest.mark.parametrize("logger", ["csv", "tensorboard", "wandb", "mlflow", "none"])
def test_loggers(logger):
    names = list(composed(f"logger={logger}").logger)
    assert names == ([] if logger == "none" else ["csv"] if logger == "csv" else ["csv", logger])
