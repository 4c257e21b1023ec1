"""A trained network that segments any image."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# PyTorch types its own methods in part only.

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import fields
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias, cast, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from eomt.classes import Classes
from eomt.errors import InputError, reason
from eomt.inference.background import Background
from eomt.inference.checks import (
    LARGEST_SIDE,
    MOST_THREADS,
    check_count,
    check_flag,
    check_threshold,
    device_of,
    devices,
)
from eomt.inference.graphs import FixedBatches, compile_network
from eomt.inference.precision import PRECISIONS, with_cast_weights
from eomt.inference.result import Result
from eomt.inference.sources import (
    ImageSource,
    Readable,
    content_of,
    expanded,
    is_folder,
    is_single,
    listed,
    load_picture,
)
from eomt.inference.windows import opened
from eomt.model.eomt import EoMT
from eomt.model.outputs import Logits
from eomt.photo import limit_pixels
from eomt.postprocess.geometry import MAX_WINDOWS, Placement, run_unpadded
from eomt.postprocess.types import Instances, Segmentation
from eomt.tasks import InstanceTask, PanopticTask, SemanticTask, Task, task_of
from eomt.views import Flipped, Tiled, with_mirrored
from eomt.weights.load import read_weights
from eomt.weights.spec import entry

log = logging.getLogger("eomt")

_OPTIONS = {field.name for task in (SemanticTask, InstanceTask, PanopticTask) for field in fields(task)}

_Prepared: TypeAlias = tuple[Tensor, Placement, bytes | None]
"""An image's inputs uint8 [N, 3, H, W], its placement, and its bytes where they can be had only once."""


class Segmenter:
    """Segmentation of images of any size with the mask-free network.

    Args:
        network: the network; it is moved to the device and set to evaluation.
        task: the kind of segmentation.
        classes: the network's classes.
        device: such as "cuda:1" or "cpu"; default a GPU if there is one.
        precision: "32", or "bf16" or "16" for mixed precision; default bf16 on a GPU, 32 on a CPU.
        unpadded: leave out the patches that only show padding; see `run_unpadded`. Faster, and results
            change a little, unless an image fills the input. Sets `network.backbone.crop_position`.
        compile: True compiles the network by `torch.compile`, in place, at the first images, which takes a minute;
            "max-autotune" takes longer and may gain more. None leaves it; on a GPU its launches are replayed as a CUDA
            graph, which False leaves out as well.
        tile: see large images in overlapping tiles, see `eomt.views.Tiled`: True for tiles of the network's input, or
            the longer side of a tile in pixels.
        tta: "flip" sees each image mirrored, too, see `eomt.views.Flipped`.

    Attributes:
        network: the network; in mixed precision with cast weights, see `with_cast_weights`.

    Raises:
        InputError: if the device cannot be used, another argument is none of these, or the network has another
            number of classes.
    """

    def __init__(
        self,
        network: EoMT,
        task: Task,
        classes: Classes,
        device: str | torch.device | None = None,
        precision: str | int | None = None,
        unpadded: bool = False,
        compile: bool | str | None = None,
        tile: bool | int = False,
        tta: str | None = None,
    ):
        if network.num_classes != len(classes):
            raise InputError(f"the network tells {network.num_classes} classes apart, but {len(classes)} are named")
        check_flag("unpadded", unpadded)
        if not isinstance(tile, bool):
            check_count("tile", tile, 1, LARGEST_SIDE, "true, false or ")
        self.device = device_of(device)
        try:
            network = network.to(self.device).eval()
        except (AssertionError, NotImplementedError, RuntimeError) as error:
            raise InputError(f"device={device} cannot be used ({reason(error)}): choose {devices()}") from error
        if precision is None:
            precision = "bf16" if self.device.type == "cuda" else "32"
        if str(precision) not in PRECISIONS:
            raise InputError(f"precision={precision} is none of {', '.join(PRECISIONS)}")
        self.precision = str(precision)
        self.task = with_mirrored(task, network.backbone.patch_size, tta, unpadded)
        self._tiled = Tiled(self.task, tile) if tile else None
        self.classes = classes
        self.unpadded = unpadded
        network.backbone.crop_position = unpadded
        dtype = PRECISIONS[self.precision]
        self.network = network if dtype is None else with_cast_weights(network, dtype)
        compile_network(self.network, compile or False, one_size=not unpadded)
        self._batches = FixedBatches(self.network, bool(compile), self.device.type == "cuda" and compile is not False)
        # Two threads: one launches while the other waits for the device.
        self._background = Background(self.device, threads=2)
        self._copying: torch.cuda.Stream | None = None

    @classmethod
    def load(
        cls,
        source: str | Path,
        device: str | torch.device | None = None,
        precision: str | int | None = None,
        trust_code: bool = False,
        *,
        unpadded: bool = False,
        compile: bool | str | None = None,
        tile: bool | int = False,
        tta: str | None = None,
        max_pixels: int | None = None,
        kind: str | None = None,
        classes: Classes | None = None,
        network: Mapping[str, Any] | None = None,
        backbone: str | Path | None = None,
        **options: float | None,
    ) -> Segmenter:
        """Load a segmenter from a checkpoint, an exported folder, an original file, a Hugging Face folder or a Hub id.

        Args:
            source: a path such as RUN/checkpoints/best.ckpt or RUN, or a Hub id; see `eomt.weights.load.read_weights`.
            device, precision, unpadded, compile, tile, tta: see `Segmenter`.
            max_pixels: the most pixels of an image, in this process; default Pillow's bound, 178,956,970.
            trust_code: True imports a custom task that the source names, which runs its code.
            kind, classes, network, backbone: complete a source that does not say them; see `read_weights`.
            options: options of the task's post-processing, such as `score_threshold`; default the training run's, or
                the published ones.

        Raises:
            InputError: if the source cannot be read or is incomplete, names a custom task, or an option is unknown or
                out of range; otherwise see `Segmenter`.
        """
        if not isinstance(source, str | Path):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(f"Segmenter.load takes a path or a Hub id, found {type(source).__name__}")
        if network is not None and not isinstance(network, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(f"network={network} must be options by name, such as {{'backbone': NAME}}")
        if max_pixels is not None:
            check_count("max_pixels", max_pixels, 1, None)
        if classes is not None and not isinstance(classes, Classes):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError("classes must be eomt.classes.Classes, such as Classes.from_categories gives them")
        # Memory-mapped: optimizer states, twice the weights, are not loaded.
        weights = read_weights(source, kind=kind, classes=classes, network=network, backbone=backbone)
        # The task alone: custom readers are not imported here. A text such as "no" is not True.
        if "." in weights.kind and trust_code is not True:
            raise InputError(f"ckpt={source} would run {weights.kind}: if you trust it, say so by trust_code=true")
        given = {name: value for name, value in options.items() if value is not None}
        saved: dict[str, Any] = weights.config.get("postprocess") or {}
        known = [field.name for field in fields(cast("Any", task_of(weights.kind, saved)))]
        for name in given.keys() - _OPTIONS - {*known}:
            raise InputError(
                f"{name} is no argument of Segmenter.load, and postprocess.{name} no option of {weights.kind} "
                f"segmentation; it has: {', '.join(known)}"
            )
        task = task_of(weights.kind, saved | given)
        model = EoMT(**weights.network)
        model.load_state_dict(weights.state)
        if max_pixels is not None:
            limit_pixels(max_pixels)
        if entry(weights.config, "data", "val", "exif") == "stored":
            log.warning(
                "note: photos are turned upright by their EXIF data; the run took them as stored (data.exif=stored)"
            )
        return cls(model, task, weights.classes, device, precision, unpadded, compile, tile, tta)

    @property
    def names(self) -> list[str]:
        """The classes' names, by label."""
        return self.classes.names

    # A folder, or an array of several images, gives a list, which its type does not tell: hence Any.
    @overload
    def __call__(
        self, images: bytes | Image.Image, batch_size: int = 8, num_workers: int = 0, threshold: float | None = None
    ) -> Result: ...
    @overload
    def __call__(
        self,
        images: str | Path | Readable | NDArray[Any] | Tensor,
        batch_size: int = 8,
        num_workers: int = 0,
        threshold: float | None = None,
    ) -> Result | Any: ...
    @overload
    def __call__(
        self,
        images: Iterable[ImageSource],
        batch_size: int = 8,
        num_workers: int = 0,
        threshold: float | None = None,
    ) -> list[Result]: ...
    def __call__(
        self,
        images: ImageSource | Iterable[ImageSource],
        batch_size: int = 8,
        num_workers: int = 0,
        threshold: float | None = None,
    ) -> Result | list[Result]:
        """Segment an image, or several: the result, or a list of results. See `stream`.

        Args:
            images: one image, see `load_image`, or several: any iterable but a mapping, a folder (with all below it),
                or one array or tensor with one more dimension. Sizes may differ.
            batch_size, num_workers, threshold: see `stream`.
        """
        results = list(self.stream(images, batch_size, num_workers, threshold=threshold))
        return results[0] if is_single(images) and not is_folder(images) else results

    def stream(
        self,
        images: ImageSource | Iterable[ImageSource],
        batch_size: int = 8,
        num_workers: int = 0,
        on_error: Callable[[ImageSource, InputError], None] | None = None,
        threshold: float | None = None,
    ) -> Iterator[Result]:
        """Segment any number of images, holding only those of a few batches.

        Args:
            images: an iterable of images, see `load_image`, and folders, which is read as they are needed; or one of
                these, or one array or tensor of several, as at a call.
            batch_size: the number of inputs that the network takes at a time. A semantic model has several inputs,
                its windows, for an image that is no square. Results depend on it only by rounding.
            num_workers: the number of threads that read and scale images while the network runs.
            on_error: called with an image that cannot be read and the error; the image is then left out. Without it
                the error is raised.
            threshold: leave segments with lower scores out. Default: results have all, see `Result.threshold`. It
                brings no panoptic segment back that post-processing has dropped by its `score_threshold`.

        Returns:
            A result per image, in their order.

        Raises:
            InputError: at the call if an argument is out of range; later if an image cannot be read, or a folder has
                none.
        """
        check_count("batch_size", batch_size, 1, LARGEST_SIDE)
        check_count("num_workers", num_workers, 0, MOST_THREADS)
        if threshold is not None:
            self._check_threshold(threshold)
        return self._results(expanded(listed(images)), batch_size, num_workers, on_error, threshold)

    def _results(
        self,
        sources: Iterable[ImageSource],
        batch_size: int,
        num_workers: int,
        on_error: Callable[[ImageSource, InputError], None] | None,
        threshold: float | None,
    ) -> Iterator[Result]:
        if self._tiled is None:
            predict = partial(self._predict, threshold=threshold)
            for prediction, source, content in self._stream(sources, batch_size, num_workers, on_error, predict):
                yield Result(prediction, self.classes, source, threshold, content)
            return
        for source in sources:
            try:
                yield self._in_tiles(self._tiled, source, batch_size, num_workers, threshold)
            except InputError as error:
                if on_error is None:
                    raise
                on_error(source, error)

    def _in_tiles(
        self, tiled: Tiled, source: ImageSource, batch_size: int, num_workers: int, threshold: float | None
    ) -> Result:
        """Segment an image of any size; a tile after the other is read."""
        content = content_of(source)
        input_size = self.network.image_size
        with opened(source if content is None else content) as (size, read):
            tiles = tiled.tiles(size, input_size)
            if len(tiles) == 1:
                pixels, predict = [read(0, 0, *size)], partial(self._predict, threshold=threshold)
                ((prediction, *_),) = self._stream(pixels, batch_size, num_workers, None, predict)
            else:
                merger: Any = tiled.merger(size, self.classes)
                pixels = (tiled.padded(read(t.top, t.left, t.bottom, t.right), input_size) for t in tiles)
                parts = self._stream(pixels, batch_size, num_workers, None, self._predict_part)
                for tile, (part, *_) in zip(tiles, parts, strict=True):
                    merger.add(tile, part)
                prediction = _above(merger.result(), threshold)
        return Result(prediction, self.classes, source, threshold, content)

    def _stream(
        self,
        images: Iterable[ImageSource],
        batch_size: int,
        num_workers: int,
        on_error: Callable[[ImageSource, InputError], None] | None,
        predict: Callable[[list[Logits], Placement], Any],
    ) -> Iterator[tuple[Any, ImageSource, bytes | None]]:
        """Yield the result of `predict` for each image's outputs, the image, and its bytes where it has them once."""
        placed: deque[tuple[ImageSource, bytes | None, int, Placement]] = deque()

        def inputs() -> Iterator[tuple[Tensor, Placement]]:
            for source, prepare in self._read_ahead(images, num_workers, ahead=2 * batch_size):
                try:
                    parts, placement, content = prepare()
                except InputError as error:
                    if on_error is None:
                        raise
                    on_error(source, error)
                    continue
                placed.append((source, content, len(parts), placement))
                yield from ((part, placement) for part in parts)

        outputs: deque[Logits] = deque()
        results: deque[tuple[Future[Any], ImageSource, bytes | None]] = deque()

        def first() -> tuple[Any, ImageSource, bytes | None]:
            future, source, content = results.popleft()
            return future.result(), source, content

        waiting = inputs()
        size = None
        while batch := list(islice(waiting, batch_size)):
            # Only the last batch may be smaller than the first.
            size = size or min(batch_size, 1 << (len(batch) - 1).bit_length())
            outputs += self._run([part for part, _ in batch], [placement for _, placement in batch], size)
            before = len(results)
            while placed and len(outputs) >= placed[0][2]:
                source, content, count, placement = placed.popleft()
                own = [outputs.popleft() for _ in range(count)]
                results.append((self._background.submit(partial(predict, own, placement)), source, content))
                if not self._background.concurrent:
                    yield first()
            # Those of the batch before were made meanwhile, and are taken while the device works on this one.
            for _ in range(before):
                yield first()
        while results:
            yield first()

    @torch.inference_mode()
    def probabilities(self, image: ImageSource, batch_size: int = 8) -> NDArray[np.float32]:
        """The class probabilities of each pixel, of semantic segmentation.

        They are the scores of the classes (see `semantic_segmentation`) over their sum; the largest is the result's
        class. They take 4 bytes per class and pixel: 7 GB for 150 classes and 12 megapixels.

        Args:
            image: one image, see `load_image`.
            batch_size: the number of windows that the network takes at a time.

        Returns:
            float32 [C, H, W].

        Raises:
            InputError: if the task is another, with `tile`, or if the image cannot be read.
            MemoryError: if there is not enough.
        """
        if not isinstance(self.task, SemanticTask | Flipped) or self.task.kind != SemanticTask.kind:
            raise InputError(f"probabilities of pixels are semantic segmentation's, and this is {self.task.kind}")
        if self._tiled is not None:
            raise InputError("probabilities of pixels are of whole images: load it without tile")
        check_count("batch_size", batch_size, 1, LARGEST_SIDE)
        parts, placement, _ = self._prepare(image)
        found: list[Logits] = []
        for batch in parts.split(batch_size):
            found += self._run(batch.unbind(), [placement] * len(batch), min(batch_size, len(parts)))
        probabilities = self.task.scores(_joined(found), placement, self.network.image_size).numpy()
        total = probabilities.sum(0)
        return np.divide(probabilities, total, out=probabilities, where=total > 0)

    def _check_threshold(self, threshold: float) -> None:
        check_threshold(threshold)
        least = getattr(self.task, "score_threshold", 0)
        if threshold < least:
            log.warning(
                "threshold=%g leaves nothing out: post-processing drops all below score_threshold=%g, which "
                "Segmenter.load(..., score_threshold=) and postprocess.score_threshold= change",
                *(threshold, least),
            )

    def _read_ahead(
        self, images: Iterable[ImageSource], num_workers: int, ahead: int
    ) -> Iterator[tuple[ImageSource, Callable[[], _Prepared]]]:
        """Yield each image with a function that returns its inputs and placement, which threads make ahead."""
        if num_workers == 0:
            for image in images:
                yield image, partial(self._prepare, image)
            return
        pool = ThreadPoolExecutor(num_workers)
        started: deque[tuple[ImageSource, Future[_Prepared]]] = deque()
        try:
            for image in images:
                started.append((image, pool.submit(self._prepare, image)))
                if len(started) > ahead:
                    source, future = started.popleft()
                    yield source, future.result
            for source, future in started:
                yield source, future.result
        finally:
            pool.shutdown(cancel_futures=True)

    def _prepare(self, image: ImageSource) -> _Prepared:
        content = content_of(image)
        picture = load_picture(image if content is None else content)
        inputs, placement = self.task.geometry.prepare(picture, self.network.image_size)
        if self.task.geometry.is_reduced(placement, self.network.image_size):
            name = image if isinstance(image, str | Path) else "an image"
            log.warning(
                "%s is %d x %d (width x height), too long for %d windows: it is seen at a lower resolution; "
                "tile=true gives a finer result",
                *(name, placement.width, placement.height, MAX_WINDOWS),
            )
        return inputs, placement, content

    @torch.inference_mode()
    def _run(self, parts: Sequence[Tensor], placements: Sequence[Placement], size: int) -> list[Logits]:
        """Run the network on N inputs uint8 [3, H, W], `size` at most: N outputs for one input each."""

        def run(images: Tensor, index: Tensor) -> Logits:
            return self.network(images)[-1].logits()

        dtype = PRECISIONS[self.precision]
        autocast: Any = nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)
        try:
            with autocast:
                inputs = self._on_device(parts)
                if self.unpadded:
                    output = run_unpadded(run, inputs, placements, self.network.backbone.patch_size, len(inputs))
                else:
                    output = self._batches(inputs, size)
        except torch.OutOfMemoryError as error:
            raise InputError(f"batch_size={size} does not fit into the memory of {self.device}") from error
        return [Logits(*parts) for parts in zip(*(logits.split(1) for logits in output), strict=True)]

    def _on_device(self, parts: Sequence[Tensor]) -> Tensor:
        """Stack inputs; for a GPU in pinned memory, whose copy does not wait for the batch before."""
        if self.device.type != "cuda":
            return torch.stack(list(parts)).to(self.device)
        pinned = torch.empty(len(parts), *parts[0].shape, dtype=parts[0].dtype, pin_memory=True)
        torch.stack(list(parts), out=pinned)
        stream = torch.cuda.current_stream(self.device)
        self._copying = self._copying or torch.cuda.Stream(self.device)
        with torch.cuda.stream(self._copying):
            inputs = pinned.to(self.device, non_blocking=True)
        stream.wait_stream(self._copying)
        inputs.record_stream(stream)
        return inputs

    @torch.inference_mode()
    def _predict(
        self, outputs: list[Logits], placement: Placement, threshold: float | None
    ) -> Segmentation | Instances:
        """Post-process the outputs for an image's inputs; the result is on the host."""
        prediction = self.task.predict(_joined(outputs), placement, self.network.image_size, self.classes)
        return _above(_on_host(prediction), threshold)

    @torch.inference_mode()
    def _predict_part(self, outputs: list[Logits], placement: Placement) -> Any:
        """The result of a tile, as `_predict` makes that of an image."""
        assert self._tiled is not None
        return _on_host(self._tiled.part(_joined(outputs), placement, self.network.image_size, self.classes))


def _on_host(prediction: Any) -> Any:
    if isinstance(prediction, Tensor):
        return prediction.cpu()
    return prediction._make(part.cpu() if isinstance(part, Tensor) else part for part in prediction)


def _above(prediction: Any, threshold: float | None) -> Any:
    return prediction if threshold is None else prediction.above(threshold)


def _joined(outputs: Sequence[Logits]) -> Logits:
    """The outputs for one input each as one."""
    return Logits(*(torch.cat(parts) for parts in zip(*outputs, strict=True)))
