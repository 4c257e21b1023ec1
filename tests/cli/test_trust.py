"""Requests of a hostile checkpoint that are refused."""

import contextlib

import pytest

from eomt.cli.nodes import NODES
from eomt.cli.trust import check_config, inside
from eomt.errors import InputError

READER = {"_target_": "datasets.readers.coco.CocoPanoptic", "_partial_": True, "split": "val"}


def test_a_configuration_of_ours_is_taken():
    config = {
        "kind": "panoptic",
        "data": {"_target_": "datasets.module.SegmentationData", "val": READER},
        "a": [1, None],
    }
    check_config("X", "panoptic", config)  # fmt: skip
    check_config("X", "semantic", {})


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "eomt.module.torch.hub.load",
        "eomt.cli.build.torch.load",
        "eomt.files.Path.write_text",
        "datasets.readers.coco.CocoPanoptic.__init__",
        "datasets.readers.coco.CocoPanoptic\n",
        "albumentations.load",
        "albumentations.core.serialization.load",
        "circles.Circles",
        7,
        None,
    ],
)
def test_other_classes_need_trust(target):
    for config in ({"data": {"val": {"_target_": target}}}, {"a": [[{"_target_": target}]]}):
        with pytest.raises(InputError, match=r"(?s)ckpt= would run .*trust_code=true"):
            check_config("X", "panoptic", config)


@pytest.mark.parametrize("kind", ["circles.ThingsFirst", "os.system", "", None])
def test_another_task_needs_trust(kind):
    with pytest.raises(InputError, match=r"trust_code=true"):
        check_config("X", kind, {})


@pytest.mark.parametrize(
    "entry",
    [
        {"_args_": ["x"]},
        {"_recursive_": True},
        {"a": "${oc.env:HOME}"},
        {"a": ["${hydra:runtime.cwd}"]},
        {"${a}": 1},
        {"a": "???"},
        {"a": object()},
    ],
)
def test_instructions_to_hydra_need_trust(entry):
    with pytest.raises(InputError, match=r"no plain value.*trust_code=true"):
        check_config("X", "panoptic", {"data": {"val": {**READER, **entry}}})


TRANSFORM = {"_target_": "albumentations.OneOf", "transforms": [{"_target_": "albumentations.Rotate"}]}


def test_transforms_belong_to_augmentations():
    check_config("X", "panoptic", {"data": {"augmentations": [TRANSFORM]}})
    wrong = ({"data": {"val": TRANSFORM}}, {"data": {"augmentations": [{"_target_": "albumentations.load"}]}})
    for config in (*wrong, {"data": {"augmentations": [READER]}}):
        with pytest.raises(InputError, match="ckpt= would run"):
            check_config("X", "panoptic", config)


@pytest.mark.parametrize("path", ["data", "data.val", "loss", "optim", "callbacks.x", "logger.x", "callbacks.x.y", "x"])
@pytest.mark.parametrize("target", [*NODES])
def test_classes_belong_to_their_places(path, target):
    config = {"_target_": target}
    for key in reversed(path.split(".")):
        config = {key: config}
    room = target.rpartition(".")[0]
    own = {"data": "datasets.module", "loss": "eomt.loss.mask_classification", "optim": "eomt.training.optim"}
    own |= {"data.val": ("datasets.readers", "datasets.shapes"), "logger.x": "lightning"}
    own |= {"callbacks.x": ("eomt.training.callbacks", "eomt.training.checkpoint")}
    good = room.startswith(own.get(path, "none"))
    with contextlib.nullcontext() if good else pytest.raises(InputError, match="ckpt= would run"):
        check_config("X", "panoptic", config)


LOGGER = {"_target_": "lightning.pytorch.loggers.WandbLogger", "save_dir": "/run", "name": "run 1, lr=0.1"}


@pytest.mark.parametrize(
    "part",
    [
        {"task_name": "../../x"},
        {"task_name": ".."},
        {"task_name": "/x"},
        {"logger": {"x": {**LOGGER, "name": "../../x"}}},
        {"logger": {"x": {**LOGGER, "version": "/tmp/x"}}},
        {"logger": {"x": {**LOGGER, "a": [{"b": "x\\y"}]}}},
        {"callbacks": {"x": LOGGER}},
        {"logger": {"x": {**LOGGER, "dir": "x"}}},
        {"logger": {"x": {**LOGGER, "settings": {"x_executable": "x"}}}},
        {"callbacks": {"last": {"folder": "/tmp/x"}}},
        {"callbacks": {"x": [{"y": {"folder": ["/run/../x"]}}]}},
        {"trainer": {"default_root_dir": "x"}},
        {"logger": {"csv": {"save_dir": ".."}}},
    ],
)
def test_a_configuration_that_writes_elsewhere_needs_trust(part):
    good = {"task_name": "coco-1", "logger": {"x": LOGGER}, "callbacks": {"last": {"folder": "/run/a"}}}
    for config, refused in ((good, False), (good | part, True)):
        with pytest.raises(InputError, match=r"trust_code=true") if refused else contextlib.nullcontext():
            check_config("X", "panoptic", config)
            inside(config, "/run", trusted=False)


def test_folders_follow_the_run():
    config = {"a": {"save_dir": "/run", "x": "/run"}, "b": [{"folder": "/run/b/../c"}, {"folder": None}]}
    moved = {"a": {"save_dir": "${run_folder}", "x": "/run"}, "b": [{"folder": "${run_folder}/c"}, {"folder": None}]}
    assert inside(config, "/run", trusted=False) == moved
    assert inside({"folder": "/x"}, "/run", trusted=True) == {"folder": "/x"}
