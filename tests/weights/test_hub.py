"""Weights from the Hub, its cache and its failures."""

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants, errors

from eomt.cli.paths import quote_paths
from eomt.errors import InputError
from eomt.weights.hub import is_hub_id
from eomt.weights.load import read_weights
from eomt.weights.original import to_original
from tests.weights.sources import ONE_HEAD, SEVEN, assert_equal, small, write_huggingface


def test_what_is_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("tue-mps/coco_panoptic_eomt_large_640")
    for text in ("model", "a/b/c", "../model", "/a/b", "runs/best.ckpt", "a/model.safetensors", "~/model", "a/b c"):
        assert not is_hub_id(text), text
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert not is_hub_id("owner/name")


def test_a_repository_is_read_like_its_folder(tmp_path, monkeypatch, caplog):
    network = small(7)
    whole = write_huggingface(tmp_path / "hf", network, SEVEN, "panoptic")
    original = tmp_path / "original"
    original.mkdir()
    torch.save(to_original(network.state_dict(), network.spec), original / "pytorch_model.bin")
    asked = []

    def snapshot(repo_id, allow_patterns):
        asked.append((repo_id, allow_patterns))
        return whole if repo_id == "a/hf" else original

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with caplog.at_level("INFO", "eomt"):
        assert_equal(read_weights("a/hf").state, network.state_dict())
        read_weights("a/bin", kind="semantic", classes=SEVEN, network=ONE_HEAD)
    assert [repo for repo, _ in asked] == ["a/hf", "a/bin", "a/bin"], "PyTorch's files only where there are no others"
    assert "pytorch_model*.bin" not in asked[0][1]
    assert "pytorch_model*.bin" in asked[2][1]
    assert caplog.messages[0].startswith("weights: Hugging Face folder a/hf of the Hugging Face Hub: EoMT")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        # Without the server's response, which their constructor asks for.
        (errors.GatedRepoError.__new__(errors.GatedRepoError), "gated: ask for access.*HF_TOKEN.*delta_base="),
        (errors.RepositoryNotFoundError.__new__(errors.RepositoryNotFoundError), "here, .*no such repository"),
        (errors.LocalEntryNotFoundError("no\nway"), r"\(no: try again where.*give their folder"),
        (TimeoutError("took too long"), r"cannot be had.*\(took too long: try again"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_what_goes_wrong_with_the_hub_is_one_line_with_a_way_out(error, message, monkeypatch):
    def snapshot(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(InputError, match=message) as caught:
        read_weights("owner/name")
    assert "owner/name" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_offline_mode_takes_what_is_in_the_cache(tmp_path, monkeypatch):
    """With the Hub's own client and a cache as it lays it out."""
    network = small(7)
    commit = "0123456789" * 4
    repo = tmp_path / "models--owner--name"
    write_huggingface(repo / "snapshots" / commit, network, SEVEN, "panoptic")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert_equal(read_weights("owner/name").state, network.state_dict())
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set: run once with HF_HUB_OFFLINE=0"):
        read_weights("owner/other")


def test_hub_ids_are_no_paths_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for key in ("ckpt", "weights", "delta_base"):
        assert quote_paths([f"{key}=tue-mps/coco_x"]) == [f"{key}='tue-mps/coco_x'"]
        assert quote_paths([f"{key}=runs/a=1.ckpt"]) == [f"{key}='{tmp_path}/runs/a=1.ckpt'"]
    (tmp_path / "tue-mps" / "coco_x").mkdir(parents=True)
    assert quote_paths(["ckpt=tue-mps/coco_x"]) == [f"ckpt='{tmp_path}/tue-mps/coco_x'"]
    assert quote_paths(["data.root=a/b"]) == ["data.root='a/b'"]  # a data set there
    assert quote_paths(["data.root=tue-mps/coco_x"]) == [f"data.root='{tmp_path}/tue-mps/coco_x'"]
