"""All keys of all commands: types, ranges and meanings, without anything heavy to import.

A section of the configuration is a `Section`. A node, which names its class by `_target_`, has the keys of the section
that `NODES` has for that name; nodes of other classes have any.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from eomt.cli.types import (
    LARGEST_SIDE,
    Count,
    CountOrAll,
    Duration,
    Folder,
    ImageSize,
    Kind,
    Limit,
    Names,
    Natural,
    Node,
    NotNegative,
    OpenSection,
    Options,
    Path,
    Paths,
    Precision,
    Section,
    Seed,
    Share,
    Side,
    Span,
    Text,
    Values,
    Windows,
    key,
    named,
    rising,
)

SCORES = {
    "semantic": ("miou", "mean_accuracy", "pixel_accuracy"),
    "instance": tuple(
        f"{name}{part}"
        for name, parts in (("ap", ("", "50", "75")), ("ar", ("1", "10", "100")))
        for part in (*parts, "_small", "_medium", "_large")
    ),
    "panoptic": tuple(f"{score}{group}" for group in ("", "_things", "_stuff") for score in ("pq", "sq", "rq")),
}
"""The scores of each built-in kind of segmentation, as metrics.json names them."""


class LoRA(Section):
    rank: Annotated[int, Field(ge=0, le=LARGEST_SIDE)] = key("rank of the low-rank changes, such as 8; 0: none")
    alpha: Annotated[float, Field(gt=0)] = key("the change is scaled by alpha / rank")


class Model(Section):
    backbone: Text = key("timm's name of a plain ViT")
    patch_size: Side = key("side of a patch in pixels")
    num_queries: Side = key("number of queries")
    num_masked_blocks: Side = key("number of last blocks that the queries pass")
    pretrained: bool | Path = key("pretrained weights of the backbone: true, false, or a file in timm's form")
    backbone_options: Options = key("further arguments of timm's model, such as {embed_dim: 96, depth: 8}")
    freeze_backbone: bool | Natural = key("true trains queries and heads alone; a number freezes so many first blocks")
    lora: LoRA = key("low-rank changes that learn in place of the backbone")


class Network(Section):
    backbone: Text | None = key("timm's name of a plain ViT; null: as the weights say")
    image_size: ImageSize | None = key("the network's input; null: as the weights say, or 640")
    num_masked_blocks: Side | None = key("number of last blocks that the queries pass; null: as published")
    backbone_options: Options | None = key("sizes of an unpublished backbone, such as {num_heads: 4}")


class Annealing(Section):
    windows: Literal["auto"] | Windows | None = key(
        "when each masked block's attention mask is annealed; null: no attention masks"
    )
    span: Span = key("part of the run that fractions in windows refer to")
    power: NotNegative = key("power of the annealing polynomial")
    validate_masked: bool = key("validate under the current attention masks, as the original does")


class Optim(Section):
    lr: NotNegative = key("learning rate of the heads and of the last block")
    weight_decay: NotNegative = key("AdamW's weight decay")
    layer_decay: Annotated[float, Field(gt=0, le=1)] = key("factor of the learning rate from a block to the one before")
    decay_masked_blocks: bool = key("false keeps the blocks that the queries pass at the full rate")
    warmup_steps: Annotated[list[Natural], Field(min_length=2, max_length=2)] = key("steps of heads, then of backbone")
    schedule_power: NotNegative = key("power of the learning-rate polynomial")
    max_skipped_steps: Natural = key("so many steps in a row that are not finite end the run")


class Postprocess(OpenSection):
    max_bytes: Count | None = key("bound on the memory of masks that are upsampled at a time")
    top_k: Count | None = key("instance: predictions per image; null: 100")
    score_threshold: Share | None = key("panoptic: least class probability; null: 0.8")
    mask_threshold: Share | None = key("panoptic: least mask probability; null: 0.5")
    overlap_threshold: Share | None = key("panoptic: least share of its mask that a segment keeps; null: 0.8")


class Trainer(Section):
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"] = key("kind of device")
    strategy: Text = key("how devices share the work, such as ddp or fsdp2")
    devices: (
        Literal["auto", -1]
        | Count
        | Annotated[list[Natural], Field(min_length=1)]
        | Annotated[str, Field(pattern=r"^\d+(,\d+)*$"), named("device numbers such as '0,1'")]
    ) = key("number of devices, or a list of them")
    num_nodes: Count = key("number of machines")
    precision: Literal[
        "16-mixed", "bf16-mixed", "32-true", "64-true", "16-true", "bf16-true", 16, 32, 64, "16", "bf16", "32", "64"
    ] | None = key("of the computation; null: bf16-mixed on a GPU, 32-true elsewhere")  # fmt: skip
    max_epochs: CountOrAll | None = key("epochs of the run; -1: no limit")
    min_epochs: Natural | None = key("least number of epochs")
    max_steps: CountOrAll = key("optimizer steps of the run; -1: no limit")
    min_steps: Natural | None = key("least number of optimizer steps")
    max_time: Duration | dict[str, Natural] | None = key("time after which the run ends")
    fast_dev_run: bool | Natural = key("so many batches of everything, without checkpoints")
    overfit_batches: Limit = key("train and validate on so many training batches")
    limit_train_batches: Limit | None = key("training batches of an epoch, or their share")
    limit_val_batches: Limit | None = key("batches of a validation, or their share")
    limit_test_batches: Limit | None = key("not used")
    limit_predict_batches: Limit | None = key("not used")
    val_check_interval: Count | Annotated[float, Field(gt=0, le=1)] | Duration | None = key("validate so often")
    check_val_every_n_epoch: Count | None = key("validate after so many epochs")
    num_sanity_val_steps: CountOrAll | None = key("validation batches before the training")
    log_every_n_steps: Natural | None = key("log after so many steps")
    enable_checkpointing: bool | None = key("false writes no checkpoints")
    enable_progress_bar: bool | None = key("false shows no progress bar")
    enable_model_summary: bool | None = key("true prints Lightning's table of layers")
    gradient_clip_val: NotNegative | None = key("largest norm of the gradient; null or 0: no limit")
    gradient_clip_algorithm: Literal["norm", "value"] | None = key("clip the norm or each value")
    deterministic: bool | Literal["warn"] | None = key("deterministic algorithms alone")
    benchmark: bool | None = key("let cuDNN choose its algorithms by time")
    inference_mode: bool = key("validate under torch.inference_mode")
    profiler: Literal["simple", "advanced", "pytorch", "xla"] | None = key("Lightning's profiler")
    detect_anomaly: bool = key("PyTorch's anomaly detection")
    barebones: bool = key("Lightning without anything that costs time")
    plugins: None = key("not used: plugins are set by the strategy")
    sync_batchnorm: bool = key("not used: there is no batch norm")
    reload_dataloaders_every_n_epochs: Natural = key("make data loaders anew after so many epochs")
    default_root_dir: Folder | None = key("folder of what has no other")


class Data(Section):
    """`datasets.module.SegmentationData`."""

    target: str = key("the data module's class", alias="_target_")
    root: Path | None = key("folder of the dataset's archives or their extracted tree")
    train: Node = key("reader of the training set")
    val: Node = key("reader of the validation set")
    batch_size: Side = key("images per device")
    global_batch: Side = key("images per optimizer step; gradients are accumulated to reach it")
    eval_batch_size: Side | None = key("images per device in validation; null: batch_size")
    num_workers: Annotated[int, Field(ge=0, le=512)] = key("reading processes per device")
    image_size: ImageSize = key("the network's input: a side, or [height, width]")
    scale_range: Annotated[
        list[Annotated[float, Field(gt=0, le=100)]],
        Field(min_length=2, max_length=2),
        AfterValidator(rising),
        named("[low, high], 0 < low <= high <= 100"),
    ] = key("range of the large-scale jitter")
    augmentations: list[Node] = key("transforms of albumentations, applied to images and masks alike")
    max_images: Count | None = key("use the first images of each set alone")
    max_bad_images: Natural = key("unreadable training images that are replaced; more end the run")
    timeout: Annotated[float, Field(gt=0, le=10**6)] = key("seconds to wait for a batch of the reading processes")
    seed: Seed = key("of order and augmentation")
    validate_on_train: bool = key("validate on the training set")
    classes: Path | Names | None = key("file of class names, or a list of them, for both readers", default=None)
    ignore: Values | None = key("label values that are void", default=None)
    color_labels: bool = key("colours of the label PNGs stand for classes", default=False)


class Reader(Section):
    target: str = key("the reader's class", alias="_target_")
    partial: bool = key("opened when it is needed", alias="_partial_", default=True)
    root: Path | None = key("folder of the dataset")


class SplitReader(Reader):
    split: Literal["train", "val"] = key("which part of the dataset")


class CocoReader(SplitReader):
    images: Path | None = key("the images' archive or folder; null: COCO's own name", default=None)
    annotations: Path | None = key("the JSON file; null: COCO's own name", default=None)


class ShapesReader(SplitReader):
    seed: Natural = key("of the drawings", default=0)
    train_images: Count = key("number of training images", default=1800)
    val_images: Count = key("number of validation images", default=200)
    size: Annotated[int, Field(ge=32, le=LARGEST_SIDE)] = key("side of an image in pixels", default=96)


class FolderReader(Reader):
    images: Path = key("folder or archive of images, below root")
    labels: Path = key("folder or archive of label PNGs, below root")
    classes: Path | Names | None = key("file of class names, or a list of them")
    ignore: Values | None = key("label values that are void")
    color_labels: bool = key("colours of the label PNGs stand for classes")


class Loss(Section):
    target: str = key("the loss's class", alias="_target_")
    num_points: Annotated[int, Field(ge=1, le=2**22)] = key("points on which masks are compared")
    oversample_ratio: Annotated[float, Field(ge=1, le=1000)] = key("candidates per point")
    importance_ratio: Share = key("share of points that are chosen by uncertainty")
    mask_weight: NotNegative = key("of the mask term")
    dice_weight: NotNegative = key("of the dice term")
    class_weight: NotNegative = key("of the class term")
    no_object_weight: NotNegative = key("of 'no object' in the class term")
    global_normaliser: bool = key("true: a step of any number of devices is that of one big batch")
    ignore_void: bool = key("true leaves void out of the mask terms")


class Callback(Section):
    target: str = key("the callback's class", alias="_target_")


class Best(Callback):
    monitor: Text | None = key("score by which a checkpoint is the best; null: the task's")
    mode: Literal["max", "min"] = key("whether more or less is better")


class Last(Callback):
    folder: Folder = key("folder of last.ckpt")
    every_n_steps: Count = key("optimizer steps between checkpoints")
    keep_previous: bool = key("keep the checkpoint before as previous.ckpt")


class Average(Callback):
    decay: Annotated[float, Field(gt=0, lt=1)] | None = key("of the weights' average, such as 0.9999; null: none")


class EarlyStopping(Callback):
    patience: Count | None = key("validations without a better score that end the run; null: none")
    min_delta: NotNegative = key("what a better score is better by")
    monitor: Text | None = key("the score; null: the task's")
    mode: Literal["max", "min"] = key("whether more or less is better")


class InFolder(Callback):
    folder: Folder = key("the run folder")


class Pictures(InFolder):
    count: Natural = key("validation images that are drawn")


class Progress(Callback):
    refresh_rate: Natural = key("batches between updates", default=10)


class Logger(OpenSection):
    target: str = key("the logger's class", alias="_target_", default=None)
    save_dir: Folder = key("folder of the log", default=None)


class WandbLogger(Logger):
    project: Text | None = key("project at Weights & Biases", default=None)
    name: Text | None = key("name of the run", default=None)
    id: Text | None = key("id of a run that is resumed", default=None)
    offline: bool = key("true: nothing is sent", default=None)


_SHAPES, _READERS = "datasets.shapes.dataset.shapes_", "datasets.readers."
_CALLBACKS, _LOGGERS = "eomt.training.callbacks.", "lightning.pytorch.loggers."
NODES: dict[str, type[Section]] = {
    "datasets.module.SegmentationData": Data,
    f"{_READERS}ade20k.Ade20kPanoptic": SplitReader,
    f"{_READERS}ade20k.Ade20kSemantic": SplitReader,
    f"{_READERS}cityscapes.CityscapesSemantic": SplitReader,
    f"{_READERS}coco.CocoInstance": CocoReader,
    f"{_READERS}coco.CocoPanoptic": CocoReader,
    f"{_READERS}folder.FolderSemantic": FolderReader,
    f"{_SHAPES}instance": ShapesReader,
    f"{_SHAPES}panoptic": ShapesReader,
    f"{_SHAPES}semantic": ShapesReader,
    "eomt.loss.mask_classification.MaskClassificationLoss": Loss,
    "eomt.training.checkpoint.BestCheckpoint": Best,
    "eomt.training.checkpoint.LastCheckpoint": Last,
    f"{_CALLBACKS}WeightAverage": Average,
    f"{_CALLBACKS}EarlyStop": EarlyStopping,
    f"{_CALLBACKS}MetricsFile": InFolder,
    f"{_CALLBACKS}PredictionPictures": Pictures,
    f"{_CALLBACKS}CurvePlot": InFolder,
    f"{_CALLBACKS}Progress": Progress,
    f"{_LOGGERS}CSVLogger": Logger,
    f"{_LOGGERS}TensorBoardLogger": Logger,
    f"{_LOGGERS}WandbLogger": WandbLogger,
}
"""The classes that configurations of this project name, and the keys that each takes."""


class Run(Section):
    """The keys of train.py, which check_data.py takes, too."""

    task_name: Text = key("name of the task, and of the folder of its runs")
    kind: Kind = key("of segmentation")
    seed: Seed = key("of weights, data order, augmentation, masks and loss points")
    ckpt: Path | None = key("a checkpoint to resume from; weights of another source start a new run")
    weights: Path | None = key("weights to start from")
    strict: bool = key("refuse weights that do not fit as they are")
    delta_base: Path | None = key("the pretrained DINOv3 that delta weights are relative to; null: Meta's")
    trust_code: bool = key("import custom classes that a checkpoint names")
    prefetch: bool = key("only fetch pretrained weights and build the data's index")
    matmul_precision: Literal["highest", "high", "medium"] = key("of float32 matrix products on a GPU")
    compile: bool | None = key("torch.compile; null: on a GPU")
    activation_checkpointing: bool = key("recompute blocks in the backward pass: less memory, more time")
    run_folder: Folder = key("where the run's files go")
    data: Node = key("data, see configs/train.yaml")
    model: Model = key("the network")
    loss: Node = key("the loss")
    annealing: Annealing = key("of attention masks")
    optim: Optim = key("optimizer and learning rates")
    postprocess: Postprocess = key("from logits to predictions")
    trainer: Trainer = key("Lightning's Trainer")
    callbacks: dict[str, Node | None] = key("what happens beside the training")
    logger: dict[str, Node | None] | None = key("where numbers are logged")


class Scored(Section):
    """What an evaluation takes from a run's configuration."""

    kind: Kind = key("of segmentation")
    seed: Seed = key("of dropped masks, where these are validated")
    compile: bool | None = key("torch.compile; null: on a GPU")
    matmul_precision: Literal["highest", "high", "medium"] = key("of float32 matrix products on a GPU")
    data: Node = key("data, see configs/train.yaml")
    annealing: Annealing = key("of attention masks")
    postprocess: Postprocess = key("from logits to predictions")
    trainer: Trainer = key("Lightning's Trainer")


class Eval(Section):
    ckpt: Path = key("the weights", examples=["RUN/checkpoints/best.ckpt"])
    delta_base: Path | None = key("the pretrained DINOv3 that delta weights are relative to; null: Meta's")
    trust_code: bool = key("import custom classes that the checkpoint names")
    save_predictions: bool = key("write the official result files")
    unpadded: bool = key("leave patches out that only show padding")
    pictures: Natural = key("predictions that are drawn")
    run_folder: Folder = key("where the results go")
    settings: list[Text] = key("overrides of the checkpoint's settings, filled in from the command line")


class CheckData(Run):
    split: Literal["train", "val"] | None = key("which set; null: both")
    pictures: Natural = key("rows of each contact sheet")
    shown: Natural = key("findings of each kind that the log shows")


class Weights(Section):
    """The keys that predict.py and export.py share."""

    ckpt: Path = key("the weights", examples=["RUN/checkpoints/best.ckpt"])
    overwrite: bool = key("replace earlier results")
    kind: Kind | None = key("of segmentation, where the weights do not say")
    classes: Path | Names | None = key("file of class names, or a list of them, where the weights do not say")
    network: Network = key("what the weights do not say of their network")
    delta_base: Path | None = key("the pretrained DINOv3 that delta weights are relative to; null: Meta's")
    batch_size: Side = key("inputs that the network takes at a time")


class Predict(Weights):
    images: Paths = key("a file, a folder, a pattern in quotes, or a list of these", examples=["photos"])
    out: Folder = key("folder of the results")
    trust_code: bool = key("import a custom task that the weights name")
    device: Annotated[str, Field(pattern=r"^[a-z]+(:\d+)?$"), named("a device such as cpu, cuda or cuda:1")] | None = (
        key("where the network runs; null: a GPU if there is one")
    )
    precision: Precision | None = key("of the computation; null: bf16 on a GPU, 32 on a CPU")
    unpadded: bool = key("leave patches out that only show padding")
    num_workers: Annotated[int, Field(ge=0, le=512)] = key("threads that read images")
    threshold: Share | None = key("leave segments of lower scores out")
    postprocess: Postprocess = key("from logits to predictions; null: as the weights say")


class Export(Weights):
    format: Literal["eomt", "hf", "original", "onnx", "torch_export"] = key("what is written")
    out: Folder = key("the folder to write", examples=["DIR"])
    precision: Precision = key("of the weights")
    dynamic_batch: bool = key("a graph for any number of images")
    images: Paths | None = key("images on which the graph is compared, too")


# "scored" is what eval.py makes of the checkpoint's configuration and what was typed.
COMMANDS: dict[str, type[Section]] = {
    "train": Run,
    "eval": Eval,
    "scored": Scored,
    "check_data": CheckData,
    "predict": Predict,
    "export": Export,
}
