"""The installed package alone: what segments an image needs none of the extras."""

import subprocess
import sys

from tests.conftest import ROOT

SCRIPT = """
import sys

EXTRAS = {"albumentations", "cv2", "hydra", "lightning", "matplotlib", "omegaconf", "pytorch_lightning",
          "scipy", "tensorboard", "torchmetrics", "wandb"}

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in EXTRAS:
            raise ImportError(f"{name} belongs to an extra")

sys.meta_path.insert(0, Refuse())

import numpy as np
import torch
from eomt.checkpoint import read_checkpoint
from eomt.classes import Classes
from eomt.inference.draw import draw_segments
from eomt.inference.geometry import fit_and_pad
from eomt.network import EoMT
from eomt.tasks import task_of

classes = Classes.from_categories([{"id": 1, "name": "cat"}, {"id": 7, "name": "sky", "isthing": 0}])
options = {"embed_dim": 32, "depth": 2, "num_heads": 2}
network = EoMT("vit_small_patch14_reg4_dinov2", 32, len(classes), 4, 1, 8, options).eval()
image = np.zeros((20, 30, 3), np.uint8)
padded, placement = fit_and_pad(image, (32, 32))
with torch.no_grad():
    output = network(padded[None])[-1]
answer = task_of("panoptic").predict(output, placement, (32, 32), classes)
assert answer.ids.shape == (20, 30)
draw_segments(image, answer.ids, answer.labels, classes)
print("segmented")
"""


def test_inference_needs_no_extra():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.strip() == "segmented", done.stderr
