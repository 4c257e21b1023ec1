"""Masks that are multiplied out only where they are needed equal those that are multiplied out first."""

import pytest
import torch
import torch.nn.functional as F

from eomt.model.eomt import Upscale
from eomt.model.outputs import QueryOutput
from tests.golden_numbers import golden_network


def prediction(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 7, 16), (3, 12, 20, 16), (3, 7, 5))
    return QueryOutput(*(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes))


@pytest.mark.parametrize("grid", [(3, 5), (12, 20), (4, 7)])
def test_masks_on_a_grid(grid):
    part = prediction()
    expected = F.interpolate(part.mask_logits, grid, mode="bilinear", align_corners=False)
    torch.testing.assert_close(part.masks_on(grid), expected)


@pytest.mark.parametrize("autocast", [False, True])
def test_upscaling_equals_the_transposed_convolution(autocast):
    torch.manual_seed(0)
    upscale, x = Upscale(16), torch.randn(2, 3, 5, 16)

    def plain(x):
        x = upscale.depthwise(F.gelu(upscale.transposed(x.permute(0, 3, 1, 2))))
        return upscale.norm(x.permute(0, 2, 3, 1))

    results = []
    for function in (upscale, plain):
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = function(leaf)
        gradients = torch.autograd.grad(out.float().pow(3).sum(), [leaf, *upscale.parameters()])
        results.append([out, *(g / g.abs().max() for g in gradients)])
    # bfloat16 keeps 8 bits; all round in other places.
    tolerance = {"atol": 0.06 if autocast else 1e-5, "rtol": 0}
    torch.testing.assert_close(*results, **tolerance)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        torch.testing.assert_close(upscale(x), results[1][0].detach(), **tolerance)


@pytest.mark.parametrize("name", ["dinov2_tiny", "dinov3_tiny"])
def test_checkpointed_activations_change_nothing(name):
    network = golden_network(name).train()
    images = torch.rand(2, 3, *network.image_size)
    drops = torch.rand(network.num_masked_blocks, 2, network.num_queries) > 0.5
    results = []
    for network.activation_checkpointing in (False, True):
        outputs = network(images, drops)
        value = sum(o.mask_logits.square().mean() + o.class_logits.square().mean() for o in outputs)
        gradients = torch.autograd.grad(value, [p for p in network.parameters() if p.requires_grad])
        results.append((value.detach(), gradients))
    torch.testing.assert_close(*results, atol=0, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dinov2_tiny", "dinov3_tiny"])
def test_compiled_without_graph_breaks_or_recompiling(name):
    network = golden_network(name).train()
    images = torch.rand(2, 3, *network.image_size)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    shape = (network.num_masked_blocks, 2, network.num_queries)
    for graphs, drops in ((1, torch.ones(shape, dtype=torch.bool)), (1, torch.rand(shape) > 0.5), (2, None)):
        results = []
        for function in (network, compiled):
            outputs = function(images, drops)
            value = sum(o.mask_logits.square().mean() + o.class_logits.square().mean() for o in outputs)
            results.append((value.detach(), torch.autograd.grad(value, network.queries)))
        torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    torch._dynamo.reset()


def test_gradients_have_their_parameters_strides():
    """DDP copies and warns of those that have not."""
    network = golden_network("dinov2_tiny").train()
    output = network(torch.rand(1, 3, *network.image_size))[-1]
    (output.mask_logits.sum() + output.class_logits.sum()).backward()
    assert all(p.grad.stride() == p.stride() for p in network.parameters() if p.grad is not None and p.ndim == 4)
