"""Official result files, read back and scored."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from eomt.classes import Classes, SegmentClass
from eomt.errors import InputError
from eomt.inference.segmentation import Segmentation
from eomt.inference.results import PanopticWriter, areas_and_boxes, ids_to_rgb
from eomt.metrics.panoptic_quality import PanopticQuality
from eomt.targets import targets_from_id_map

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
        writer.add(segmentation, f"some/where/{k:012}.jpg", k)
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


def test_a_new_run_into_the_same_folder_replaces_the_old(tmp_path):
    crashed = PanopticWriter(tmp_path, CLASSES)
    crashed.add(random_segmentation(0), "0.jpg", 0)
    crashed.flush()
    writer = PanopticWriter(tmp_path, CLASSES)
    writer.add(random_segmentation(1), "1.jpg", 1)
    writer.close()
    assert list(read_back(tmp_path)) == [1]


def test_an_unfinished_run_leaves_the_old_json(tmp_path):
    (tmp_path / "panoptic.json").write_text("old")
    writer = PanopticWriter(tmp_path, CLASSES)
    writer.add(random_segmentation(0), "0.jpg", 0)
    writer.flush()
    assert (tmp_path / "panoptic.json").read_text() == "old"


def test_two_images_of_one_name_are_refused(tmp_path):
    writer = PanopticWriter(tmp_path, CLASSES)
    writer.add(random_segmentation(0), "a/1.jpg", 10)
    writer.add(random_segmentation(1), "b/1.jpg", 11)
    with pytest.raises(InputError, match=r"images 10 and 11 share the name 1\.png"):
        writer.close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write results to .*file/results"):
        PanopticWriter(tmp_path / "file" / "results", CLASSES)


def test_ids_beyond_a_byte_and_segments_without_pixels():
    ids = np.array([[0, 255, 256], [65535, 65536, 2**24 - 1]])
    assert np.array_equal(ids_to_rgb(ids).astype(np.int64) @ [1, 256, 65536], ids)
    assert areas_and_boxes(np.array([[0, 2], [2, 2]]), 3) == (
        [0, 3, 0],
        [[0, 0, 0, 0], [0, 0, 2, 2], [0, 0, 0, 0]],
    )


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
