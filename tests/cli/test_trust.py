"""Requests of a hostile checkpoint that are refused."""

import pytest

from eomt.cli.trust import check_config, check_overrides
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


def test_plain_overrides_are_taken():
    check_overrides(
        [
            "task=coco_panoptic",
            "model=tiny",
            "experiment=small_set",
            "data.root='/a b/c=d'",
            "data.image_size=[64,96]",
            "model.backbone_options={embed_dim: 32, depth: 3}",
            "kind=instance",
            "logger=wandb",
            "logger.wandb.name='run 1, lr=0.1'",
            "logger.wandb.offline=true",
            "task_name=coco-1",
            "trainer.max_epochs=3",
            "data.augmentations=[{_target_: albumentations.OneOf, transforms: [{_target_: albumentations.Rotate}]}]",
            "seed=7",
        ]
    )


@pytest.mark.parametrize(
    "override",
    [
        "callbacks.x._target_=os.system",
        "callbacks.best={'_target_': os.system}",
        "data.train={_args_: [1]}",
        "callbacks={x: {y: [{_target_: a}]}}",
        "hydra.job_logging.handlers.file.filename=/tmp/x",
        "hydra.run.dir=/tmp/x",
        "+hydra.job.env_set.A=b",
        "data.augmentations=[{_target_: albumentations.load, filepath_or_buffer: x}]",
        "data.augmentations=[{_target_: albumentations.OneOf, transforms: [{_target_: os.system}]}]",
        "data.augmentations=[{_target_: albumentations.Flip, _args_: [x]}]",
        "data.val={_target_: albumentations.Flip}",
        "+data.new=1",
        "~data.root",
        "--config-dir=/tmp",
        "--multirun",
        "seed=1,2",
        "data.root=${oc.env:HOME}",
        "data.root='${oc.env:HOME}'",
        "task=../../evil",
        "trainer=../../evil",
        "callbacks=/tmp/evil",
        "task=[coco_panoptic,evil]",
        "hydra/launcher=submitit_slurm",
        "model@data=tiny",
        "kind=circles.ThingsFirst",
        "kind=[instance]",
        "task_name=../../x",
        "task_name=..",
        "logger.csv.name=../../x",
        "logger.csv={version: /tmp/x}",
        "logger.csv={save_dir: x}",
        "callbacks.last={folder: /tmp/x}",
        "callbacks.x=[{y: {folder: /tmp/x}}]",
        "run_folder=/tmp/x",
        "callbacks.last.folder=/tmp/x",
        "callbacks.best.filename=../x",
        "trainer.default_root_dir=/tmp/x",
        "seed",
        "seed=[",
        "",
        7,
    ],
)
def test_other_overrides_need_trust(override):
    with pytest.raises(InputError, match=r"ckpt= would set .*trust_code=true"):
        check_overrides([override])
