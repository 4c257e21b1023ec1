"""Fixtures of several test files; helpers are in running, golden_numbers, random_networks and other modules here."""

import os
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.running import ROOT, SMALL, configured

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

# Two test workers share two cores; and bit-equal runs need one order of sums, which depends on the number of threads.
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of tests/stress."""
    parser.addoption("--count", type=int, help="kills, or damaged files of each kind; default each test's own")
    parser.addoption("--minutes", type=float, default=30, help="of the soak")


@pytest.fixture(autouse=True)
def no_marks_of_earlier_runs() -> None:
    """Take the marks of the runs of other tests, for the ranks that they start, from this process."""
    for name in ("EOMT_RUN", "EOMT_FIRST_RANK"):
        os.environ.pop(name, None)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """24 training and 10 validation images of the built-in task, and a cache folder for this session."""
    from datasets.shapes.dataset import ensure_shapes

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EOMT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield ensure_shapes(train_images=24, val_images=10, size=48)


@pytest.fixture(scope="session")
def options(shapes: Path) -> tuple[str, ...]:
    """Overrides that train a tiny network on `shapes` for two epochs."""
    return (*SMALL, f"data.root='{shapes}'", "trainer.max_epochs=2")


@pytest.fixture(scope="session")
def run(options: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of two epochs of three steps."""
    import train

    folder = tmp_path_factory.mktemp("run")
    # So short a run is sure of nothing; without the threshold there are predictions to compare.
    train.main(configured(folder, *options, "postprocess.score_threshold=0"))
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The small real sets beside the checkout."""
    data = ROOT.parent / "shared" / "data"
    if not data.is_dir():
        pytest.skip("the shared real data is not beside this checkout")
    return data


@pytest.fixture
def web(tmp_path: Path) -> Iterator[SimpleNamespace]:
    """A web server on this machine for `tmp_path`: its address, and the paths that it was asked for.

    `/to?ADDRESS` leads to another address.
    """
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def do_GET(self):
            asked.append(self.path)
            if not self.path.startswith("/to?"):
                return super().do_GET()
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to?"))
            self.end_headers()

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield SimpleNamespace(address=f"http://127.0.0.1:{server.server_port}", asked=asked)
        server.shutdown()
