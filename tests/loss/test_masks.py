"""Masks that are multiplied out only where they are needed equal those that are multiplied out first."""

import pytest
import torch

from eomt.loss.masks import OutputMasks
from eomt.loss.matching import Matcher
from eomt.loss.points import sample_maps
from eomt.model.outputs import QueryOutput


def predictions(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 7, 16), (3, 12, 20, 16), (3, 7, 5))
    return [
        QueryOutput(*(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes))
        for _ in range(2)
    ]


# Half precision rounds to 8 bits.
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(("dtype", "margin"), [(torch.float64, 1e-12), (torch.bfloat16, 0.15)])
def test_masks_at_points(dtype, margin, whole):
    outputs = predictions(dtype)
    # Corners of the image too, where bilinear reading leaves it.
    corners = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]).expand(2, 3, -1, -1)
    points = torch.cat((2 * torch.rand(2, 3, 50, 2) - 1, corners), dim=2).to(torch.promote_types(dtype, torch.float32))
    for output, own, masks in zip(outputs, points, OutputMasks(outputs).at(points, whole), strict=True):
        assert masks.dtype == torch.promote_types(dtype, torch.float32)
        plain = output.mask_logits.to(masks.dtype)
        for query in range(7):
            expected = sample_maps(plain[:, query], own)
            torch.testing.assert_close(masks[:, query], expected, atol=margin, rtol=0)


@pytest.mark.parametrize("counts", [(2, 0, 3), (0, 0, 0), (2, 2, 2), (1, 9, 0)])
def test_masks_of_matched_queries(counts):
    pairs = Matcher()(torch.randn(2, 3, 7, max(counts)), counts)
    results = []
    for direct in (False, True):
        leaves = [QueryOutput(*(x.clone().requires_grad_() for x in output)) for output in predictions()]
        if direct:
            queries = zip(leaves, pairs.query, strict=True)
            masks = torch.cat([leaf.mask_logits[pairs.image, query] for leaf, query in queries])
        else:
            masks = OutputMasks(leaves).of(pairs)
        gradients = torch.autograd.grad(masks.sin().sum(), [part for leaf in leaves for part in leaf[:2]])
        results.append((masks.detach(), gradients))
    torch.testing.assert_close(*results)
    assert all(g.is_contiguous() for g in results[0][1]), "a copy of the features' size is spared"
