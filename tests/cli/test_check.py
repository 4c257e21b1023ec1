"""The schema of all keys: it knows every composed configuration, and says in one line what is wrong with a value."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from eomt.cli.check import check_settings, check_typed, nodes
from eomt.cli.nodes import NODES
from eomt.cli.settings import COMMANDS, SCORES, WITHOUT_RUN, Trainer
from eomt.errors import InputError
from tests.running import CONFIGS, ROOT, composed

GROUPS = ("task", "experiment", "model", "logger", "debug")


def plain(name, *overrides):
    """A command's configuration as plain values."""
    needed = {
        "eval": ["ckpt=X"],
        "predict": ["ckpt=X", "images=X", "out=X"],
        "export": ["ckpt=X", "out=X"],
        "demo": ["ckpt=X"],
    }
    runs = [] if name in WITHOUT_RUN else ["run_folder=RUN"]
    return OmegaConf.to_container(composed(name, *needed.get(name, []), *runs, *overrides), resolve=True)


def options(group):
    return [f"{group}={path.stem}" for path in sorted(Path(CONFIGS, group).glob("*.yaml"))]


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        *((name, []) for name in ("train", "eval", "check_data", "predict", "export", "demo")),
        *(("train", [option]) for group in GROUPS for option in options(group)),
        ("check_data", ["task=folder_semantic"]),
    ],
)  # fmt: skip
def test_every_default_is_known_and_of_its_type(name, overrides):
    settings = plain(name, *overrides)
    check_settings(name, settings)
    # Each class of ours that is named here has a section of its own, so that each of its keys is known.
    named = {node["_target_"] for _, node in nodes(settings)}
    assert {name for name in named if not name.startswith("albumentations.")} <= NODES.keys()


def test_each_class_is_named_by_some_configuration():
    named = set()
    for option in (*options("task"), *options("logger")):
        named |= {node["_target_"] for _, node in nodes(plain("train", option))}
    assert {name for name in named if not name.startswith("albumentations.")} == NODES.keys()


def test_every_trainer_option_is_listed():
    import lightning

    known = set(inspect.signature(lightning.Trainer.__init__).parameters)
    # Built from groups of their own, or against what the data modules do.
    ours = {"self", "logger", "callbacks", "use_distributed_sampler", "accumulate_grad_batches"}
    # Lightning's own cloud, which a run must not call; and what has no effect here, or no sense.
    ours |= {"model_registry", "enable_autolog_hparams", "limit_test_batches", "limit_predict_batches", "plugins"}
    ours |= {"barebones", "sync_batchnorm", "reload_dataloaders_every_n_epochs"}
    assert set(Trainer.model_fields) == known - ours


def test_scores_are_those_of_the_metrics():
    from eomt.classes import Classes
    from eomt.tasks import task_of

    classes = Classes.from_categories([{"id": 1, "name": "cat"}, {"id": 2, "name": "sky", "isthing": 0}])
    for kind, scores in SCORES.items():
        metric = task_of(kind).metric(classes)
        assert set(metric.compute()) == set(scores)
        assert task_of(kind).monitor in scores


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("loss.num_points=abc", "a whole number of at least 1 and at most 4194304"),
        ("loss.mask_weight=-1", "a number of at least 0"),
        ("trainer.log_every_n_steps=abc", "a whole number of at least 0 or null"),
        ("trainer.gradient_clip_val=-1", "a number of at least 0 or null"),
        ("data.scale_range=5", "[low, high], 0 < low <= high <= 100"),
        ("data.scale_range=[2,1]", "[low, high], 0 < low <= high <= 100"),
        ("data.image_size=null", "a whole number of at least 1 and at most 65536 or a list of 2 values, each"),
        ("seed=99999999999", "a whole number of at least 0 and at most 4294967295"),
        ("callbacks.best.monitor=foo", "pq, sq, rq, pq_things, sq_things, rq_things, pq_stuff, sq_stuff, rq_stuff or"),
        ("optim.schedule_power=nan", "a number of at least 0"),
        ("annealing.windows=[[0.5,0.2]]", "auto, a list of windows [start, end], 0 <= start <= end"),
        ("annealing.windows=[auto,[0,1]]", "auto, a list of windows"),
        ("annealing.span=1/0", "a number of more than 0, or a fraction such as 39120/39153"),
        ("optim.warmup_steps=[1]", "a list of 2 values, each a whole number of at least 0"),
        ("optim.layer_decay=0", "a number of more than 0 and at most 1"),
        ("trust_code=no", "true or false"),
        ("data=5", "a section that names its class by _target_"),
        ("kind=panoptics", "semantic, instance, panoptic or the dotted name of a task"),
        ("trainer.devices=0", "auto, -1, a whole number of at least 1"),
        ("model.freeze_backbone=-1", "true or false or a whole number of at least 0"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_wanted(typed, expected):
    with pytest.raises(InputError) as error:
        check_settings("train", plain("train", typed))
    assert str(error.value).startswith(f"{typed} must be {expected}")


@pytest.mark.parametrize(
    ("name", "overrides", "line"),
    [
        ("predict", ["ckpt=null"], "ckpt is not set: give a path, as in ckpt=RUN/checkpoints/best.ckpt"),
        (
            "predict",
            ["images=null"],
            "images is not set: give a path or a list of values, each a path, as in images=photos",
        ),
        ("predict", ["batch_size=0"], "batch_size=0 must be a whole number of at least 1 and at most 65536"),
        ("predict", ["device=0"], "device=0 must be a device such as cpu, cuda or cuda:1 or null"),
        ("predict", ["threshold=2"], "threshold=2 must be a number of at least 0 and at most 1 or null"),
        ("predict", ["overwrite=no"], "overwrite=no must be true or false"),
        ("predict", ["network.image_size=a"], "network.image_size=a must be a whole number"),
        ("export", ["out=null"], "out is not set: give a folder to write to, as in out=DIR"),
        ("export", ["format=zip"], "format=zip must be eomt, hf, original, onnx, openvino, tensorrt or torch_export"),
        (
            "export",
            ["ckpt=a", "out=b", "format=hf", "postprocess=true"],
            "postprocess=true is for format=onnx, openvino, tensorrt, not hf",
        ),
        ("train", ["data.image_size=100"], "data.image_size=100 is no multiple of the patch size 8: choose for"),
        (
            "train",
            ["data.image_size=[4,96]"],
            "data.image_size=[4,96] is no multiple of the patch size 8: choose for example 8 or 16",
        ),
        ("check_data", ["split=test"], "split=test must be train, val or null"),
        ("eval", ["unpadded=1"], "unpadded=1 must be true or false"),
    ],
)
def test_wrong_values_of_the_other_commands(name, overrides, line):
    with pytest.raises(InputError) as error:
        check_settings(name, plain(name, *overrides))
    assert str(error.value).startswith(line)


def test_all_faults_are_in_the_details():
    with pytest.raises(InputError) as error:
        check_settings(
            "train", plain("train", "model.num_queries=0", "loss.num_points=0", "data.train.split=x", "+data.new=1")
        )
    assert sorted(line.partition(" must")[0] for line in error.value.details) == [
        "data.new is no key of train.py: --help all lists all",
        "data.train.split=x",
        "loss.num_points=0",
        "model.num_queries=0",
    ]


def test_a_missing_key_is_named():
    with pytest.raises(InputError, match=r"^optim\.lr is missing in the configuration$"):
        check_settings("train", plain("train", "~optim.lr"))


def test_classes_of_the_users_own_take_any_key():
    own = plain(
        "train",
        "data.train._target_=circles.Circles",
        "+data.train.count=3",
        "+callbacks.x={_target_: mine.Callback, a: no}",
    )
    check_settings("train", own)
    with pytest.raises(InputError, match=r"^data\.train="):
        check_settings("train", plain("train", "data.train=null"))


def test_one_value_can_be_checked_before_all_are_known():
    check_typed("train", "data.train.split", 3)  # depends on the reader
    check_typed("train", "optim.momentum", 3)  # on the class
    check_typed("train", "trainer.devices", 2)
    check_typed("train", "model.lora", {"rank": 8})  # goes over the others
    for name, value in (("data.scale_range", [3, 1]), ("trainer.devices", "x"), ("seed", None)):
        with pytest.raises(InputError, match=f"^{name}="):
            check_typed("train", name, value)
    for command, name in (
        ("train", "lr"),
        ("predict", "data.root"),
        ("eval", "optim.lr"),
        ("train", "trainer.lr"),
    ):
        with pytest.raises(InputError, match=f"^{name} is no key of {command}.py: "):
            check_typed(command, name, 3)


@pytest.mark.slow
def test_a_wrong_value_needs_no_torch():
    code = (
        "import sys; sys.argv = ['train.py', 'loss.num_points=abc', 'hydra.run.dir=DIR']\n"
        "sys.modules['torch'] = sys.modules['lightning'] = None\n"
        "import train; train.command('train', train.main)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr.splitlines()) == (
        1,
        ["error: loss.num_points=abc must be a whole number of at least 1 and at most 4194304"],
    )
    assert not (ROOT / "DIR").exists()


def test_commands_are_those_with_a_configuration():
    assert {path.stem for path in Path(CONFIGS).glob("*.yaml")} == COMMANDS.keys() - {"scored"}
