"""The one door: every form in which weights come, alike for all who take them."""

import json

import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from safetensors.torch import save_file

import predict
from eomt.cli import main
from eomt.errors import InputError
from eomt.inference.segmenter import Segmenter
from eomt.published_classes import ADE20K
from eomt.weights.load import read_weights
from eomt.weights.original import to_original
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
        cfg = compose("predict", overrides=[*main.quote_paths(typed), "device=cpu", "num_workers=0"])
    predict.main(cfg)
    assert given[0].network.spec == network.spec
    assert (given[0].task.kind, given[0].classes) == ("semantic", ADE20K)
    assert (tmp_path / "out" / "pictures" / "x.jpg").is_file()
