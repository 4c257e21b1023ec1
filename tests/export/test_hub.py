"""`push=`: an exported folder becomes a repository of the Hub, private, and loads from there; the client is a fake."""

import shutil
from types import SimpleNamespace
from unittest import mock

import huggingface_hub
import pytest
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import LocalTokenNotFoundError

from eomt.errors import InputError
from eomt.export import hub
from eomt.inference.segmenter import Segmenter
from tests.export.exporting import run
from tests.export.test_export import CONFIG
from tests.random_networks import assert_same, random_image, write_checkpoint

NAME = "someone/shapes-eomt"


@pytest.fixture
def api(monkeypatch, tmp_path):
    """The client, with the signatures of the installed one; what is uploaded lies in `repository`."""
    client = mock.create_autospec(HfApi, instance=True)
    client.repo_exists.return_value = False
    client.create_repo.return_value = f"https://hub/{NAME}"
    client.upload_folder.side_effect = lambda **given: shutil.copytree(given["folder_path"], tmp_path / "repository")
    monkeypatch.setattr(hub, "HfApi", lambda: client)
    return client


@pytest.fixture
def checkpoint(tmp_path):
    return write_checkpoint(
        tmp_path / "best.ckpt", "panoptic", config=CONFIG | {"model": {"pretrained": "/home/x.pth"}}
    )


@pytest.mark.parametrize("format", ["eomt", "hf"])
def test_a_pushed_model_loads_by_its_name(format, api, checkpoint, tmp_path, monkeypatch):
    run(f"ckpt={checkpoint}", f"out={tmp_path / 'out'}", f"push={NAME}", f"format={format}")
    api.create_repo.assert_called_once_with(NAME, private=True, exist_ok=True)
    repository = tmp_path / "repository"
    text = "".join(path.read_bytes().decode(errors="ignore") for path in repository.iterdir())
    assert not [word for word in (str(tmp_path), "/home", "/data", "relative") if word in text]
    card = ModelCard((repository / "README.md").read_text())
    assert card.data.pipeline_tag == "image-segmentation"
    assert f'("{NAME}")' in card.text
    asked = mock.Mock(return_value=str(repository))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", asked)
    monkeypatch.chdir(tmp_path)
    image = random_image(40, 60)
    kwargs = {"device": "cpu", "score_threshold": 0.0}
    assert_same(Segmenter.load(NAME, **kwargs)(image), Segmenter.load(checkpoint, **kwargs)(image), 1e-6)
    assert asked.call_args.args == (NAME,)


def test_a_repository_that_is_there(api, checkpoint, tmp_path):
    typed = [f"ckpt={checkpoint}", f"out={tmp_path / 'out'}", f"push={NAME}"]
    api.repo_exists.return_value = True
    with pytest.raises(InputError, match=f"push={NAME} is there already: choose another name, or set overwrite=true"):
        run(*typed)
    api.model_info.return_value = SimpleNamespace(private=False)
    with pytest.raises(InputError, match="is there, and public: set public=true"):
        run(*typed, "overwrite=true")
    api.model_info.return_value = SimpleNamespace(private=True)
    with pytest.raises(InputError, match="is there, and private: leave out public=true"):
        run(*typed, "overwrite=true", "public=true")
    assert not (tmp_path / "out").exists()
    assert not api.create_repo.called
    api.model_info.return_value = SimpleNamespace(private=False)
    run(*typed, "overwrite=true", "public=true")
    assert api.create_repo.call_args.kwargs["private"] is False
    # What an earlier export of another form left would otherwise be read first.
    assert "model.safetensors" in api.upload_folder.call_args.kwargs["delete_patterns"]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (LocalTokenNotFoundError("no token"), f"push={NAME} needs a login: run `hf auth login`, or set HF_TOKEN$"),
        (ConnectionError("no route\nto host"), r"cannot be reached, or refuses \(no route\): log in"),
    ],
)
def test_faults_end_in_one_line_before_anything_is_written(fault, message, api, checkpoint, tmp_path):
    api.whoami.side_effect = fault
    with pytest.raises(InputError, match=message):
        run(f"ckpt={checkpoint}", f"out={tmp_path / 'out'}", f"push={NAME}")
    assert not (tmp_path / "out").exists()


def test_without_push_nothing_is_asked(api, checkpoint, tmp_path):
    run(f"ckpt={checkpoint}", f"out={tmp_path / 'out'}")
    assert api.mock_calls == []
