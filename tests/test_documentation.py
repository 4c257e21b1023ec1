"""README and docs: every command that can run offline runs, every key exists, every peer's name has its place.

A block of commands with `<!-- not run: REASON -->` above it is left out. Commands on data, weights or devices that are
not here (DIR, the Hub, several devices) are composed and their keys and values checked.
"""

import inspect
import itertools
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from eomt.cli.main import checked
from eomt.cli.meanings import keys_of
from eomt.cli.paths import quote_paths
from eomt.cli.settings import COMMANDS
from tests.running import ROOT, SMALL, composed, typed

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
BLOCK = re.compile(r"(<!-- not run: [^>]+ -->\n)?^```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# What is not here: data, weights of the Hub or of others, devices.
ELSEWHERE = re.compile(r"=DIR\b|=tue-mps/|trainer\.(devices|num_nodes)=|--cfg\b|=FILE\b")
SECTIONS = "data|model|loss|annealing|optim|trainer|postprocess|callbacks|logger"
FEW = ("trainer.max_epochs=null", "trainer.max_steps=2", "trainer.limit_val_batches=1", "data.num_workers=0")


def blocks(page, language):
    """The code blocks of a page that are to be run."""
    return [code for skipped, name, code in BLOCK.findall(page.read_text()) if name == language and not skipped]


def name_of(page):
    return page.name


@pytest.fixture
def folder(tmp_path, run, shapes, monkeypatch):
    """The folder that the commands are typed in: a run, photos and a list of classes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    shutil.copytree(run, tmp_path / "RUN")
    (tmp_path / "photos").mkdir()
    for name in ("photo.jpg", "photos/a.jpg"):
        Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(tmp_path / name)
    (tmp_path / "classes.txt").write_text("road\ncar\n")
    numbers = itertools.count()
    OmegaConf.register_new_resolver("run_id", lambda *_: str(next(numbers)), replace=True)
    return tmp_path


def execute(tokens, folder, shapes, number):
    """Run one command, made small."""
    variables = [token for token in tokens if re.match(r"[A-Z_]+=", token)]
    tokens = tokens[len(variables) :]
    assert tokens[0] == "python", f"{shlex.join(tokens)}: say why it is not run"
    name, arguments = Path(tokens[1]).stem, tokens[2:]
    if tokens[1].startswith("examples/"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", tokens[1:])
            runpy.run_path(str(ROOT / tokens[1]), run_name="__main__")
        return
    assert name in COMMANDS, f"{shlex.join(tokens)}: say why it is not run"
    if "--config-dir" in arguments:
        own = ROOT / "examples" / "own_code"
        sys.path.insert(0, str(own))
        arguments = [f"hydra.searchpath=['file://{own}']", *(a for a in arguments if a not in ("--config-dir", "."))]
    for module in (value.partition("=")[2] for value in variables if value.startswith("EOMT_IMPORT=")):
        __import__(module)
    # As the command line does before anything is composed.
    checkpoint = f"RUN/checkpoints/{'last' if name == 'train' else 'best'}.ckpt"
    arguments = [re.sub("^(ckpt|weights)=RUN$", rf"\1={checkpoint}", argument) for argument in arguments]
    keys = {argument.partition("=")[0] for argument in arguments}
    if ELSEWHERE.search(shlex.join(tokens)) or name == "demo":  # which serves until it is stopped
        arguments = [argument for argument in arguments if argument not in ("--cfg", "job")]
        runs = ["run_folder=RUN"] if name in ("train", "eval", "check_data") else []
        checked(name, composed(name, *quote_paths(arguments), *runs))
        return
    if name in ("train", "check_data") and "data.root" not in keys and "--config-dir" not in tokens:
        arguments.append(f"data.root={shapes}")
    if name == "train":
        arguments += [*SMALL, *FEW]
    if name in ("train", "eval", "check_data"):
        arguments.append(f"run_folder={folder / f'run-{number}'}")
    if name == "eval":
        arguments.append("pictures=1")
    typed(name, *arguments)


@pytest.mark.slow
@pytest.mark.xdist_group("documentation")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "bash")], ids=name_of)
def test_commands_run(page, folder, shapes):
    for block in blocks(page, "bash"):
        for number, line in enumerate(block.replace("\\\n", " ").splitlines()):
            tokens = shlex.split(line, comments=True)
            if tokens and tokens[0] != "cd":
                execute(tokens, folder, shapes, f"{number}-{abs(hash(line))}")


@pytest.mark.slow
@pytest.mark.xdist_group("documentation")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_python_runs(page, folder):
    names = {}
    for code in blocks(page, "python"):
        exec(compile(code, page.name, "exec"), names)


@pytest.mark.parametrize("page", PAGES[2:], ids=name_of)
def test_a_page_that_is_made_says_so_in_the_clone(page):
    made = re.search(r"```\{(?!toctree|include)", page.read_text())
    assert page.read_text().count("*In the clone this page lacks what is made by `sphinx-build") == bool(made)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_keys_exist(page):
    """Each word that looks like a key of train.py is one, or a section."""
    text = re.sub(r"^```python\n.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    words = re.findall(rf"(?<![\w./-])(?:{SECTIONS})\.[a-z][a-z_.\d]*(?![\w(])", text)
    keys = {word.rstrip(".").replace("data.val.", "data.train.") for word in words}
    known = keys_of("train")
    sections = {name.rpartition(".")[0] for name in known}
    # Names of files, keys of the examples' own classes, and Hydra's.
    files = r"model\.(onnx|pt2|safetensors|xml|bin|engine)|data\.yaml"
    other = re.compile(rf"{files}|model\.backbone_options\..*|loss\.early|.*\._target_|data\.val")
    assert {key for key in keys - known.keys() - sections if not other.fullmatch(key)} == set()


@pytest.mark.slow
def test_the_likeliest_mistakes_end_in_one_line():
    script = ROOT / "docs" / "mistakes.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    answers = json.loads(done.stdout.splitlines()[-1])
    assert len(answers) == 30
    for answer in answers:
        *said, last = answer["printed"].splitlines()
        assert (answer["status"], last[:7]) == (1, "error: "), answer
        assert not re.search("error|traceback|hydra", " ".join([*said, last[7:]]), re.IGNORECASE), answer


def test_every_name_of_transformers_has_its_place():
    models = pytest.importorskip("transformers.models")
    text = (ROOT / "docs" / "coming_from.md").read_text()
    processor, output = models.eomt.EomtImageProcessor, models.eomt.modeling_eomt.EomtForUniversalSegmentationOutput
    names = {*models.eomt.EomtConfig.__annotations__, *models.eomt_dinov3.EomtDinov3Config.__annotations__}
    names |= {name for name in vars(processor) if not name.startswith("_")} - {"preprocess", "valid_kwargs"}
    names |= {*output.__annotations__, "EomtImageProcessorPil", "EomtConfig", "EomtDinov3Config"}
    for method in (
        value for name, value in vars(processor).items() if name.startswith(("preprocess", "post_process_"))
    ):
        names |= {*inspect.signature(method).parameters} - {"self", "outputs", "kwargs"}
    assert {name for name in names if not re.search(rf"`[^`\n]*\b{name}\b", text)} == set()


def test_messages_are_printed_so():
    """Each message of the page on troubleshooting stands in the code."""
    sources = "".join(path.read_text() for package in ("eomt", "datasets") for path in (ROOT / package).rglob("*.py"))
    sources = re.sub(r'"\s+f?"', "", sources)
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    cells = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    messages = {part for cell in cells for part in re.findall(r"`([^`]+)`", cell) if "ImportError" not in part}
    assert len(messages) > 25
    assert {message for message in messages if re.sub(r"%d", "{", message).partition("{")[0] not in sources} == set()
