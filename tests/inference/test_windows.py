"""Windows of a TIFF, and pictures and results of images that are too large for memory."""

import json

import numpy as np
import pytest
from PIL import Image

import eomt.inference.result
import eomt.photo
import eomt.postprocess.tiles
import eomt.postprocess.writers
from eomt.errors import InputError
from eomt.inference.predict_files import predict_files
from eomt.inference.segmenter import Segmenter
from eomt.inference.sources import load_image
from eomt.inference.windows import load_thinned, opened
from eomt.photo import MAX_PIXELS, limit_pixels
from eomt.postprocess.writers import write_large_png
from eomt.tasks import task_of
from tests.colour_network import CLASSES, ColourNetwork, picture
from tests.random_networks import KINDS, random_image


@pytest.fixture
def write_tiff(tmp_path):
    rasterio = pytest.importorskip("rasterio", reason="reads TIFFs by windows: pip install rasterio")

    def write(pixels, **options):
        path = tmp_path / "large.tif"
        values = pixels[..., None] if pixels.ndim == 2 else pixels
        shape = {"height": values.shape[0], "width": values.shape[1], "count": values.shape[2], "dtype": values.dtype}
        options = {"tiled": True, "blockxsize": 32, "blockysize": 32, **options}
        with rasterio.open(path, "w", driver="GTiff", **shape, **options) as file:
            file.write(values.transpose(2, 0, 1))
        return path

    return write


@pytest.mark.parametrize("compress", ["none", "lzw", "jpeg"])
@pytest.mark.parametrize("kind", ["grey", "grey16", "rgb", "rgba", "white_is_zero"])
def test_windows_are_parts_of_the_whole(kind, compress, write_tiff):
    if compress == "jpeg" and kind in ("grey16", "rgba"):
        pytest.skip("JPEG has 8 bits, without alpha")
    pixels, options = random_image(70, 90), {"photometric": "rgb"}
    if kind != "rgb":
        options = {"photometric": "minisblack"}
    if kind == "white_is_zero":
        options = {"photometric": "miniswhite"}
    if kind in ("grey", "white_is_zero"):
        pixels = pixels[..., 0]
    elif kind == "grey16":
        pixels = pixels[..., 0].astype(np.uint16) * 251
    elif kind == "rgba":
        pixels, options = np.dstack([pixels, pixels[..., :1]]), {"photometric": "rgb", "alpha": "unspecified"}
    path = write_tiff(pixels, compress=compress, **options)
    whole = load_image(path)
    with opened(path) as (size, read):
        assert size == (70, 90)
        assert np.array_equal(read(10, 20, 65, 90), whole[10:65, 20:90])
    assert np.array_equal(load_thinned(path, 7), whole[::7, ::7])


def test_a_header_cannot_claim_more_than_max_pixels(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", MAX_PIXELS // 2)
    for name in ("a.png", "a.tif"):
        Image.new("L", (100, 60)).save(tmp_path / name)
        limit_pixels(5999)
        for read in (load_image, lambda path: opened(path).__enter__()):
            with pytest.raises(InputError, match=r"claims more than max_pixels=5999 pixels: raise max_pixels="):
                read(tmp_path / name)
        limit_pixels(6000)
        assert load_image(tmp_path / name).shape == (60, 100, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_results_of_a_very_large_image(kind, write_tiff, tmp_path, monkeypatch, caplog):
    """Same results as for an image that memory holds, with pictures made smaller."""
    pixels, _ = picture(200, 260)
    path = write_tiff(pixels, compress="deflate")
    segmenter = Segmenter(ColourNetwork(), task_of(kind), CLASSES, "cpu", tile=True)

    def results(out):
        assert [error for _, error in predict_files(segmenter, tmp_path, [path], out)] == [None]
        files = {p.relative_to(out).as_posix(): p for p in sorted((out / "predictions").rglob("*.*"))}
        return {name: json.loads(p.read_text()) if p.suffix == ".json" else np.asarray(Image.open(p)).tolist()
                for name, p in files.items()}  # fmt: skip

    expected = results(tmp_path / "whole")
    whole = Image.open(tmp_path / "whole/pictures/large.jpg")
    for module in (eomt.inference.result, eomt.postprocess.tiles, eomt.postprocess.writers):
        monkeypatch.setattr(module, "MAX_PIXELS", 1000)
    monkeypatch.setattr(eomt.inference.result, "_LARGE_SIDE", 130)
    with caplog.at_level("INFO"):
        assert results(tmp_path / "parts") == expected
    assert "large.tif: its picture shows each 2. pixel; results are whole" in caplog.text
    assert whole.size == (520, 400)
    assert Image.open(tmp_path / "parts/pictures/large.jpg").size == (130 * 3, 100 * 3)


@pytest.mark.parametrize("values", [np.uint8, np.uint16, "colour"])
def test_a_png_in_rows(values, tmp_path, monkeypatch):
    monkeypatch.setattr("eomt.postprocess.runs._BLOCK", 500)
    ids = np.random.default_rng(0).integers(0, 300, (37, 120)).astype(np.int32)
    table = np.stack([np.arange(300) % 256, np.arange(300) // 2 % 256, np.arange(300) // 3], 1).astype(np.uint8)
    table = table if values == "colour" else np.arange(300).astype(values)
    write_large_png(tmp_path / "a.png", ids, table.__getitem__)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), table[ids])
