"""Every key of every command has a meaning, in the comments of configs/."""

import pytest
from omegaconf import OmegaConf

from eomt.cli.meanings import keys_of
from tests.running import ROOT, composed

TASKS = sorted(path.stem for path in ROOT.glob("configs/task/*.yaml"))


def leaves(values, path=""):
    """The dotted names of a configuration's keys, without sections and `_target_`."""
    for key, value in values.items():
        name = f"{path}.{key}".removeprefix(".")
        if isinstance(value, dict) and value and name != "model.backbone_options":
            yield from leaves(value, name)
        elif not key.startswith("_"):
            yield name


@pytest.mark.parametrize(
    ("command", "overrides"),
    [
        *(("train", [f"task={task}"]) for task in TASKS),
        ("train", ["logger=wandb"]),
        ("train", ["logger=tensorboard"]),
        ("train", ["logger=mlflow"]),
        ("eval", []),
        ("predict", []),
        ("export", []),
        ("demo", []),
        ("check_data", []),
    ],
)
def test_every_key_has_a_meaning(command, overrides):
    keys = keys_of(command) | (keys_of("train") if command == "check_data" else {})
    cfg = OmegaConf.to_container(composed(command, *overrides), resolve=False)
    names = {name.replace("data.val.", "data.train.") for name in leaves(cfg)}
    assert sorted(name for name in names if name not in keys or not keys[name].meaning) == []


def test_meanings_and_defaults():
    keys = keys_of("train")
    assert keys["data.eval_batch_size"].default == "4"
    assert keys["data.eval_batch_size"].meaning == "images per device in validation"
    assert keys["annealing.windows"].meaning.startswith("When each masked block's attention mask")  # lines above a key
    assert keys["model.num_queries"].default == "the model's"
    assert keys["callbacks.curves.folder"].meaning == "follows run_folder"
    # A comment at the top of a file is not that of its first key.
    assert keys["trainer.accelerator"].meaning == "auto, cpu, gpu, cuda, mps or tpu"
    assert keys_of("predict")["postprocess.top_k"].meaning == keys["postprocess.top_k"].meaning
