"""Write a trained network in a form that others read.

python export.py ckpt=RUN out=DIR precision=16                           ours, of the best checkpoint
python export.py ckpt=RUN/checkpoints/last.ckpt format=hf out=DIR        for transformers
python export.py ckpt=RUN format=onnx out=DIR postprocess=true precision=int8 images=photos
python export.py ckpt=RUN out=DIR push=USER/NAME                         also onto the Hub
python export.py ckpt=DIR/pytorch_model.bin kind=semantic classes=classes.txt format=hf out=DIR
"""

from omegaconf import DictConfig

from eomt.cli.main import checked, command


def main(cfg: DictConfig) -> None:
    """Export the weights that `cfg` names, see `eomt.cli.export`."""
    cfg = checked("export", cfg)
    from eomt.cli.export import export

    export(cfg)


if __name__ == "__main__":
    command("export", main)
