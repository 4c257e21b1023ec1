"""The loss of validations."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import train
from eomt.loss.mask_classification import MaskClassificationLoss
from eomt.model.outputs import QueryOutput
from eomt.targets import collate_targets, targets_from_id_map
from eomt.training.callbacks.curves import read_logs
from eomt.training.seeding import point_seeds
from eomt.training.validation_loss import ValidationLoss
from tests.random_networks import random_network
from tests.running import configured

pytestmark = pytest.mark.xdist_group("run")


def test_the_loss_of_a_validation_is_that_of_the_last_output():
    network, generator = random_network(), torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=generator)
    targets = collate_targets(
        [targets_from_id_map(np.arange(1024).reshape(32, 32) // 400, range(1, n + 1), range(n)) for n in (2, 1)]
    )
    loss = MaskClassificationLoss(num_points=64)
    mean = ValidationLoss(loss, 3, 0, torch.device("cpu"))
    strategy = SimpleNamespace(reduce=lambda sums, reduce_op: sums)
    assert set(mean.means(strategy).values()) == {0}, "of no input"
    with torch.no_grad():
        (output,) = network(images)
        mean.add(output.logits(), targets, 7)  # the third image fills the batch up
        points = loss.draw(1, network.num_queries, (2, 1), point_seeds(3, [(7, 0, 0), (7, 0, 1)]))
        terms = loss([QueryOutput(*(part[:2] for part in output))], targets, points)
    found = mean.means(strategy)
    for name, value in terms.items():
        assert found[f"val/loss_{name}"] == pytest.approx(float(value), rel=1e-5)
    assert found["val/loss"] == pytest.approx(float(loss.total(terms)), rel=1e-5)


@pytest.mark.slow
def test_the_loss_of_validations_is_logged_where_it_is_wanted(run, options, tmp_path):
    train.main(configured(tmp_path, *options, "trainer.max_steps=2", "data.validation_loss=true"))
    logs = {folder: read_logs(folder) for folder in (run, tmp_path)}
    assert {name for name in logs[tmp_path] if name.startswith("val/")} == {
        *("val/loss", "val/loss_mask", "val/loss_dice", "val/loss_class")
    }
    assert not any(name.startswith("val/") for name in logs[run])
