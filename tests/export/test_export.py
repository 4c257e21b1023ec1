"""export.py: weights in the forms that others read, and graphs that compute what the network computes."""

import json

import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from safetensors.torch import load_file

from eomt.errors import InputError
from eomt.export import compare
from eomt.export.export import export, metrics_of
from eomt.model.eomt import EoMT
from eomt.weights.load import read_weights
from eomt.weights.original import to_original
from tests.export.exporting import dinov3_network, run, weights_of
from tests.random_networks import CLASSES, random_image, random_network, write_checkpoint
from tests.running import CONFIGS
from tests.weights.sources import SEVEN, assert_equal

CONFIG = {
    "task_name": "coco_panoptic",
    "run_folder": "/home/someone/runs/1",
    "data": {"_target_": "datasets.module.SegmentationData", "root": "relative", "train": {"root": "/data/coco"}},
    "logger": {"wandb": {"entity": "someone"}},
    "model": {"pretrained": "/home/someone/dinov2.pth", "token": "hidden", "mine": "given"},
    "paths": ["a", "/b", None, "c:\\d"],
    "optim": {"lr": 1e-4},
}


@pytest.fixture
def trained(tmp_path):
    """A run's folder with a checkpoint and its scores."""
    folder = tmp_path / "a run, (1)"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps({"pq": 51.25, "pq_stuff": None, "step": 7, "mask_free": True}))
    return write_checkpoint(
        folder / "checkpoints" / "best.ckpt", "panoptic", config=CONFIG, environment=["model.token", "model.mine"]
    )


@pytest.mark.parametrize("network", [random_network, dinov3_network])
@pytest.mark.parametrize("format", ["eomt", "hf", "original"])
def test_weights_come_back_bit_by_bit(format, network, tmp_path):
    network = network().eval()
    classes = CLASSES if network.num_classes == len(CLASSES) else SEVEN
    for precision, dtype in (("32", torch.float32), ("16", torch.float16), ("bf16", torch.bfloat16)):
        export(weights_of(network, classes), format, tmp_path / precision, precision=precision)
        back = read_weights(tmp_path / precision)
        assert (back.kind, back.classes, back.network) == ("panoptic", classes, network.spec)
        assert_equal(back.state, {key: value.to(dtype) for key, value in network.state_dict().items()})


@pytest.mark.parametrize("name", ["vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3"])
def test_the_originals_form_keeps_what_its_keys_do_not_say(name, tmp_path):
    """Heads, classes, kind and configuration; by the folder and by its file."""
    torch.manual_seed(0)
    network = EoMT(name, 32, len(SEVEN), 6, 1, 8, {"embed_dim": 128, "depth": 2, "num_heads": 4}).eval()
    export(weights_of(network, step=7, config=CONFIG), "original", tmp_path / "out", metrics={"pq": 51.25})
    for source in (tmp_path / "out", tmp_path / "out" / "pytorch_model.bin"):
        back = read_weights(source)
        assert (back.kind, back.classes, back.network, back.step) == ("panoptic", SEVEN, network.spec, 7)
        assert back.config["task_name"] == "coco_panoptic"
        assert_equal(back.state, network.state_dict())
        assert back.mask_probabilities.tolist() == [0]
        assert metrics_of(source) == {"pq": 51.25}
    # Other files there are not described by it.
    stranger = (tmp_path / "out" / "pytorch_model.bin").rename(tmp_path / "out" / "other.bin")
    assert metrics_of(stranger) == {}
    with pytest.raises(InputError, match=r"other\.bin: .* number of heads.* cannot be seen"):
        read_weights(stranger)


def test_what_a_file_does_not_say_can_be_given(tmp_path):
    network = random_network()
    torch.save(to_original(network.state_dict(), network.spec), tmp_path / "x.bin")
    (tmp_path / "classes.json").write_text(json.dumps(CLASSES.to_list()))
    typed = [f"ckpt={tmp_path / 'x.bin'}", "network.backbone_options={num_heads: 2}"]
    for name, *more in (
        ("file", "kind=panoptic", f"classes={tmp_path / 'classes.json'}"),
        ("list", "kind=semantic", "classes=[cup,dog,sky]"),
    ):
        run(*typed, *more, f"out={tmp_path / name}")
        back = read_weights(tmp_path / name)
        assert (f"kind={back.kind}", back.classes.names, back.network) == (more[0], CLASSES.names, network.spec)
    assert read_weights(tmp_path / "file").classes.ids == [3, 5, 11]
    for message, *more in (
        ("kind=odd must be semantic, instance, panoptic", "kind=odd", "classes=[a,b,c]"),
        ("tells 3 classes apart, and 2 were chosen", "kind=panoptic", "classes=[a,b]"),
        ("^classes: cannot read .*none.txt", "kind=panoptic", "classes=none.txt"),
        ("or give classes=", "kind=panoptic"),
    ):
        with pytest.raises(InputError, match=message):
            run(*typed, *more, f"out={tmp_path / 'out'}")
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        keys = [set(compose(name).network) for name in ("export", "predict", "demo")]
    assert keys[0] == keys[1]


def test_a_folder_of_ours_segments_and_tells_nothing_of_the_machine(trained, tmp_path):
    run(f"ckpt={trained}", f"out={tmp_path / 'out'}")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", "eomt.json", "model.safetensors"]
    about = json.loads((tmp_path / "out" / "eomt.json").read_text())
    assert about["metrics"]["pq"] == 51.25
    assert about["config"]["model"] == {"pretrained": None, "token": None, "mine": None}
    assert about["config"]["data"] == {
        "_target_": "datasets.module.SegmentationData",
        "root": None,
        "train": {"root": None},
    }
    assert about["config"]["paths"] == ["a", None]
    text = "".join((tmp_path / "out" / name).read_text() for name in ("README.md", "eomt.json"))
    assert not [word for word in ("someone", "hidden", "/data", str(tmp_path)) if word in text]
    assert not [key for key in load_file(tmp_path / "out" / "model.safetensors") if "pixel" in key]
    card = (tmp_path / "out" / "README.md").read_text()
    for words in ("| pq | 51.25 |", "**They belong to step 7", "COCO", "derived from DINOv2 weights, Apache-2.0"):
        assert words in card
    # Scores and configuration go along when it is exported again.
    run(f"ckpt={tmp_path / 'out'}", f"out={tmp_path / 'again'}", "precision=16")
    again = json.loads((tmp_path / "again" / "eomt.json").read_text())
    assert again == about
    assert metrics_of(tmp_path / "again" / "model.safetensors") == about["metrics"]


def test_nothing_is_lost_or_half_written(trained, tmp_path, monkeypatch):
    out = tmp_path / "out"
    export_to = lambda *typed: run(f"ckpt={trained}", f"out={out}", *typed)  # noqa: E731
    export_to()
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="has an export already: choose another folder, or set overwrite=true"):
        export_to("precision=16")
    assert (out / "model.safetensors").read_bytes() == before
    # A graph that computes something else is not kept, and what was there stays.
    monkeypatch.setattr(compare, "TOLERANCE", -1.0)
    with pytest.raises(InputError, match=r"logits differ from PyTorch's by up to \S+, more than -1"):
        export_to("overwrite=true", "format=torch_export")
    assert (out / "model.safetensors").read_bytes() == before
    export_to("overwrite=true", "precision=16", "format=original")
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "eomt.json", "pytorch_model.bin"]
    assert "`strict=False`" in (out / "README.md").read_text()
    (out / "mine.txt").write_text("not to be lost")
    with pytest.raises(InputError, match=r"holds mine\.txt, which no export wrote"):
        export_to("overwrite=true")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a run, (1)", "out"]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["ckpt=none.ckpt"], r"none\.ckpt"),
        (["format=onnx", "precision=bf16"], "precision=bf16 cannot be had in format=onnx"),
        (["precision=8"], "precision=8"),
        (["images={image}"], "images= are for format=onnx"),
        (["out={image}"], "is a file: give a folder"),
    ],
)
def test_bad_input_is_told_in_one_line(typed, message, trained, tmp_path):
    image = tmp_path / "image.png"
    Image.fromarray(random_image(20, 30)).save(image)
    with pytest.raises(InputError, match=message):
        run(f"ckpt={trained}", f"out={tmp_path / 'out'}", *(t.format(image=image) for t in typed))
    assert not (tmp_path / "out").exists()
