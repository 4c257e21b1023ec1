"""The images that a GPU takes at once, by its memory."""

import pytest
import torch

from eomt.training.memory import largest_batch
from tests.random_networks import published


@pytest.fixture(autouse=True)
def nothing_taken(monkeypatch):
    for name in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device: 0)


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
    memory = (gib * 2**30, 1000 * 2**30) if devices == 1 else (0, gib * 2**30)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: memory)
    assert largest_batch(published(backbone, 3), torch.device("cuda"), 16, devices) == expected


def test_weights_in_shards_leave_room_for_images(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 24 * 2**30))
    network = published("vit_giant_patch14_reg4_dinov2", 5)
    sizes = [largest_batch(network, torch.device("cuda"), 32, 4, sharded) for sharded in (False, True)]
    assert sizes == [1, 2]


@pytest.mark.parametrize(("global_batch", "expected"), [(16, 4), (8, 4), (6, 3), (2, 2), (7, 1)])
def test_a_cpu_takes_four_at_most(global_batch, expected):
    network = published("vit_small_patch14_reg4_dinov2", 3)
    assert largest_batch(network, torch.device("cpu"), global_batch, 1) == expected
