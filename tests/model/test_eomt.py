"""The network against the original's recorded outputs, and the properties that the method promises."""

import pytest
import torch
from safetensors.torch import save_file

from eomt.errors import InputError
from eomt.model.eomt import EoMT
from tests.golden_numbers import golden_network, golden_tensors


def tiny(**changes):
    options = {
        "backbone": "vit_small_patch14_reg4_dinov2",
        "image_size": (32, 48),
        "num_classes": 3,
        "num_queries": 5,
        "num_masked_blocks": 2,
        "patch_size": 8,
        "backbone_options": {"embed_dim": 32, "depth": 3, "num_heads": 2},
    }
    return EoMT(**{**options, **changes}).eval()


@pytest.mark.parametrize("name", ["dinov2_tiny", "dinov3_tiny"])
@pytest.mark.parametrize("mode", ["masked", "annealed", "unmasked"])
def test_outputs_equal_the_originals(name, mode):
    network, recorded = golden_network(name).eval(), golden_tensors(f"{name}_forward")
    images = recorded["images"]
    drops = None
    if mode != "unmasked":
        shape = (network.num_masked_blocks, len(images), network.num_queries)
        drops = torch.full(shape, mode == "annealed")
    with torch.no_grad():
        outputs = network(images, drops)
    assert len(outputs) == sum(key.startswith(f"{mode}.mask_logits.") for key in recorded)
    for i, output in enumerate(outputs):
        torch.testing.assert_close(output.mask_logits, recorded[f"{mode}.mask_logits.{i}"], atol=1e-4, rtol=0)
        torch.testing.assert_close(output.class_logits, recorded[f"{mode}.class_logits.{i}"], atol=1e-4, rtol=0)


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


def test_masks_change_the_output_unless_they_are_dropped():
    network = golden_network("dinov2_tiny").eval()
    images = golden_tensors("dinov2_tiny_forward")["images"]
    shape = (3, 2, network.num_queries)
    with torch.no_grad():
        free = network(images)[-1].mask_logits
        dropped = network(images, torch.ones(shape, dtype=torch.bool))[-1].mask_logits
        masked = network(images, torch.zeros(shape, dtype=torch.bool))[-1].mask_logits
    torch.testing.assert_close(free, dropped, atol=1e-5, rtol=0)
    assert (free - masked).abs().max() > 1e-2


@pytest.mark.parametrize("backbone", ["vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3_qkvb"])
@pytest.mark.parametrize("size", [(32, 48), (64, 32), (40, 40)])
def test_any_image_size_that_is_a_multiple_of_the_patch(backbone, size):
    network = tiny(backbone=backbone)
    with torch.no_grad():
        output = network(torch.rand(2, 3, *size))[-1]
    assert output.mask_logits.shape == (2, 5, size[0] // 4, size[1] // 4)
    assert output.class_logits.shape == (2, 5, 4)
    assert output.mask_logits.isfinite().all()


def test_bytes_and_fractions_are_the_same_image():
    network = tiny()
    images = torch.randint(0, 256, (1, 3, 32, 48), dtype=torch.uint8)
    with torch.no_grad():
        from_bytes, from_fractions = network(images)[0], network(images / 255)[0]
    torch.testing.assert_close(from_bytes, from_fractions, atol=1e-5, rtol=0)


def test_pixel_statistics_are_no_weights():
    assert not [key for key in tiny().state_dict() if "pixel" in key]


def test_giant_with_its_gated_mlp_builds_and_runs():
    options = {"embed_dim": 32, "depth": 2, "num_heads": 2}
    network = tiny(backbone="vit_giant_patch14_reg4_dinov2", backbone_options=options)
    with torch.no_grad():
        assert network(torch.rand(1, 3, 32, 48))[0].class_logits.shape == (1, 5, 4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_size": 30}, "multiple of the patch size 8"),
        ({"backbone": "vit_smal_dino"}, "vit_smal_dino"),
        ({"backbone": "resnet18", "backbone_options": {}}, "resnet18"),
        ({"num_masked_blocks": 4}, "num_masked_blocks=4"),
        ({"num_queries": 0}, "num_queries=0"),
        ({"backbone_options": {"no_such_option": 1}}, "no_such_option"),
    ],
)
def test_bad_values_are_named_in_one_line(changes, words):
    with pytest.raises(InputError, match=words) as error:
        tiny(**changes)
    assert "\n" not in str(error.value)


def test_weights_that_cannot_be_had_are_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    backbone = tiny().backbone
    before = backbone.vit.pos_embed.clone()
    with pytest.raises(InputError, match=r"cannot be had.*model\.pretrained=FILE") as error:
        backbone.load_pretrained(True)
    assert "\n" not in str(error.value)
    torch.testing.assert_close(backbone.vit.pos_embed, before)
    with pytest.raises(InputError, match=r"no/such/file\.safetensors: no such file"):
        backbone.load_pretrained("no/such/file.safetensors")


def test_pretrained_weights_from_a_file(tmp_path):
    source, other = tiny(image_size=32).backbone, tiny(image_size=(64, 48)).backbone
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
    save_file(tiny().backbone.vit.state_dict(), path)
    wider = tiny(backbone_options={"embed_dim": 64, "depth": 3, "num_heads": 2}).backbone
    with pytest.raises(InputError, match="cannot be had"):
        wider.load_pretrained(str(path))
