"""Checkpoints of a run: when they are written, what a kill or a full disk leaves, and where a resumed run ends."""

import os
import shutil
from types import SimpleNamespace

import pytest
import torch

import train
from eomt.errors import InputError, Stopped
from eomt.training.callbacks.curves import read_logs
from eomt.training.checkpoint import AtomicCheckpointIO, BestCheckpoint, LastCheckpoint
from eomt.weights.checkpoint import CONTINUATION, FORMAT, PREVIOUS, intact, read_checkpoint
from tests.processes import launched
from tests.running import configured, equal, logged

pytestmark = pytest.mark.xdist_group("resume")


@pytest.fixture(scope="module")
def settings(options):
    longer = ("trainer.max_epochs=4", "trainer.check_val_every_n_epoch=2", "data.eval_batch_size=4")
    # So that predictions of so short a run have a score by which the best of them is chosen.
    longer += ("postprocess.score_threshold=0",)
    return (*options, *longer, "callbacks.best=null", "callbacks.pictures=null", "callbacks.curves=null")


@pytest.fixture(scope="module")
def with_best(settings):
    return tuple(o for o in settings if o != "callbacks.best=null")


@pytest.fixture(scope="module")
def undisturbed(with_best, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    train.main(configured(folder, *with_best))
    return folder


def _same(folder, undisturbed):
    ours, theirs = (read_checkpoint(f / "checkpoints" / "last.ckpt") for f in (folder, undisturbed))
    for part in ("global_step", "state_dict", "optimizer_states", "lr_schedulers"):
        assert equal(ours[part], theirs[part]), part
    assert ours["loops"]["fit_loop"]["state_dict"] == theirs["loops"]["fit_loop"]["state_dict"]
    assert (folder / "metrics.json").read_text() == (undisturbed / "metrics.json").read_text()
    assert logged(folder) == logged(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "stops",
    [
        # The middle and the end of epochs, of which each second one is validated; that validation itself.
        [("step", 2), ("step", 3), ("step", 5), ("step", 6), ("step", 9), ("step", 10)],
        [("validation", 6), ("validation", 6), ("step", 7), ("step", 12), ("validation", 12)],
    ],
)
def test_a_run_stopped_again_and_again_ends_the_same(with_best, undisturbed, tmp_path, stops):
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    resumed = ()
    for place, step in stops:
        stop = f"+callbacks.stop={{_target_: tests.fault_injection.StopAt, place: {place}, step: {step}}}"
        with pytest.raises(Stopped, match=f"SIGUSR1 after step {step}") as stopped:
            train.main(configured(tmp_path, *with_best, stop, *resumed))
        assert stopped.value.status == 138
        assert read_checkpoint(checkpoint)["global_step"] == step
        resumed = (f"ckpt='{checkpoint}'",)
    train.main(configured(tmp_path, *with_best, *resumed))
    _same(tmp_path, undisturbed)
    ours, theirs = (read_checkpoint(f / "checkpoints" / "best.ckpt") for f in (tmp_path, undisturbed))
    for part in ("global_step", "state_dict", "optimizer_states"):
        assert equal(ours[part], theirs[part]), part


@pytest.mark.slow
def test_a_validation_between_the_batches_of_a_step(with_best, tmp_path):
    """It scores the weights of the step before, whose checkpoint is the best and that to resume from."""
    run = ("trainer.max_epochs=2", "trainer.check_val_every_n_epoch=1", "trainer.val_check_interval=3")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train.main(configured(whole, *with_best, *run))
    assert list(read_logs(whole)["pq"]) == [1, 2, 4, 5]
    stop = "+callbacks.stop={_target_: tests.fault_injection.StopAt, place: validation, step: 1}"
    with pytest.raises(Stopped, match="SIGUSR1 after step 1"):
        train.main(configured(stopped, *with_best, *run, stop))
    train.main(configured(stopped, *with_best, *run, f"ckpt='{stopped}/checkpoints/last.ckpt'"))
    _same(stopped, whole)
    ours, theirs = (read_checkpoint(f / "checkpoints" / "best.ckpt") for f in (stopped, whole))
    assert equal(ours["state_dict"], theirs["state_dict"])


@pytest.mark.slow
def test_a_run_whose_data_worker_died_resumes_exactly(with_best, undisturbed, tmp_path):
    # Early in the epoch, so that batches are missing: what the workers had read ahead is not all of it.
    kill = "+callbacks.fault={_target_: tests.fault_injection.Inject, what: kill, steps: [7]}"
    process = launched(*with_best, kill, f"hydra.run.dir={tmp_path}")
    output, _ = process.communicate()
    assert process.returncode == 1, output
    assert "a data worker has ended" in output
    assert "Traceback" not in output
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    # No checkpoint was written at this moment.
    assert read_checkpoint(checkpoint)["global_step"] == 6
    train.main(configured(tmp_path, *with_best, f"ckpt='{checkpoint}'"))
    _same(tmp_path, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_a_damaged_last_checkpoint_gives_way_to_the_one_before(settings, undisturbed, tmp_path, caplog, damage):
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    last = run / "checkpoints" / "last.ckpt"
    assert read_checkpoint(last.with_name(PREVIOUS))["global_step"] == 6
    content = bytearray(last.read_bytes())
    last.unlink()
    if damage == "flipped":
        content[len(content) // 2] ^= 1
        last.write_bytes(content)
    train.main(configured(run, *settings, f"ckpt='{last}'"))
    assert "resumes from the one before, previous.ckpt, step 6" in caplog.text
    _same(run, undisturbed)


def test_both_damaged_is_one_line(undisturbed, tmp_path):
    for name in ("last.ckpt", PREVIOUS):
        (tmp_path / name).write_bytes(b"PK\x03\x04 and nothing more")
    with pytest.raises(InputError, match=r"previous\.ckpt is truncated"):
        intact(tmp_path / "last.ckpt")


def _trainer(step, save):
    return SimpleNamespace(
        fast_dev_run=False, is_global_zero=True, global_step=step, loggers=[], save_checkpoint=save, ckpt_path=None
    )


def _save(callback, trainer):
    callback._write(trainer)
    callback._finish(trainer)


def _full(*_):
    raise InputError("no checkpoint can be written: No space left on device")


def _writing(step):
    return lambda path: AtomicCheckpointIO().save_checkpoint({FORMAT: {}, "global_step": step}, path)


def test_a_damaged_checkpoint_never_takes_the_place_of_the_whole_one(tmp_path):
    """Resumed from the one before, with a disk that is full at the first save."""
    begun = LastCheckpoint(tmp_path)
    for step in (1, 2):
        _save(begun, _trainer(step, _writing(step)))
    last = tmp_path / "last.ckpt"
    last.write_bytes(last.read_bytes()[:100])
    assert intact(last).name == PREVIOUS
    resumed = LastCheckpoint(tmp_path)
    trainer = _trainer(2, _full)
    trainer.ckpt_path = intact(last)
    resumed.on_load_checkpoint(trainer, SimpleNamespace(), {})
    with pytest.raises(InputError, match="No space"):
        _save(resumed, trainer)
    assert read_checkpoint(intact(last))["global_step"] == 1
    for step in (2, 3):
        _save(resumed, _trainer(step, _writing(step)))
    assert [read_checkpoint(tmp_path / name)["global_step"] for name in ("last.ckpt", PREVIOUS)] == [3, 2]


def test_the_run_of_a_logger_that_is_off_for_a_while_is_not_forgotten(tmp_path):
    run = LastCheckpoint(tmp_path)
    trainer = _trainer(2, _writing(2))
    trainer.ckpt_path, trainer.loggers = str(tmp_path / "previous.ckpt"), [SimpleNamespace(version=1)]
    trainer.validating = False
    saved = {"state_dict": {}}
    run.on_load_checkpoint(trainer, SimpleNamespace(), {CONTINUATION: {"logs": {"WandbLogger": "abc"}}})
    run.on_save_checkpoint(trainer, SimpleNamespace(), saved)
    assert saved[CONTINUATION]["logs"] == {"WandbLogger": "abc", "SimpleNamespace": 1}


def test_a_whole_checkpoint_that_a_run_is_resumed_from_is_kept(tmp_path):
    _save(LastCheckpoint(tmp_path), _trainer(1, _writing(1)))
    resumed = LastCheckpoint(tmp_path)
    trainer = _trainer(2, _writing(2))
    trainer.ckpt_path = str(tmp_path / "last.ckpt")
    resumed.on_load_checkpoint(trainer, SimpleNamespace(), {"global_step": 1})
    _save(resumed, trainer)
    assert read_checkpoint(tmp_path / PREVIOUS)["global_step"] == 1


def test_logs_that_cannot_be_written_do_not_keep_the_checkpoint_from_it(tmp_path):
    trainer = _trainer(1, _writing(1))
    trainer.loggers = [SimpleNamespace(save=lambda: (_ for _ in ()).throw(OSError(28, "No space left on device")))]
    with pytest.raises(OSError, match="No space left"):
        _save(LastCheckpoint(tmp_path), trainer)
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 1


def _full_disk(monkeypatch):
    def save(value, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("eomt.training.checkpoint.torch.save", save)


@pytest.mark.slow
def test_a_full_disk_ends_with_one_line_and_the_run_goes_on_later(settings, undisturbed, tmp_path, monkeypatch):
    stop = "+callbacks.stop={_target_: tests.fault_injection.StopAt, place: step, step: 4}"
    with pytest.raises(Stopped):
        train.main(configured(tmp_path, *settings, stop))
    last = tmp_path / "checkpoints" / "last.ckpt"
    with monkeypatch.context() as patch:
        _full_disk(patch)
        with pytest.raises(InputError, match=r"No space left on device.*free some space, then resume by"):
            train.main(configured(tmp_path, *settings, f"ckpt='{last}'"))
    assert [path.name for path in last.parent.iterdir()] == ["last.ckpt"]
    assert intact(last) == last
    train.main(configured(tmp_path, *settings, f"ckpt='{last}'"))
    _same(tmp_path, undisturbed)


def test_a_kill_at_any_moment_of_a_save_leaves_a_whole_checkpoint(tmp_path, monkeypatch):
    """The moments are those between what the file system is told to do."""
    callback = LastCheckpoint(tmp_path)

    def save(step):
        _save(callback, _trainer(step, _writing(step)))

    class Killed(BaseException):
        pass

    def counted(name, function, left):
        def call(*arguments):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return function(*arguments)

        return call

    save(1)
    save(2)
    moments = 0
    for moment in range(100):
        left = [moment]
        with monkeypatch.context() as patch:
            for name in ("link", "replace", "fsync"):
                patch.setattr(os, name, counted(name, getattr(os, name), left))
            try:
                save(3 + moment)
            except Killed:
                moments += 1
            else:
                break
        found = intact(tmp_path / "last.ckpt")
        assert read_checkpoint(found)["global_step"] in range(2, 4 + moment)
        assert found.name == "last.ckpt"
    assert moments >= 4
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt", PREVIOUS}


def test_no_hard_links_still_keep_the_checkpoint_before(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(1, "Operation not permitted")))
    callback = LastCheckpoint(tmp_path)
    for step in (1, 2):
        _save(callback, _trainer(step, _writing(step)))
    assert [read_checkpoint(tmp_path / name)["global_step"] for name in ("last.ckpt", PREVIOUS)] == [2, 1]


@pytest.mark.parametrize(
    ("before", "after", "mode", "files", "kept"),
    [
        (None, 1.0, "max", ["last", "best"], "last"),
        (None, float("nan"), "max", ["last", "best"], "last"),
        (float("nan"), 1.0, "max", ["last", "best"], "last"),
        (2.0, 3.0, "max", ["last", "best"], "last"),
        (2.0, 3.0, "min", ["last", "best"], "best"),
        (2.0, 2.0, "max", ["last", "best"], "best"),
        (2.0, float("nan"), "max", ["last", "best"], "best"),
        # In a new folder: the best score so far came with the checkpoint, its file stayed where it was.
        (2.0, 1.0, "max", ["last"], "last"),
    ],
)
def test_the_checkpoint_of_the_best_score_is_kept(tmp_path, before, after, mode, files, kept):
    for name in files:
        (tmp_path / f"{name}.ckpt").write_text(name)
    last, best = LastCheckpoint(tmp_path), BestCheckpoint("pq", mode)
    best.score, last.step = before, 7
    trainer = SimpleNamespace(
        checkpoint_callbacks=[best, last], sanity_checking=False, fast_dev_run=False, is_global_zero=True
    )
    trainer.global_step, trainer.callback_metrics = 7, {"pq": torch.tensor(after), "sq": torch.tensor(50.0)}
    best.setup(trainer, None, "fit")
    best.on_validation_end(trainer, None)
    assert (tmp_path / "best.ckpt").read_text() == kept
    assert best.score == pytest.approx(after if kept == "last" else before, nan_ok=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt"]


def test_the_best_checkpoint_is_a_copy_of_the_last():
    with pytest.raises(InputError, match=r"callbacks\.last=null"):
        BestCheckpoint("pq").setup(SimpleNamespace(checkpoint_callbacks=[]), None, "fit")


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    """Those after the last step: no step comes whose gradient would show it."""
    checkpoint = {"state_dict": {"a": torch.ones(2), "b": torch.tensor([1.0, float("nan")])}}
    with pytest.raises(InputError, match=r"after step 9 are not finite \(b\), and are not saved.*lower optim\.lr"):
        LastCheckpoint(tmp_path).on_save_checkpoint(SimpleNamespace(global_step=9), None, checkpoint)
