"""Images from addresses."""

import numpy as np
import pytest
from PIL import Image

from eomt.errors import InputError
from eomt.inference import download
from eomt.inference.sources import load_image
from tests.random_networks import random_image


def test_addresses(tmp_path, web, monkeypatch):
    rgb = random_image(20, 30)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    (tmp_path / "page.png").write_text("<html>")
    for address in (f"{web.address}/a.png", f"HTTP{web.address[4:]}/a.png?size=1", f"{web.address}/to?/a.png"):
        assert np.array_equal(load_image(address), rgb)
    # What is not read, at once or where it is redirected to.
    for address, message in (
        (f"{web.address}/none.png?key=secret", r"/none\.png cannot be downloaded: .*404"),
        (f"{web.address}/page.png", r"/page\.png cannot be read: it is no image"),
        (f"file://{tmp_path}/a.png", "only http:// and https:// addresses"),
        ("s3://bucket/a.png", "only http:// and https:// addresses"),
        (f"{web.address}/to?file://{tmp_path}/a.png", "cannot be downloaded"),
        (f"{web.address}/to?ftp://127.0.0.1/a.png", "cannot be downloaded"),
        ("http://127.0.0.1:1/a.png", "cannot be downloaded: .*refused"),
        ("http://[/a.png", "cannot be downloaded"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            load_image(address)
        assert "secret" not in str(caught.value)
        assert "\n" not in str(caught.value)
    for limit, message in (("MOST_BYTES", "has more than 0 MiB"), ("_LONGEST", "takes longer than -1 s")):
        with monkeypatch.context() as patch:
            patch.setattr(download, limit, -1 if limit == "_LONGEST" else 9)
            with pytest.raises(InputError, match=message):
                load_image(f"{web.address}/a.png")
    # A file of that name is one.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "http:").mkdir()
    Image.fromarray(rgb).save(tmp_path / "http:" / "a.png")
    assert np.array_equal(load_image("http://a.png"), rgb)
