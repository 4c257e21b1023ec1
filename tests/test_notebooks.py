"""The notebooks, run cell by cell from top to bottom."""

import json

import pytest

from tests.running import ROOT, SMALL


@pytest.mark.slow
@pytest.mark.xdist_group("documentation")
@pytest.mark.parametrize("path", sorted(ROOT.glob("notebooks/*.ipynb")), ids=lambda path: path.stem)
def test_cells_run(path, shapes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.shapes.dataset.ensure_shapes", lambda: shapes)
    few = ["trainer.max_epochs=1", "trainer.limit_val_batches=1", "callbacks.pictures.count=1"]
    names = {}
    for cell in json.loads(path.read_text())["cells"]:
        assert not cell.get("outputs")
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{path.name}, cell {cell['id']}", "exec"), names)
            if "settings = " in "".join(cell["source"]):
                names["settings"] += [*SMALL, *few]
    assert (tmp_path / "runs" / "quickstart" / "sure.png").is_file()
