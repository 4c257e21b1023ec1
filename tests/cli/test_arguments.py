"""Arguments on their way to Hydra, and eval.py's split."""

import pytest

from eomt.cli.arguments import prepared, split_for_eval
from eomt.cli.meant import unknown
from eomt.cli.overrides import parsed
from eomt.cli.paths import quote_paths
from eomt.errors import InputError
from tests.running import composed


def test_evaluation_sets_a_runs_settings_apart():
    typed = [
        "ckpt='/a b'",
        "data.root='/it\\'s'",
        "unpadded=true",
        "--cfg",
        "job",
        "hydra.run.dir='x'",
        "hydra/job_logging=none",
        "task=t",
    ]
    kept = split_for_eval(typed)
    assert kept[:-1] == ["ckpt='/a b'", "unpadded=true", "--cfg", "job", "hydra.run.dir='x'", "hydra/job_logging=none"]
    cfg = composed("eval", *typed[:3], "task=t")
    assert list(cfg.settings) == ["data.root='/it\\'s'", "task=t"]
    assert parsed(cfg.settings)[0].value() == "/it's"
    assert split_for_eval(["ckpt=x"]) == ["ckpt=x"]
    for typed in ("~data.root", "data.batch_size=1,2"):
        with pytest.raises(InputError, match="one value"):
            parsed([typed])


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a run, a photo and a data set, in which arguments are typed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "RUN" / "checkpoints").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    for name in ("RUN/checkpoints/best.ckpt", "RUN/checkpoints/last.ckpt", "photo.jpg"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("train lr=1e-3", "lr is no key of train.py: did you mean optim.lr (learning rate of the heads"),
        ("train epochs=10", "epochs is no key of train.py: did you mean trainer.max_epochs ("),
        ("train batch=8", "batch is no key of train.py: did you mean data.batch_size ("),
        ("train imgsz=8", "imgsz is no key of train.py: did you mean data.image_size ("),
        ("train gpus=2", "gpus is no key of train.py: did you mean trainer.devices ("),
        ("train device=0", "device is no key of train.py: did you mean trainer.devices or trainer.accelerator?"),
        ("train trainr.devices=2", "trainr.devices is no key of train.py: did you mean trainer.devices ("),
        (
            "train trainer.accumulate_grad_batches=2",
            "trainer.accumulate_grad_batches is no key of train.py: did you mean",
        ),
        ("train pictures=0", "pictures is no key of train.py: did you mean callbacks.pictures."),
        ("train xyzzy=1", "xyzzy is no key of train.py: --help all lists all"),
        ("train ckpt=RUN lr=1", "lr is no key of train.py: did you mean optim.lr ("),
        ("predict conf=0.5", "conf is no key of predict.py: did you mean threshold or postprocess.score_threshold?"),
        ("predict model=RUN", "model is no key of predict.py: did you mean ckpt (a checkpoint, an exported"),
        ("eval save_prediction=true", "save_prediction is no key of eval.py: did you mean save_predictions ("),
        ("eval lr=1", "lr is no key of eval.py: optim.lr is one of training"),
        ("eval loss.num_points=1", "loss.num_points is a key of training, which eval.py has not"),
        ("eval trainer.devices=x", "trainer.devices=x must be auto"),
        ("train data=coco.yaml", "data=coco.yaml: data is a section: give its keys, such as data.root or"),
        ("train task=", "task= must be ade20k_panoptic, "),
        ("train model=null", "model=null must be base, dinov3_7b, "),
        ("train model=[1,2,3]", "model=[1,2,3] must be base, dinov3_7b, "),
        ("train --task coco_panoptic", "--task: keys are typed without dashes: task=coco_panoptic"),
        ("train --task=coco_panoptic", "--task=coco_panoptic: keys are typed without dashes: task=coco_panoptic"),
        ("train --epochs 10", "--epochs: keys are typed without dashes: trainer.max_epochs=10"),
        ("predict --overwrite ckpt=RUN", "--overwrite: keys are typed without dashes: overwrite=true"),
        ("train task = coco", "task = coco: type it without spaces: task=coco"),
        ("train task= coco", "task = coco: type it without spaces: task=coco"),
        ("train task =coco", "task = coco: type it without spaces: task=coco"),
        ("train coco_panoptic", "coco_panoptic: arguments are key=value: task=coco_panoptic?"),
        ("train data", "data: arguments are key=value: data.root=data?"),
        ("eval RUN", "RUN: arguments are key=value: ckpt=RUN?"),
        ("predict ckpt=RUN photo.jpg", "photo.jpg: arguments are key=value: images=photo.jpg?"),
        ("export best.ckpt", "best.ckpt: arguments are key=value: ckpt=best.ckpt?"),
        ("train -m seed=1,x", "seed=x must be a whole number"),
        ("train =3", "=3: arguments are key=value; --help all lists the keys"),
        ("train yes", "yes: arguments are key=value; --help all lists the keys"),
        ("train --cfg", "--cfg takes what is to be printed: --cfg job"),
        ("train --config-dir", "--config-dir takes a value"),
        ("train seed=[1", "seed=[1 cannot be read: a list is typed as 'seed=[a,b]', a mapping as 'seed={a: 1}'"),
        ("train task_name=a(b", """task_name=a(b cannot be read: quote the value: 'task_name='"'"'a(b'"'"''"""),
        ("train seed:=1", "seed:=1 cannot be read: arguments are key=value, as in seed=1"),
        ("train trainer.devices=0,1", "trainer.devices=0,1: a list is typed as trainer.devices=[0,1], a sweep as"),
        ("train data.scale_range=[0.5, 2]", "data.scale_range=[0.5,: a space ends an argument, quote it: 'data.scale_"),
        (
            "eval ckpt=RUN/checkpoints/lst.ckpt",
            "ckpt=HERE/RUN/checkpoints/lst.ckpt: no such file or folder; did you mean",
        ),
        (
            "eval ckpt=RUN split=train",
            "split is no key of eval.py, which scores the set that data.val names: data.val.i",
        ),
        ("train split=0.9", "split is no key of train.py: did you mean data.split"),
        ("train weights=nowhere.ckpt", "weights=HERE/nowhere.ckpt: no such file or folder"),
        ("train data.root=nowhere", "data.root=HERE/nowhere: no such folder"),
        ("train data.root=RUN/checkpoints/last.ckpt", "data.root=HERE/RUN/checkpoints/last.ckpt is a file: give the"),
        ("predict images=nowhere", "images=nowhere: no such file or folder"),
    ],
)
def test_what_is_mistyped_is_told_from_what_was_meant(typed, line, here):
    command, *arguments = typed.split(" ")
    with pytest.raises(InputError) as error:
        prepared(command, arguments)
    assert str(error.value).replace(str(here), "HERE").startswith(line)
    assert "\n" not in str(error.value)


def test_what_can_be_typed_is_left_as_it_is(here):
    for arguments in (
        ["task=coco_panoptic", "--cfg", "job", "--resolve"],
        ["-m", "seed=1,2", "model=small,base", "optim.lr=choice(1,2)"],
        ["--config-dir", ".", "task=circles", "data.train.count=3", "+data.new=1", "~trainer.profiler", "debug=null"],
        ["data.global_batch=${data.batch_size}", "hydra.run.dir='x'", "hydra.run.dir='y'", "hydra/launcher=basic"],
        ["ckpt=owner/name", "model.lora={rank: 8}", "trainer.devices=[0,1]", "logger=none"],
    ):
        assert prepared("train", arguments) == quote_paths(arguments)


@pytest.mark.parametrize(
    ("command", "typed", "taken"),
    [
        *(
            ("train", folder, "last")
            for folder in ("ckpt=RUN", "ckpt=RUN/checkpoints", "ckpt=RUN/checkpoints/last.ckpt")
        ),
        *((command, "ckpt=RUN", "best") for command in ("eval", "predict", "export", "demo")),
        ("train", "weights=RUN/checkpoints", "best"),
        ("predict", "ckpt=RUN/checkpoints/last.ckpt", "last"),
    ],
)
def test_a_runs_folder_is_its_last_checkpoint_to_resume_and_its_best_to_use(command, typed, taken, here):
    key = typed.partition("=")[0]
    assert prepared(command, [typed]) == [f"{key}='{here}/RUN/checkpoints/{taken}.ckpt'"]


def test_the_last_of_a_key_counts_and_a_line_says_so(capsys):
    assert prepared("train", ["seed=1", "task=coco_panoptic", "seed=2"]) == ["task=coco_panoptic", "seed=2"]
    assert capsys.readouterr().err == "note: seed is typed more than once: seed=2 counts\n"


@pytest.mark.parametrize(
    ("typed", "options"),
    [
        ("model=tiny model.backbone_options={}", None),
        (
            "model=tiny model.backbone_options={depth: 3}",
            {"embed_dim": 128, "depth": 3, "num_heads": 4, "init_values": 1},
        ),
        ("model=small model.backbone_options={depth: 3}", {"depth": 3}),
    ],
)
def test_options_of_a_backbone_go_over_those_of_the_model_and_none_clear_them(typed, options):
    model, rest = typed.split(" ", 1)
    assert composed("train", *prepared("train", [model, rest])).model.backbone_options == options


def test_a_key_that_the_chosen_task_has_not_is_said_to_be_one_of_others():
    assert unknown("data.classes", "train").startswith("data.classes is a key of other tasks or choices (a file below")
