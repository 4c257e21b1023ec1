"""Paths among the arguments."""

import os

import pytest

from eomt.cli.paths import quote_paths
from eomt.errors import InputError
from tests.running import composed


def test_paths_survive_the_override_grammar(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = "runs (1)/épreuve,a=b/epoch=3-step=100.ckpt"
    typed = [f"ckpt={path}", "data.root=/a b/~c's", "seed=3", "model.pretrained=false", "+data.train.images=a=b"]
    cfg = composed("train", "task=coco_panoptic", *quote_paths(typed)[:4])
    assert cfg.ckpt == str(tmp_path / path), "absolute, so that it means the same from any folder"
    assert cfg.data.root == "/a b/~c's"
    assert cfg.seed == 3
    assert cfg.model.pretrained is False
    assert quote_paths(typed)[4] == "+data.train.images='a=b'"
    assert quote_paths(["ckpt=null"]) == ["ckpt=null"]


@pytest.mark.parametrize("key", ["ckpt", "out", "hydra.run.dir", "data.root", "callbacks.last.folder", "images"])
def test_home_is_expanded_and_an_empty_path_refused(key):
    home = os.path.expanduser("~")
    assert quote_paths([f"{key}=~/a"]) == [f"{key}='{home}/a'"]
    with pytest.raises(InputError, match=f"^{key}= is empty: give a path, or null for none"):
        quote_paths([f"{key}="])


def test_lists_of_images():
    home = os.path.expanduser("~")
    assert quote_paths(["images=[a (1).jpg, ~/b.png]"]) == [f"images=['a (1).jpg','{home}/b.png']"]
    assert quote_paths(["images=['a','b']"]) == ["images=['a','b']"]
