"""The kinds of segmentation: what differs, and each of them trained, evaluated and scored by the official tool."""

import importlib.util
import io
import json
import os
import subprocess
import sys
import zipfile
from contextlib import redirect_stdout
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import eval as evaluation
import train
from eomt.classes import Classes
from eomt.cli.paths import quote_paths
from eomt.errors import InputError
from eomt.model.outputs import Logits
from eomt.postprocess.geometry import FIT_AND_PAD, WINDOWS
from eomt.tasks import InstanceTask, PanopticTask, SemanticTask, predict_images, task_of
from eomt.weights.checkpoint import FORMAT, read_checkpoint
from tests.running import ROOT, SMALL, configured

CLASSES = Classes.from_categories([{"id": 3, "name": "cat"}, {"id": 5, "name": "sky", "isthing": 0}])


def test_kinds():
    assert [type(task_of(kind)) for kind in ("semantic", "instance", "panoptic")] == [
        SemanticTask,
        InstanceTask,
        PanopticTask,
    ]
    assert task_of("instance", {"top_k": 7, "max_bytes": None}) == InstanceTask(top_k=7)
    assert task_of("panoptic", {"score_threshold": 0}).score_threshold == 0


# No class, though it is of a dataclass.
A_TASK = PanopticTask()


@dataclass(frozen=True)
class Kindless:
    def predict(self): ...


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("semantics", {}, "kind=semantics is no kind of segmentation; there are: semantic, instance, panoptic"),
        ("semantic", {"top_k": 3}, "postprocess.top_k is no option of semantic segmentation"),
        ("instance", {"top_k": 0}, "postprocess.top_k=0 must be a whole number of at least 1"),
        ("instance", {"top_k": True}, "postprocess.top_k=True must be a whole number"),
        ("panoptic", {"score_threshold": 1.5}, "postprocess.score_threshold=1.5 must be a number from 0 to 1"),
        ("panoptic", {"max_bytes": "1GB"}, "postprocess.max_bytes=1GB must be a whole number"),
        ("nowhere.Task", {}, "kind=nowhere.Task cannot be imported"),
        ("eomt.classes.Classes", {}, "kind=eomt.classes.Classes is no task"),
        ("tests.test_tasks.A_TASK", {}, "kind=tests.test_tasks.A_TASK is no task"),
        ("eomt.tasks.PanopticTask", {}, "must have kind = 'eomt.tasks.PanopticTask'"),
        ("tests.test_tasks.Kindless", {}, "must have kind = 'tests.test_tasks.Kindless'"),
    ],
)
def test_bad_kinds_and_options_end_in_one_line(kind, options, words):
    with pytest.raises(InputError, match=r"\A[^\n]*\Z") as error:
        task_of(kind, options)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("kind", "geometry"), [("semantic", WINDOWS), ("instance", FIT_AND_PAD), ("panoptic", FIT_AND_PAD)]
)
def test_images_of_a_batch_are_predicted_one_by_one(kind, geometry):
    """Also if some are shown by several inputs."""
    task, generator = task_of(kind), torch.Generator().manual_seed(0)
    assert task.geometry is geometry
    counts, placements, inputs = [], [], 0
    for shape in ((20, 50), (32, 32), (40, 9)):
        shown, placement = geometry.prepare(np.zeros((*shape, 3), np.uint8), (32, 32))
        counts.append(len(shown))
        placements.append(placement)
        inputs += len(shown)
    output = Logits(
        5 * torch.randn(inputs, 6, 8, 8, generator=generator), 5 * torch.randn(inputs, 6, 3, generator=generator)
    )
    results = predict_images(task, output, counts, placements, (32, 32), CLASSES)
    start = 0
    for result, count, placement in zip(results, counts, placements, strict=True):
        alone = task.predict(Logits(*(x[start : start + count] for x in output)), placement, (32, 32), CLASSES)
        assert result.size == placement[:2]
        assert torch.equal(result.masks(), alone.masks())
        assert torch.equal(result.scores, alone.scores)
        start += count


@pytest.fixture(scope="module")
def small(shapes):
    return (*SMALL, f"data.root='{shapes}'", "trainer.max_epochs=1", "trainer.check_val_every_n_epoch=1")


def _trained_and_evaluated(kind, small, folder):
    """Scores of training's validation and of an evaluation that saves its predictions."""
    train.main(configured(folder, f"task=shapes_{kind}", *small))
    checkpoint = f"ckpt='{folder}/checkpoints/best.ckpt'"
    evaluation.main(configured(folder / "eval", checkpoint, "save_predictions=true", name="eval"))
    during, after = (json.loads((f / "metrics.json").read_text()) for f in (folder, folder / "eval"))
    assert during == after
    (picture,) = (folder / "pictures").iterdir()
    with Image.open(picture) as picture:
        assert min(picture.size) > 100
    return after


@pytest.mark.slow
@pytest.mark.xdist_group("tasks")
def test_instances_from_training_to_the_official_score(small, shapes, tmp_path):
    scores = _trained_and_evaluated("instance", small, tmp_path)
    with zipfile.ZipFile(shapes / "annotations_trainval2017.zip") as archive:
        (tmp_path / "truth.json").write_bytes(archive.read("annotations/instances_val2017.json"))
    with redirect_stdout(io.StringIO()):
        truth = COCO(str(tmp_path / "truth.json"))
        results = truth.loadRes(str(tmp_path / "eval" / "predictions" / "instances.json"))
        official = COCOeval(truth, results, "segm")
        official.evaluate()
        official.accumulate()
        official.summarize()
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100", "ar_small", "ar_medium")
    for name, value in zip((*names, "ar_large"), official.stats, strict=True):
        assert scores[name] == (None if value == -1 else pytest.approx(100 * value, abs=1e-6)), name
    assert len(truth.getImgIds()) == 10
    assert scores["ap"] is not None


@pytest.mark.slow
@pytest.mark.xdist_group("tasks")
def test_semantics_from_training_to_the_official_score(small, shapes, tmp_path):
    scores = _trained_and_evaluated("semantic", small, tmp_path)
    classes = read_checkpoint(tmp_path / "checkpoints" / "best.ckpt")[FORMAT]["classes"]
    counts = np.zeros((len(classes), len(classes)))
    with zipfile.ZipFile(shapes / "semantic_trainval2017.zip") as archive:
        names = [name for name in archive.namelist() if "/" in name and "val2017" in name]
        for name in names:
            truth = np.array(Image.open(io.BytesIO(archive.read(name)))).astype(int) - 1
            stem = name.rpartition("/")[2]
            result = np.array(Image.open(tmp_path / "eval" / "predictions" / "semantic" / stem))
            result = np.searchsorted([c["id"] for c in classes], result)
            np.add.at(counts, (truth[truth >= 0], result[truth >= 0]), 1)
    assert len(names) == 10
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    iou = counts.diagonal()[union > 0] / union[union > 0]
    assert scores["miou"] == pytest.approx(100 * iou.mean(), abs=1e-9)


@pytest.mark.slow
@pytest.mark.xdist_group("tasks")
def test_own_code_from_outside_the_checkout(tmp_path, monkeypatch):
    """The examples' dataset, task, loss, optimizer, callback and backbone; their code runs only where it is allowed."""
    example = ROOT / "examples" / "own_code"
    overrides = [o for o in SMALL if "data." not in o or "workers" in o]
    overrides += ["loss._target_=parts.EarlyOutputs", "+loss.early=0.25", "optim._target_=parts.Lion"]
    overrides += ["+callbacks.segments._target_=parts.SegmentsPerImage", "model.backbone=vit_rms"]
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "train.py"), "--config-dir", str(example), "task=circles"),
            *(*overrides, "trainer.max_steps=2", f"hydra.run.dir={tmp_path}/run"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(example), "EOMT_IMPORT": "parts"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    saved = read_checkpoint(checkpoint)[FORMAT]
    assert saved["kind"] == "circles.ThingsFirst"
    assert saved["network"]["backbone"] == "vit_rms"
    assert "segments_per_image" in (tmp_path / "run" / "csv" / "version_0" / "metrics.csv").read_text()
    monkeypatch.syspath_prepend(example)
    parts = importlib.import_module("parts")
    with pytest.raises(InputError, match=r"would run circles.ThingsFirst, circles.Circles: .*trust_code=true"):
        evaluation.main(configured(tmp_path / "eval", f"ckpt='{checkpoint}'", name="eval"))
    evaluation.main(configured(tmp_path / "eval", f"ckpt='{checkpoint}'", "trust_code=true", name="eval"))
    assert json.loads((tmp_path / "eval" / "metrics.json").read_text())["step"] == 2
    terms = {"mask": torch.tensor([1.0, 3.0])}
    assert parts.EarlyOutputs(early=0.25).total(terms) == 5 * (0.25 * 1 + 3)


def test_void_is_no_matter_of_instances(small, tmp_path):
    with pytest.raises(InputError, match=r"loss\.ignore_void"):
        train.main(configured(tmp_path, "task=shapes_instance", *small, "loss.ignore_void=true"))


@pytest.fixture(scope="module")
def own_data(shapes, tmp_path_factory):
    """The example that the README's commands train on."""
    folder = tmp_path_factory.mktemp("own data")
    spec = importlib.util.spec_from_file_location("own_data", ROOT / "examples" / "own_data.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.main(folder)
    return folder


@pytest.mark.slow
@pytest.mark.xdist_group("tasks")
@pytest.mark.parametrize(
    ("task", "overrides", "classes"),
    [
        (
            "coco_instance",
            [
                f"data.{split}.{key}={value}"
                for split in ("train", "val")
                for key, value in (("images", f"images/{split}"), ("annotations", f"instances_{split}.json"))
            ],
            8,
        ),
        (
            "coco_panoptic",
            [
                f"data.{split}.{key}={value}"
                for split in ("train", "val")
                for key, value in (("images", f"images/{split}"), ("annotations", f"panoptic_{split}.json"))
            ],
            13,
        ),
        ("folder_semantic", ["data.classes=classes.txt"], 13),
    ],
)
def test_own_data_in_three_forms(own_data, tmp_path, task, overrides, classes):
    overrides = quote_paths([*overrides, f"data.root={own_data}"])
    small = (*SMALL, "model=tiny", "trainer.max_steps=2", "postprocess.max_bytes=1000000")
    train.main(configured(tmp_path, "experiment=small_set", f"task={task}", *small, *overrides))
    scores = json.loads((tmp_path / "metrics.json").read_text())
    assert scores["step"] == 2
    # Validated at the end alone; still, there is a best checkpoint.
    saved = read_checkpoint(tmp_path / "checkpoints" / "best.ckpt")[FORMAT]
    assert [c["name"] for c in saved["classes"]][:2] == ["disc", "ring"]
    assert len(saved["classes"]) == classes
