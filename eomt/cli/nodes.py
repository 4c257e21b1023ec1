"""The classes that configurations name by `_target_`, and the keys that each takes; custom classes take any."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from eomt.cli.settings import (
    LARGEST_SIDE,
    Count,
    Factor,
    Folder,
    ImageSize,
    Names,
    Natural,
    Node,
    NotNegative,
    OpenSection,
    Path,
    ScaleRange,
    Section,
    Seed,
    Share,
    Side,
    Text,
    Values,
    Workers,
    named,
)

READER_KEYS = ("root", "classes", "ignore", "color_labels", "exif", "format", "crowd", "skip_bad")
"""Keys of `data` that are there for both readers, under `data.train` and `data.val`, to refer to."""

Exif = Literal["upright", "stored"] | None
Format = Literal["coco", "labelme", "voc", "yolo"]
Crowd = Literal["coco", "object"]
ClassNames = Annotated[list[Text | int], named("a list of names of classes", min_length=1)]
Merged = Annotated[
    dict[Text | int, ClassNames], named("lists of classes by a new name, as {vehicle: [car,bus]}", min_length=1)
]
Void = Values | Literal["auto"] | None


class Data(Section):
    """`datasets.module.SegmentationData`."""

    root: Path | None
    train: Node
    val: Node
    batch_size: Side | None
    global_batch: Side
    eval_batch_size: Side | None
    num_workers: Workers
    image_size: ImageSize
    scale_range: ScaleRange
    augmentations: list[Node]
    max_images: Count | None
    max_bad_images: Natural
    timeout: Annotated[float, Field(gt=0, le=10**6)]
    seed: Seed
    validate_on_train: bool
    validation_loss: bool = False
    keep_empty: bool = False
    mask_resize: Literal["nearest", "nearest-exact"] = "nearest"
    split: Annotated[float, Field(gt=0, lt=1)] | None = None
    only: ClassNames | None = None
    merge: Merged | None = None
    format: Format = "coco"
    crowd: Crowd = "coco"
    skip_bad: bool = False
    classes: Path | Names | None = None
    ignore: Void = None
    color_labels: bool = False
    exif: Exif = None


class Reader(Section):
    root: Path | None


class SplitReader(Reader):
    split: Literal["train", "val"]
    exif: Exif = None


class CocoReader(SplitReader):
    images: Path | None = None
    annotations: Path | None = None
    format: Format = "coco"
    crowd: Crowd = "coco"
    skip_bad: bool = False


class ShapesReader(Reader):
    split: Literal["train", "val"]
    kind: Literal["panoptic", "instance", "semantic"]
    seed: Natural = 0
    train_images: Count = 2080
    val_images: Count = 200
    size: Annotated[int, Field(ge=32, le=LARGEST_SIDE)] = 96


class FolderReader(Reader):
    images: Path
    labels: Path
    names: Path | None = None
    classes: Path | Names | None
    ignore: Void
    color_labels: bool
    exif: Exif = None
    skip_bad: bool = False


class Loss(Section):
    num_points: Annotated[int, Field(ge=1, le=2**22)]
    oversample_ratio: Annotated[float, Field(ge=1, le=1000)]
    importance_ratio: Share
    mask_weight: NotNegative
    dice_weight: NotNegative
    class_weight: NotNegative
    no_object_weight: NotNegative
    global_normaliser: bool
    ignore_void: bool


class Optim(Section):
    lr: NotNegative
    weight_decay: NotNegative
    layer_decay: Factor
    decay_masked_blocks: bool
    warmup_steps: Annotated[list[Natural], Field(min_length=2, max_length=2)]
    schedule_power: NotNegative
    max_skipped_steps: Natural


class Callback(Section):
    """One of `callbacks`."""


class Best(Callback):
    monitor: Text | None
    mode: Literal["max", "min"]


class Last(Callback):
    folder: Folder
    every_n_steps: Count
    keep_previous: bool


class Average(Callback):
    decay: Annotated[float, Field(gt=0, lt=1)] | None


class EarlyStopping(Best):
    patience: Count | None
    min_delta: NotNegative


class InFolder(Callback):
    folder: Folder


class Pictures(InFolder):
    count: Natural


class Report(InFolder):
    images: Annotated[int, Field(ge=0, le=5)]  # a page stays below 10 MB


class Progress(Callback):
    refresh_rate: Natural = 10


class Logger(OpenSection):
    """A logger, whose class takes further keys that a file must not bring: some name folders or programs."""

    save_dir: Folder = "."
    name: Text | None = None
    version: Text | int | None = None


class WandbLogger(Logger):
    project: Text | None = None
    id: Text | None = None
    resume: Literal["allow", "must", "never", "auto"] | bool | None = None
    offline: bool = False
    entity: Text | None = None
    group: Text | None = None
    job_type: Text | None = None
    tags: list[Text] | None = None
    notes: Text | None = None


_READERS = "datasets.readers."
_CALLBACKS, _LOGGERS = "eomt.training.callbacks.", "lightning.pytorch.loggers."
NODES: dict[str, type[Section]] = {
    "datasets.module.SegmentationData": Data,
    f"{_READERS}ade20k.Ade20kPanoptic": SplitReader,
    f"{_READERS}ade20k.Ade20kSemantic": SplitReader,
    f"{_READERS}cityscapes.CityscapesInstance": SplitReader,
    f"{_READERS}cityscapes.CityscapesPanoptic": SplitReader,
    f"{_READERS}cityscapes.CityscapesSemantic": SplitReader,
    f"{_READERS}coco.CocoInstance": CocoReader,
    f"{_READERS}coco.CocoPanoptic": CocoReader,
    f"{_READERS}folder.FolderSemantic": FolderReader,
    "datasets.shapes.dataset.shapes": ShapesReader,
    "eomt.loss.mask_classification.MaskClassificationLoss": Loss,
    "eomt.training.optim.Recipe": Optim,
    "eomt.training.checkpoint.BestCheckpoint": Best,
    "eomt.training.checkpoint.LastCheckpoint": Last,
    f"{_CALLBACKS}WeightAverage": Average,
    f"{_CALLBACKS}EarlyStop": EarlyStopping,
    f"{_CALLBACKS}MetricsFile": InFolder,
    f"{_CALLBACKS}PredictionPictures": Pictures,
    f"{_CALLBACKS}CurvePlot": InFolder,
    f"{_CALLBACKS}Report": Report,
    f"{_CALLBACKS}Progress": Progress,
    f"{_CALLBACKS}ProgressLines": Callback,
    f"{_LOGGERS}CSVLogger": Logger,
    f"{_LOGGERS}MLFlowLogger": Logger,
    f"{_LOGGERS}TensorBoardLogger": Logger,
    f"{_LOGGERS}WandbLogger": WandbLogger,
}
