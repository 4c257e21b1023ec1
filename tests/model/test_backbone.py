"""Attention in two calls, positions of smaller images, and pretrained weights."""

import pytest
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from torch.utils._python_dispatch import TorchDispatchMode

from eomt.errors import InputError
from eomt.model.backbone import Backbone
from tests.golden_numbers import golden_network

BACKBONES = {
    "learned": "vit_small_patch14_reg4_dinov2",
    "with prefix": "vit_small_patch16_224",
    "rotary": "vit_small_patch16_dinov3_qkvb",
}


def backbone_of(name):
    torch.manual_seed(0)
    backbone = Backbone(BACKBONES[name], (64, 64), 8, {"embed_dim": 32, "depth": 2, "num_heads": 2}).eval()
    if backbone.vit.pos_embed is not None:
        with torch.no_grad():
            backbone.vit.pos_embed.normal_()
    return backbone


def dinov2(image_size=(32, 48), embed_dim=32):
    return Backbone(BACKBONES["learned"], image_size, 8, {"embed_dim": embed_dim, "depth": 3, "num_heads": 2})


# Values and gradients; under autocast both forms round to 8 bits.
@pytest.mark.parametrize(
    ("dtype", "autocast", "tolerance"),
    [(torch.float64, False, 1e-10), (torch.float32, False, 2e-5), (torch.float32, True, 0.06)],
)
@pytest.mark.parametrize("name", ["dinov2_tiny", "dinov3_tiny"])
def test_two_call_attention_equals_one_call_with_the_full_mask(name, dtype, autocast, tolerance):
    network = golden_network(name, dtype)
    backbone, index = network.backbone, len(network.backbone.blocks) - 1
    grid, queries = (4, 6), network.num_queries
    rope = backbone.rotary_embedding(grid)
    rope = rope.to(dtype) if rope is not None else None
    rows = queries + backbone.num_prefix_tokens + grid[0] * grid[1]
    tokens = torch.randn(2, rows, backbone.embed_dim, dtype=dtype, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(2, queries, rows, generator=torch.Generator().manual_seed(1)) > 0.5
    mask[:, :3] = False
    mask[:, 0, 0] = True  # no patch at all
    mask[:, 1, -1] = True  # a single patch
    mask[:, 2] = True  # all
    full = torch.ones(2, rows, rows, dtype=torch.bool)
    full[:, :queries] = mask
    results = []
    for m in (mask, full):
        x = tokens.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = backbone.run_block(index, x, rope, m)
        gradient = torch.autograd.grad(out.square().mean(), x)[0]
        results.append((out / out.abs().max(), gradient / gradient.abs().max()))
    torch.testing.assert_close(results[0], results[1], atol=tolerance, rtol=0)


def test_weights_that_cannot_be_had_are_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    backbone = dinov2()
    before = backbone.vit.pos_embed.clone()
    with pytest.raises(InputError, match=r"cannot be had.*model\.pretrained=FILE") as error:
        backbone.load_pretrained(True)
    assert "\n" not in str(error.value)
    torch.testing.assert_close(backbone.vit.pos_embed, before)
    with pytest.raises(InputError, match=r"no/such/file\.safetensors: no such file"):
        backbone.load_pretrained("no/such/file.safetensors")


def test_pretrained_weights_from_a_file(tmp_path):
    source, other = dinov2((32, 32)), dinov2((64, 48))
    path = tmp_path / "vit.safetensors"
    save_file(source.vit.state_dict(), path)
    other.load_pretrained(str(path))
    for key, value in source.vit.state_dict().items():
        if key == "pos_embed":
            assert other.vit.pos_embed.shape[1] == 48, "resampled to the other grid"
        else:
            torch.testing.assert_close(other.vit.state_dict()[key], value, atol=0, rtol=0)


def test_weights_of_another_model_are_refused(tmp_path):
    path = tmp_path / "vit.safetensors"
    save_file(dinov2().vit.state_dict(), path)
    wider = dinov2(embed_dim=64)
    with pytest.raises(InputError, match="cannot be had"):
        wider.load_pretrained(str(path))


@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_cropped_positions_are_those_of_the_whole_image(name):
    backbone = backbone_of(name)
    images = torch.randn(2, 3, 64, 64)
    whole, rope = backbone.embed(images), backbone.rotary_embedding((8, 8))
    backbone.crop_position = True
    assert torch.equal(backbone.embed(images), whole)
    part = backbone.embed(images[:, :, :40, :24])
    prefix = backbone.num_prefix_tokens
    assert torch.equal(part[:, :prefix], whole[:, :prefix])
    expected = whole[:, prefix:].unflatten(1, (8, 8))[:, :5, :3].flatten(1, 2)
    assert (part[:, prefix:] - expected).abs().max() < 1e-5
    if rope is not None:
        assert torch.equal(backbone.rotary_embedding((5, 3)), rope.unflatten(0, (8, 8))[:5, :3].flatten(0, 1))
        assert torch.equal(backbone.rotary_embedding((8, 8)), rope)


@torch.no_grad()
def test_positions_are_resampled_without_the_option_and_for_larger_images():
    backbone = backbone_of("learned")
    expected = {
        grid: resample_abs_pos_embed(backbone.vit.pos_embed, list(grid), [8, 8], num_prefix_tokens=0)
        for grid in ((5, 3), (9, 3))
    }
    assert torch.equal(backbone._position_embedding((5, 3), 0), expected[5, 3])
    backbone.crop_position = True
    assert not torch.equal(backbone._position_embedding((5, 3), 0), expected[5, 3])
    assert torch.equal(backbone._position_embedding((9, 3), 0), expected[9, 3])


@pytest.mark.parametrize("name", ["dinov2_tiny", "dinov3_tiny"])
def test_a_call_makes_no_tensor_that_a_gpu_would_wait_for(name):
    """Nor one that a CUDA graph could not hold; the rotary embedding is timm's."""
    made = []

    class Factories(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.overloadpacket.__name__ in ("arange", "linspace", "lift_fresh", "scalar_tensor", "tensor"):
                made.append(func)
            return func(*args, **(kwargs or {}))

    network = golden_network(name).eval()
    backbone, grid = network.backbone, network.backbone.native_grid
    with torch.no_grad(), Factories():
        network(torch.zeros(1, 3, *network.image_size, dtype=torch.uint8))
    assert not made
    if name == "dinov3_tiny":
        assert torch.equal(backbone.rotary_embedding(grid), backbone.vit.rope.get_embed(grid))
        assert backbone.double().rotary_embedding(grid).dtype == torch.float64
        assert torch.equal(backbone.rotary_embedding(grid), backbone.vit.rope.get_embed(grid))
