"""Going on from a run folder in which something went wrong, and many times over."""

import contextlib
import errno
import os
import random
import shutil
import signal
import sys
from types import SimpleNamespace

import lightning
import pytest
import torch

import train
from eomt.cli import main
from eomt.cli import resume as resume
from eomt.errors import InputError, Stopped
from eomt.training.callbacks.curves import read_logs
from eomt.training.checkpoint import AtomicCheckpointIO, LastCheckpoint
from eomt.training.stop import StopSignals
from eomt.weights.checkpoint import CONTINUATION, FORMAT, PREVIOUS, check_same_training, intact, read_checkpoint
from tests.running import configured, equal

pytestmark = pytest.mark.xdist_group("resume")


class StopAt(lightning.Callback):
    """Sends a signal at a place of a run: in the middle of a step, or in the validation after it."""

    def __init__(self, place, step, number=signal.SIGUSR1):
        self.place = place
        self.step = step
        self.number = number

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.place == "step" and trainer.global_step == self.step - 1:
            os.kill(os.getpid(), self.number)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if self.place == "validation" and trainer.global_step == self.step and batch_idx == 1:
            os.kill(os.getpid(), self.number)


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
    assert read_logs(folder) == read_logs(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "places",
    [
        # The middle and the end of epochs, of which each second one is validated; that validation itself.
        [("step", 2), ("step", 3), ("step", 5), ("step", 6), ("step", 9), ("step", 10)],
        [("validation", 6), ("validation", 6), ("step", 7), ("step", 12), ("validation", 12)],
    ],
)
def test_a_run_stopped_again_and_again_ends_the_same(with_best, undisturbed, tmp_path, places):
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    resumed = ()
    for place, step in places:
        stop = f"+callbacks.stop={{_target_: tests.training.test_resume.StopAt, place: {place}, step: {step}}}"
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
def test_a_run_whose_data_worker_died_resumes_exactly(with_best, undisturbed, tmp_path, monkeypatch):
    """PyTorch's error comes at any moment; no checkpoint was written at this one."""
    # At the end of an earlier run in this process Lightning has put PyTorch's handler of SIGCHLD away.
    monkeypatch.setattr("torch.utils.data._utils.signal_handling._SIGCHLD_handler_set", False)
    kill = "+callbacks.fault={_target_: tests.injection.Inject, what: kill, steps: [8]}"
    with pytest.raises((InputError, RuntimeError), match="DataLoader worker"):
        train.main(configured(tmp_path, *with_best, kill))
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    assert read_checkpoint(checkpoint)["global_step"] == 6
    train.main(configured(tmp_path, *with_best, f"ckpt='{checkpoint}'"))
    _same(tmp_path, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_last_checkpoint_gives_way_to_the_one_before(settings, undisturbed, tmp_path, caplog, damage):
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    last = run / "checkpoints" / "last.ckpt"
    assert read_checkpoint(last.with_name(PREVIOUS))["global_step"] == 6
    content = bytearray(last.read_bytes())
    if damage == "truncated":
        last.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        last.write_bytes(content)
    else:
        last.unlink()
    train.main(configured(run, *settings, f"ckpt='{last}'"))
    assert "resumes from the one before, previous.ckpt, step 6" in caplog.text
    _same(run, undisturbed)


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


@pytest.mark.parametrize("steps", [0, -1, True, 1.5, "many"])
def test_steps_between_checkpoints_are_a_whole_number(tmp_path, steps):
    with pytest.raises(InputError, match=rf"callbacks\.last\.every_n_steps={steps} must be a whole number"):
        LastCheckpoint(tmp_path, every_n_steps=steps)


@pytest.mark.parametrize(("was", "now"), [(True, 1), (1, True), (True, 2), (False, 1)])
def test_all_blocks_frozen_are_not_one_block(was, now):
    checkpoint = {FORMAT: {"learns": {"freeze_backbone": was, "lora": None}}}
    check_same_training(checkpoint, {"freeze_backbone": was, "lora": None}, False)
    with pytest.raises(InputError, match=rf"model\.freeze_backbone={was}, this one has {now}"):
        check_same_training(checkpoint, {"freeze_backbone": now, "lora": None}, False)


def test_flipped_bytes_never_pass_for_a_checkpoint(undisturbed, tmp_path):
    """`benchmarks/corruption.py` does this 200 times."""
    content = (undisturbed / "checkpoints" / "last.ckpt").read_bytes()
    whole = read_checkpoint(undisturbed / "checkpoints" / "last.ckpt")
    draw = random.Random(0)
    path = tmp_path / "flipped.ckpt"
    for _ in range(10):
        damaged = bytearray(content)
        for _ in range(draw.randint(1, 20)):
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with contextlib.suppress(InputError):
            read = read_checkpoint(path)
            assert equal(read["state_dict"], whole["state_dict"]), "what passes must be whole"


def test_both_damaged_is_one_line(undisturbed, tmp_path):
    for name in ("last.ckpt", PREVIOUS):
        (tmp_path / name).write_bytes(b"PK\x03\x04 and nothing more")
    with pytest.raises(InputError, match=r"previous\.ckpt cannot be read"):
        intact(tmp_path / "last.ckpt")


def _full_disk(monkeypatch):
    def save(value, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("eomt.training.checkpoint.torch.save", save)


@pytest.mark.slow
def test_a_full_disk_ends_with_one_line_and_the_run_goes_on_later(settings, undisturbed, tmp_path, monkeypatch):
    stop = "+callbacks.stop={_target_: tests.training.test_resume.StopAt, place: step, step: 4}"
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


def test_a_requeued_job_goes_on_by_itself(settings, undisturbed, tmp_path, monkeypatch):
    """Whatever it was started with; another job, or other settings, do not."""
    run = tmp_path / "run"
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "eomt"}.items():
        monkeypatch.setenv(name, value)
    cfg = configured(run, *settings)
    resume.choose_checkpoint(cfg, [])
    assert cfg.ckpt is None
    shutil.copytree(undisturbed, run)
    last = run / "checkpoints" / "last.ckpt"
    resume.choose_checkpoint(cfg, [])
    assert cfg.ckpt is None, "of no job"
    checkpoint = read_checkpoint(last)
    checkpoint[CONTINUATION]["job"] = "7"
    torch.save(checkpoint, last)
    cfg.ckpt = "weights/to/begin/with.ckpt"
    resume.choose_checkpoint(cfg, [])
    assert cfg.ckpt == str(last)
    with pytest.raises(InputError, match=r"another run of this job.*hydra\.run\.dir="):
        resume.choose_checkpoint(cfg, ["seed=1"])
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    cfg.ckpt = None
    resume.choose_checkpoint(cfg, [])
    assert cfg.ckpt is None


def test_logs_go_on_in_the_same_folder_alone(settings, undisturbed, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    last = run / "checkpoints" / "last.ckpt"
    checkpoint = read_checkpoint(last)
    checkpoint[CONTINUATION]["logs"]["WandbLogger"] = "abc123"
    torch.save(checkpoint, last)
    for folder, run_id in ((run, "abc123"), (tmp_path / "other", None)):
        cfg = configured(folder, *settings, "logger=wandb", f"ckpt='{last}'")
        resume.continue_logs(cfg)
        assert cfg.logger.csv.get("version") is None, "a version for each start"
        assert cfg.logger.wandb.id == run_id


def test_a_signal_before_training_ends_the_run_at_once():
    with StopSignals() as signals, pytest.raises(Stopped) as stopped:
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.status == 143
    assert signals.received == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_requeueing(monkeypatch):
    """What is said and with which status the first task ends; the others never end it by theirs."""
    said = []
    monkeypatch.setattr(main, "log", SimpleNamespace(info=lambda _, message: said.append(message)))
    stopped = Stopped("stopped by SIGUSR1 after step 3; go on by: ...", signal.SIGUSR1)
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "eomt"}.items():
        monkeypatch.setenv(name, value)
    before = [signal.getsignal(number) for number in main.ENDING]
    try:
        for reason, status, words in (("", 0, "is requeued"), ("not today", 138, r"not requeued: not today")):
            monkeypatch.setattr(main, "requeue", lambda reason=reason: reason)
            for number in main.ENDING:
                signal.signal(number, signal.SIG_DFL)
            with pytest.raises(SystemExit) as ended, StopSignals():
                main._end(stopped)
            assert ended.value.code == status
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN, "the requeuing ends what is being closed"
            assert words in said[-1]
        monkeypatch.setattr(main, "requeue", lambda: pytest.fail("the first task speaks for all"))
        monkeypatch.setenv("SLURM_PROCID", "1")
        with pytest.raises(SystemExit) as ended:
            main._end(stopped)
        assert ended.value.code == 0
    finally:
        for number, handler in zip(main.ENDING, before, strict=True):
            signal.signal(number, handler)


@pytest.mark.parametrize("ending", [lambda *_: None, lambda *_: sys.exit(1)])
def test_signals_are_ignored_once_the_run_has_ended(monkeypatch, ending):
    monkeypatch.setattr(main, "_run", ending)
    before = [signal.getsignal(number) for number in main.ENDING]
    try:
        with contextlib.suppress(SystemExit):
            main.command("train", None)
        assert {signal.getsignal(number) for number in main.ENDING} == {signal.SIG_IGN}
    finally:
        for number, handler in zip(main.ENDING, before, strict=True):
            signal.signal(number, handler)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_under_a_log_is_one_line(monkeypatch, capsys, number):
    """The error of writing, other than of opening, names no file."""

    def full(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setattr(main.hydra, "main", lambda **_: lambda function: full)
    with pytest.raises(SystemExit) as ended:
        main._run("train", None)
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said == f"error: {os.strerror(number)}; free some space, or choose another folder by hydra.run.dir=\n"
