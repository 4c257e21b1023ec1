"""Delta files of the original and the pretrained backbones they are relative to."""

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors

from eomt.errors import InputError
from eomt.model.eomt import EoMT
from eomt.weights.load import read_weights
from eomt.weights.original import BACKBONE, add_backbone, from_original, is_delta, to_original
from tests.golden_numbers import golden_network, golden_tensors
from tests.weights.sources import SEVEN, golden, write_folder

PIXELS = {"network.encoder.pixel_mean", "network.encoder.pixel_std"}


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


def check_outputs(absolute):
    network, recorded = golden_network("dinov3_tiny").eval(), golden_tensors("dinov3_tiny_forward")
    network.load_state_dict(from_original(absolute))
    with torch.no_grad():
        output = network(recorded["images"])[-1]
    torch.testing.assert_close(output.mask_logits, recorded["unmasked.mask_logits.0"], atol=1e-4, rtol=0)
    torch.testing.assert_close(output.class_logits, recorded["unmasked.class_logits.0"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("encoder", ["layer.", "model.layer."])
def test_delta_weights_with_a_backbone_of_transformers(encoder):
    delta, base, recorded = delta_weights(lambda key: in_transformers(key).replace("layer.", encoder))
    base["embeddings.mask_token"] = torch.randn(1, 1, 48)
    absolute = add_backbone(delta, base)
    assert [is_delta(state) for state in (delta, absolute)] == [True, False]
    assert absolute.keys() == recorded.keys() - PIXELS
    check_outputs(absolute)


@pytest.mark.parametrize("biases", [True, False])
def test_delta_weights_with_a_backbone_of_timm(biases):
    delta, base, _ = delta_weights(lambda key: BACKBONE + key, biases)
    heads = {k: v for k, v in golden_tensors("dinov3_tiny_original_state").items() if not k.startswith(BACKBONE)}
    base = {k: v for k, v in from_original(heads | base).items() if k.startswith("backbone.vit.")}
    base = {
        k.removeprefix("backbone.vit."): v for k, v in base.items() if biases or not k.endswith(("q_bias", "v_bias"))
    }
    check_outputs(add_backbone(delta, base))


def test_a_backbone_that_does_not_fit_is_named():
    delta, base, _ = delta_weights(in_transformers)
    shorter = {key: value for key, value in base.items() if not key.startswith("layer.4.")}
    with pytest.raises(InputError, match=r"blocks\.4\.\S+ is missing in it"):
        add_backbone(delta, shorter)
    with pytest.raises(InputError, match=r"of the size that .*: norm\.bias is \[7\]"):
        add_backbone(delta, base | {"norm.bias": torch.zeros(7)})
    del base["layer.3.norm1.weight"]
    with pytest.raises(InputError, match=r"blocks\.3\.norm1\.weight is missing in it"):
        add_backbone(delta, base)


@pytest.mark.parametrize("given", ["file", "folder", "hub"])
def test_delta_weights_are_added_to_the_pretrained_backbone(given, tmp_path, monkeypatch):
    _, ours, spec = golden(3)
    delta, base, _ = delta_weights(in_transformers)
    torch.save(delta, tmp_path / "delta.bin")
    folder = write_folder(tmp_path / "base", base)
    asked = []

    def snapshot(repo_id, allow_patterns):
        asked.append(repo_id)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    backbone = {"file": folder / "model.safetensors", "folder": folder, "hub": "some/backbone"}[given]
    weights = read_weights(tmp_path / "delta.bin", kind="semantic", classes=SEVEN, network=spec, backbone=backbone)
    assert weights.origin.startswith("original delta weights")
    assert weights.state.keys() == ours.keys()
    for key, value in ours.items():
        assert torch.allclose(weights.state[key], value, atol=1e-6), key
    assert asked == (["some/backbone"] if given == "hub" else [])
    with pytest.raises(InputError, match="delta_base=none: no such file"):
        read_weights(tmp_path / "delta.bin", kind="semantic", classes=SEVEN, network=spec, backbone="none")


def test_the_pretrained_backbone_comes_through_the_hub(tmp_path, monkeypatch):
    options = {"embed_dim": 384, "depth": 1, "num_heads": 6}
    network = EoMT("vit_small_patch16_dinov3_qkvb", 32, 133, 5, 1, 16, options)
    delta = to_original(network.state_dict(), network.spec) | {"network.encoder.pixel_std": torch.zeros(3, 1, 1)}
    torch.save(delta, tmp_path / "delta.bin")

    def snapshot(repo_id, allow_patterns):
        raise errors.GatedRepoError.__new__(errors.GatedRepoError)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(
        InputError, match=r"delta\.bin: facebook/dinov3-vits16-pretrain-lvd1689m .* is gated.*delta_base="
    ):
        read_weights(tmp_path / "delta.bin")
    state, _, spec = golden(3)
    torch.save(state | {"network.encoder.pixel_std": torch.zeros(3, 1, 1)}, tmp_path / "odd.bin")
    with pytest.raises(InputError, match=r"odd\.bin: delta weights of an unknown DINOv3.*delta_base=FILE"):
        read_weights(tmp_path / "odd.bin", network=spec)
