"""The original's files: there and back, what their shapes tell, and delta weights."""

import pytest
import torch

from eomt.errors import InputError
from eomt.model.eomt import EoMT
from eomt.weights.delta import add_backbone, read_delta
from eomt.weights.detect import detect
from eomt.weights.eomt_format import read_bare
from eomt.weights.original import BACKBONE, PROBABILITIES, from_original, read_original, to_original
from eomt.weights.safe_load import Source
from eomt.weights.spec import network_of
from tests.golden_numbers import golden_network, golden_tensors
from tests.random_networks import PUBLISHED, published, same_state, tiny

PIXELS = {"network.encoder.pixel_mean", "network.encoder.pixel_std"}


def spec_of(state, image_size=None, num_heads=None):
    """The network that the original's weights tell by their shapes."""
    chosen = {"image_size": image_size, "backbone_options": {"num_heads": num_heads}}
    count = len(state[PROBABILITIES]) if PROBABILITIES in state else None
    return network_of(from_original(state), chosen, count)[0]


def reader_of(state):
    return detect(Source("x", state, state, {}))


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
    assert (reader_of(written), reader_of(state)) == (read_original, read_bare)
    assert same_state(from_original(written), state)
    size = [32, 32] if "dinov3" in backbone else None
    assert spec_of(written, size, num_heads=3) == network.spec


def test_dinov3_without_biases_of_queries_gets_zeros_which_the_original_wants():
    network = tiny("vit_small_patch16_dinov3")
    written = to_original(network.state_dict(), network.spec)
    assert not written[f"{BACKBONE}blocks.0.attention.q_proj.bias"].any()
    other = EoMT(**spec_of(written, num_heads=3)).eval()
    other.load_state_dict(from_original(written))
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(images)[-1], other(images)[-1], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("backbone", "num_masked_blocks"), PUBLISHED)
def test_published_sizes_are_known_by_their_shapes(backbone, num_masked_blocks):
    network = published(backbone, num_masked_blocks)
    state = to_original(network.state_dict(), network.spec)
    del state["network.attn_mask_probs"]
    assert spec_of(state) == network.spec


@pytest.mark.parametrize(
    "changes",
    [
        {"embed_dim": 64, "num_heads": 1},
        # 61 / 56 * 56 is a little less than 61.
        {"embed_dim": 56, "num_heads": 1, "mlp_ratio": 1.09},
        {"mlp_ratio": 3.3},
        {"reg_tokens": 2},
    ],
)
def test_other_sizes_are_told_by_options(changes):
    network = tiny("vit_small_patch14_reg4_dinov2", **changes)
    state = to_original(network.state_dict(), network.spec)
    with pytest.raises(InputError, match=r"3 blocks is of no published size.*network\.backbone_options={num_heads: 4}"):
        spec_of(state)
    found = spec_of(state, num_heads=changes.get("num_heads", 3))
    EoMT(**found).load_state_dict(from_original(state))
    assert found["num_masked_blocks"] == 2, "as many as there are mask probabilities"


def test_what_cannot_be_read_is_named():
    state = golden_tensors("dinov2_tiny_original_state")
    with pytest.raises(InputError, match="24 patches, which is no square"):
        spec_of(state, num_heads=3)
    assert spec_of(state, [64, 96], 3) == golden_network("dinov2_tiny").spec
    del state["network.class_head.weight"]
    with pytest.raises(InputError, match=r"class_head\.weight is missing"):
        spec_of(state, [64, 96], 3)
    state = golden_tensors("dinov3_tiny_original_state")
    del state[f"{BACKBONE}blocks.2.attention.k_proj.weight"]
    with pytest.raises(InputError, match=r"lacks attention\.k_proj\.weight"):
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
    assert (reader_of(delta), reader_of(recorded)) == (read_delta, read_original)
    assert spec_of(delta, [64, 96], 3) == golden_network("dinov3_tiny").spec
    absolute = add_backbone(delta, base)
    assert reader_of(absolute) is read_original
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
    with pytest.raises(InputError, match="5 blocks, the pretrained backbone 4"):
        add_backbone(delta, shorter)
    with pytest.raises(InputError, match=r"norm\.bias is \[7\].*size that they were trained from"):
        add_backbone(delta, base | {"norm.bias": torch.zeros(7)})
    del base["layer.3.norm1.weight"]
    with pytest.raises(InputError, match=r"lacks blocks\.3\.norm1\.weight"):
        add_backbone(delta, base)
