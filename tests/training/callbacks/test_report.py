"""report.html of runs and evaluations: which images it shows, and what of the settings."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import eval as evaluation
import train
from eomt.training.callbacks import Report
from eomt.training.callbacks.report import _errors
from eomt.training.callbacks.shown import Shown
from tests.running import configured

pytestmark = pytest.mark.xdist_group("run")


def headings(folder):
    return re.findall(r"<h2>(.*?)</h2>", (folder / "report.html").read_text())


def test_a_run_has_its_report(run):
    found = headings(run)
    assert found[:2] == ["Scores, percent", "Curves over optimizer steps"]
    assert found[-2:] == ["Worst of 10 images", "Settings"], "with equal scores there is no best image"
    text = (run / "report.html").read_text()
    assert "model.num_queries" in text
    assert str(run) not in text, "a page may be sent to others"


def test_an_evaluation_has_its_report(run, tmp_path):
    checkpoint = f"ckpt='{run}/checkpoints/last.ckpt'"
    evaluation.main(configured(tmp_path, checkpoint, "pictures=1", name="eval"))
    assert headings(tmp_path) == ["Scores, percent", "pq of each class, percent", "Worst of 10 images", "Settings"]
    assert (tmp_path / "report.html").read_text().count("<img") == 4


@pytest.mark.slow
def test_a_semantic_run_shows_its_confusion(options, tmp_path):
    train.main(configured(tmp_path, *options, "task=shapes_semantic", "trainer.max_epochs=null", "trainer.max_steps=1"))
    assert "Confusion of classes" in headings(tmp_path)
    lines = (tmp_path / "confusion.csv").read_text().splitlines()
    assert [line.count(",") for line in lines] == [14] * 14


def test_the_best_and_the_worst_are_kept(monkeypatch, tmp_path):
    """Bounded number of images in memory, none twice, and none without a score."""
    scores = torch.rand(50, generator=torch.Generator().manual_seed(0)).tolist()
    made = []
    monkeypatch.setattr(
        "eomt.training.callbacks.report.shown", lambda batch, k, *_: made.append(k) or f"{batch.image_ids[k]}"
    )
    monkeypatch.setattr(
        "eomt.training.callbacks.report._example", lambda image, score, module: (image, round(score, 6))
    )
    report = Report(tmp_path, images=3)
    monkeypatch.setattr(report, "_write", lambda *_: None)
    ids = [f"image {k}" for k in range(50)]
    module = SimpleNamespace(image_scores=dict(zip(ids, [*scores[:-1], float("nan")], strict=True)))
    module.task = SimpleNamespace(geometry=None)
    trainer = SimpleNamespace(sanity_checking=False, world_size=1)
    report.on_validation_start(trainer, module)
    for start in range(0, 50, 5):
        outputs = SimpleNamespace(result=lambda: [None] * 5)
        batch = SimpleNamespace(image_ids=ids[start : start + 5])
        report.on_validation_batch_end(trainer, module, outputs, batch, start // 5)
    report.on_validation_end(trainer, module)
    order = sorted(range(49), key=lambda k: scores[k])
    expected = [[(f"image {k}", round(scores[k], 6)) for k in part] for part in (order[:3], order[:-4:-1])]
    assert report._examples == {"Worst of 49 images": expected[0], "Best of 49 images": expected[1]}
    assert len(made) < 35


def test_errors_are_painted_where_they_count():
    """Truth: class 4, a crowd of class 5, nothing; found: class 4, class 5 or nothing."""
    image = np.full((3, 3, 3), 90, dtype=np.uint8)
    truth = np.array([[1] * 3, [2] * 3, [0] * 3]), np.array([4, 5]), np.array([False, True])
    found = np.array([[1, 2, 0]] * 3), np.array([4, 5]), np.ones(2)
    for objects in (True, False):
        painted = _errors(Shown("a", image, truth, found, objects)) != 90
        assert painted.any(2).tolist() == [[False, True, True], [False] * 3, [objects, objects, False]]
