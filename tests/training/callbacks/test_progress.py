"""Progress of a run: its one bar, and its lines where there is none."""

import io
import logging
import re
import sys
from types import SimpleNamespace

import pytest

import eval as evaluation
import train
from eomt.cli.console import Console
from eomt.training.callbacks import Progress, ProgressLines
from tests.running import configured


def test_one_bar_for_the_whole_run_and_messages_beside_it(monkeypatch):
    """A run is resumed at step 4 of 10, with two batches to a step; it fails after step 6."""
    output = io.StringIO()
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(logging.getLogger("bar"), "handlers", [Console(output)])
    module = SimpleNamespace(total_steps=10)
    trainer = SimpleNamespace(is_global_zero=True, lightning_module=module, global_step=4, current_epoch=1)
    bar = Progress(refresh_rate=1)
    monkeypatch.setattr(bar, "get_metrics", lambda *_: {})
    bar.setup(trainer, module, "fit")
    bar.on_train_start(trainer, module)
    for trainer.current_epoch in (1, 2):
        bar.on_train_epoch_start(trainer, module)
        for batch in (0, 1):
            trainer.global_step += batch
            bar.on_train_batch_end(trainer, module, None, None, batch)
        bar.on_train_epoch_end(trainer, module)
    logging.getLogger("bar").warning("a message")
    bar.on_exception(trainer, module, ValueError())
    output.write("error: bad")
    shown = re.split(r"[\r\n]", output.getvalue())
    assert {line for line in shown if "message" in line or "error" in line} == {"a message", "error: bad"}
    assert re.search(r"(\d+)/10", output.getvalue())[1] == "4"
    assert re.search(r"60%.* 6/10 ", shown[-3] + shown[-2])


@pytest.mark.slow
def test_lines_tell_what_a_bar_would(options, tmp_path, caplog):
    """Steps, validations, a table of all of them, those before a resume included; tenths of an evaluation."""
    caplog.set_level("INFO", logger="eomt")
    often = ("trainer.log_every_n_steps=2", "trainer.check_val_every_n_epoch=1", "data.batch_size=2")
    train.main(configured(tmp_path, *options, *often, "trainer.max_epochs=1"))
    steps = [line for line in caplog.messages if line.startswith("step")]
    assert len(steps) == 2
    assert re.fullmatch(r"step 2 of 3, loss \d+\.\d{3}, [\d.]+ images/s, \d:\d\d:\d\d left", steps[0])
    assert re.fullmatch(r"step 3 of 3, loss .* 0:00:00 left", steps[1])
    found = [re.fullmatch(r"validation after step 3: pq ([\d.]+), sq .*, rq .* \(.*\)", m) for m in caplog.messages]
    score = next(match[1] for match in found if match)
    caplog.clear()
    checkpoint = f"ckpt='{tmp_path}/checkpoints/last.ckpt'"
    train.main(configured(tmp_path / "on", *options, *often, checkpoint))
    table = next(m for m in caplog.messages if m.startswith("validations:")).splitlines()
    assert table[1].split() == ["step", "pq", "sq", "rq"]
    assert [line.split()[0] for line in table[2:]] == ["3", "6"]
    assert table[2].split()[1] == score
    caplog.clear()
    evaluation.main(configured(tmp_path / "eval", checkpoint, "data.eval_batch_size=5", name="eval"))
    assert [m.partition(",")[0] for m in caplog.messages if " batch " in m] == [
        f"validation: batch {k} of 2" for k in (1, 2)
    ]


def test_scores_of_a_task_of_ones_own_are_shown():
    lines = ProgressLines()
    lines.load_state_dict({"validations": {7: {"a very long score": float("nan")}}})
    assert [line.split()[-1] for line in lines.table().splitlines()] == ["score", "nan"]


@pytest.mark.parametrize(("compiled", "first"), [(True, True), (False, True), (True, False)])
def test_the_time_of_a_compiled_first_batch_is_told_once(compiled, first, caplog):
    """By the first rank, also where several batches make a step."""
    caplog.set_level("INFO")
    lines, module = ProgressLines(), SimpleNamespace(compiled=compiled, total_steps=9)
    trainer = SimpleNamespace(global_step=0, log_every_n_steps=0, is_global_zero=first)
    lines.on_train_start(trainer, module)
    for _ in range(3):
        lines.on_train_batch_end(trainer, module, None, None, 0)
    told = ["first batch after 0 s, compilation included"] if compiled and first else []
    assert [record.getMessage() for record in caplog.records] == told
