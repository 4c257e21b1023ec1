"""Which overrides and which folder a resumed run has."""

import pytest
import torch

from eomt.cli.arguments import quote_paths
from eomt.cli.resume import check_unused, with_saved_overrides
from eomt.errors import InputError
from eomt.weights.checkpoint import FORMAT

TYPED = ["task=coco_panoptic", "model=tiny", "model.num_queries=7", "data.root='/a'", "trainer.max_epochs=3"]


def saved(folder, part):
    """ckpt= with a checkpoint that holds `part`, and its run folder as an override."""
    path = folder / "it's a run" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save({FORMAT: part}, path)
    return quote_paths([f"ckpt={path}", f"hydra.run.dir={path.parents[1]}"])


def test_what_was_typed_stays_unless_it_is_typed_again(tmp_path):
    ckpt, folder = saved(tmp_path, {"overrides": TYPED})
    assert with_saved_overrides([ckpt, "trainer.max_epochs=5"]) == [*TYPED[:4], ckpt, "trainer.max_epochs=5", folder]
    typed = [ckpt, "model=small", "hydra.run.dir=x"]
    assert with_saved_overrides(typed) == ["task=coco_panoptic", "data.root='/a'", "trainer.max_epochs=3", *typed]
    assert with_saved_overrides([ckpt, "task=shapes_panoptic"])[0] == ckpt
    assert with_saved_overrides(["seed=1"]) == ["seed=1"]
    for flags in (["--config-dir", "."], ["--multirun"]):
        assert with_saved_overrides([*flags, ckpt, "seed=1"]) == [*flags, *TYPED, ckpt, "seed=1", folder]
        assert with_saved_overrides([ckpt, *flags]) == [*TYPED, ckpt, folder, *flags]


@pytest.mark.parametrize("part", [{}, {"overrides": None}, {"overrides": 3}])
def test_a_part_of_another_kind_holds_no_overrides(tmp_path, part):
    ckpt, folder = saved(tmp_path, part)
    assert with_saved_overrides([ckpt]) == [ckpt, folder]


def test_foreign_overrides_are_refused_unless_they_are_trusted(tmp_path):
    foreign = "+callbacks.x={_target_: os.system}"
    ckpt, folder = saved(tmp_path, {"overrides": ["seed=3", foreign]})
    with pytest.raises(InputError, match=r"would set '\+callbacks.x"):
        with_saved_overrides([ckpt])
    with pytest.raises(InputError, match="would set"):
        with_saved_overrides([ckpt, "trust_code=yes"])
    trusted = [ckpt, "trust_code=true"]
    assert with_saved_overrides(trusted) == ["seed=3", foreign, *trusted, folder]


@pytest.mark.parametrize("name", ["last.ckpt", "previous.ckpt"])
def test_a_new_run_takes_no_used_folder(tmp_path, name):
    check_unused(str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    check_unused(str(tmp_path))
    (tmp_path / "checkpoints" / name).touch()
    with pytest.raises(InputError, match=rf"holds a run: resume it by ckpt=.*{name}, or start another"):
        check_unused(str(tmp_path))
