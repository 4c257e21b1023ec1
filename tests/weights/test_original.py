"""The original's weights: there and back; its delta files and the pretrained backbones they are relative to."""

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import save_file

from eomt.errors import InputError
from eomt.model.eomt import EoMT
from eomt.published_classes import ADE20K, CITYSCAPES, COCO_INSTANCE, COCO_PANOPTIC
from eomt.weights.load import read_incomplete, read_weights
from eomt.weights.original import BACKBONE, add_backbone, from_original, is_delta, is_original, to_original
from tests.golden_numbers import golden_network, golden_tensors
from tests.random_networks import same_state, tiny
from tests.weights.sources import ONE_HEAD, SEVEN, assert_equal, golden, small, write_folder

PIXELS = {"network.encoder.pixel_mean", "network.encoder.pixel_std"}


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("form", ["bin", "ckpt", "compiled", "safetensors", "folder"])
def test_original_files(version, form, tmp_path, caplog):
    state, ours, spec = golden(version)
    # Pixel statistics are never read: those of delta files are wrong.
    state |= {"criterion.empty_weight": torch.ones(8), "network.attn_mask_probs": torch.tensor([0.0, 0.5, 1.0])}
    state |= {key: torch.full((1, 3, 1, 1), 9.0) for key in PIXELS}
    path = tmp_path / f"original.{form}"
    if form == "bin":
        torch.save(state, path)
    elif form == "ckpt":
        more = {"metrics.0.confmat": torch.zeros(7, dtype=torch.int64), "metrics.1.empty": torch.zeros(0)}
        torch.save({"state_dict": state | more, "global_step": 5, "hyper_parameters": {"lr": 1e-4}}, path)
    elif form == "compiled":
        torch.save({f"_orig_mod.{key}": value for key, value in state.items()}, path)
    elif form == "safetensors":
        save_file(state, path)
    else:
        path.mkdir()
        torch.save(state, path / "pytorch_model.bin")
    with caplog.at_level("INFO", "eomt"):
        weights = read_weights(path, kind="panoptic", classes=SEVEN, network=spec)
    assert_equal(weights.state, ours)
    assert weights.network == spec
    assert (weights.kind, weights.classes, weights.step, weights.resumable) == ("panoptic", SEVEN, 0, False)
    assert weights.mask_probabilities.tolist() == [0, 0.5, 1]
    assert caplog.messages == [
        f"weights: original weights {path}: EoMT on {spec['backbone']} of other sizes, panoptic, 7 classes, 64x96"
    ]


def write_original(path, network):
    torch.save(to_original(network.state_dict(), network.spec), path)
    return path


def test_what_an_original_file_does_not_say_is_found_out_or_asked_for(tmp_path, caplog):
    network = EoMT("vit_small_patch14_reg4_dinov2", 32, 133, 5, 2, 16)
    path = write_original(tmp_path / "coco.bin", network)
    with caplog.at_level("INFO", "eomt"):
        weights = read_weights(path)
    words = "EoMT-S DINOv2, panoptic, 133 classes, taken for COCO panoptic's by their number, 32x32"
    assert caplog.messages == [f"weights: original weights {path}: {words}"]
    assert (weights.kind, weights.classes, weights.network) == ("panoptic", COCO_PANOPTIC, network.spec)
    for count, kind, classes in ((80, "instance", COCO_INSTANCE), (19, "semantic", CITYSCAPES)):
        weights = read_weights(write_original(tmp_path / f"{count}.bin", small(count)), network=ONE_HEAD)
        assert (weights.kind, weights.classes) == (kind, classes)
    path = write_original(tmp_path / "150.bin", small(150))
    with pytest.raises(InputError, match="semantic and panoptic models: choose its task"):
        read_weights(path, network=ONE_HEAD)
    assert read_weights(path, kind="semantic", network=ONE_HEAD).classes == ADE20K
    assert read_incomplete(path).kind is None
    path = write_original(tmp_path / "three.bin", small())
    with pytest.raises(InputError, match=r"three\.bin: it does not name its 3 classes.*choose its task"):
        read_weights(path, kind="semantic", network=ONE_HEAD)
    assert read_incomplete(path).classes is None


@pytest.mark.parametrize("name", ["dinov2_tiny", "dinov3_tiny"])
def test_recorded_weights_there_and_back(name):
    recorded, network = golden_tensors(f"{name}_original_state"), golden_network(name)
    written = to_original(network.state_dict(), network.spec)
    assert not written.pop("network.attn_mask_probs").any(), "mask-free"
    assert same_state(written, {k: v for k, v in recorded.items() if k in written})
    assert recorded.keys() - written.keys() == PIXELS | {"network.attn_mask_probs"}


@pytest.mark.parametrize(
    "backbone",
    [
        "vit_small_patch14_reg4_dinov2",
        "vit_small_patch14_dinov2",
        "vit_giant_patch14_reg4_dinov2",
        "vit_small_plus_patch16_dinov3_qkvb",
    ],
)
def test_our_weights_there_and_back(backbone):
    network = tiny(backbone)
    state = network.state_dict()
    written = to_original(state, network.spec)
    assert [is_original(form) for form in (written, state)] == [True, False]
    assert same_state(from_original(written), state)


def test_dinov3_without_biases_of_queries_gets_zeros_which_the_original_wants():
    network = tiny("vit_small_patch16_dinov3")
    written = to_original(network.state_dict(), network.spec)
    assert not written[f"{BACKBONE}blocks.0.attention.q_proj.bias"].any()
    other = EoMT(**network.spec | {"backbone": "vit_small_patch16_dinov3_qkvb"}).eval()
    other.load_state_dict(from_original(written))
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(images)[-1], other(images)[-1], atol=1e-5, rtol=0)


def test_an_incomplete_block_is_named():
    state = golden_tensors("dinov3_tiny_original_state")
    del state[f"{BACKBONE}blocks.2.attention.k_proj.weight"]
    with pytest.raises(InputError, match=r"lacks \S*blocks\.2\.attention\.k_proj\.weight"):
        from_original(state)


def delta_weights(rename, biases=True):
    """The recorded DINOv3 network minus a random backbone, and that backbone with what EoMT lacks."""
    torch.manual_seed(1)
    recorded = golden_tensors("dinov3_tiny_original_state")
    base, delta = {}, dict.fromkeys(PIXELS, torch.zeros(1, 3, 1, 1))
    for key, value in recorded.items():
        if key.startswith(BACKBONE):
            zero = not biases and key.endswith(("q_proj.bias", "v_proj.bias"))
            weight = torch.zeros_like(value) if zero else torch.randn_like(value)
            base[rename(key.removeprefix(BACKBONE))] = weight
            delta[key] = value - weight
        elif key not in PIXELS:
            delta[key] = value
    return delta, base, recorded


def in_transformers(key):
    return key.replace("patch_embed.", "embeddings.").replace("blocks.", "layer.")


def assert_close(absolute, recorded):
    assert absolute.keys() == recorded.keys()
    for key, value in absolute.items():
        torch.testing.assert_close(value, recorded[key], atol=1e-6, rtol=0)


@pytest.mark.parametrize("encoder", ["layer.", "model.layer."])
def test_delta_weights_with_a_backbone_of_transformers(encoder):
    delta, base, recorded = delta_weights(lambda key: in_transformers(key).replace("layer.", encoder))
    base["embeddings.mask_token"] = torch.randn(1, 1, 48)
    assert [is_delta(state) for state in (delta, recorded)] == [True, False]
    assert_close(add_backbone(from_original(delta), base), from_original(recorded))


@pytest.mark.parametrize("biases", [True, False])
def test_delta_weights_with_a_backbone_of_timm(biases):
    delta, base, recorded = delta_weights(lambda key: BACKBONE + key, biases)
    heads = {key: value for key, value in recorded.items() if not key.startswith(BACKBONE)}
    prefix = "backbone.vit."
    base = {k.removeprefix(prefix): v for k, v in from_original(heads | base).items() if k.startswith(prefix)}
    base = {k: v for k, v in base.items() if biases or not k.endswith(("q_bias", "v_bias"))}
    assert_close(add_backbone(from_original(delta), base), from_original(recorded))


def test_a_backbone_that_does_not_fit_is_named():
    delta, base, _ = delta_weights(in_transformers)
    shorter = {key: value for key, value in base.items() if not key.startswith("layer.4.")}
    for other, words in (
        (shorter, r"blocks\.4\.\S+ is missing in it"),
        (base | {"layer.5.norm1.bias": torch.zeros(1)}, "missing in the delta weights"),
        (base | {"norm.bias": torch.zeros(7)}, r"norm\.bias is \[7\] in it"),
    ):
        with pytest.raises(InputError, match=f"of the size that the delta weights were trained from: .*{words}"):
            add_backbone(from_original(delta), other)


@pytest.mark.parametrize("given", ["file", "folder", "hub"])
def test_delta_weights_are_added_to_the_pretrained_backbone(given, tmp_path, monkeypatch):
    _, ours, spec = golden(3)
    delta, base, _ = delta_weights(in_transformers)
    torch.save(delta, tmp_path / "delta.bin")
    folder = write_folder(tmp_path / "base", base)
    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo_id, **_: asked.append(repo_id) or folder)
    said = {"kind": "semantic", "classes": SEVEN, "network": spec}
    backbone = {"file": folder / "model.safetensors", "folder": folder, "hub": "some/backbone"}[given]
    weights = read_weights(tmp_path / "delta.bin", **said, backbone=backbone)
    assert weights.origin.startswith("original delta weights")
    assert weights.state.keys() == ours.keys()
    for key, value in ours.items():
        assert torch.allclose(weights.state[key], value, atol=1e-6), key
    assert asked == (["some/backbone"] if given == "hub" else [])
    with pytest.raises(InputError, match="delta_base=none: no such file"):
        read_weights(tmp_path / "delta.bin", **said, backbone="none")
    with pytest.raises(InputError, match=r"delta\.bin: delta weights of an unknown DINOv3.*delta_base=FILE"):
        read_weights(tmp_path / "delta.bin", **said)


def test_the_pretrained_backbone_comes_through_the_hub(tmp_path, monkeypatch):
    options = {"embed_dim": 384, "depth": 1, "num_heads": 6}
    network = EoMT("vit_small_patch16_dinov3_qkvb", 32, 133, 5, 1, 16, options)
    delta = to_original(network.state_dict(), network.spec) | {"network.encoder.pixel_std": torch.zeros(3, 1, 1)}
    torch.save(delta, tmp_path / "delta.bin")

    def snapshot(repo_id, allow_patterns):
        raise errors.GatedRepoError.__new__(errors.GatedRepoError)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    words = r"delta\.bin: facebook/dinov3-vits16-pretrain-lvd1689m .* is gated.*delta_base="
    with pytest.raises(InputError, match=words):
        read_weights(tmp_path / "delta.bin")
