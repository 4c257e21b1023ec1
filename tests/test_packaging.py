"""The package alone: segmenting images needs none of the extras."""

import subprocess
import sys

import pytest

from tests.running import ROOT

SCRIPT = """
import sys

EXTRAS = {"albumentations", "cv2", "hydra", "lightning", "matplotlib", "omegaconf", "pytorch_lightning",
          "scipy", "tensorboard", "torchmetrics", "wandb"}

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in EXTRAS:
            raise ImportError(f"{name} belongs to an extra")

sys.meta_path.insert(0, Refuse())

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from eomt.__main__ import main
from eomt.classes import Classes
from eomt.inference.find_images import find_images
from eomt.inference.predict_files import predict_files
from eomt.inference.segmenter import Segmenter
from eomt.model.eomt import EoMT

classes = Classes.from_categories([{"id": 1, "name": "cat"}, {"id": 7, "name": "sky", "isthing": 0}])
options = {"embed_dim": 32, "depth": 2, "num_heads": 2}
network = EoMT("vit_small_patch14_reg4_dinov2", 32, len(classes), 4, 1, 8, options)
weights = {f"network.{name}": value for name, value in network.state_dict().items()}
folder = Path(sys.argv[1])
Image.new("RGB", (30, 20)).save(folder / "image.png")
for kind in ("semantic", "instance", "panoptic"):
    own = {"kind": kind, "classes": classes.to_list(), "network": network.spec}
    torch.save({"eomt": own, "state_dict": weights}, folder / "model.ckpt")
    segmenter = Segmenter.load(folder / "model.ckpt", device="cpu")
    result = segmenter(np.zeros((20, 30, 3), np.uint8))
    assert result.map.shape == (20, 30)
    assert result.picture().size == (13 * 30, 13 * 20)
    assert len(list(predict_files(segmenter, *find_images(str(folder / "image.png"), folder), folder / kind))) == 1
sys.stdout, real = sys.stderr, sys.stdout
typed = [f"ckpt={folder / 'model.ckpt'}", f"images={folder / 'image.png'}", f"out={folder / 'typed'}", "device=cpu"]
assert main(["predict", *typed]) == main(["export", typed[0], f"out={folder / 'exported'}"]) == 0
sys.stdout = real
print("segmented")
"""


@pytest.mark.slow
def test_inference_needs_no_extra(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.stdout.strip() == "segmented", done.stderr
