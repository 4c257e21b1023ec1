"""Contents of loggers after a run: wandb's offline files and TensorBoard's events, read back."""

import json
import struct
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import WandbLogger
from PIL import Image

import train
from eomt.classes import Classes
from eomt.training.callbacks.shown import Shown
from eomt.training.callbacks.trackers import Trackers, log_pictures
from tests.host_syncs import HostSyncs
from tests.running import configured

pytestmark = pytest.mark.xdist_group("run")

NUMBERS = {
    "train/loss",
    "train/gradient_norm",
    "loss_mask/output_1",
    "loss_class/output_3",
    "lr_group/head 0.003",
    "mask_probability/1",
    "speed/images_per_second",
    "speed/data_wait_share",
    "memory/host_peak_gib",
    "pq",
}


def wandb_records(path):
    """The records of a .wandb file: chunks in blocks of 32 KiB, each with checksum, length and place in its record."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if 2**15 - place % 2**15 < 7:
            place += 2**15 - place % 2**15
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield Record.FromString(record)
            record = b""


@pytest.mark.slow
def test_wandb_has_it_all_and_goes_on_after_a_resume(options, tmp_path, monkeypatch, caplog):
    """Two starts of one run, offline: its settings, numbers, table, and pictures with masks."""
    caplog.set_level("INFO", logger="eomt")
    for name in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    run, short = tmp_path / "run", (*options, "logger=wandb", "postprocess.score_threshold=0")
    train.main(configured(run, *short, "trainer.max_steps=3"))
    train.main(configured(run, *short, "trainer.max_steps=4", f"ckpt='{run}/checkpoints/last.ckpt'"))
    assert "offline, nothing was sent; `wandb sync" in caplog.text
    folders = sorted((run / "wandb").glob("offline-run-*"))
    starts = [list(wandb_records(next(folder.glob("*.wandb")))) for folder in folders]
    ids = {record.run.run_id for records in starts for record in records if record.HasField("run")}
    assert (len(folders), len(ids)) == (2, 1)
    records = starts[0]
    assert next(list(record.run.tags) for record in records if record.HasField("run")) == ["panoptic"]
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [0]

    updates = [u for record in records if record.HasField("config") for u in record.config.update]
    settings = {(u.key or "/".join(u.nested_key)): json.loads(u.value_json) for u in updates}
    assert settings["optim"]["lr"] == 3e-3
    assert settings["callbacks"]["ema"]["decay"] is None
    assert settings["code"]["version"]
    assert str(tmp_path) not in json.dumps({key: value for key, value in settings.items() if key != "_wandb"})
    history = {
        item.key or "/".join(item.nested_key): json.loads(item.value_json)
        for record in records
        if record.HasField("history")
        for item in record.history.item
    }
    assert history.keys() >= NUMBERS
    assert 0 < history["speed/data_wait_share"] < 1

    media = folders[0] / "files"
    table = json.loads((media / history["classes/path"]).read_text())
    assert table["columns"] == list(json.loads((run / "metrics_per_class.json").read_text())[0])
    image = Image.open(media / history["pictures/0/filenames"][0])
    for kind in ("ground_truth", "prediction"):
        mask = np.array(Image.open(media / history["pictures/0/all_masks"][0][kind]["path"]))
        labels = settings["_wandb"]["mask/class_labels"][f"pictures/0_wandb_delimeter_{kind}"]["value"]
        assert mask.shape == image.size[::-1]
        assert mask.max() > 0
        assert {*map(str, np.unique(mask))} <= {"0", *labels}


@pytest.mark.slow
def test_tensorboard_has_it_all(options, tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train.main(configured(tmp_path, *options, "logger=tensorboard", "trainer.max_steps=3"))
    events = accumulators.EventAccumulator(str(tmp_path / "tensorboard" / "version_0"))
    events.Reload()
    assert {*events.Tags()["scalars"]} >= NUMBERS
    assert [event.step for event in events.Scalars("lr_group/head 0.003")] == [0, 1, 2]
    assert [event.value for event in events.Scalars("lr_group/head 0.003")] == pytest.approx([0, 1.5e-3, 3e-3])
    image = events.Images("pictures/1")[0]
    assert (image.step, image.encoded_image_string[1:4]) == (3, b"PNG")
    text = {tag: events.Tensors(f"{tag}/text_summary")[0].tensor_proto.string_val[0] for tag in ("settings", "classes")}
    assert b"warmup_steps" in text["settings"]
    assert text["classes"].startswith(b"| id | name |")


def test_no_step_waits_for_the_device_but_where_numbers_are_logged():
    group = {"lr": 0.1, "stage": "head", "name": "head 0.1"}
    logged = []
    module = SimpleNamespace(
        output_losses={"mask": torch.ones(2)},
        device=torch.device("cpu"),
        total_steps=100,
        log_dict=logged.append,
        data=SimpleNamespace(global_batch=8),
    )
    optimizers = [SimpleNamespace(param_groups=[group])]
    trainer = SimpleNamespace(global_step=0, log_every_n_steps=4, train_dataloader=[], optimizers=optimizers)
    trackers = Trackers()
    trackers.on_train_start(trainer, module)
    with HostSyncs() as waits:
        for step in range(1, 9):
            trackers.on_train_batch_start(trainer, module, None, 0)
            trainer.global_step = step
            trackers.on_train_batch_end(trainer, module, None, None, 0)
    assert len(logged) == 2
    assert logged[0]["loss_mask/output_2"] == 1
    assert logged[0]["lr_group/head 0.1"] == pytest.approx(0.1)
    assert logged[0]["speed/images_per_second"] > 0
    assert not waits.found


def test_more_classes_than_a_wandb_mask_has_values(monkeypatch):
    logger, images = WandbLogger.__new__(WandbLogger), []
    monkeypatch.setattr(logger, "log_image", lambda key, shown, step, **options: images.append(options))
    classes = Classes.from_categories([{"id": k, "name": f"class {k}"} for k in range(300)])
    truth = np.array([[0, 1, 2, 3]]), np.array([0, 253, 299]), np.zeros(3, bool)
    found = np.array([[1, 2, 3, 0]]), np.array([0, 254, 255]), np.ones(3)
    image = Shown("a", np.zeros((1, 4, 3), np.uint8), truth, found, False)
    log_pictures([logger], [image], None, classes, 1)
    masks = images[0]["masks"][0]
    assert masks["ground_truth"]["mask_data"].tolist() == [[0, 1, 254, 255]]
    assert masks["prediction"]["mask_data"].tolist() == [[1, 255, 255, 0]]
    assert masks["prediction"]["class_labels"][255] == "class 254 or a later class"
