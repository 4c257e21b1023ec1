"""Official result files, read back and scored."""

import contextlib
import io
import json

import numpy as np
import pycocotools.cocoeval
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from eomt.classes import Classes, SegmentClass
from eomt.errors import InputError
from eomt.inference.result import Result
from eomt.metrics.average_precision import AveragePrecision
from eomt.metrics.mean_iou import MeanIoU
from eomt.metrics.panoptic_quality import PanopticQuality
from eomt.postprocess.types import Instances, Segmentation
from eomt.postprocess.writers import InstanceWriter, PanopticWriter, SemanticWriter, ids_to_rgb
from eomt.targets import targets_from_id_map
from tests.coco_objects import as_instances, as_targets, encode, official_objects

CLASSES = Classes(
    (
        SegmentClass(7, "cup", (255, 0, 0), True),
        SegmentClass(9, "dog", (0, 255, 0), True),
        SegmentClass(200, "sky", (0, 0, 255), False),
    )
)


def random_segmentation(seed, height=12, width=17):
    generator = np.random.default_rng(seed)
    ids = np.kron(generator.integers(0, 4, (3, 4)), np.ones((4, 5)))[:height, :width]
    present = np.unique(ids[ids > 0])
    lookup = np.zeros(4, dtype=np.int32)
    lookup[present.astype(int)] = np.arange(1, len(present) + 1)
    labels = torch.from_numpy(generator.integers(0, 3, len(present)))
    return Segmentation(torch.from_numpy(lookup[ids.astype(int)]), labels, torch.ones(len(present)))


def read_back(folder):
    """Every image of the files as targets, by image id."""
    document = json.loads((folder / "panoptic.json").read_text())
    label_of = {row["id"]: k for k, row in enumerate(document["categories"])}
    found = {}
    for row in document["annotations"]:
        image = Image.open(folder / "panoptic" / row["file_name"])
        assert image.mode == "RGB"
        ids = np.array(image).astype(np.int64) @ [1, 256, 65536]
        found[row["image_id"]] = targets_from_id_map(
            ids,
            [segment["id"] for segment in row["segments_info"]],
            [label_of[segment["category_id"]] for segment in row["segments_info"]],
        )
    return found


def test_files_say_what_was_added(tmp_path):
    truth = {k: random_segmentation(k) for k in range(5)}
    writer = PanopticWriter(tmp_path / "new" / "folder", CLASSES)
    for k, segmentation in truth.items():
        writer.add(segmentation, f"{k:012}.jpg", k)
    path = writer.close()
    assert path == tmp_path / "new" / "folder" / "panoptic.json"
    # Nothing but the results stays behind.
    assert sorted(p.name for p in path.parent.iterdir()) == ["panoptic", "panoptic.json"]
    assert sorted(p.name for p in (path.parent / "panoptic").iterdir()) == [f"{k:012}.png" for k in range(5)]
    found = read_back(path.parent)
    assert found.keys() == truth.keys()
    metric = PanopticQuality(CLASSES)
    for k, targets in found.items():
        assert torch.equal(targets.ids[0].int(), truth[k].ids)
        assert torch.equal(targets.labels, truth[k].labels)
        metric.update(truth[k], targets)
    assert metric.compute()["pq"] == 100
    document = json.loads(path.read_text())
    assert document["categories"] == CLASSES.to_list()
    for row in document["annotations"]:
        for segment in row["segments_info"]:
            mask = truth[row["image_id"]].ids == segment["id"]
            rows, columns = (axis.numpy() for axis in mask.nonzero(as_tuple=True))
            assert segment["area"] == mask.sum()
            assert segment["bbox"][:2] == [columns.min(), rows.min()]
            assert segment["bbox"][2:] == [np.ptp(columns) + 1, np.ptp(rows) + 1]


def test_rank_0_joins_all_ranks_and_drops_duplicates(tmp_path):
    writers = [PanopticWriter(tmp_path, CLASSES, rank, 3) for rank in (1, 2, 0)]
    shares = ([4, 1], [2, 4, 1], [0, 3])
    for writer, images in zip(writers, shares, strict=True):
        for k in images:
            writer.add(random_segmentation(k), f"{k}.jpg", k)
    for writer in writers:
        writer.flush()
    # Rank 0 may close before the others have.
    for writer in reversed(writers):
        writer.close()
    assert list(read_back(tmp_path)) == [0, 1, 2, 3, 4]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["panoptic", "panoptic.json"]


def test_a_new_run_replaces_the_old_once_it_is_complete(tmp_path):
    (tmp_path / "panoptic.json").write_text("old")
    crashed = PanopticWriter(tmp_path, CLASSES)
    crashed.add(random_segmentation(0), "0.jpg", 0)
    crashed.flush()
    assert (tmp_path / "panoptic.json").read_text() == "old"
    writer = PanopticWriter(tmp_path, CLASSES)
    writer.add(random_segmentation(1), "1.jpg", 1)
    writer.close()
    assert list(read_back(tmp_path)) == [1]


@pytest.mark.parametrize("kind", ["semantic", "panoptic"])
def test_images_of_one_name_in_two_folders_stay_apart(kind, tmp_path):
    names = ["a/1.jpg", "b/1.jpg", "b/1.x.png", "2.jpg", "../../c/3.jpg", "/d/4.jpg"]
    files = ["a/1.png", "b/1.png", "b/1.x.png", "2.png", "c/3.png", "d/4.png"]
    if kind == "panoptic":  # COCO's PNGs are in one folder
        files = [name.replace("/", "_") for name in files]
    writer = {"semantic": SemanticWriter, "panoptic": PanopticWriter}[kind](tmp_path / "out", CLASSES)
    writer.check_names(names)
    for k, name in enumerate(names):
        writer.add(random_segmentation(k), name, k)
    writer.close()
    found = [path.relative_to(tmp_path / "out" / kind).as_posix() for path in tmp_path.rglob("*.png")]
    assert sorted(found) == sorted(files)
    if kind == "panoptic":
        for k, targets in read_back(tmp_path / "out").items():
            assert torch.equal(targets.ids[0].int(), random_segmentation(k).ids)
        return
    for k, name in enumerate(files):
        truth = random_segmentation(k)
        values = torch.tensor([0, *(CLASSES.ids[label] for label in truth.labels)])
        assert np.array_equal(np.array(Image.open(tmp_path / "out" / kind / name)), values[truth.ids.long()])


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write results to .*file/results"):
        PanopticWriter(tmp_path / "file" / "results", CLASSES)


def test_ids_beyond_a_byte_and_segments_without_pixels():
    ids = np.array([[0, 255, 256], [65535, 65536, 2**24 - 1]])
    assert np.array_equal(ids_to_rgb(ids).astype(np.int64) @ [1, 256, 65536], ids)
    sparse = Segmentation(torch.tensor([[0, 2], [2, 2]]), torch.zeros(3, dtype=torch.int64), torch.ones(3))
    assert sparse.areas.tolist() == [0, 3, 0]
    assert sparse.boxes().tolist() == [[0, 0, 0, 0], [0, 0, 2, 2], [0, 0, 0, 0]]


def test_an_independent_scorer_reads_the_files(tmp_path):
    panoptic = pytest.importorskip("hotcoco.panoptic")
    metric = PanopticQuality(CLASSES)
    writers = [PanopticWriter(tmp_path / name, CLASSES) for name in ("truth", "prediction")]
    for k in range(6):
        truth = random_segmentation(k)
        noise = torch.rand(truth.ids.shape, generator=torch.Generator().manual_seed(k))
        ids = torch.where(noise < 0.1, 0, truth.ids)
        prediction = Segmentation(ids, truth.labels.roll(k % 2), truth.scores)
        for writer, segmentation in zip(writers, (truth, prediction), strict=True):
            writer.add(segmentation, f"{k}.jpg", k)
        metric.update(prediction, targets_from_id_map(truth.ids.numpy(), range(1, 4), truth.labels.tolist()))
    truth_json, prediction_json = (writer.close() for writer in writers)
    document = json.loads(truth_json.read_text())
    document["images"] = [{"id": k, "height": 12, "width": 17} for k in range(6)]
    for row in document["annotations"]:
        for segment in row["segments_info"]:
            segment["iscrowd"] = 0
    truth_json.write_text(json.dumps(document))
    evaluation = panoptic.PanopticEval(truth_json, prediction_json)
    evaluation.evaluate()
    ours = metric.compute()
    assert 10 < ours["pq"] < 90
    for name in ("pq", "sq", "rq"):
        assert evaluation.results()["All"][name] == pytest.approx(ours[name].item() / 100, abs=1e-9)


def random_instances(seed, count=4, height=40, width=50):
    generator = np.random.default_rng(seed)
    masks = np.zeros((height, width, count), dtype=np.uint8, order="F")
    for k in range(count):
        y, x = generator.integers(0, 30, 2)
        masks[y : y + generator.integers(0, 30), x : x + 20, k] = 1
    rles = coco_mask.encode(masks) if count else []
    labels = torch.from_numpy(generator.integers(0, 3, count))
    areas = torch.from_numpy(masks.sum((0, 1)).astype(np.int64))
    scores = torch.from_numpy(generator.random(count, dtype=np.float32))
    return Instances((height, width), rles, labels, scores, areas, torch.arange(count))


def official_stats(document, path, tool=pycocotools):
    """A tool's twelve numbers of a result file."""
    COCO, COCOeval = (tool.coco.COCO, tool.cocoeval.COCOeval) if tool is pycocotools else (tool.COCO, tool.COCOeval)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = document
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(str(path)), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


@pytest.mark.slow
def test_pycocotools_scores_the_instances_as_the_metric_does(shared_data, tmp_path):
    document, classes, truth, found = official_objects(shared_data)
    # A large image too: rings, whose boxes are far larger than they are.
    y, x = np.ogrid[:1500, :2200]
    radii = np.hypot(y - 700, x - 900), np.hypot(y - 300, x - 1800), np.hypot(y - 1200, x - 400)
    rings = np.stack([(r > inner) & (r < inner + 6) for r, inner in zip(radii, (600, 90, 40), strict=True)])
    truth[1] = as_targets(rings[0].shape, rings, [0, 0, 1], [False] * 3)
    found[1] = as_instances(rings[0].shape, np.roll(rings, 1, 1), [0, 0, 1], [0.9, 0.8, 0.7])
    document["images"].append({"id": 1, "height": 1500, "width": 2200})
    for k, code in enumerate(encode(rings)):
        row = {"id": 10**12 + k, "image_id": 1, "category_id": classes.ids[(0, 0, 1)[k]], "iscrowd": 0}
        document["annotations"].append({**row, "segmentation": code, "area": int(rings[k].sum())})
    metric, writers = AveragePrecision(classes), [InstanceWriter(tmp_path, classes, rank, 2) for rank in (1, 0)]
    for k, targets in truth.items():
        metric.update(found[k], targets, k)
        for writer in writers[: 2 if k % 5 == 0 else 1] if k % 2 else writers[-1:]:
            writer.add(found[k], f"a/{k}.jpg", k)
    for writer in writers:
        writer.flush()
    assert not (tmp_path / "instances.json").exists()
    path = [writer.close() for writer in writers][-1]
    assert path == tmp_path / "instances.json"
    assert [p.name for p in tmp_path.iterdir()] == ["instances.json"]
    assert set(json.loads(path.read_text())[0]) == {"image_id", "category_id", "segmentation", "score"}
    scores = [score.item() for score in metric.compute().values()]
    assert 5 < scores[0] < 95
    assert scores == pytest.approx(100 * official_stats(document, path), abs=1e-9)


def large_set(ids, classes):
    """A document of images of two megapixels with objects of all sizes, rings among them, and their targets."""
    document = {"images": [], "annotations": [], "categories": classes.to_list()}
    y, x, truth = *np.ogrid[:1200, :1800], {}
    for seed, k in enumerate(ids):
        draw = np.random.default_rng(seed)
        middles = [(np.hypot(y - draw.integers(1200), x - draw.integers(1800)), r) for r in (9, 30, 60, 200, 500)]
        masks = np.stack([(far < r) & (far > r - r // draw.integers(1, 7)) for far, r in middles])
        labels = draw.integers(0, 2, 5).tolist()
        truth[k] = as_targets((1200, 1800), masks, labels, [False] * 5)
        document["images"].append({"id": k, "height": 1200, "width": 1800})
        for code, label, mask in zip(encode(masks), labels, masks, strict=True):
            row = {"id": len(document["annotations"]) + 1, "image_id": k, "category_id": classes.ids[label]}
            document["annotations"].append({**row, "segmentation": code, "area": int(mask.sum()), "iscrowd": 0})
    return document, truth


@pytest.mark.parametrize(
    "ids", [["town_000_19", "a\tb"], [1 << 60, 1 << 54, (1 << 54) + 1], [2.0, 10.0, 1]], ids=["text", "large", "float"]
)
def test_large_images_of_any_ids_score_as_pycocotools_scores_the_file(tmp_path, ids):
    document, truth = large_set(ids, CLASSES)
    metric, writer = AveragePrecision(CLASSES), InstanceWriter(tmp_path, CLASSES)
    for seed, (k, targets) in enumerate(truth.items()):
        masks = np.roll(targets.masks().numpy(), seed + 2, 1)
        found = as_instances((1200, 1800), masks, targets.labels.tolist(), [0.5, 0.5, 0.5, 0.7, 0.3])
        metric.update(found, targets, k)
        writer.add(found, f"{seed}.jpg", k)
    path = writer.close()
    rows = json.loads(path.read_text())
    assert [json.dumps(row["image_id"]) for row in rows[::5]] == list(map(json.dumps, ids))
    scores = [score.item() for score in metric.compute().values()]
    assert 5 < scores[0] < 95
    assert len(set(scores)) > 8
    assert scores == pytest.approx(100 * official_stats(document, path), abs=1e-9)


@pytest.mark.parametrize("tool", ["pycocotools", "hotcoco"])
def test_results_without_an_object_can_be_loaded_and_score_nothing(tmp_path, tool, caplog):
    document, truth = large_set([7, 8], CLASSES)
    metric, writers = AveragePrecision(CLASSES), [InstanceWriter(tmp_path, CLASSES, rank, 2) for rank in (1, 0)]
    for k, targets in truth.items():
        nothing = as_instances((1200, 1800), [], [], [])
        metric.update(nothing, targets, k)
        writers[k - 7].add(nothing, f"{k}.jpg", k)
    for writer in writers:
        writer.flush()
    with caplog.at_level("INFO", "eomt"):
        path = [writer.close() for writer in writers][-1]
    assert "no image has an object: instances.json holds an empty one of score 0" in caplog.text
    (row,) = json.loads(path.read_text())
    assert coco_mask.decode(row.pop("segmentation")).sum() == 0
    assert row == {"image_id": 8, "category_id": 7, "score": 0.0}
    scores = [100 * score for score in official_stats(document, path, pytest.importorskip(tool))]
    assert scores == [score.item() for score in metric.compute().values()] == [0] * 12


def test_files_have_the_rows_that_results_give(tmp_path):
    instances, panoptic = InstanceWriter(tmp_path, CLASSES), PanopticWriter(tmp_path, CLASSES)
    objects, rows = [], []
    for k in range(3):
        instances.add(random_instances(k), f"a/{k}.jpg", k)
        panoptic.add(random_segmentation(k), f"a/{k}.jpg", k)
        objects += Result(random_instances(k), CLASSES).to_coco(k)
        rows.append(Result(random_segmentation(k), CLASSES).to_coco_panoptic(k, f"a_{k}.png")[0])
    # As text, in which 1 and 1.0 are not the same.
    assert instances.close().read_text() == json.dumps(objects)
    assert json.dumps(json.loads(panoptic.close().read_text())["annotations"]) == json.dumps(rows)


def test_each_image_stands_in_the_instances_once(tmp_path):
    writers = [InstanceWriter(tmp_path, CLASSES, rank, 2) for rank in (0, 1)]
    for writer in reversed(writers):
        # Two folders may hold images of one name: here nothing replaces the other's.
        for k in (1, 0):
            writer.add(random_instances(k), "same.jpg", k)
    for writer in writers:
        writer.flush()
    rows = json.loads(writers[0].close().read_text())
    assert [row["image_id"] for row in rows] == [1] * 4 + [0] * 4


@pytest.mark.parametrize(
    ("ids", "values", "mode"),
    [
        ((7, 9, 200), (0, 7, 9, 200), "L"),
        ((0, 1, 2), (255, 0, 1, 2), "L"),
        ((0, 1, 255), (65535, 0, 1, 255), "I;16"),
        ((1, 2, 300), (0, 1, 2, 300), "I;16"),
    ],
)
def test_label_maps_give_the_mean_iou(tmp_path, ids, values, mode):
    classes = Classes(tuple(SegmentClass(i, f"c{i}", (0, 0, 0), False) for i in ids))
    written, read = MeanIoU(classes), MeanIoU(classes)
    writers = [SemanticWriter(tmp_path, classes, rank, 2) for rank in (0, 1)]
    for k in range(4):
        found, truth = random_segmentation(k), random_segmentation(k % 3)
        targets = targets_from_id_map(truth.ids.numpy(), range(1, len(truth.labels) + 1), truth.labels.tolist())
        written.update(found, targets)
        for writer in writers[k % 2 :]:
            writer.add(found, f"some/where/{k}.x.jpg", k)
        image = Image.open(tmp_path / "semantic" / "some" / "where" / f"{k}.x.png")
        assert image.mode == mode
        labels = np.array(image)
        assert set(np.unique(labels)) <= set(values)
        assert np.array_equal(labels == values[0], found.ids.numpy() == 0)
        again = Segmentation(torch.zeros(labels.shape, dtype=torch.int32), torch.arange(3), torch.ones(3))
        for number, value in enumerate(ids, 1):
            again.ids[torch.from_numpy(labels == value)] = number
        read.update(again, targets)
    for writer in writers:
        writer.flush()
    assert writers[1].close() == writers[0].close() == tmp_path / "semantic"
    assert [p.name for p in tmp_path.iterdir()] == ["semantic"]
    assert sorted(p.name for p in (tmp_path / "semantic").rglob("*.*")) == [f"{k}.x.png" for k in range(4)]
    assert 0 < written.compute()["miou"] < 100
    assert torch.equal(written.pixels, read.pixels)


@pytest.mark.parametrize("ids", [(1, 70000), (-1, 2), (0, 255, 65535)])
def test_ids_that_no_label_map_holds_are_refused(tmp_path, ids):
    with pytest.raises(InputError, match="do not fit into a label PNG"):
        SemanticWriter(tmp_path, Classes(tuple(SegmentClass(i, "c", (0, 0, 0), False) for i in ids)))
