"""The images that a GPU takes at once, by its memory."""

from types import SimpleNamespace

import pytest
import torch

from eomt.training.memory import largest_batch
from tests.random_networks import published


@pytest.mark.parametrize(
    ("gib", "backbone", "devices", "expected"),
    [
        (79, "vit_large_patch14_reg4_dinov2", 1, 16),
        (79, "vit_large_patch14_reg4_dinov2", 4, 4),
        (40, "vit_large_patch14_reg4_dinov2", 1, 8),
        (22, "vit_large_patch14_reg4_dinov2", 1, 4),
        (8, "vit_giant_patch14_reg4_dinov2", 1, 1),
        (22, "vit_small_patch16_dinov3_qkvb", 1, 16),
    ],
)
def test_the_largest_part_of_a_step_that_fits(gib, backbone, devices, expected, monkeypatch):
    properties = SimpleNamespace(total_memory=gib * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert largest_batch(published(backbone, 3), torch.device("cuda"), 16, devices) == expected


@pytest.mark.parametrize(("global_batch", "expected"), [(16, 4), (8, 4), (6, 3), (2, 2), (7, 1)])
def test_a_cpu_takes_four_at_most(global_batch, expected):
    network = published("vit_small_patch14_reg4_dinov2", 3)
    assert largest_batch(network, torch.device("cpu"), global_batch, 1) == expected
