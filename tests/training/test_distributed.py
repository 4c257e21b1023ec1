"""Several processes are one: the same gradients, scores and checkpoints, on two ranks over gloo."""

import csv
import json

import numpy as np
import pytest
import torch

import eval as evaluation
import train
from eomt.weights.checkpoint import read_checkpoint
from eomt.weights.load import read_weights
from tests.label_files import label_png, photo, write_folder
from tests.running import configured
from tests.two_ranks import run_pair

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("distributed")]

DOUBLE = ("trainer.precision=64-true",)
# A step of eight images: at once, or on two ranks, each of which accumulates two batches of two.
GLOBAL = ("loss.global_normaliser=true", "trainer.max_steps=3")
AT_ONCE, DIVIDED = "data.batch_size=8", "data.batch_size=2"
# Without classes, whose term is normalised per rank; with points enough that no two targets share all of them.
MASKS = ("loss.class_weight=0", "loss.num_points=1024", "trainer.max_steps=3")
EACH = (*GLOBAL[:1], DIVIDED, "trainer.max_steps=4", "callbacks.last.every_n_steps=1")
SHARDED = (*EACH, "trainer.strategy=fsdp2")
# Where one rank's image makes more passes through the network than the other's.
WIDE = ("trainer.strategy=fsdp2", "data.eval_batch_size=1", "trainer.num_sanity_val_steps=1")
# Long enough that the scores of one validation are not those of another.
LEARNS = ("trainer.max_epochs=12", "trainer.max_steps=12", "optim.lr=3e-3", "optim.layer_decay=1.0")
# Fewer images to validate than ranks.
FEW = ("data.max_images=1", "trainer.max_steps=1", "postprocess.score_threshold=0")
KINDS = ("panoptic", "semantic", "instance")


def wide_set(folder):
    """Images with labels to train on; of two to validate, one is covered by one window, one by five."""
    for split, widths in {"train": [64] * 8, "val": [64, 300]}.items():
        labels = {
            f"{number}.png": np.repeat([[1], [0]], 32, axis=0).repeat(width, axis=1)
            for number, width in enumerate(widths)
        }
        write_folder(folder / "labels" / split, {name: label_png(values) for name, values in labels.items()})
        write_folder(
            folder / "images" / split, {name: photo(*values.shape, kind="PNG") for name, values in labels.items()}
        )
    return ("task=folder_semantic", "model=tiny", f"data.root='{folder}'", "data.classes=[above,below]")


@pytest.fixture(scope="module")
def settings(options):
    quiet = ("callbacks.pictures=null", "callbacks.curves=null", "callbacks.best=null", "optim.warmup_steps=[1,1]")
    return (*options, *quiet, "data.num_workers=0", "data.eval_batch_size=2")


@pytest.fixture(scope="module")
def folder(settings, shapes, tmp_path_factory):
    """The runs of two ranks, and beside them those of a single process."""
    folder = tmp_path_factory.mktemp("distributed")
    unscored = (*settings, "trainer.limit_val_batches=0")
    for kind in KINDS:
        _write_untrained(folder, kind, settings)
    evaluated = [
        (
            "eval",
            folder / f"{kind}2",
            [f"ckpt='{folder}/{kind}.ckpt'", "data.max_images=9", "pictures=0", "trainer.limit_val_batches=1.0"],
        )
        for kind in KINDS
    ]
    run_pair(
        folder,
        [
            ("train", folder / "global2", (*unscored, *GLOBAL, DIVIDED, *DOUBLE)),
            ("train", folder / "masks2", (*unscored, *MASKS, "data.batch_size=4", *DOUBLE)),
            ("train", folder / "ddp", (*unscored, *EACH)),
            ("train", folder / "fsdp", (*settings, *SHARDED)),
            ("train", folder / "resumed", (*settings, *SHARDED, f"ckpt='{folder}/fsdp/checkpoints/previous.ckpt'")),
            ("train", folder / "taken", (*settings, *SHARDED, f"ckpt='{folder}/ddp/checkpoints/previous.ckpt'")),
            ("train", folder / "few2", (*settings, *SHARDED, *FEW)),
            ("train", folder / "wide2", (*settings, *wide_set(folder / "wide"), *WIDE, *LEARNS)),
            *evaluated,
        ],
    )
    train.main(configured(folder / "global1", *unscored, *GLOBAL, AT_ONCE, *DOUBLE))
    train.main(configured(folder / "masks1", *unscored, *MASKS, AT_ONCE, *DOUBLE))
    return folder


def _write_untrained(folder, kind, settings):
    """A checkpoint of an untrained network that is sure of everything, so that there is something to count."""
    run = (*settings, f"task=shapes_{kind}", "trainer.max_steps=1", "trainer.limit_val_batches=0")
    train.main(configured(folder / kind, *run))
    checkpoint = read_checkpoint(folder / kind / "checkpoints" / "last.ckpt")
    checkpoint["state_dict"]["network.class_head.weight"] *= 100
    checkpoint["state_dict"]["network.class_head.bias"][-1] = -1000
    torch.save(checkpoint, folder / f"{kind}.ckpt")


def last(folder, name):
    return read_checkpoint(folder / name / "checkpoints" / "last.ckpt")


def rows(folder, name):
    with (folder / name / "csv" / "version_0" / "metrics.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["train/loss"]]


def largest_difference(one, other):
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


@pytest.mark.parametrize("name", ["global", "masks"])
def test_a_divided_step_is_that_of_one_big_batch(folder, name):
    """Weights after three steps, the gradients' norms, and their moving means."""
    one, two = last(folder, f"{name}1"), last(folder, f"{name}2")
    assert one["global_step"] == two["global_step"] == 3
    assert largest_difference(one["state_dict"], two["state_dict"]) < 1e-9
    moments, others = (c["optimizer_states"][0]["state"] for c in (one, two))
    for number, state in moments.items():
        torch.testing.assert_close(others[number]["exp_avg"], state["exp_avg"], atol=1e-10, rtol=1e-9)
    for ours, theirs in zip(rows(folder, f"{name}1"), rows(folder, f"{name}2"), strict=True):
        for key in ("train/gradient_norm", "lr/head", "lr/backbone", "mask_probability/0", "mask_probability/1"):
            assert float(ours[key]) == pytest.approx(float(theirs[key]), rel=1e-9), key


def test_mask_terms_in_the_log_are_those_of_all_ranks(folder):
    for ours, theirs in zip(rows(folder, "masks1"), rows(folder, "masks2"), strict=True):
        for key in ("train/loss_mask", "train/loss_dice", "train/loss"):
            assert float(ours[key]) == pytest.approx(float(theirs[key]), rel=1e-9), key


def test_a_rank_without_an_image_to_validate(folder, tmp_path):
    last = folder / "few2" / "checkpoints" / "last.ckpt"
    options = (f"ckpt='{last}'", FEW[0], "pictures=0", "trainer.accelerator=cpu")
    evaluation.main(configured(tmp_path, *options, name="eval"))
    assert json.loads((tmp_path / "metrics.json").read_text())["step"] == 1
    for file in ("metrics.json", "metrics_per_class.json"):
        assert (tmp_path / file).read_text() == (folder / "few2" / file).read_text()


def test_ranks_that_make_unequal_numbers_of_passes_in_a_validation(folder, tmp_path):
    last = folder / "wide2" / "checkpoints" / "last.ckpt"
    evaluation.main(configured(tmp_path, f"ckpt='{last}'", "pictures=0", "trainer.accelerator=cpu", name="eval"))
    one, two = (json.loads((f / "metrics.json").read_text()) for f in (tmp_path, folder / "wide2"))
    assert one == two
    with (folder / "wide2" / "csv" / "version_0" / "metrics.csv").open() as file:
        scores = [(int(row["step"]), row["miou"]) for row in csv.DictReader(file) if row["miou"]]
    assert len(scores) == 12, "a validation lies between each two steps"
    assert len({score for _, score in scores}) > 3, "scores of the weights of that moment"


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_two_ranks_are_those_of_one(folder, tmp_path, kind):
    """Nine images, two at a time: five on one rank, four on the other."""
    overrides = (
        f"ckpt='{folder}/{kind}.ckpt'",
        "data.max_images=9",
        "pictures=0",
        "trainer.limit_val_batches=1.0",
        "trainer.accelerator=cpu",
    )
    evaluation.main(configured(tmp_path, *overrides, name="eval"))
    for file in ("metrics.json", "metrics_per_class.json"):
        one, two = (json.loads((f / file).read_text()) for f in (tmp_path, folder / f"{kind}2"))
        assert one == two, file
    assert len(two) > 3, "classes that have a score"


def test_sharded_training_is_that_of_ddp(folder):
    ddp, sharded = last(folder, "ddp"), last(folder, "fsdp")
    assert largest_difference(ddp["state_dict"], sharded["state_dict"]) < 1e-6
    for ours, theirs in zip(rows(folder, "ddp"), rows(folder, "fsdp"), strict=True):
        for key in ("train/loss", "train/gradient_norm", "lr/backbone", "mask_probability/0"):
            assert float(ours[key]) == pytest.approx(float(theirs[key]), rel=1e-6), key


def test_one_rank_writes(folder):
    for name in ("ddp", "fsdp"):
        assert [path.name for path in (folder / name / "csv").iterdir()] == ["version_0"]
        assert {path.name for path in (folder / name / "checkpoints").iterdir()} == {"last.ckpt", "previous.ckpt"}


def test_sharded_checkpoints_are_like_any_other(folder, settings, tmp_path):
    """One file, from which two ranks resume exactly, and one process alone; and which is read."""
    sharded, resumed = last(folder, "fsdp"), last(folder, "resumed")
    assert largest_difference(sharded["state_dict"], resumed["state_dict"]) == 0
    for state, other in zip(
        sharded["optimizer_states"][0]["state"].values(),
        resumed["optimizer_states"][0]["state"].values(),
        strict=True,
    ):
        assert all(torch.equal(state[key], other[key]) for key in state)
    middle = folder / "fsdp" / "checkpoints" / "previous.ckpt"
    assert read_checkpoint(middle)["global_step"] == 3, "the end of an epoch, after which batches may be others"
    train.main(configured(tmp_path, *settings, *EACH, AT_ONCE, f"ckpt='{middle}'"))
    assert largest_difference(last(tmp_path, ".")["state_dict"], sharded["state_dict"]) < 1e-6
    assert largest_difference(last(folder, "taken")["state_dict"], sharded["state_dict"]) < 1e-6, "from DDP's"
    assert read_weights(middle).state.keys() == read_weights(folder / "panoptic.ckpt").state.keys()
