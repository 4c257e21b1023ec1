"""Images of all depths, colours and orientations."""

import importlib.util
import io
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from eomt.errors import InputError
from eomt.inference.find_images import find_images
from eomt.inference.sources import load_image
from eomt.photo import photo_size
from tests.random_networks import random_image
from tests.running import ROOT


def example():
    spec = importlib.util.spec_from_file_location("run_graph", ROOT / "examples" / "run_graph.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_files_of_all_depths_and_colours(tmp_path):
    rgb = random_image(20, 30)
    grey = rgb[..., 0]
    deep = grey.astype(np.uint16) * 257
    white = np.full_like(rgb, 255)
    alpha = np.where(np.arange(30) < 10, 0, 255).astype(np.uint8) * np.ones((20, 1), np.uint8)
    over_white = np.where(alpha[..., None] > 0, rgb, white)
    palette = Image.fromarray(rgb).quantize(16)
    clear = palette.copy()
    clear.info["transparency"] = int(np.asarray(palette)[0, 0])
    seen = np.array(palette.convert("RGB"))
    cases = {
        "grey.png": (Image.fromarray(grey), np.dstack([grey] * 3)),
        "deep.png": (Image.fromarray(deep), np.dstack([grey] * 3)),
        "deep.tif": (Image.fromarray(deep), np.dstack([grey] * 3)),
        "wide.tif": (Image.fromarray(deep.astype(np.int32)), np.dstack([grey] * 3)),
        "float.tif": (Image.fromarray((grey / 255).astype(np.float32)), np.dstack([grey] * 3)),
        "bits.png": (Image.fromarray(grey > 99), np.dstack([(grey > 99) * np.uint8(255)] * 3)),
        "alpha.png": (Image.fromarray(np.dstack([rgb, alpha])), over_white),
        "alpha.webp": (Image.fromarray(np.dstack([rgb, alpha])), over_white),
        "grey_alpha.png": (
            Image.fromarray(np.dstack([grey, alpha]), "LA"),
            np.where(alpha[..., None] > 0, grey[..., None], white),
        ),
        "palette.png": (palette, seen),
        "clear.png": (clear, np.where((np.asarray(palette) == np.asarray(palette)[0, 0])[..., None], white, seen)),
        "rgb.bmp": (Image.fromarray(rgb), rgb),
        "inks.tif": (Image.fromarray(np.dstack([255 - rgb, np.zeros_like(grey)]), "CMYK"), rgb),
    }
    for name, (image, expected) in cases.items():
        image.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
        found = load_image(tmp_path / name)
        assert found.dtype == np.uint8, name
        assert np.array_equal(found, expected), name
        # The example of exported graphs reads without this package.
        assert np.array_equal(example().rgb(Image.open(tmp_path / name)), expected), name
    # The nearest of the 256 values that 16 bits stand for.
    assert load_image(np.array([[0, 128, 129, 65535]], np.uint16))[0, :, 0].tolist() == [0, 0, 1, 255]
    frames = [Image.fromarray(rgb), Image.fromarray(255 - rgb)]
    frames[0].save(tmp_path / "frames.tif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "frames.gif", save_all=True, append_images=frames[1:])
    assert np.array_equal(load_image(tmp_path / "frames.tif"), rgb)
    assert np.abs(load_image(tmp_path / "frames.gif").astype(int) - rgb).mean() < 10


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(orientation, tmp_path):
    rgb = random_image(20, 30)
    # EXIF 2.3, tag 274: where row 0 and column 0 of what is stored belong.
    turned = {
        1: rgb,
        2: rgb[:, ::-1],
        3: rgb[::-1, ::-1],
        4: rgb[::-1],
        5: rgb.transpose(1, 0, 2),
        6: np.rot90(rgb, -1),
        7: rgb[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(rgb, 1),
    }[orientation]
    exif = Image.Exif()
    exif[0x112] = orientation
    deep = rgb[..., 0].astype(np.uint16) * 257
    for name in ("a.png", "a.tif", "a.jpg"):
        Image.fromarray(rgb).save(tmp_path / name, exif=exif, **({"quality": 95} if name == "a.jpg" else {}))
        with Image.open(tmp_path / name) as opened:
            for found in (load_image(tmp_path / name), load_image(opened)):
                assert found.shape == turned.shape
                assert np.abs(found.astype(int) - turned).mean() < (9 if name == "a.jpg" else 1e-9)
    for name in ("deep.png", "deep.tif"):
        Image.fromarray(deep).save(tmp_path / name, exif=exif)
        assert np.array_equal(load_image(tmp_path / name), turned[..., :1].repeat(3, axis=2)), name


def test_bad_images_are_named(tmp_path):
    rgb = random_image(60, 60)
    for suffix in ("jpg", "png", "tif", "webp"):
        path = tmp_path / f"cut.{suffix}"
        Image.fromarray(rgb).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(InputError, match=rf"cut\.{suffix} cannot be read") as caught:
            load_image(path)
        assert "\n" not in str(caught.value)
    (tmp_path / "empty.png").touch()
    Image.new("1", (14000, 14000)).save(tmp_path / "bomb.png")
    (tmp_path / "program.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    for name, words in (
        ("bomb.png", "claims more than max_pixels=178956970"),
        ("program.jpg", "is no image in JPEG, PNG"),
    ):
        with pytest.raises(InputError, match=words):
            load_image(tmp_path / name)
    Image.fromarray(np.full((4, 4), 70_000, np.int32)).save(tmp_path / "wide.tif")
    with pytest.raises(ValueError, match=r"from 70000 to 70000, not within 0\.\.65535"):
        example().rgb(Image.open(tmp_path / "wide.tif"))
    for source, message in (
        (tmp_path / "empty.png", r"empty\.png cannot be read: it is no image"),
        (tmp_path / "wide.tif", r"wide\.tif cannot be read: its values go from 70000 to 70000"),
        (tmp_path, "is a folder, not an image"),
        (np.zeros((3, 8, 8), np.uint8), r"found shape \[3, 8, 8\]"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), r"found shape \[8, 8, 3\]"),
        (np.zeros((0, 8, 3), np.uint8), "at least one pixel"),
        (rgb.astype(np.float32), "must lie in 0..1"),
        (np.full((4, 4), np.nan), "must lie in 0..1"),
        (rgb.astype(np.int64), "found int64"),
        (None, "found NoneType"),
        (io.StringIO("text"), 'found str: open it with "rb"'),
        (io.BytesIO(), "has it been read before"),
    ):
        with pytest.raises(InputError, match=message):
            load_image(source)


def test_photos_of_phones_are_upright(tmp_path):
    """HEIC, turned by its decoder: the orientation that its EXIF block tells, too, turns it no second time."""
    heif = pytest.importorskip("pillow_heif")
    pixels = np.zeros((40, 64, 3), np.uint8)
    pixels[:20, :32], pixels[20:, 32:] = (250, 30, 30), (30, 30, 250)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    heif.from_pillow(Image.fromarray(pixels)).save(tmp_path / "a.HEIC", exif=exif.tobytes(), quality=95)
    found = load_image(tmp_path / "a.HEIC")
    assert found.shape == (64, 40, 3)
    assert np.abs(found.astype(int) - np.rot90(pixels, -1)).mean() < 3
    assert photo_size((tmp_path / "a.HEIC").read_bytes()) == (64, 40)
    assert find_images(str(tmp_path), tmp_path / "out")[1] == [tmp_path / "a.HEIC"]
    (tmp_path / "b.heic").write_bytes((tmp_path / "a.HEIC").read_bytes()[:300])
    with pytest.raises(InputError, match=r"b\.heic cannot be read"):
        load_image(tmp_path / "b.heic")


def test_without_its_extra_heic_is_told(tmp_path):
    """A file's suffix lies, or the package is not there: what reads it is named."""
    code = (
        "import sys; sys.modules['pillow_heif'] = None\n"
        "import importlib.util as util; util.find_spec = lambda name, *given: None\n"
        "import logging; logging.basicConfig(level='INFO')\n"
        "from eomt.inference.find_images import find_images\n"
        "find_images(sys.argv[1], sys.argv[2])\n"
    )
    (tmp_path / "a.heic").write_bytes(b"ftypheic")
    process = subprocess.run([sys.executable, "-c", code, tmp_path, tmp_path / "out"], capture_output=True, cwd=ROOT)
    assert b"found 1 .heic; pip install pillow-heif reads HEIC photos" in process.stderr
