"""Averages of the weights."""

from types import SimpleNamespace

import lightning
import pytest
import torch
from torch import nn

from eomt.errors import InputError
from eomt.training.callbacks import WeightAverage
from eomt.training.fsdp import ShardedStrategy
from eomt.weights.checkpoint import TRAINED


class Linear(lightning.LightningModule):
    """A module as `WeightAverage` knows it, with a frozen weight, and a buffer that is not averaged."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.layer.bias.requires_grad_(False)
        self.register_buffer("mask_probabilities", torch.ones(1))

    def prepare_network(self):
        """Nothing to load."""


def test_averages_follow_their_formula_and_give_way():
    """The network holds them in a validation alone; a second batch of a step does not count."""
    module = Linear()
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    trainer = SimpleNamespace(global_step=0, sanity_checking=False, strategy=strategy, precision="32-true")
    callback = WeightAverage(0.25)
    callback.setup(trainer, module, "fit")
    expected, bias = module.layer.weight.detach().clone(), module.layer.bias.clone()
    for step in range(1, 5):
        with torch.no_grad():
            module.layer.weight.add_(torch.randn(2, 3))
            module.mask_probabilities.fill_(1 / step)
        trainer.global_step = step
        for _ in range(2):
            callback.on_train_batch_end(trainer, module, None, None, 0)
        decay = min(0.25, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * module.layer.weight.detach()
    weights = module.layer.weight.detach().clone()
    saved = {"state_dict": module.state_dict()}
    callback.on_save_checkpoint(trainer, module, saved)
    torch.testing.assert_close(saved["state_dict"]["layer.weight"], expected)
    assert torch.equal(saved["state_dict"]["layer.bias"], bias), "frozen weights stay to the last bit"
    assert saved["state_dict"]["mask_probabilities"].item() == 0.25
    assert torch.equal(saved[TRAINED]["layer.weight"], weights)
    callback.on_validation_epoch_start(trainer, module)
    torch.testing.assert_close(module.layer.weight.detach(), expected)
    callback.on_validation_epoch_end(trainer, module)
    assert torch.equal(module.layer.weight, weights)


@pytest.mark.parametrize(
    ("strategy", "precision", "words"),
    [(ShardedStrategy(), "32-true", "sharded weights"), (None, "bf16-true", "half precision.*bf16-mixed")],
)
def test_weights_that_are_not_averaged(strategy, precision, words):
    trainer = SimpleNamespace(strategy=strategy, precision=precision)
    with pytest.raises(InputError, match=rf"callbacks\.ema does not average .*{words}"):
        WeightAverage(0.5).setup(trainer, None, "fit")
