"""The 30 likeliest mistakes, and what is printed: `python docs/mistakes.py` types each and prints the answers as JSON.

Each runs in a process of its own, forked from one that has imported all, in an empty folder with `photo.jpg` and
`RUN/checkpoints/best.ckpt`.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Children are forked: no threads before.
os.environ.setdefault("OMP_NUM_THREADS", "1")
MISTAKES = """
python train.py lr=1e-3
python train.py epochs=10
python train.py batch=8
python train.py imgsz=512
python train.py gpus=2
python train.py --task coco_panoptic
python train.py task = coco_panoptic
python train.py task=coco
python train.py task=coco_panoptic
python train.py task=coco_panoptic data.root=nowhere
python train.py task=coco_instance data.root=.
python train.py task=folder_semantic data.root=.
python train.py data=coco.yaml
python train.py data.scale_range=[0.5, 2.0]
python train.py data.batch_size=3
python train.py data.image_size=100
python train.py model=vitl
python train.py model.backbone=resnet50
python train.py optim.lr=fast
python train.py trainer.devices=0,1
python train.py trainer.accelerator=gpu trainer.devices=99
python train.py ckpt=RUN/checkpoints/lst.ckpt
python train.py weights=photo.jpg
python eval.py RUN
python eval.py ckpt=RUN
python predict.py ckpt=RUN photo.jpg
python predict.py ckpt=RUN images=photo.jpg conf=0.5
python predict.py ckpt=RUN images=photo.jpg threshold=50
python predict.py ckpt=RUN images=photo.jpg device=gpu
python export.py ckpt=RUN out=exported format=tflite
""".strip().splitlines()


def answers() -> list[dict]:
    """Command, exit status and output of each mistake."""
    sys.path.insert(0, str(ROOT))
    folder = Path(tempfile.mkdtemp()).resolve()
    _prepare(folder)
    found = []
    for line in MISTAKES:
        path = folder / "printed"
        status = _type(line, folder, path)
        text = path.read_text().replace(f"{folder}/", "").replace(str(folder), "the current folder").strip()
        found.append({"typed": line, "status": status, "printed": text})
    shutil.rmtree(folder)
    return found


def _prepare(folder: Path) -> None:
    """Import what commands import, and write what they name."""
    import torch
    from PIL import Image

    from eomt.classes import Classes
    from eomt.model.eomt import EoMT

    for module in ("datasets.module", "eomt.cli.evaluate", "eomt.cli.fit", "eomt.cli.predict"):
        importlib.import_module(module)
    os.environ["EOMT_CACHE"] = str(folder / "cache")
    Image.new("RGB", (60, 40)).save(folder / "photo.jpg")
    classes = Classes.from_categories([{"id": 1, "name": "cat"}])
    options = {"embed_dim": 32, "depth": 2, "num_heads": 2}
    network = EoMT("vit_small_patch14_reg4_dinov2", 32, len(classes), 4, 1, 8, options)
    own = {"kind": "panoptic", "classes": classes.to_list(), "network": network.spec}
    weights = {f"network.{name}": value for name, value in network.state_dict().items()}
    (folder / "RUN" / "checkpoints").mkdir(parents=True)
    torch.save({"eomt": own, "state_dict": weights}, folder / "RUN" / "checkpoints" / "best.ckpt")


def _type(line: str, folder: Path, printed: Path) -> int:
    """Run a command in a fork of this process; its exit status."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        os.chdir(folder)
        file = os.open(printed, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.argv = shlex.split(line)[1:]
        runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    print(json.dumps(answers()))
