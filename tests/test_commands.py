"""The commands of the installed package: `eomt predict`, `eomt export` and `eomt info`."""

import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

import eomt
from eomt.__main__ import main, settings
from tests.random_networks import random_image, write_checkpoint
from tests.running import ROOT, composed


@pytest.mark.parametrize("command", ["predict", "export"])
def test_keys_and_defaults_are_those_of_the_checkout(command):
    theirs = OmegaConf.to_container(composed(command, "out=X"), resolve=True)
    given = {"predict": ["ckpt=X", "images=X", "out=X"], "export": ["ckpt=X", "out=X"]}[command]
    ours = settings(command, given)
    assert ours | {"ckpt": None, "images": None} == theirs


def test_values_mean_what_they_do_in_the_checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    typed = ["ckpt=a=b (1).ckpt", "images=[a.jpg, b c.png]", "threshold=0.5", "compile=max-autotune", "precision=16"]
    found = settings("predict", [*typed, "network.backbone_options={depth: 2}", "unpadded=true", "kind=null"])
    expected = {"ckpt": "a=b (1).ckpt", "images": ["a.jpg", "b c.png"], "threshold": 0.5, "compile": "max-autotune"}
    expected |= {"precision": 16, "unpadded": True, "kind": None}
    assert {key: found[key] for key in expected} == expected
    assert found["network"]["backbone_options"] == {"depth": 2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("predict", "ckpt is not set: give ckpt="),
        ("predict ckpt=a", "images is not set"),
        ("predict --ckpt a images=b", "--ckpt is no key=value of eomt predict: did you mean ckpt="),
        ("predict treshold=1", "did you mean threshold="),
        ("predict photo.jpg", "photo.jpg is no key=value"),
        ("predict ckpt=", "ckpt= is empty"),
        ("predict batch_size=0", "batch_size=0 must be a whole number of at least 1"),
        ("predict batch_size=null", "batch_size=null must be a whole number"),
        ("predict threshold=2", "threshold=2 must be a number from 0 to 1"),
        ("predict threshold=nan", "threshold=nan must be"),
        ("predict overwrite=2", "overwrite=2 must be true or false"),
        ("predict precision=8", "precision=8 must be 32, bf16 or 16"),
        ("predict network.backbone_options=[", "must be a mapping"),
        ("predict ckpt=none.ckpt images=.", "images=. has no image"),
        ("export ckpt=none.ckpt out=x", "none.ckpt"),
        ("export ckpt=none.ckpt out=x format=tflite", "format=tflite is none of"),
        ("info ckpt=none.ckpt", "none.ckpt"),
    ],
)
def test_bad_input_ends_in_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments.split()) == 1
    found = capsys.readouterr().err
    assert found.startswith("error: ")
    assert message in found
    assert found.count("\n") == 1
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_package_of_the_same_name_is_named(tmp_path, monkeypatch, capsys):
    assert eomt.namesake() is None
    (tmp_path / "attr_eomt-1.0.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: attr-eomt\nVersion: 1.0\n"
    (tmp_path / "attr_eomt-1.0.dist-info" / "METADATA").write_text(metadata)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.warns(UserWarning, match="attr-eomt is installed too"):
        eomt.Segmenter  # noqa: B018
    assert main(["info"]) == 0
    assert f"EoMT {eomt.__version__} in {ROOT / 'eomt'}" in capsys.readouterr().out


def test_names_complete():
    assert {"Result", "Segmenter"} <= set(dir(eomt))
    assert [getattr(eomt, name).__name__ for name in eomt.__all__] == eomt.__all__
    with pytest.raises(AttributeError, match="Nothing"):
        eomt.Nothing  # noqa: B018


@pytest.mark.slow
def test_the_installed_package_alone(tmp_path):
    """From wheel and sdist, in an empty folder; the requirements are those of this environment."""
    pytest.importorskip("setuptools", "77")
    source = ROOT
    for kind in ("sdist", "wheel"):
        build = f"import setuptools.build_meta as b, sys; b.build_{kind}(sys.argv[1])"
        subprocess.run([sys.executable, "-c", build, tmp_path], cwd=source, check=True, capture_output=True)
        if kind == "sdist":
            (archive,) = tmp_path.glob("*.tar.gz")
            shutil.unpack_archive(archive, tmp_path / "sdist", filter="data")
            (source,) = (tmp_path / "sdist").iterdir()
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=False)
    (packages,) = (tmp_path / "venv").glob("lib/*/site-packages")
    pip = [sys.executable, "-m", "pip", "--python", tmp_path / "venv" / "bin" / "python", "install", "--no-deps", "-q"]
    subprocess.run([*pip, "--no-index", wheel], check=True)
    (packages / "own.pth").write_text(f"{Path(np.__file__).parents[1]}\n")
    folder = tmp_path / "empty"
    folder.mkdir()
    write_checkpoint(tmp_path / "best.ckpt", "instance")
    Image.fromarray(random_image(30, 40)).save(tmp_path / "photo.png")

    def run(*arguments):
        command = [tmp_path / "venv" / "bin" / "eomt", *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert f"in {packages / 'eomt'}" in run("info", "ckpt=../best.ckpt")
    run("predict", "ckpt=../best.ckpt", "images=../photo.png", "out=results", "device=cpu")
    assert (folder / "results" / "pictures" / "photo.jpg").is_file()
    assert (folder / "results" / "predictions" / "instances.json").is_file()
    run("export", "ckpt=../best.ckpt", "out=exported")
    assert "instance" in run("info", "ckpt=exported")
    assert "images=" not in run("predict", "--help").partition("keys:")[0]
