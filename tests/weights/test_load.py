"""The one door: every form in which weights come, alike for all who take them, completed by what is chosen."""

import json
from dataclasses import replace

import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from safetensors.torch import save_file

import predict
from eomt.classes import Classes
from eomt.cli.paths import quote_paths
from eomt.errors import InputError
from eomt.inference.segmenter import Segmenter
from eomt.model.eomt import EoMT
from eomt.published_classes import ADE20K, COCO_PANOPTIC
from eomt.weights.load import read_weights
from eomt.weights.original import to_original
from eomt.weights.spec import check_spec
from tests.running import CONFIGS
from tests.weights.sources import SEVEN, assert_equal, part_of, small, write_folder, write_huggingface


def test_our_own_forms(tmp_path, caplog):
    network = small(7)
    state = network.state_dict()
    own = part_of(network) | {"config": {"postprocess": {"score_threshold": 0.25}}, "environment": ["seed"]}
    saved = {f"network.{key}": value for key, value in state.items()} | {"mask_probabilities": torch.tensor([0.5])}
    whole = {"eomt": own, "state_dict": saved, "global_step": 12, "optimizer_states": [{"state": {}}]}
    torch.save(whole, tmp_path / "a=1, (b).ckpt")
    write_folder(tmp_path / "export", state, own | {"step": 12, "metrics": {"pq": 1.0}})
    save_file(state, tmp_path / "bare.safetensors")
    with caplog.at_level("INFO", "eomt"):
        checkpoint = read_weights(tmp_path / "a=1, (b).ckpt")
        exported = read_weights(tmp_path / "export")
        file = read_weights(tmp_path / "export" / "model.safetensors")
        bare = read_weights(tmp_path / "bare.safetensors", kind="panoptic", classes=SEVEN, network=network.spec)
    for weights in (checkpoint, exported, file, bare):
        assert_equal(weights.state, state)
        assert weights.network == network.spec
        assert (weights.kind, weights.classes) == ("panoptic", SEVEN)
    for weights in (checkpoint, exported, file):
        assert weights.config == {"postprocess": {"score_threshold": 0.25}}
        assert (weights.environment, weights.step) == (("seed",), 12)
    assert [w.resumable for w in (checkpoint, exported, file, bare)] == [True, False, False, False]
    assert checkpoint.mask_probabilities.tolist() == [0.5]
    assert caplog.messages[0].endswith(
        "(b).ckpt: EoMT on vit_small_patch14_reg4_dinov2 of other sizes, panoptic, 7 classes, 32x32, step 12"
    )
    torch.save(whole | {"optimizer_states": []}, tmp_path / "weights.ckpt")
    assert not read_weights(tmp_path / "weights.ckpt").resumable


@pytest.mark.parametrize("kind", [["a"], 5, {"a": 1}])
def test_a_kind_is_text(kind, tmp_path):
    network = small(7)
    theirs = write_huggingface(tmp_path / "theirs", network, SEVEN, "panoptic")
    config = json.loads((theirs / "config.json").read_text())
    for part in (config["eomt"] | {"kind": kind}, {"kind": kind}):
        (theirs / "config.json").write_text(json.dumps(config | {"eomt": part}))
        with pytest.raises(
            InputError, match=r"theirs: config\.json: eomt\.kind is .*, where the name of a kind belongs"
        ):
            read_weights(theirs)
    ours = write_folder(tmp_path / "ours", network.state_dict(), part_of(network) | {"kind": kind})
    with pytest.raises(InputError, match="ours: its description lacks or garbles"):
        read_weights(ours)


def test_predict_takes_what_a_file_does_not_say(tmp_path, monkeypatch):
    network = small(150, embed_dim=96, num_heads=3)
    torch.save(to_original(network.state_dict(), network.spec), tmp_path / "x.bin")
    Image.new("RGB", (30, 40)).save(tmp_path / "x.png")
    heads = "network.backbone_options={embed_dim: 96, depth: 2, num_heads: 3}"
    typed = [f"ckpt={tmp_path}/x.bin", f"images={tmp_path}/x.png", f"out={tmp_path}/out", "kind=semantic", heads]
    given = []
    load = Segmenter.load
    monkeypatch.setattr(Segmenter, "load", lambda *args, **more: given.append(load(*args, **more)) or given[-1])
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        cfg = compose("predict", overrides=[*quote_paths(typed), "device=cpu", "num_workers=0"])
    predict.main(cfg)
    assert given[0].network.spec == network.spec
    assert (given[0].task.kind, given[0].classes) == ("semantic", ADE20K)
    assert (tmp_path / "out" / "pictures" / "x.jpg").is_file()


def test_classes_of_others_get_the_datasets_ids_and_kinds(tmp_path):
    def folder(count, names, kind):
        network = small(count)
        path = write_huggingface(tmp_path / f"{count}_{kind}_{names is not None}", network, None, kind)
        config = json.loads((path / "config.json").read_text())
        del config["eomt"]
        if names is not None:
            config["id2label"] = {str(k): name for k, name in enumerate(names)}
        (path / "config.json").write_text(json.dumps(config))
        return path

    # Names in circulation differ a little.
    names = ["Wall", *(f"{name} " for name in ADE20K.names[1:])]
    weights = read_weights(folder(150, names, "semantic"))
    assert (weights.kind, weights.classes) == ("semantic", ADE20K)
    assert read_weights(folder(150, names, "panoptic")).kind == "panoptic"
    weights = read_weights(folder(133, None, "panoptic"))
    assert (weights.kind, weights.classes) == ("panoptic", COCO_PANOPTIC)
    # Others stay what they are, and it must be said for what.
    path = folder(3, ["cat", "dog", "sky"], "panoptic")
    with pytest.raises(InputError, match="its 3 classes are of no published dataset: choose its task"):
        read_weights(path)
    assert read_weights(path, kind="instance").classes.names == ["cat", "dog", "sky"]
    mine = Classes.from_categories([{"id": 5, "name": "cat"}, {"id": 6, "name": "dog"}, {"id": 7, "name": "sky"}])
    assert read_weights(path, kind="panoptic", classes=mine).classes is mine
    with pytest.raises(InputError, match="trained on other classes"):
        read_weights(path, kind="panoptic", classes=Classes(SEVEN.items[:3]))
    # The dataset's own names stand for those in circulation, each in its place; ids and things are its own.
    path = folder(150, names, "semantic")
    stuff = Classes(tuple(replace(item, id=item.id - 1, is_thing=False) for item in ADE20K))
    assert read_weights(path, classes=stuff).classes is stuff
    swapped = Classes((*stuff.items[:148], stuff[149], stuff[148]))
    with pytest.raises(InputError, match="trained on other classes"):
        read_weights(path, classes=swapped)


def test_classes_that_are_taken_by_their_number_are_said_to_be(tmp_path, caplog):
    network = small(150)
    path = write_huggingface(tmp_path / "hf", network, None, "semantic")
    with caplog.at_level("INFO", "eomt"):
        assert read_weights(path).classes == ADE20K
        read_weights(path, classes=ADE20K)
    assert "150 classes, taken for ADE20K's by their number, 32x32" in caplog.messages[0]
    assert "150 classes, 32x32" in caplog.messages[1]


def test_a_list_of_classes_is_whole(tmp_path):
    network, two = small(), Classes(SEVEN.items[:2])
    ours = write_folder(tmp_path / "ours", network.state_dict(), part_of(network, classes=two))
    theirs = write_huggingface(tmp_path / "theirs", network, Classes(SEVEN.items[:3]), "panoptic")
    config = json.loads((theirs / "config.json").read_text())
    config["id2label"].popitem()
    (theirs / "config.json").write_text(json.dumps(config))
    for folder in (ours, theirs):
        for classes in (None, Classes(SEVEN.items[:3])):
            with pytest.raises(InputError, match="tells 3 classes apart, and 2 are named: mend that list"):
                read_weights(folder, kind="panoptic", classes=classes)


def test_what_is_chosen_is_compared_with_what_is_said(tmp_path):
    network = small(7)
    folder = write_folder(tmp_path / "export", network.state_dict(), part_of(network))
    assert read_weights(folder, kind="panoptic", classes=SEVEN, network={"num_queries": 6, "image_size": 32}).kind
    for chosen, message in (
        ({"kind": "semantic"}, "its model is panoptic, and semantic was chosen"),
        ({"classes": Classes(SEVEN.items[:3])}, "tells 7 classes apart, and 3 were chosen"),
        ({"classes": Classes(SEVEN.items[::-1])}, "trained on other classes"),
        ({"network": {"num_queries": 9}}, "num_queries is 6 there, and 9 was chosen"),
        ({"network": {"image_size": [32, 64]}}, r"image_size is \[32, 32\] there, and \[32, 64\] was chosen"),
    ):
        with pytest.raises(InputError, match=message):
            read_weights(folder, **chosen)
    network = EoMT("vit_small_patch14_reg4_dinov2", 32, 133, 5, 2, 16)
    torch.save(to_original(network.state_dict(), network.spec), tmp_path / "x.bin")
    with pytest.raises(InputError, match=r"backbone is vit_small_.* there, and vit_large_patch14_reg4_dinov2 was"):
        read_weights(tmp_path / "x.bin", network={"backbone": "vit_large_patch14_reg4_dinov2", "backbone_options": {}})


def test_the_options_of_a_backbone_are_sizes():
    spec = small().spec
    assert check_spec(spec) == spec
    for key in ("pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "file"):
        with pytest.raises(InputError, match=key):
            check_spec(spec | {"backbone_options": {key: "evil.bin"}})
