"""Learning rates, schedule, annealing, and 20 recorded training steps of the original."""

import pytest
import torch

from eomt.errors import InputError
from eomt.loss.mask_classification import MaskClassificationLoss
from eomt.loss.points import LossPoints
from eomt.targets import collate_targets, targets_from_masks
from eomt.training.annealing import mask_probability, resolve_windows
from eomt.training.optim import parameter_groups, two_stage_warmup
from eomt.weights.original import from_original
from tests.golden_numbers import golden_json, golden_network, golden_tensors


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


def test_mask_probability():
    expected = golden_json("annealing")
    windows = list(zip(expected["start_steps"], expected["end_steps"], strict=True))
    for step, row in zip(expected["steps"], expected["mask_probability"], strict=True):
        for (start, end), value in zip(windows, row, strict=True):
            assert mask_probability(step, start, end, expected["poly_power"]) == pytest.approx(value, abs=1e-6)


def test_windows_as_fractions_and_steps():
    sixths = [["1/6", "2/6"], ["2/6", "3/6"], ["3/6", "4/6"], ["4/6", "5/6"]]
    assert resolve_windows(sixths, 88_692) == [(14782, 29564), (29564, 44346), (44346, 59128), (59128, 73910)]
    giant = [[f"{4 + 3 * k}/24", f"{8 + 3 * k}/24"] for k in range(5)]
    starts, ends = zip(*resolve_windows(giant, 88_692), strict=True)
    assert starts == (14782, 25869, 36955, 48042, 59128)
    assert ends == (29564, 40651, 51737, 62824, 73910)
    assert resolve_windows([[0, 3000], [0.25, 0.5]], 1000) == [(0, 3000), (250, 500)]


@pytest.mark.parametrize("window", [["x", 1], [0.5, 0.2], [0.5, 3000], [-1, 5], [1, 2, 3], [1]])
def test_bad_windows_are_named(window):
    with pytest.raises(InputError, match=r"annealing\.windows"):
        resolve_windows([window], 100)


@pytest.mark.slow
def test_twenty_steps_equal_the_originals():
    """In float64 under the recorded draws: every loss term, gradient norm and final weight."""
    record, plan = golden_tensors("trajectory"), golden_json("trajectory")
    network = golden_network("dinov2_tiny", torch.float64).train()
    loss = MaskClassificationLoss(num_points=plan["num_points"])
    groups = parameter_groups(network, plan["lr"], plan["llrd"])
    optimizer = torch.optim.AdamW(groups, weight_decay=plan["weight_decay"])
    multipliers = [two_stage_warmup(g["stage"], plan["warmup_steps"], plan["total_steps"]) for g in groups]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, multipliers)
    windows = list(zip(plan["annealing"]["start_steps"], plan["annealing"]["end_steps"], strict=True))
    for step, expected in enumerate(plan["log"]):
        probabilities = [mask_probability(step, *window) for window in windows]
        assert probabilities == pytest.approx(expected["mask_probability"], abs=1e-6)
        kept = torch.zeros(plan["batch"], network.num_queries)
        drops = torch.stack([record.get(f"{step}.drop.{i}", kept) > p for i, p in enumerate(probabilities)])
        targets = collate_targets(
            [
                targets_from_masks(record[f"{step}.masks.{b}"].numpy() > 0, record[f"{step}.labels.{b}"].tolist())
                for b in range(plan["batch"])
            ]
        )
        outputs = network(record[f"{step}.images"], drops)
        points = [
            LossPoints(*(record[f"{step}.{i}.{part}"].double() for part in ("match_points", "candidates", "extra")))
            for i in range(len(outputs))
        ]
        terms = loss(outputs, targets, points)
        for ours, theirs in zip(terms, expected["terms"], strict=True):
            assert [ours[n].item() for n in ("mask", "dice", "class")] == pytest.approx(theirs, abs=1e-6)
        total = loss.total(terms)
        assert total.item() == pytest.approx(expected["total"], abs=1e-5)
        optimizer.zero_grad()
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), plan["clip_norm"])
        assert norm.item() == pytest.approx(expected["grad_norm"], rel=1e-6)
        optimizer.step()
        schedule.step()
    final = from_original({k.removeprefix("final."): v for k, v in record.items() if k.startswith("final.")})
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, final[name].double(), atol=1e-6, rtol=0)
