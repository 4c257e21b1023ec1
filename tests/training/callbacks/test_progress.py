"""The progress bar's length."""

from types import SimpleNamespace

import pytest

from eomt.training.callbacks import Progress


@pytest.mark.parametrize(
    ("max_steps", "global_step", "done", "expected"),
    [
        (-1, 3, 0, 10),  # the epochs end the run
        (100, 3, 0, 10),
        (7, 5, 0, 4),  # two steps of two batches are left
        (7, 5, 10, 4),  # the count still stands at the end of the epoch before
        (7, 5, 3, 7),  # resumed after three batches
    ],
)
def test_the_last_epoch_counts_accumulated_batches(max_steps, global_step, done, expected):
    progress = SimpleNamespace(current=SimpleNamespace(ready=done))
    bar = Progress()
    bar._trainer = SimpleNamespace(
        num_training_batches=10,
        max_steps=max_steps,
        global_step=global_step,
        accumulate_grad_batches=2,
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress)),
    )
    assert bar.total_train_batches == expected
