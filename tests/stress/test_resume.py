"""Runs ended at random moments and resumed: they end like the undisturbed run, bit for bit.

    python -m pytest -m stress tests/stress/test_resume.py                    20 kills
    python -m pytest -m "slow or stress" tests/stress/test_resume.py --count 1

SIGKILL, SIGTERM, SIGUSR1 and Ctrl-C in turn; a checkpoint after every step, validation within, a data worker; all
weights trained, and LoRA with averaged weights.
"""

import random
import signal
import time

import pytest

import train
from eomt.weights.checkpoint import intact, read_checkpoint
from tests.processes import launched, wait_for_saves
from tests.running import configured, equal, logged

pytestmark = pytest.mark.xdist_group("kills")

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@pytest.fixture(scope="module", params=[(), ("callbacks.ema.decay=0.9", "model.lora.rank=2")], ids=["all", "lora, ema"])
def settings(options, request):
    run = ("trainer.max_epochs=12", "trainer.check_val_every_n_epoch=3", "callbacks.last.every_n_steps=1")
    return (*options, *run, *request.param, "callbacks.pictures=null", "callbacks.curves=null")


@pytest.fixture(scope="module")
def undisturbed(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    train.main(configured(folder, *settings))
    return state(folder)


def state(folder):
    """Parts that must be the same: weights, optimizer, schedule, the loader's position, all logged numbers."""
    checkpoint = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    parts = {part: checkpoint[part] for part in ("global_step", "state_dict", "optimizer_states", "lr_schedulers")}
    return {**parts, "loader": checkpoint["loops"]["fit_loop"]["state_dict"], "logged": logged(folder)}


@pytest.mark.parametrize("count", [pytest.param(2, marks=pytest.mark.slow), pytest.param(10, marks=pytest.mark.stress)])
def test_killed_runs_end_like_the_undisturbed_one(settings, undisturbed, tmp_path, request, count):
    moments, steps = random.Random(0), undisturbed["global_step"]
    for number in range(request.config.getoption("count") or count):
        run, sent = tmp_path / str(number), SIGNALS[number % len(SIGNALS)]
        last = run / "checkpoints" / "last.ckpt"
        process = launched(*settings, f"hydra.run.dir={run}")
        # Counted in checkpoints, one per step, since machines differ in speed; then anywhere in a step or a save.
        saves, delay = moments.randint(1, steps - 6), moments.uniform(0, 0.3)
        wait_for_saves(process, last, saves)
        time.sleep(delay)
        process.send_signal(sent)
        output, _ = process.communicate()
        assert process.returncode in (0, -sent if sent == signal.SIGKILL else 128 + sent), output
        if process.returncode:
            train.main(configured(run, *settings, f"ckpt='{intact(last)}'"))
        print(f"{sent.name}, save {saves} + {delay:.2f} s: status {process.returncode}")
        ended = state(run)
        for part, value in undisturbed.items():
            assert equal(ended[part], value), f"{part} after {sent.name}, save {saves} + {delay:.2f} s"
