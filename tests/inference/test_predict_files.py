"""predict.py: from files to pictures and official result files."""

import json
import os
import pickle
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

import predict
from eomt.cli.paths import quote_paths
from eomt.errors import InputError
from eomt.inference.find_images import find_images
from eomt.inference.predict_files import _pickled, predict_files, processes_beside, writing_processes
from eomt.inference.segmenter import Segmenter
from eomt.postprocess.types import Segmentation
from tests.random_networks import CLASSES, KINDS, OPTIONS, random_image, write_checkpoint
from tests.running import CONFIGS, equal


def run(*typed):
    """Run `python predict.py *typed` in this process; errors are raised."""
    typed = [*typed, "device=cpu", "num_workers=2"]
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        cfg = compose("predict", overrides=quote_paths(typed))
    predict.main(cfg)


def save(path, height=30, width=44, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(random_image(height, width, seed)).save(path)
    return path


def options_of(kind):
    return [f"postprocess.{name}={value}" for name, value in OPTIONS[kind].items()]


def files_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a=b, [c] (d)")
    return {kind: write_checkpoint(folder / f"{kind}.ckpt", kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_is_segmented_and_what_cannot_be_read_is_left_out(kind, checkpoints, tmp_path, caplog):
    images, out = tmp_path / "my images", tmp_path / "out=1, [a]"
    save(images / "a" / "x.png", 30, 44, 0)
    save(images / "b" / "x.png", 20, 60, 1)
    save(images / "b" / "x.bmp", 25, 25, 2)
    save(images / "Y.PNG", 64, 40, 3)
    (images / "broken.jpg").write_bytes(b"not an image")
    (images / "notes.txt").write_text("not meant")
    save(images / ".hidden" / "z.png")
    with caplog.at_level("INFO", "eomt"), pytest.raises(InputError, match="1 of 5 images could not be read"):
        run(f"ckpt={checkpoints[kind]}", f"images={images}", f"out={out}", *options_of(kind))
    assert f"skipped: {images / 'broken.jpg'} cannot be read" in caplog.text
    assert "segmented: 4, skipped: 1" in caplog.text

    pictures = ["pictures/Y.jpg", "pictures/a/x.jpg", "pictures/b/x_bmp.jpg", "pictures/b/x_png.jpg"]
    index = json.loads((out / "images.json").read_text())
    results = {"Y.PNG": "Y.png", "a/x.png": "a_x.png", "b/x.bmp": "b_x_bmp.png", "b/x.png": "b_x_png.png"}
    assert [(row["id"], row["file_name"]) for row in index["images"]] == list(enumerate(results, start=1))
    assert [row["picture"] for row in index["images"]] == pictures
    written = {
        "semantic": [f"predictions/semantic/{name}" for name in results.values()],
        "instance": ["predictions/instances.json"],
        "panoptic": ["predictions/panoptic.json", *(f"predictions/panoptic/{name}" for name in results.values())],
    }[kind]
    assert [name for name in files_below(out) if not name.endswith(".log")] == sorted(
        ["images.json", *pictures, *written]
    )

    segmenter = Segmenter.load(checkpoints[kind], "cpu", **OPTIONS[kind])
    for row, name in zip(index["images"], results.values(), strict=True):
        result = segmenter(images / row["file_name"])
        assert (row["height"], row["width"]) == result.size
        with Image.open(out / row["picture"]) as picture:
            difference = np.abs(np.array(picture).astype(int) - np.array(result.picture()))
        assert difference.mean() < 3
        check_results(kind, out, row["id"], name, result)


@pytest.mark.parametrize("killed", [False, True])
def test_processes_write_the_same_files_also_where_one_is_killed(killed, checkpoints, tmp_path):
    for seed in range(6):
        save(tmp_path / "photos" / f"{seed}.png", 30 + seed, 44, seed)
    segmenter = Segmenter.load(checkpoints["panoptic"], "cpu", **OPTIONS["panoptic"])
    found = find_images(str(tmp_path / "photos"), tmp_path)
    written = []
    for name in ("threads", "processes"):
        processes = writing_processes(2) if name == "processes" else None
        for number, _ in enumerate(predict_files(segmenter, *found, tmp_path / name, 2, 2, processes=processes)):
            if killed and processes and number == 2:
                os.kill(processes.submit(os.getpid).result(), signal.SIGKILL)
        if processes:
            processes.shutdown()
        written.append({path: (tmp_path / name / path).read_bytes() for path in files_below(tmp_path / name)})
    assert len(written[0]) == 6 + 6 + 2
    assert written[0] == written[1]


def test_results_travel_as_they_are_and_ids_in_half_the_bytes():
    scores = torch.tensor([0.5, 1.0])
    for largest in (3, 2**15 - 1, 2**15, 2**20):
        ids = torch.randint(largest + 1, (300, 400), dtype=torch.int32)
        ids[0, 0] = largest
        sent = Segmentation(ids, torch.tensor([7, 8]), scores)
        data = _pickled(partial(print, sent))
        found = pickle.loads(data).args[0]
        assert equal(list(found), list(sent))
        assert [value.dtype for value in found] == [value.dtype for value in sent]
        assert len(data) < ids.numel() * (2 if largest < 2**15 else 4) + 2000


def test_processes_are_told_by_the_cores(monkeypatch):
    for cores, threads, expected in ((16, 4, 12), (16, 8, 8), (64, 8, 12), (2, 4, 4), (8, 4, 4)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: range(cores), raising=False)
        assert processes_beside(threads) == expected


def check_results(kind, out, image_id, name, result):
    """Read the official files as others do."""
    if kind == "semantic":
        found = np.array(Image.open(out / "predictions" / "semantic" / name))
        assert np.array_equal(found, np.array(CLASSES.ids)[result.label_map])
    elif kind == "instance":
        coco = COCO(out / "images.json")
        rows = coco.loadRes(str(out / "predictions" / "instances.json"))
        rows = rows.loadAnns(rows.getAnnIds(imgIds=[image_id]))
        assert [row["category_id"] for row in rows] == [CLASSES.ids[label] for label in result.labels]
        for row, mask in zip(rows, result.masks, strict=True):
            assert np.array_equal(coco_mask.decode(row["segmentation"]), mask)
        assert {row["name"] for row in coco.loadCats(coco.getCatIds())} == set(CLASSES.names)
    else:
        document = json.loads((out / "predictions" / "panoptic.json").read_text())
        (row,) = (row for row in document["annotations"] if row["image_id"] == image_id)
        assert row["file_name"] == name
        assert row["segments_info"] == result.to_coco_panoptic(image_id, name)[0]["segments_info"]
        ids = np.array(Image.open(out / "predictions" / "panoptic" / name)).astype(int) @ [1, 256, 65536]
        assert np.array_equal(ids, result.map)


def test_files_patterns_and_lists(checkpoints, tmp_path):
    one = save(tmp_path / "set [1]" / "a (1), b=c.png")
    save(tmp_path / "set [1]" / "deep" / "[2].png", seed=1)
    three = save(tmp_path / "other" / "it's.png", seed=2)
    cases = {
        "file": (f"images={one}", ["a (1), b=c"]),
        "pattern": (f"images={tmp_path}/set [1]/**/*.png", ["a (1), b=c", "deep/[2]"]),
        "list": (f'images=["{one}","{three}"]', ["set [1]/a (1), b=c", "other/it's"]),
    }
    for name, (typed, stems) in cases.items():
        out = tmp_path / "runs" / name
        run(f"ckpt={checkpoints['panoptic']}", typed, f"out={out}")
        assert files_below(out / "pictures") == sorted(f"{stem}.jpg" for stem in stems), name
    # Without quotes commas part the entries.
    bare = save(tmp_path / "p=1 (x).png"), save(tmp_path / "q.png")
    run(f"ckpt={checkpoints['panoptic']}", f"images=[{bare[0]}, {bare[1]}]", f"out={tmp_path / 'bare'}")
    assert files_below(tmp_path / "bare" / "pictures") == ["p=1 (x).jpg", "q.jpg"]


def test_results_are_not_mixed_and_thresholds_hold(checkpoints, tmp_path, caplog):
    caplog.set_level("INFO", logger="eomt")
    image, out = save(tmp_path / "x.png"), tmp_path / "out"
    typed = [f"ckpt={checkpoints['instance']}", f"images={image}", f"out={out}"]
    (out / "of others").mkdir(parents=True)
    run(*typed)
    assert f"out={out} holds 1 other files or folders (of others), which stay" in caplog.text
    before = json.loads((out / "predictions" / "instances.json").read_text())
    with pytest.raises(InputError, match="has results already"):
        run(*typed)
    middle = sorted(row["score"] for row in before)[len(before) // 2]
    run(*typed, "overwrite=true", f"threshold={middle}")
    after = json.loads((out / "predictions" / "instances.json").read_text())
    assert after == [row for row in before if row["score"] >= middle]
    assert 0 < len(after) < len(before)


@pytest.mark.parametrize("kind", ["semantic", "panoptic"])
def test_a_folder_that_is_overwritten_holds_one_run(kind, checkpoints, tmp_path):
    save(tmp_path / "im1" / "deep" / "a.png")
    save(tmp_path / "im1" / "b.png")
    save(tmp_path / "im2" / "b.png", seed=1)
    out = tmp_path / "out"
    run(f"ckpt={checkpoints['instance']}", f"images={tmp_path / 'im1'}", f"out={out}")
    run(f"ckpt={checkpoints[kind]}", f"images={tmp_path / 'im1'}", f"out={out}", "overwrite=true")
    assert (out / "pictures" / "deep" / "a.jpg").exists()
    # The user's own files beside the results stay.
    mine = [save(out / name) for name in ("mine.png", "pictures/mine.png", "other/b.png")]
    run(f"ckpt={checkpoints[kind]}", f"images={tmp_path / 'im2'}", f"out={out}", "overwrite=true")
    results = ["images.json", "pictures/b.jpg", f"predictions/{kind}/b.png"]
    results += ["predictions/panoptic.json"] * (kind == "panoptic")
    results += [path.relative_to(out).as_posix() for path in mine]
    assert files_below(out) == sorted(results)
    assert not (out / "pictures" / "deep").exists()


def test_an_interrupted_run_is_not_mixed_with_another(checkpoints, tmp_path, monkeypatch):
    save(tmp_path / "im1" / "a.png"), save(tmp_path / "im1" / "deep" / "b.png"), save(tmp_path / "im2" / "c.png")
    out, ckpt = tmp_path / "out", f"ckpt={checkpoints['semantic']}"
    with monkeypatch.context() as patch:
        patch.setattr("eomt.postprocess.writers.ResultWriter.flush", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(ckpt, f"images={tmp_path / 'im1'}", f"out={out}")
    assert (out / "pictures" / "deep" / "b.jpg").exists()
    save(out / "pictures" / "mine.png"), save(out / "pictures" / "deep" / f".b.{'0' * 32}.png")
    with pytest.raises(InputError, match=r"results of a run that was interrupted: .* or set overwrite=true"):
        run(ckpt, f"images={tmp_path / 'im2'}", f"out={out}")
    run(ckpt, f"images={tmp_path / 'im2'}", f"out={out}", "overwrite=true")
    assert files_below(out) == ["images.json", "pictures/c.jpg", "pictures/mine.png", "predictions/semantic/c.png"]
    save(tmp_path / "run" / "pictures" / "step-000003.png")
    with pytest.raises(InputError, match=r"holds pictures, which predict\.py has not written"):
        run(ckpt, f"images={tmp_path / 'im2'}", f"out={tmp_path}/run", "overwrite=true")


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "index",
    [
        "no JSON",
        "[]",
        '{"images": [{"id": 1, "file_name": "a.png"}], "info": {"folder": "x"}}',
        '{"images": [], "info": {"year": 2017}}',
        '{"images": [{"picture": "pictures/../../x.png"}], "info": {"folder": "x"}}',
        '{"images": [{"picture": "other/x.png"}], "info": {"folder": "x"}}',
    ],
)
def test_an_index_of_others_removes_nothing(index, checkpoints, tmp_path):
    image, out = save(tmp_path / "x.png"), tmp_path / "out"
    save(out / "predictions" / "x.png"), save(out / "other" / "x.png")
    (out / "images.json").write_text(index)
    before = files_below(tmp_path)
    with pytest.raises(InputError, match=r"images\.json was not written by predict\.py"):
        run(f"ckpt={checkpoints['semantic']}", f"images={image}", f"out={out}", "overwrite=true")
    assert files_below(tmp_path) == before
    assert (out / "images.json").read_text() == index


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (("images=x.png",), "ckpt is not set"),
        (("ckpt=a.ckpt", "images=x.png"), "a.ckpt: no such file"),
        (("ckpt=a.ckpt", "images=none"), "images=none: no such file or folder"),
        (("ckpt=a.ckpt", "images=x.png", "threshold=2"), "threshold=2 must be"),
    ],
)
def test_what_is_missing_or_wrong_is_said_before_anything_is_done(typed, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "x.png")
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        cfg = compose("predict", overrides=["out=out", *typed])
    with pytest.raises(InputError, match=message):
        predict.main(cfg)
    assert not Path("out").exists()


def test_every_option_of_a_task_can_be_set():
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        keys = {name: set(OmegaConf.to_container(compose(name).postprocess)) for name in ("predict", "train")}
    assert keys["predict"] == keys["train"]
