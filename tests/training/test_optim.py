"""Learning rates and schedule against the original's recorded numbers."""

import pytest
import torch

from eomt.training.optim import Recipe, parameter_groups, two_stage_warmup
from eomt.weights.original import from_original
from tests.golden_numbers import golden_json, golden_network


@pytest.mark.parametrize("setting", ["default", "llrd_l2_disabled", "dinov3"])
def test_learning_rates(setting):
    expected = golden_json("learning_rates")["base_lr"][setting]
    network = golden_network("dinov2_tiny")
    names = {id(p): n for n, p in network.named_parameters()}
    lr, decayed = (2e-4, False) if setting == "dinov3" else (1e-4, setting == "default")
    groups = parameter_groups(network, lr, 0.8, decayed)
    ours = {names[id(p)]: group["lr"] for group in groups for p in group["params"]}
    renamed = {next(iter(from_original({k: torch.zeros(1)}))): v for k, v in expected.items()}
    assert ours.keys() == renamed.keys()
    for name, rate in renamed.items():
        assert ours[name] == pytest.approx(rate, rel=1e-6), name
    assert len(groups) <= 6


def test_frozen_parameters_are_in_no_group():
    network = golden_network("dinov2_tiny")
    network.queries.requires_grad_(False)
    assert not any(p is network.queries for g in parameter_groups(network, 1e-4) for p in g["params"])


def test_schedule():
    expected = golden_json("learning_rates")["schedule"]
    for stage, values in expected["multiplier"].items():
        multiplier = two_stage_warmup(stage, expected["warmup_steps"], expected["total_steps"])
        for step, value in zip(expected["steps"], values, strict=True):
            assert multiplier(step) == pytest.approx(value, rel=1e-6, abs=1e-12)


def test_schedule_of_a_run_shorter_than_its_warmup_stays_in_range():
    multiplier = two_stage_warmup("backbone", (5, 10), 8)
    assert all(0 <= multiplier(step) <= 1 for step in range(12))


@pytest.mark.parametrize(
    "damage",
    [
        {"exp_avg": torch.zeros(1)},  # a fused kernel would write behind it
        {"exp_avg_sq": "x"},
        {"step": torch.zeros(9)},
    ],
)
def test_moments_of_other_shapes_are_refused(damage):
    """Only the moments of a checkpoint's optimizer, where they fit."""
    parameter = torch.nn.Parameter(torch.zeros(3, 4))
    optimizer = Recipe().optimizer([{"params": [parameter], "lr": 0.5}], fused=True)
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    saved = optimizer.state_dict()
    saved["param_groups"][0] |= {"maximize": True, "lr": "x"}
    saved["state"][0]["exp_avg"] = torch.full((4, 3), 7.0).T
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert optimizer.param_groups[0]["maximize"] is False
    moment = optimizer.state[parameter]["exp_avg"]
    assert moment.is_contiguous()
    assert moment.eq(7).all()
    saved["state"][0] |= damage
    with pytest.raises(ValueError, match="that is no tensor of"):
        optimizer.load_state_dict(saved)
