"""Which settings and which folder a resumed run has."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from eomt.cli.check import check_settings
from eomt.cli.paths import quote_paths
from eomt.cli.resume import resumed
from eomt.errors import InputError
from eomt.weights.checkpoint import FORMAT
from tests.running import CONFIGS, composed


def plain(folder, *typed):
    """The configuration of a run in a folder."""
    return OmegaConf.to_container(composed("train", *typed, *quote_paths([f"run_folder={folder}"])), resolve=True)


def saved(folder, *typed, **other):
    """ckpt= with the checkpoint of a run with overrides, some values of whose configuration are others."""
    path = folder / "it's a run" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True, exist_ok=True)
    config = plain(path.parents[1], *typed) | other
    torch.save({FORMAT: {"config": config}}, path)
    return quote_paths([f"ckpt={path}"])[0]


def settings(*arguments, folder="new"):
    """The configuration that the command line makes of arguments."""
    arguments, name = resumed(arguments)
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        own = [argument for argument in arguments if not argument.startswith("hydra.run.dir=")]
        cfg = compose(name, [*own, quote_paths([f"run_folder={folder}"])[0]])
    cfg = OmegaConf.to_container(cfg, resolve=True)
    check_settings("train", cfg)
    return cfg


def test_the_checkpoints_configuration_then_what_is_typed(tmp_path):
    typed = ["task=coco_panoptic", "model=tiny", "model.num_queries=7", "data.root='/a'", "seed=3", "optim.lr=0.5"]
    ckpt = saved(tmp_path, *typed)
    arguments, _ = resumed([ckpt, "seed=4"])
    assert arguments == [ckpt, quote_paths([f"hydra.run.dir={tmp_path}/it's a run"])[0], "seed=4"]
    was = plain(tmp_path / "it's a run", *typed)
    cfg = settings(ckpt, folder=tmp_path / "it's a run")
    assert cfg == {**was, "ckpt": cfg["ckpt"]}
    cfg = settings(ckpt, "seed=4", "data.val.images='/b'", "trainer.max_steps=5", "logger=wandb", "trust_code=True")
    assert (cfg["seed"], cfg["data"]["seed"], cfg["data"]["val"]["images"]) == (4, 4, "/b")
    assert (cfg["trainer"]["max_steps"], cfg["optim"]["lr"], cfg["model"]["num_queries"]) == (5, 0.5, 7)
    assert cfg["logger"]["wandb"]["save_dir"] == cfg["trainer"]["default_root_dir"] == "new"
    assert cfg["callbacks"]["last"]["folder"] == "new/checkpoints", "not into the other run's folder"
    cfg = settings(ckpt, "debug=fast")
    assert (cfg["task_name"], cfg["trainer"]["max_steps"], cfg["optim"]["warmup_steps"]) == ("coco_panoptic", 4, [1, 1])
    assert resumed([ckpt, "task=shapes_panoptic"])[1] == "train"
    assert resumed(quote_paths([f"ckpt={tmp_path}/it's a run"]))[0] == arguments[:2], "the folder stands for last.ckpt"
    assert resumed([ckpt, "hydra.run.dir=x"])[0] == [ckpt, "hydra.run.dir=x"]
    assert resumed(["ckpt=null", "seed=1"]) == (["ckpt=null", "seed=1"], "train")
    assert resumed(["--multirun", ckpt, "--config-dir", "."])[0][:3:2] == ["--multirun", arguments[1]]


def test_recipes_are_resumed_without_trust(tmp_path):
    for typed in (["task=ade20k_semantic"], ["task=shapes_instance", "logger=tensorboard", "callbacks.curves=null"]):
        settings(saved(tmp_path, *typed))


def test_no_new_key_is_taken_from_a_file(tmp_path):
    ckpt = saved(tmp_path, hydra={"job_logging": None}, trust_code=True, prefetch=True, defaults=["/evil"])
    cfg = settings(ckpt)
    assert not {"hydra", "defaults"} & cfg.keys()
    assert (cfg["trust_code"], cfg["prefetch"]) == (False, False)
    for config in ({"optim": {"evil": 1}}, {"callbacks": {"best": 1}}, {"seed": "x"}):
        with pytest.raises(InputError):
            settings(saved(tmp_path, **config))


@pytest.mark.parametrize("part", [{}, {"config": None}, {"config": 3}])
def test_a_part_of_another_kind_holds_no_settings(tmp_path, part):
    ckpt = saved(tmp_path)
    torch.save({FORMAT: part}, tmp_path / "it's a run" / "checkpoints" / "last.ckpt")
    assert resumed([ckpt])[1] == "train"


def test_foreign_settings_are_refused_unless_they_are_trusted(tmp_path):
    ckpt = saved(tmp_path, loss={"_target_": "os.system"}, logger={"csv": {"save_dir": "/elsewhere"}})
    for refused in ([ckpt], [ckpt, "trust_code=yes"]):
        with pytest.raises(InputError, match=r"ckpt= would run os\.system"):
            resumed(refused)
    assert resumed([ckpt, "trust_code=true"])[1] == "resumed"


def test_a_run_goes_on_or_begins():
    with pytest.raises(InputError, match="ckpt= goes on with a run, weights= begins one"):
        resumed(["ckpt='runs/one'", "weights='two.bin'"])


def test_a_run_that_began_from_weights_goes_on(tmp_path):
    ckpt = saved(tmp_path, "weights='/w'")
    assert settings(ckpt)["weights"] == "/w"
    assert resumed([ckpt, "weights=null"])[1] == "resumed"


def test_another_model_takes_no_other_task_silently(tmp_path, capsys):
    ckpt = saved(tmp_path, "task=coco_instance", "data.root='/a'")
    for choice in ("model=small", "experiment=small_set"):
        with pytest.raises(InputError, match=rf"{choice} takes settings .* of a run of task=coco_instance: type that"):
            resumed([ckpt, choice])
    for choice in (["model=small", "task=coco_instance"], ["experiment=coco_instance_large_640"]):
        assert resumed([ckpt, *choice])[1] == "train"
        assert capsys.readouterr().err.startswith(f"note: {choice[0]}")
    assert resumed([saved(tmp_path), "model=small"])[1] == "train", "of the default task"
