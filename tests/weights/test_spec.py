"""The network that shapes tell, and what they do not."""

import pytest
import torch
from safetensors.torch import save_file

from eomt.classes import Classes
from eomt.errors import InputError
from eomt.model.eomt import EoMT
from eomt.weights.load import read_incomplete, read_weights
from eomt.weights.original import PROBABILITIES, from_original, to_original
from eomt.weights.spec import network_of
from tests.golden_numbers import golden_network, golden_tensors
from tests.random_networks import PUBLISHED, published, tiny
from tests.weights.sources import ONE_HEAD, SEVEN, assert_equal, small


def spec_of(state, image_size=None, num_heads=None):
    """The network that the original's weights tell by their shapes."""
    chosen = {"image_size": image_size, "backbone_options": {"num_heads": num_heads}}
    count = {"num_masked_blocks": len(state[PROBABILITIES])} if PROBABILITIES in state else {}
    return network_of(from_original(state), chosen | count)


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


def test_the_number_of_heads_is_not_guessed(tmp_path):
    """It cannot be seen in the weights, and another one computes something else."""
    network = small(embed_dim=128, num_heads=4)
    path = tmp_path / "x.bin"
    torch.save(to_original(network.state_dict(), network.spec), path)
    said = {"kind": "panoptic", "classes": Classes(SEVEN.items[:3])}
    message = r"x\.bin: a backbone of width 128 with 2 blocks .* network\.backbone_options={num_heads: 4}"
    for silent in (None, {"backbone_options": {"embed_dim": 128, "depth": 2}}):
        with pytest.raises(InputError, match=message):
            read_weights(path, **said, network=silent)
    heads = {"backbone_options": {"num_heads": 4}}
    assert read_weights(path, **said, network=heads).network == network.spec
    save_file(network.state_dict(), tmp_path / "bare.safetensors")
    with pytest.raises(InputError, match=r"number of heads.* cannot be seen"):
        read_weights(tmp_path / "bare.safetensors", **said)
    # Callers that take the weights alone have a network of their own.
    assert_equal(read_incomplete(path).state, network.state_dict())


def test_an_image_size_that_is_a_guess_is_said(tmp_path, caplog):
    network = EoMT("vit_small_patch16_dinov3_qkvb", 1280, 80, 4, 1, 16, {"embed_dim": 64, "depth": 1, "num_heads": 1})
    torch.save(to_original(network.state_dict(), network.spec), tmp_path / "dinov3.bin")
    assert read_weights(tmp_path / "dinov3.bin", network=ONE_HEAD).network["image_size"] == [640, 640]
    assert "does not say its image size: give network.image_size=" in caplog.text
    caplog.clear()
    chosen = ONE_HEAD | {"image_size": 1280}
    assert read_weights(tmp_path / "dinov3.bin", network=chosen).network["image_size"] == [1280, 1280]
    assert "image size" not in caplog.text


def test_sizes_that_the_position_embedding_does_not_tell():
    state = golden_tensors("dinov2_tiny_original_state")
    with pytest.raises(InputError, match="24 patches, which is no square"):
        spec_of(state, num_heads=3)
    assert spec_of(state, [64, 96], 3) == golden_network("dinov2_tiny").spec
