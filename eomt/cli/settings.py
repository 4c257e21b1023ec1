"""Types, ranges and meanings of all keys of all commands, and their check before anything heavy is imported.

A section of the configuration is a `Section`. A node, which names its class by `_target_`, is checked by the section
that `NODES` has for that name; nodes of other classes pass as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema

from eomt.errors import InputError

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

# Sizes beyond these are typing errors, and end in exhausted memory.
_LARGEST_SIDE, _LARGEST_COUNT = 2**16, 2**31 - 1


def key(meaning: str, **rules: Any) -> Any:
    """A field with its one-line meaning; with `default=` the key may be missing."""
    return Field(description=meaning, **rules)


def _named(words: str, **schema: Any) -> WithJsonSchema:
    """The words by which messages ask for a type."""
    return WithJsonSchema({"wanted": words, **schema})


def _fraction(value: Any) -> Any:
    """Raise ValueError unless `value` is a number, or a text such as 1/6, of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("no number")
    try:
        fraction = Fraction(str(value))
    except ZeroDivisionError as error:
        raise ValueError("no number") from error
    if not 0 <= fraction <= _LARGEST_COUNT:
        raise ValueError("out of range")
    return fraction


def _windows(windows: list) -> list:
    """Raise ValueError unless each window has 0 <= start <= end, both fractions or both numbers of steps."""
    if "auto" in windows[:-1]:
        raise ValueError("auto is for the blocks that are left")
    for start, end in (window for window in windows if window != "auto"):
        if start > end or (end > 1 and (start.denominator != 1 or end.denominator != 1)):
            raise ValueError("no window")
    return windows


def _rising(values: list) -> list:
    if values != sorted(values):
        raise ValueError("must rise")
    return values


def _positive(value: Any) -> Any:
    if value <= 0:
        raise ValueError("must be more than 0")
    return value


Count = Annotated[int, Field(ge=1, le=_LARGEST_COUNT)]
Natural = Annotated[int, Field(ge=0, le=_LARGEST_COUNT)]
CountOrAll = Annotated[int, Field(ge=-1, le=_LARGEST_COUNT)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Side = Annotated[int, Field(ge=1, le=_LARGEST_SIDE)]
ImageSize = Side | Annotated[list[Side], Field(min_length=2, max_length=2)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Limit = Natural | Share
Text = Annotated[str, Field(min_length=1), _named("a text that is not empty")]
Path = Annotated[str, Field(min_length=1), _named("a path")]
Folder = Annotated[str, Field(min_length=1), _named("a folder to write to")]
Paths = Path | Annotated[list[Path], Field(min_length=1)]
Names = Annotated[list[Any] | dict[Any, Any], Field(min_length=1), _named("a list of names, or {value: name}")]
Values = int | list[int]
Bound = Annotated[Any, BeforeValidator(_fraction), _named("a number of at least 0, or a fraction such as 1/6")]
Window = Annotated[list[Bound], Field(min_length=2, max_length=2)]
Windows = Annotated[
    list[Window | Literal["auto"]],
    AfterValidator(_windows),
    _named("a list of windows [start, end], 0 <= start <= end: fractions such as 1/6, or numbers of steps"),
]
Span = Annotated[Bound, AfterValidator(_positive), _named("a number of more than 0, or a fraction such as 39120/39153")]
Duration = Annotated[str, Field(pattern=r"^\d+:\d\d:\d\d:\d\d$"), _named("a time DD:HH:MM:SS")]
Kind = (
    Literal["semantic", "instance", "panoptic"]
    | Annotated[str, Field(pattern=r"^\w+(\.\w+)+$"), _named("the dotted name of a task")]
)
Precision = Literal[32, 16, "32", "16", "bf16"]
Options = Annotated[dict[str, Any], _named("options by name, such as {depth: 8}")]


def _target(node: dict) -> dict:
    if not isinstance(node.get("_target_"), str):
        raise ValueError("must name its class")
    return node


Node = Annotated[dict[str, Any], AfterValidator(_target), _named("a section that names its class by _target_")]


class Section(BaseModel):
    """A section of the configuration: every key is known, and no value is converted into another type."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class OpenSection(Section):
    """A section of a library's class, or of a task, which may have further keys and says so itself."""

    model_config = ConfigDict(extra="allow")


class LoRA(Section):
    rank: Annotated[int, Field(ge=0, le=_LARGEST_SIDE)] = key("rank of the low-rank changes, such as 8; 0: none")
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
        | Annotated[str, Field(pattern=r"^\d+(,\d+)*$"), _named("device numbers such as '0,1'")]
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
        AfterValidator(_rising),
        _named("[low, high], 0 < low <= high <= 100"),
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
    size: Side = key("side of an image in pixels", default=96)


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
    trust_code: bool = key("import classes of your own that a checkpoint names")
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
    trust_code: bool = key("import classes of your own that the checkpoint names")
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
    trust_code: bool = key("import a task of your own that the weights name")
    device: Annotated[str, Field(pattern=r"^[a-z]+(:\d+)?$"), _named("a device such as cpu, cuda or cuda:1")] | None = (
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


def check_typed(command: str, name: str, value: Any) -> None:
    """Check one value of a command's configuration, as far as its type does not depend on other values.

    Raises:
        InputError: if it is of a wrong type or out of range.
    """
    section: type[Section] | None = COMMANDS[command]
    *sections, last = name.split(".")
    for part in sections:
        section = _subsection(section, part) or {"data": Data, "loss": Loss}.get(part) if section else None
    if section is None or last not in section.model_fields:
        return
    try:
        section.__pydantic_validator__.validate_assignment(section.model_construct(), last, value)
    except ValidationError:
        raise InputError(f"{name}={shown(value)} must be {wanted(_properties(section)[last])}") from None


def path_names() -> set[str]:
    """The names of all keys whose values are paths."""
    return {name for words in ("a path", "a folder to write to") for name in _names_of(words)}


def write_names() -> set[str]:
    """The names of all keys that say where files are written."""
    return _names_of("a folder to write to") | {"filename"}


def check_settings(command: str, settings: Mapping[str, Any]) -> None:
    """Check every value of a command's configuration.

    Args:
        command: a key of COMMANDS.
        settings: the composed configuration as plain, resolved values.

    Raises:
        InputError: if a key is missing or unknown, or a value is of a wrong type or out of range; names the key, the
            value and what is wanted. `details` has all of them.
    """
    lines = list(_faults(COMMANDS[command], settings, ()))
    for path, node in nodes(settings):
        if isinstance(node["_target_"], str) and node["_target_"] in NODES:
            lines += _faults(NODES[node["_target_"]], node, path)
    lines = lines or list(_unknown_scores(settings))
    if lines:
        raise InputError(lines[0], lines)


def nodes(values: Any, path: tuple = ()) -> Iterator[tuple[tuple, Mapping[str, Any]]]:
    """All sections with a `_target_`, at any depth, with their paths."""
    if isinstance(values, Mapping):
        if "_target_" in values:
            yield path, values
        for name, value in values.items():
            yield from nodes(value, (*path, name))
    elif isinstance(values, list):
        for index, value in enumerate(values):
            yield from nodes(value, (*path, index))


def wanted(schema: Mapping[str, Any]) -> str:
    """What a type's JSON schema asks for, in words."""
    if "wanted" in schema:
        return schema["wanted"]
    choices = _choices(schema)
    if choices:
        *most, last = choices
        return f"{', '.join(most)} or {last}" if most else last
    kind = schema.get("type")
    if kind in ("integer", "number"):
        name = "a whole number" if kind == "integer" else "a number"
        low, high = schema.get("minimum"), schema.get("maximum", schema.get("exclusiveMaximum"))
        more = f"of at least {low}" if low is not None else f"of more than {schema.get('exclusiveMinimum')}"
        if high is None or high == _LARGEST_COUNT:
            return name if low is None and "exclusiveMinimum" not in schema else f"{name} {more}"
        if low is not None and "maximum" in schema:
            return f"{name} from {low} to {high}"
        return f"{name} {more} and {'at most' if 'maximum' in schema else 'less than'} {high}"
    if kind == "array":
        count = f"{schema['minItems']} values" if "maxItems" in schema else "values"
        return f"a list of {count}, each {wanted(schema.get('items', {}))}"
    return {"boolean": "true or false", "null": "null", "object": "a section of keys", "string": "a text"}.get(
        kind, "a section of keys"
    )


def _choices(schema: Mapping[str, Any]) -> list[str]:
    """What a type allows, if it is a union or a list of values."""
    if "anyOf" in schema:
        return list(dict.fromkeys(words for part in schema["anyOf"] for words in _choices(part) or [wanted(part)]))
    return [shown(value) for value in schema.get("enum", [schema["const"]] if "const" in schema else [])]


def shown(value: Any) -> str:
    """A value as it is typed, shortened."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, list):
        text = f"[{','.join(shown(entry) for entry in value[:10])}]"
    elif isinstance(value, Mapping):
        text = "{" + ",".join(f"{name}: {shown(entry)}" for name, entry in list(value.items())[:10]) + "}"
    else:
        text = str(value)
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:77]}..."


@functools.cache
def _properties(section: type[Section]) -> dict[str, Any]:
    """The JSON schema of each key of a section."""
    return section.model_json_schema(by_alias=True)["properties"]


def _names_of(words: str) -> set[str]:
    """The names of all keys whose type is called so."""
    return {n for section in _sections() for n, schema in _properties(section).items() if words in wanted(schema)}


def _sections(parent: type[Section] = Section) -> Iterator[type[Section]]:
    for section in parent.__subclasses__():
        yield section
        yield from _sections(section)


def _faults(model: type[Section], values: Any, path: tuple) -> Iterator[str]:
    """A line for each key of a section that is missing, unknown, or has no value of its type."""
    try:
        model.model_validate(values)
        return
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False)
    seen = set()
    for error in errors:
        location, value, section = [], values, model
        # Beyond keys of sections a location names members of unions and entries of lists.
        for part in error["loc"]:
            known = isinstance(value, Mapping) and part in value
            if error["type"] != "missing" and not known:
                break
            location.append(part)
            if not known:
                break
            fields = _properties(section) if section else {}
            schema, value = fields.get(part, {}), value[part]
            section = _subsection(section, part)
        name = ".".join(str(part) for part in (*path, *location))
        if name in seen:
            continue
        seen.add(name)
        if error["type"] == "missing":
            yield f"{name} is missing in the configuration"
        elif error["type"] == "extra_forbidden":
            yield f"{name} is no key of the configuration"
        elif value is None and "examples" in schema:
            yield f"{name} is not set: give {wanted(schema)}, as in {name}={schema['examples'][0]}"
        else:
            yield f"{name}={shown(value)} must be {wanted(schema)}"


def _subsection(section: type[Section] | None, name: str) -> type[Section] | None:
    """The section under a key, if that is one."""
    for field_name, field in section.model_fields.items() if section else ():
        if name == (field.alias or field_name) and isinstance(field.annotation, type):
            return field.annotation if issubclass(field.annotation, Section) else None
    return None


def _unknown_scores(settings: Mapping[str, Any]) -> Iterator[str]:
    """A line for each callback that monitors a score which this kind of segmentation has not."""
    scores = SCORES.get(settings.get("kind"), ())
    for name, node in (settings.get("callbacks") or {}).items():
        monitor = (node or {}).get("monitor")
        if scores and monitor is not None and monitor not in scores and not monitor.startswith("train/"):
            yield f"callbacks.{name}.monitor={shown(monitor)} must be {', '.join(scores)} or null"
