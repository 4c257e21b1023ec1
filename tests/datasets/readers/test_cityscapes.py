"""The Cityscapes reader on trees in its layout."""

import pickle

import numpy as np
import pytest
from PIL import Image

from datasets.readers.cityscapes import CityscapesSemantic
from datasets.readers.label_maps import VOID
from tests import label_files
from tests.label_files import check_classes, label_png, photo, turned, write_folder, write_zip

# Void, ego vehicle, road, sidewalk, parking, building, caravan, bicycle; and what is no label id.
LABELS = np.array([[0, 1, 7, 8], [9, 11, 29, 33], [255, 7, 7, 33]])
TRAIN_IDS = np.array([[VOID, VOID, 0, 1], [VOID, 2, VOID, 18], [VOID, 0, 0, 18]])


def write(root, zipped, leave_out=()):
    images, labels = {}, {}
    for frame in ("val/ulm/ulm_000000_000019", "val/bonn/bonn_000000_000019", "train/jena/jena_000002_000019"):
        images[f"{frame}_leftImg8bit.png"] = photo(3, 4, len(images), "PNG")
        labels[f"{frame}_gtFine_labelIds.png"] = label_png(LABELS)
        labels[f"{frame}_gtFine_instanceIds.png"] = label_png(LABELS * 100, np.uint16)
        labels[f"{frame}_gtFine_color.png"] = photo(3, 4, 1, "PNG")
        labels[f"{frame}_gtFine_polygons.json"] = b"{}"
    for name in leave_out:
        del labels[name]
    for name, files in (("leftImg8bit", images), ("gtFine", labels)):
        if zipped:
            members = {f"{name}/{member}": data for member, data in files.items()} | {"license.txt": b"", "README": b""}
            write_zip(root / f"{name}_trainvaltest.zip", members)
        else:
            write_folder(root / name, files)
    return root


@pytest.mark.parametrize("zipped", [True, False])
def test_layouts(tmp_path, zipped):
    data = pickle.loads(pickle.dumps(CityscapesSemantic(write(tmp_path, zipped), "val")))
    names = ["bonn/bonn_000000_000019_leftImg8bit.png", "ulm/ulm_000000_000019_leftImg8bit.png"]
    assert [data.name(k) for k in range(len(data))] == names
    assert [data.image_id(k) for k in range(2)] == [1, 2]
    images = [data.read(k)[0] for k in range(2)]
    assert images[0].shape == (3, 4, 3)
    assert (images[0] != images[1]).any()
    for k in range(2):
        check_classes(data.read(k)[1], TRAIN_IDS)
    assert len(CityscapesSemantic(tmp_path, "train")) == 1


def test_photos_are_usually_taken_as_stored(tmp_path):
    path = write(tmp_path, False) / "leftImg8bit" / "train/jena/jena_000002_000019_leftImg8bit.png"
    path.write_bytes(photo(3, 4, 0, "PNG", exif=turned(2)))
    stored = np.asarray(Image.open(path))
    assert (CityscapesSemantic(tmp_path, "train").read(0)[0] == stored).all()
    assert (CityscapesSemantic(tmp_path, "train", "upright").read(0)[0] == stored[:, ::-1]).all()


def fails(match, root, split="val"):
    label_files.fails(match, CityscapesSemantic, root, split)


def test_missing_files(tmp_path):
    fails(r"data\.root is not set", None)
    fails("splits train and val, not 'test'", tmp_path, "test")
    fails(r"nowhere is no folder; it must hold leftImg8bit_trainvaltest\.zip and gtFine", tmp_path / "nowhere")
    fails(r"lacks leftImg8bit_trainvaltest\.zip or leftImg8bit/ and gtFine_trainvaltest\.zip or gtFine/", tmp_path)
    write(tmp_path, True, ["val/ulm/ulm_000000_000019_gtFine_labelIds.png"])
    missing = r"gtFine_trainvaltest\.zip: val/: ulm/ulm_000000_000019_leftImg8bit\.png; complete"
    fails(rf"1 of 2 images in .*leftImg8bit_trainvaltest\.zip: val/ have no ground truth in .*{missing}", tmp_path)
    path = tmp_path / "gtFine_trainvaltest.zip"
    path.write_bytes(path.read_bytes()[:-50])
    fails(r"gtFine_trainvaltest\.zip is no complete zip archive", tmp_path)
