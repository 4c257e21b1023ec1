"""Photos of every encoding are one picture for training, evaluation and prediction."""

import json

import cv2
import lightning
import numpy as np
import pytest
from PIL import Image

from datasets.module import SegmentationData
from datasets.readers.coco import CocoInstance, CocoPanoptic
from datasets.readers.folder import FolderSemantic
from eomt.inference.find_images import find_images
from eomt.inference.predict_files import predict_files
from eomt.inference.segmenter import Segmenter
from eomt.inference.sources import load_image
from eomt.loss.mask_classification import MaskClassificationLoss
from eomt.tasks import task_of
from eomt.training.callbacks import SavePredictions
from eomt.training.module import EoMTModule
from tests.label_files import label_png, turned, write_folder
from tests.random_networks import CLASSES, KINDS, OPTIONS, random_image, random_network

HEIGHT, WIDTH = 20, 30  # upright


def write_photos(folder):
    """A photo of each encoding."""
    rgb = random_image(HEIGHT, WIDTH)
    grey, alpha = rgb[..., 0], rgb[..., 1]
    deep = grey.astype(np.uint16) * 257
    palette = Image.fromarray(rgb).quantize(16)
    photos = {
        "plain.jpg": (Image.fromarray(rgb), {}),
        "progressive.jpg": (Image.fromarray(rgb), {"progressive": True}),
        "inks.jpg": (Image.fromarray(rgb).convert("CMYK"), {}),
        "grey.jpeg": (Image.fromarray(grey), {}),
        "deep.png": (Image.fromarray(deep), {}),
        "deep.tif": (Image.fromarray(deep), {}),
        "float.tiff": (Image.fromarray((grey / 255).astype(np.float32)), {}),
        "grey_alpha.png": (Image.fromarray(np.dstack([grey, alpha]), "LA"), {}),
        "alpha.png": (Image.fromarray(np.dstack([rgb, alpha])), {}),
        "alpha.webp": (Image.fromarray(np.dstack([rgb, alpha])), {}),
        "palette.png": (palette, {}),
        "clear.png": (palette, {"transparency": 3}),
        "bits.png": (Image.fromarray(grey > 99), {}),
        "plain.bmp": (Image.fromarray(rgb), {}),
        "plain.gif": (palette, {}),
    }
    for orientation in range(1, 9):
        stored = Image.fromarray(rgb if orientation < 5 else random_image(WIDTH, HEIGHT))
        for suffix in ("jpg", "png", "tif", "webp"):
            photos[f"turned_{orientation}.{suffix}"] = (stored, {"exif": turned(orientation)})
    for name, (image, options) in photos.items():
        # A stem of its own for each: results are named by it.
        path = folder / name.replace(".", "_", 1)
        image.save(folder / (path.name + "." + name.rpartition(".")[2]), **options)
    # Sixteen bits a colour, which Pillow does not write.
    wide = rgb[..., ::-1].astype(np.uint16) * 257
    assert cv2.imwrite(str(folder / "wide_png.png"), wide)
    assert cv2.imwrite(str(folder / "wide_tif.tif"), wide)
    return sorted(path.name for path in folder.iterdir())


def write_truth(root, kind, names):
    """Ground truth of the upright photos without a segment; opens the set."""
    if kind == "semantic":
        void = label_png(np.full((HEIGHT, WIDTH), 255))
        write_folder(root / "labels", {name.rpartition(".")[0] + ".png": void for name in names})
        classes = {item.id: item.name for item in CLASSES}
        return FolderSemantic(root, "photos", "labels", classes)
    images = [{"id": k + 1, "file_name": n, "width": WIDTH, "height": HEIGHT} for k, n in enumerate(names)]
    truth = {"images": images, "annotations": [], "categories": CLASSES.to_list()}
    (root / "truth.json").write_text(json.dumps(truth))
    (root / "truth").mkdir()
    return {"instance": CocoInstance, "panoptic": CocoPanoptic}[kind](root, images="photos", annotations="truth.json")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_saved_predictions_are_equal(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("EOMT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "photos").mkdir()
    names = write_photos(tmp_path / "photos")
    assert len(names) == 49
    reader, task = write_truth(tmp_path, kind, names), task_of(kind, OPTIONS[kind])
    for k in range(len(reader)):
        pixels = reader.read(k)[0]
        assert pixels.shape == (HEIGHT, WIDTH, 3), reader.name(k)
        np.testing.assert_array_equal(pixels, load_image(tmp_path / "photos" / reader.name(k)), reader.name(k))

    module = EoMTModule(random_network(), task, CLASSES, MaskClassificationLoss())
    data = SegmentationData(reader, reader, task.geometry, 32, 1, 1, num_workers=0, seed=0)
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(
        **options, callbacks=[SavePredictions(tmp_path / "eval")], use_distributed_sampler=False, devices=1
    )
    trainer.validate(module, data, verbose=False)

    segmenter = Segmenter(random_network(), task, CLASSES, "cpu")
    folder, files = find_images(str(tmp_path / "photos"), tmp_path / "out")
    done = predict_files(segmenter, folder, files, tmp_path / "out", batch_size=1, num_workers=0)
    assert [error for _, error in done] == [None] * len(names)
    found = {part: tmp_path / part for part in ("eval", "out/predictions")}
    pictures = [{path.stem: np.array(Image.open(path)) for path in folder.rglob("*.png")} for folder in found.values()]
    rows = [json.loads(path.read_text()) for folder in found.values() for path in sorted(folder.glob("*.json"))]
    assert pictures[0].keys() == pictures[1].keys()
    for name, picture in pictures[0].items():
        np.testing.assert_array_equal(picture, pictures[1][name], name)
    if kind == "instance":
        assert len(rows[0]) == OPTIONS[kind]["top_k"] * len(names)
        assert rows[0] == rows[1]
    else:
        assert len(pictures[0]) == len(names)
        assert all(picture.shape[:2] == (HEIGHT, WIDTH) for picture in pictures[0].values())
    if kind == "panoptic":
        assert rows[0]["annotations"] == rows[1]["annotations"]
