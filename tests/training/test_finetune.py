"""Training less than everything: frozen blocks, LoRA; averages of the weights; ending early."""

import json
import re

import lightning
import pytest
import torch

import eval as evaluation
import train
from eomt.cli import build as assemble
from eomt.errors import InputError, Stopped
from eomt.model.eomt import EoMT
from eomt.training.restore import check_same_run
from eomt.weights.checkpoint import FORMAT, TRAINED, read_checkpoint
from eomt.weights.load import read_weights
from tests.running import configured, equal, typed

pytestmark = pytest.mark.xdist_group("finetune")

VARIANTS = {
    "frozen": ("model.freeze_backbone=true",),
    "blocks": ("model.freeze_backbone=2", "callbacks.ema.decay=0.5"),
    "lora": ("model.lora.rank=2", "callbacks.ema.decay=0.6"),
}


@pytest.fixture(scope="module")
def settings(options):
    short = (
        "trainer.check_val_every_n_epoch=1",
        "data.num_workers=0",
        "data.eval_batch_size=4",
        "optim.warmup_steps=[1,1]",
        "postprocess.score_threshold=0",
    )
    return (*options, *short, "callbacks.pictures=null", "callbacks.curves=null")


@pytest.fixture(scope="module")
def undisturbed(settings, tmp_path_factory):
    """The folder of a whole run of each variant: two epochs of three steps, each validated."""
    folders = {}
    for name, overrides in VARIANTS.items():
        folders[name] = tmp_path_factory.mktemp(name)
        train.main(configured(folders[name], *settings, *overrides))
    return folders


def checkpoint_of(folder, name="last"):
    return read_checkpoint(folder / "checkpoints" / f"{name}.ckpt")


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_a_resumed_run_ends_the_same(settings, undisturbed, tmp_path, name):
    """Stopped within a validation, where averages are in the place of the weights, and within an epoch."""
    resumed = ()
    for place, step in (("validation", 3), ("step", 5)):
        stop = f"+callbacks.stop={{_target_: tests.fault_injection.StopAt, place: {place}, step: {step}}}"
        with pytest.raises(Stopped):
            train.main(configured(tmp_path, *settings, *VARIANTS[name], stop, *resumed))
        resumed = (f"ckpt='{tmp_path}/checkpoints/last.ckpt'",)
    train.main(configured(tmp_path, *settings, *VARIANTS[name], *resumed))
    ours, theirs = map(checkpoint_of, (tmp_path, undisturbed[name]))
    for part in ("global_step", "state_dict", "optimizer_states", "lr_schedulers"):
        assert equal(ours[part], theirs[part]), part
    assert equal(ours.get(TRAINED), theirs.get(TRAINED))
    for file in ("metrics.json", "metrics_per_class.json"):
        assert (tmp_path / file).read_text() == (undisturbed[name] / file).read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "learning"),
    [
        ("frozen", ("network.queries", "network.class_head.", "network.mask_head.", "network.upscale.")),
        ("blocks", ("network.queries", "network.class_head.", "backbone.vit.blocks.2.", "backbone.vit.norm.")),
        ("lora", ("network.queries", "network.class_head.", ".lora_a", ".lora_b")),
    ],
)  # fmt: skip
def test_what_is_frozen_stays_and_takes_no_optimizer_state(settings, undisturbed, name, learning):
    cfg = configured(undisturbed[name], *settings)
    data = assemble.build_data(cfg)
    torch.manual_seed(0)
    after = checkpoint_of(undisturbed[name])
    before = _initial(cfg, data).state_dict()
    moved = {key for key, value in after["state_dict"].items() if key in before and not torch.equal(value, before[key])}
    moved |= {key for key in after["state_dict"] if key not in before}
    moved.discard("mask_probabilities")
    assert all(any(part in key for key in moved) for part in learning)
    if name == "blocks":
        assert not any("blocks.0." in key or "blocks.1." in key or "patch_embed" in key for key in moved)
    else:
        assert not any("backbone" in key and "lora" not in key for key in moved)
    assert len(after["optimizer_states"][0]["state"]) == len(moved)


def _initial(cfg, data):
    """The network at the start of a run."""

    lightning.seed_everything(cfg.seed, verbose=False)
    return assemble.build_module(cfg, data.classes, data.image_size)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_evaluation_and_export_take_the_weights_that_were_validated(settings, undisturbed, tmp_path, name):
    run = undisturbed[name]
    last = run / "checkpoints" / "last.ckpt"
    evaluation.main(configured(tmp_path / "eval", f"ckpt='{last}'", "pictures=0", name="eval"))
    counted = [json.loads((f / "metrics_per_class.json").read_text()) for f in (run, tmp_path / "eval")]
    assert counted[0] == counted[1]
    assert sum(row["tp"] + row["fp"] for row in counted[0]) > 10, "there must be predictions to compare"
    typed("export", f"ckpt={last}", "format=hf", f"out={tmp_path}/hf")
    cfg = configured(tmp_path, *settings, *VARIANTS[name])
    module = assemble.build_module(cfg, read_weights(last).classes, (64, 64))
    module.prepare_network()
    module.load_state_dict(checkpoint_of(run)["state_dict"])
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        trained = module.network.eval()(images)[-1].logits()
        for source in (last, tmp_path / "hf"):
            weights = read_weights(source, kind="panoptic", classes=read_weights(last).classes)
            network = EoMT(**weights.network).eval()
            network.load_state_dict(weights.state)
            found = network(images)[-1].logits()
            for one, other in zip(found, trained, strict=True):
                torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


def test_a_run_that_has_only_its_last_validation_left_validates_the_averages(settings, undisturbed, tmp_path):
    """Killed after the last save, before the validation that `train.py` ends with."""
    whole = undisturbed["blocks"]
    checkpoint = checkpoint_of(whole)
    checkpoint[TRAINED] = {name: -weight for name, weight in checkpoint[TRAINED].items()}
    (tmp_path / "checkpoints").mkdir()
    torch.save(checkpoint, tmp_path / "checkpoints" / "last.ckpt")
    resumed = ("trainer.max_steps=6", f"ckpt='{tmp_path}/checkpoints/last.ckpt'")
    train.main(configured(tmp_path, *settings, *VARIANTS["blocks"], *resumed))
    for file in ("metrics.json", "metrics_per_class.json"):
        assert (tmp_path / file).read_text() == (whole / file).read_text()


@pytest.mark.slow
def test_a_run_ends_early_and_stays_ended(settings, tmp_path, caplog):
    """Nothing is better by 1000: the first score is the best, and patience counts from it."""
    caplog.set_level("INFO", logger="eomt")
    stopping = (*settings, "trainer.max_epochs=6", "callbacks.early_stopping.min_delta=1000")
    stopping = (*stopping, "callbacks.early_stopping.patience=2")
    train.main(configured(tmp_path / "whole", *stopping))
    whole = checkpoint_of(tmp_path / "whole")
    assert whole["global_step"] == 9
    assert json.loads((tmp_path / "whole" / "metrics.json").read_text())["step"] == 9
    words = r"pq did not improve in the last [23] records"
    assert re.search(words, caplog.text)
    stop = "+callbacks.stop={_target_: tests.fault_injection.StopAt, place: step, step: 7}"
    with pytest.raises(Stopped):
        train.main(configured(tmp_path / "parts", *stopping, stop))
    resumed = f"ckpt='{tmp_path}/parts/checkpoints/last.ckpt'"
    train.main(configured(tmp_path / "parts", *stopping, resumed))
    parts = checkpoint_of(tmp_path / "parts")
    for part in ("global_step", "state_dict", "optimizer_states"):
        assert equal(parts[part], whole[part]), part
    train.main(configured(tmp_path / "parts", *stopping, resumed))
    assert checkpoint_of(tmp_path / "parts")["global_step"] == 9
    assert len(re.findall(words, caplog.text)) == 3, "validated anew, and ended again"
    train.main(configured(tmp_path / "parts", *stopping[:-1], "callbacks.early_stopping.patience=3", resumed))
    assert checkpoint_of(tmp_path / "parts")["global_step"] == 12


def test_what_is_frozen_should_have_learned_something(settings, tmp_path, caplog):
    once = (*settings, "trainer.max_epochs=null", "trainer.max_steps=1", "trainer.limit_val_batches=0")
    train.main(configured(tmp_path / "random", *once, "model.freeze_backbone=true"))
    assert "the frozen part of the backbone is random" in caplog.text
    caplog.clear()
    weights = f"weights='{tmp_path}/random/checkpoints/last.ckpt'"
    train.main(configured(tmp_path / "trained", *once, "model.lora.rank=2", weights))
    assert "is random" not in caplog.text


def test_a_run_is_resumed_with_the_same_trained_part(settings, undisturbed, tmp_path):
    for name, changed, words in (
        ("lora", ("model.lora.rank=3", "callbacks.ema.decay=0.6"), r"with model\.lora=.*start another by weights="),
        ("frozen", (), r"with model\.freeze_backbone=True, this one has False"),
        ("blocks", ("model.freeze_backbone=2",), r"averages its weights: set callbacks\.ema\.decay"),
    ):
        last = undisturbed[name] / "checkpoints" / "last.ckpt"
        with pytest.raises(InputError, match=words):
            train.main(configured(tmp_path, *settings, *changed, f"ckpt='{last}'"))
    assert checkpoint_of(undisturbed["lora"])[FORMAT]["learns"]["lora"] == {"rank": 2, "alpha": 16}


@pytest.mark.parametrize(("was", "now"), [(True, 1), (1, True), (True, 2), (False, 1)])
def test_all_blocks_frozen_are_not_one_block(was, now):
    def description(frozen):
        classes = [{"id": 1, "name": "cup"}]
        return {"kind": "semantic", "classes": classes, "network": {}, "learns": {"freeze_backbone": frozen}}

    check_same_run({FORMAT: description(was)}, description(was), False)
    with pytest.raises(InputError, match=rf"model\.freeze_backbone={was}, this one has {now}"):
        check_same_run({FORMAT: description(was)}, description(now), False)
