"""eval.py: the checkpoint's settings, then what is typed; scores, results and refusals."""

import json

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

import eval as evaluation
import train
from eomt.cli.eval_settings import _seen, weights_and_settings
from eomt.errors import InputError
from eomt.weights.checkpoint import FORMAT, read_checkpoint
from eomt.weights.load import read_weights
from eomt.weights.original import to_original
from tests.running import configured, typed

pytestmark = pytest.mark.xdist_group("run")


def test_evaluation_gives_the_number_of_the_last_validation(run, tmp_path, caplog):
    caplog.set_level("INFO", logger="eomt")
    checkpoint = run / "checkpoints" / "last.ckpt"
    evaluation.main(configured(tmp_path, f"ckpt='{checkpoint}'", "save_predictions=true", "table=classes", name="eval"))
    for name in ("metrics.json", "metrics_per_class.json"):
        assert json.loads((tmp_path / name).read_text()) == json.loads((run / name).read_text()), name
    counted = json.loads((tmp_path / "metrics_per_class.json").read_text())
    assert sum(row["tp"] + row["fp"] for row in counted) > 10, "there must be predictions to compare"
    assert "things" in caplog.text
    table = next(m for m in caplog.messages if m.split()[:3] == ["pq", "sq", "rq"]).splitlines()
    assert [line.split()[-7:-6] for line in table[1:]] == [row["name"].split()[-1:] for row in counted]
    results = json.loads((tmp_path / "predictions" / "panoptic.json").read_text())
    assert len(results["annotations"]) == 10
    assert len(list((tmp_path / "predictions" / "panoptic").glob("*.png"))) == 10


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


@pytest.mark.slow
def test_how_many_images_are_scored_is_said(options, tmp_path, caplog):
    """Training is limited as it is told; an evaluation does not inherit that."""
    caplog.set_level("INFO")
    limits = ("data.max_images=8", "trainer.limit_val_batches=1", "data.eval_batch_size=4", "trainer.max_steps=1")
    train.main(configured(tmp_path, *options, *limits))
    assert "validations score 4 of 10 images (data.max_images=8, trainer.limit_val_batches=1)" in caplog.text
    evaluation.main(
        configured(tmp_path / "eval", f"ckpt='{tmp_path}/checkpoints/last.ckpt'", "pictures=0", name="eval")
    )
    assert "scored: 10 of 10 images" in caplog.text


def test_scores_are_the_same_as_on_a_gpu(run, tmp_path, monkeypatch, caplog):
    """With weights cast once, a stand-in for CUDA graphs, and predictions made while the network runs."""
    options = (f"ckpt='{run}/checkpoints/last.ckpt'", "trainer.precision=bf16-mixed", "data.eval_batch_size=4")
    with monkeypatch.context() as plain:
        plain.setattr("eomt.cli.evaluate.with_cast_weights", lambda network, dtype: network)
        evaluation.main(configured(tmp_path / "cpu", *options, "save_predictions=true", name="eval"))
    captured = []

    def capture(run, images):
        captured.append(len(images))
        return run

    monkeypatch.setattr("eomt.inference.graphs.capture", capture)
    monkeypatch.setattr("eomt.inference.background.Background.__init__.__defaults__", (True,))
    monkeypatch.setattr("eomt.cli.evaluate.make_fast", lambda module, *_: setattr(module, "graphs", True))
    evaluation.main(configured(tmp_path / "gpu", *options, "save_predictions=true", name="eval"))
    assert captured == [4], "the last two of ten images are filled up"
    assert "WARNING" not in caplog.text
    for name in ("metrics_per_class.json", "predictions/panoptic.json"):
        one, other = (json.loads((tmp_path / folder / name).read_text()) for folder in ("cpu", "gpu"))
        assert one == other, name


def test_images_that_training_has_seen_are_named():
    train, val = ({"root": "photos", "images": name, "labels": None} for name in ("train", "val"))
    trained = {"split": None, "train": train, "val": val}
    assert _seen(trained, trained) is None
    assert _seen(trained, trained | {"split": 0.3}) is None, "a part of the validation set"
    assert _seen(trained, trained | {"val": train | {"root": "others"}}) is None
    for root in ("photos", None):  # which exports leave out
        own = trained | {"train": train | {"root": root}}
        assert "data.val.images=train names the images" in str(_seen(own, trained | {"val": train, "split": 0.3}))
    divided = trained | {"split": 0.9, "val": train}
    assert _seen(divided, divided) is None
    for split, words in ((0.3, "data.split=0.3"), (None, "data.split=null")):
        assert f"{words} scores images that the run, of data.split=0.9" in str(
            _seen(divided, divided | {"split": split})
        )
    assert _seen(None, trained) is None  # weights without a configuration


def test_a_split_names_the_images_of_published_sets():
    """Also where one of the names is given, such as that of the annotations."""
    for more in ({}, {"images": None, "annotations": None}, {"images": None, "annotations": "a.json"}):
        train, val = ({"root": "coco", "split": name} | more for name in ("train", "val"))
        assert _seen({"train": train}, {"val": val}) is None
        assert "names the images" in str(_seen({"train": train}, {"val": train}))
    assert _seen({"train": {"count": 9}}, {"val": {"count": 2}}) is None, "a reader of other keys"


def test_an_evaluation_of_no_image_is_refused(run, tmp_path):
    checkpoint = f"ckpt='{run}/checkpoints/last.ckpt'"
    with pytest.raises(InputError, match=r"limit_val_batches=0 leaves no image"):
        evaluation.main(configured(tmp_path, checkpoint, "trainer.limit_val_batches=0", name="eval"))


def test_evaluation_reads_the_root_that_is_given(run, tmp_path):
    checkpoint = f"ckpt='{run}/checkpoints/last.ckpt'"
    with pytest.raises(InputError, match="nowhere"):
        evaluation.main(configured(tmp_path, checkpoint, "data.root=/nowhere", name="eval"))


def test_what_is_typed_reaches_the_reader(run, tmp_path):
    """Also null, and what is typed for one reader goes before what is typed for both."""
    checkpoint = read_checkpoint(run / "checkpoints" / "last.ckpt")
    trained = configured(tmp_path, "task=folder_semantic", "data.root=/there", "data.ignore=255")
    checkpoint[FORMAT]["config"]["data"] = OmegaConf.to_container(trained, resolve=True)["data"]
    torch.save(checkpoint, tmp_path / "x.ckpt")

    def val(*typed):
        _, settings = weights_and_settings(configured(tmp_path, f"ckpt='{tmp_path}/x.ckpt'", *typed, name="eval"))
        return settings.data.val.root, settings.data.val.ignore

    assert val() == ("/there", 255)
    assert val("data.ignore=null", "data.root=/here") == ("/here", None)
    assert val("data.val.root=/val", "data.root=/here", "data.ignore=0") == ("/val", 0)


@pytest.mark.parametrize("folder", ["", "checkpoints"])
def test_the_best_checkpoint_of_a_folder_is_taken_and_named(folder, run, tmp_path, caplog):
    caplog.set_level("INFO", logger="eomt")
    weights_and_settings(configured(tmp_path, f"ckpt='{run / folder}'", name="eval"))
    assert f"weights: checkpoint {run}/checkpoints/best.ckpt: " in caplog.text


def test_a_setting_that_a_checkpoint_lacks_is_typed_once(run, tmp_path):
    """Exports leave paths out; the training set's are not needed."""
    checkpoint = read_checkpoint(run / "checkpoints" / "last.ckpt")
    checkpoint[FORMAT]["config"]["data"]["val"]["split"] = None
    torch.save(checkpoint, tmp_path / "x.ckpt")
    cfg = configured(tmp_path, f"ckpt='{tmp_path}/x.ckpt'", "data.val.split=val", name="eval")
    _, settings = weights_and_settings(cfg)
    assert settings.data.val.split == "val"


def test_no_task_is_taken_from_a_configuration_of_another_kind(run, tmp_path):
    """The kind that needs trust is the one that would be run."""
    checkpoint = read_checkpoint(run / "checkpoints" / "last.ckpt")
    checkpoint[FORMAT]["config"]["kind"] = "circles.ThingsFirst"
    torch.save(checkpoint, tmp_path / "x.ckpt")
    _, settings = weights_and_settings(configured(tmp_path, f"ckpt='{tmp_path}/x.ckpt'", name="eval"))
    assert settings.kind == "panoptic"


def test_evaluation_refuses_other_classes(run, tmp_path, shared_data):
    checkpoint = f"ckpt='{run}/checkpoints/last.ckpt'"
    with pytest.raises(InputError, match="trained on other classes"):
        evaluation.main(configured(tmp_path, checkpoint, f"data.root='{shared_data}/coco'", name="eval"))


def test_other_ids_of_the_same_classes_are_those_of_results(run, tmp_path, caplog):
    caplog.set_level("INFO", logger="eomt")
    checkpoint = read_checkpoint(run / "checkpoints" / "last.ckpt")
    for row in checkpoint[FORMAT]["classes"]:
        row["id"] += 100
    torch.save(checkpoint, tmp_path / "x.ckpt")
    options = (f"ckpt='{tmp_path}/x.ckpt'", "save_predictions=true", "pictures=0")
    evaluation.main(configured(tmp_path / "eval", *options, name="eval"))
    assert caplog.text.count("the checkpoint has other category ids for the same classes") == 1
    for name in ("metrics.json", "metrics_per_class.json"):
        assert json.loads((tmp_path / "eval" / name).read_text()) == json.loads((run / name).read_text()), name
    results = json.loads((tmp_path / "eval" / "predictions" / "panoptic.json").read_text())
    assert [row["id"] + 100 for row in results["categories"]] == [row["id"] for row in checkpoint[FORMAT]["classes"]]


@pytest.mark.slow
def test_evaluation_of_weights_from_elsewhere(run, shapes, tmp_path):
    """Weights that carry no settings are evaluated on the task that is chosen, with the same score."""
    pytest.importorskip("transformers", reason="the Hugging Face form needs transformers")
    out = tmp_path / "hf"
    typed("export", f"ckpt={run}/checkpoints/last.ckpt", "format=hf", f"out={out}")
    ckpt, root = f"ckpt='{out}'", f"data.root='{shapes}'"
    with pytest.raises(InputError, match="choose its task"):
        evaluation.main(configured(tmp_path, ckpt, root, name="eval"))
    with pytest.raises(InputError, match=r"\(asked for: task=shapes_semantic\)"):
        evaluation.main(configured(tmp_path, ckpt, root, "task=shapes_semantic", name="eval"))
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
