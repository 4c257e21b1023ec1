"""Twenty recorded training steps of the original: loss, matching, optimizer, schedule and annealing together."""

import pytest
import torch

from eomt.loss.mask_classification import MaskClassificationLoss
from eomt.targets import collate_targets
from eomt.training.annealing import mask_probability
from eomt.training.optim import parameter_groups, two_stage_warmup
from eomt.weights.original import from_original
from tests.coco_objects import targets_from_masks
from tests.golden_numbers import LossPoints, golden_json, golden_network, golden_tensors


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
        parts = ("match_points", "candidates", "extra")
        points = LossPoints(*([record[f"{step}.{i}.{part}"].double() for part in parts] for i in range(len(outputs))))
        terms = loss(outputs, targets, points)
        for i, theirs in enumerate(expected["terms"]):
            assert [terms[n][i].item() for n in ("mask", "dice", "class")] == pytest.approx(theirs, abs=1e-6)
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
