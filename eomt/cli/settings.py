"""All keys of all commands with their types and ranges, without anything heavy to import; configs/ explains them."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

# Sizes beyond these are typing errors, and end in exhausted memory.
LARGEST_SIDE, LARGEST_COUNT = 2**16, 2**31 - 1


def named(words: str, **rules: Any) -> Any:
    """The rules of a type, and the words by which messages ask for it."""
    return Field(description=words, **rules)


def _fraction(value: Any) -> Any:
    """Raise ValueError unless `value` is a number, or a text such as 1/6, of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("no number")
    try:
        fraction = Fraction(str(value))
    except ZeroDivisionError as error:
        raise ValueError("no number") from error
    if not 0 <= fraction <= LARGEST_COUNT:
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


def _positive(value: Any) -> Any:
    if value <= 0:
        raise ValueError("must be more than 0")
    return value


def _rising(values: list) -> list:
    if values != sorted(values):
        raise ValueError("must rise")
    return values


def _target(node: dict) -> dict:
    if not isinstance(node.get("_target_"), str) or not isinstance(node.get("_partial_", True), bool):
        raise ValueError("must name its class")
    return node


Count = Annotated[int, Field(ge=1, le=LARGEST_COUNT)]
Natural = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
CountOrAll = Annotated[int, Field(ge=-1, le=LARGEST_COUNT)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Workers = Annotated[int, Field(ge=0, le=512)]
Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
ImageSize = Side | Annotated[list[Side], Field(min_length=2, max_length=2)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[float, Field(gt=0, le=1)]
Limit = Natural | Share
_LINE = r"^[^\x00-\x1f\x7f]+$"
Text = Annotated[str, named("a text of one line that is not empty", pattern=_LINE)]
Path = Annotated[str, named("a path", pattern=_LINE)]
Folder = Annotated[str, named("a folder to write to", pattern=_LINE)]
Paths = Path | Annotated[list[Path], Field(min_length=1)]
Names = Annotated[list[Any] | dict[Any, Any], named("a list of names, or {value: name}", min_length=1)]
Values = int | list[int]
Bound = Annotated[Any, BeforeValidator(_fraction), named("a number of at least 0, or a fraction such as 1/6")]
Windows = Annotated[
    list[Annotated[list[Bound], Field(min_length=2, max_length=2)] | Literal["auto"]],
    AfterValidator(_windows),
    named("a list of windows [start, end], 0 <= start <= end: fractions such as 1/6, or numbers of steps"),
]
Span = Annotated[Bound, AfterValidator(_positive), named("a number of more than 0, or a fraction such as 39120/39153")]
ScaleRange = Annotated[
    list[Annotated[float, Field(gt=0, le=100)]],
    AfterValidator(_rising),
    named("[low, high], 0 < low <= high <= 100", min_length=2, max_length=2),
]
Duration = Annotated[str, named("a time DD:HH:MM:SS", pattern=r"^\d+:\d\d:\d\d:\d\d$")]
Kind = (
    Literal["semantic", "instance", "panoptic"]
    | Annotated[str, named("the dotted name of a task", pattern=r"^\w+(\.\w+)+$")]
)
Compile = bool | Literal["max-autotune"]
Precision = Literal[32, 16, "32", "16", "bf16"]
Device = Annotated[str, named("a device such as cpu, cuda or cuda:1", pattern=r"^(cpu|cuda|mps|xpu|hpu|xla)(:\d+)?$")]
Devices = (
    Literal["auto", -1]
    | Count
    | Annotated[list[Natural], Field(min_length=1)]
    | Annotated[str, named("device numbers such as '0,1'", pattern=r"^\d+(,\d+)*$")]
)
Options = Annotated[dict[str, Any], named("options by name, such as {depth: 8}")]
Node = Annotated[dict[str, Any], AfterValidator(_target), named("a section that names its class by _target_")]


class Section(BaseModel):
    """A section of the configuration: every key is known, and no value is converted into another type."""

    model_config = ConfigDict(
        strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=(), validate_assignment=True
    )


class OpenSection(Section):
    """A section of a library's class, or of a task, which may have further keys and says so itself."""

    model_config = ConfigDict(extra="allow")


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
    rank: Annotated[int, Field(ge=0, le=LARGEST_SIDE)]
    alpha: Positive


class Model(Section):
    backbone: Text
    patch_size: Side
    num_queries: Side
    num_masked_blocks: Side
    pretrained: bool | Path
    backbone_options: Options | None
    freeze_backbone: bool | Natural
    lora: LoRA


class Network(Section):
    backbone: Text | None
    image_size: ImageSize | None
    num_masked_blocks: Side | None
    backbone_options: Options | None


class Annealing(Section):
    windows: Literal["auto"] | Windows | None
    span: Span
    power: NotNegative
    validate_masked: bool


class Postprocess(OpenSection):
    max_bytes: Count | None
    top_k: Count | None
    score_threshold: Share | None
    mask_threshold: Share | None
    overlap_threshold: Share | None


class Trainer(Section):
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"]
    strategy: Literal["auto", "ddp", "ddp_find_unused_parameters_true", "fsdp2"]
    devices: Devices
    num_nodes: Count
    precision: Literal[
        "16-mixed", "bf16-mixed", "32-true", "64-true", "16-true", "bf16-true", 16, 32, 64, "16", "bf16", "32", "64"
    ] | None  # fmt: skip
    max_epochs: CountOrAll | None
    min_epochs: Natural | None
    max_steps: CountOrAll
    min_steps: Natural | None
    max_time: Duration | dict[str, Natural] | None
    fast_dev_run: bool | Natural
    overfit_batches: Limit
    limit_train_batches: Limit | None
    limit_val_batches: Limit | None
    val_check_interval: Count | Factor | Duration | None
    check_val_every_n_epoch: Count | None
    num_sanity_val_steps: CountOrAll | None
    log_every_n_steps: Natural | None
    enable_checkpointing: bool | None
    enable_progress_bar: bool | None
    enable_model_summary: bool | None
    gradient_clip_val: NotNegative | None
    gradient_clip_algorithm: Literal["norm", "value"] | None
    deterministic: bool | Literal["warn"] | None
    benchmark: bool | None
    inference_mode: bool
    profiler: Literal["simple", "advanced", "pytorch", "xla"] | None
    detect_anomaly: bool
    default_root_dir: Folder | None


class Scored(Section):
    """The part of a run's configuration that an evaluation takes."""

    kind: Kind
    seed: Seed
    compile: Compile | None
    matmul_precision: Literal["highest", "high", "medium"]
    data: Node
    annealing: Annealing
    postprocess: Postprocess
    trainer: Trainer


class Run(Scored):
    """The keys of train.py."""

    task_name: Text
    ckpt: Path | None
    weights: Path | None
    strict: bool
    delta_base: Path | None
    trust_code: bool
    prefetch: bool
    activation_checkpointing: bool
    run_folder: Folder
    model: Model
    loss: Node
    optim: Node
    callbacks: dict[str, Node | None]
    logger: dict[str, Node | None] | None


class Views(Section):
    """The keys that eval.py and predict.py share."""

    tile: bool | Side
    tta: Literal["flip"] | None
    max_pixels: Count


class Eval(Views):
    ckpt: Path = Field(examples=["RUN/checkpoints/best.ckpt"])
    delta_base: Path | None
    trust_code: bool
    save_predictions: bool
    unpadded: bool
    pictures: Natural
    table: Literal["classes"] | None
    run_folder: Folder
    settings: list[Text]


class CheckData(Run):
    split: Literal["train", "val"] | None
    pictures: Natural
    shown: Natural


class Weights(Section):
    """The keys that demo.py, predict.py and export.py share."""

    ckpt: Path = Field(examples=["RUN/checkpoints/best.ckpt"])
    kind: Kind | None
    classes: Path | Names | None
    network: Network
    delta_base: Path | None


class Inference(Weights):
    """The keys that demo.py and predict.py share."""

    trust_code: bool
    device: Device | None
    precision: Precision | None
    compile: Compile | None
    unpadded: bool
    postprocess: Postprocess


class Demo(Inference):
    host: Annotated[str, named("a host name or an address such as 0.0.0.0", pattern=r"^[\w.-]+$")]
    port: Annotated[int, Field(ge=1, le=65535)]
    max_megabytes: Side
    max_megapixels: Side


class Predict(Inference, Views):
    images: Paths = Field(examples=["photos"])
    out: Folder
    overwrite: bool
    batch_size: Side
    num_workers: Workers
    threshold: Share | None


class Export(Weights):
    format: Literal["eomt", "hf", "original", "onnx", "openvino", "tensorrt", "torch_export"]
    out: Folder = Field(examples=["DIR"])
    overwrite: bool
    push: Annotated[str, named("a repository USER/NAME", pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")] | None
    public: bool
    batch_size: Side
    precision: Precision | Literal["int8"]
    postprocess: bool
    score: bool
    dynamic_batch: bool
    images: Paths | None


# "scored" is what eval.py makes of the checkpoint's configuration and what was typed.
COMMANDS: dict[str, type[Section]] = {
    "train": Run,
    "eval": Eval,
    "scored": Scored,
    "check_data": CheckData,
    "predict": Predict,
    "export": Export,
    "demo": Demo,
}

WITHOUT_RUN = ("predict", "export", "demo")
"""The commands that have no run folder and no keys of train.py."""

CHOICES = ("task", "model", "experiment")
"""The config groups that choose under which settings weights of another source are evaluated."""
