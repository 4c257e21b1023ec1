"""The network against the original's recorded outputs, and the properties that the method promises."""

import pytest
import torch

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
        ({"backbone": "swin_tiny_patch4_window7_224", "backbone_options": {}}, "swin_tiny.* is not a plain ViT"),
        ({"backbone_options": {"depth": 1, "final_norm": False}}, "not a plain ViT with a final norm"),
        ({"backbone_options": {"depth": 0}}, "not a plain ViT"),
        ({"num_masked_blocks": 4}, "num_masked_blocks=4"),
        ({"backbone_options": {"no_such_option": 1}}, "no_such_option is no option"),
        # timm would unpickle the file.
        ({"backbone_options": {"checkpoint_path": "x.bin"}}, "checkpoint_path is no option"),
    ],
)
def test_bad_values_are_named_in_one_line(changes, words):
    with pytest.raises(InputError, match=words) as error:
        tiny(**changes)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_compiler_keeps_no_more_for_the_backward_pass():
    """Left to itself it keeps what the upscaling convolutions read and give, half as much again as all the rest."""
    torch.manual_seed(0)
    options = {"embed_dim": 48, "depth": 3, "num_heads": 3}
    network = EoMT("vit_small_patch14_reg4_dinov2", 64, 4, 5, 2, 16, options).train()
    inputs = torch.rand(1, 3, 64, 64), torch.zeros(2, 1, 5, dtype=torch.bool)
    weights = {weight.data_ptr() for weight in (*network.parameters(), *network.buffers())}

    def step():
        kept, hooks = {}, torch.autograd.graph.saved_tensors_hooks
        with hooks(
            lambda x: (kept.update({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()}), x)[1], lambda x: x
        ):
            outputs = [value for output in network(*inputs) for value in output]
        sum(value.square().mean() for value in outputs).backward()
        gradients = [weight.grad for weight in network.parameters()]
        network.zero_grad()
        return sum(size for address, size in kept.items() if address not in weights), gradients

    eager, gradients = step()
    network.compile(backend="aot_eager_decomp_partition", dynamic=False)
    compiled, found = step()
    assert compiled < 1.1 * eager
    for one, other in zip(found, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
