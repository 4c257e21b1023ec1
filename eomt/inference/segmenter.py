"""A trained network that segments any image."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eomt.classes import Classes
from eomt.errors import InputError
from eomt.inference.background import Background
from eomt.inference.graphs import FixedBatches, compile_network
from eomt.inference.precision import PRECISIONS, with_cast_weights
from eomt.inference.result import Result
from eomt.model.eomt import EoMT
from eomt.model.outputs import Logits
from eomt.photo import ImageSource, load_image
from eomt.postprocess.geometry import MAX_WINDOWS, Placement, is_reduced, run_unpadded
from eomt.postprocess.types import Instances, Segmentation
from eomt.tasks import Task, predict_images, task_of
from eomt.weights.load import read_weights

log = logging.getLogger("eomt")


class Segmenter:
    """Segments images of any size with the mask-free network.

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

    Attributes:
        network: the network; in mixed precision with cast weights, see `with_cast_weights`.

    Raises:
        InputError: if the device cannot be used, there is no such precision, or the network has another
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
    ):
        if network.num_classes != len(classes):
            raise InputError(f"the network tells {network.num_classes} classes apart, but {len(classes)} are named")
        try:
            self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            network = network.to(self.device).eval()
        except (AssertionError, NotImplementedError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"device={device} cannot be used ({reason}); such as cpu, cuda or cuda:1 can") from error
        if precision is None:
            precision = "bf16" if self.device.type == "cuda" else "32"
        if str(precision) not in PRECISIONS:
            raise InputError(f"precision={precision} is none of {', '.join(PRECISIONS)}")
        self.precision = str(precision)
        self.task = task
        self.classes = classes
        self.unpadded = unpadded
        network.backbone.crop_position = unpadded
        dtype = PRECISIONS[self.precision]
        self.network = network if dtype is None else with_cast_weights(network, dtype)
        compile_network(self.network, compile or False, one_size=not unpadded)
        self._batches = FixedBatches(self.network, bool(compile), self.device.type == "cuda" and compile is not False)
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
        kind: str | None = None,
        classes: Classes | None = None,
        network: Mapping[str, Any] | None = None,
        backbone: str | Path | None = None,
        **options: float | None,
    ) -> Segmenter:
        """Load a segmenter from a checkpoint, an exported folder, an original file, a Hugging Face folder or a Hub id.

        Args:
            source: a path such as RUN/checkpoints/best.ckpt or RUN, or a Hub id; see `eomt.weights.load.read_weights`.
            device, precision, unpadded, compile: see `Segmenter`.
            trust_code: True imports a custom task that the source names, which runs its code.
            kind, classes, network, backbone: complete a source that does not say them; see `read_weights`.
            options: options of the task's post-processing, such as `score_threshold`; default the training run's, or
                the published ones.

        Raises:
            InputError: if the source cannot be read or is incomplete, names a custom task, or an option is unknown or
                out of range; otherwise see `Segmenter`.
        """
        if classes is not None and not isinstance(classes, Classes):
            raise InputError("classes must be eomt.classes.Classes, such as Classes.from_categories gives them")
        # Memory-mapped: optimizer states, twice the weights, are not loaded.
        weights = read_weights(source, kind=kind, classes=classes, network=network, backbone=backbone)
        # The task alone: custom readers are not imported here. A text such as "no" is not True.
        if "." in weights.kind and trust_code is not True:
            raise InputError(f"ckpt={source} would run {weights.kind}: if you trust it, say so by trust_code=true")
        given = {name: value for name, value in options.items() if value is not None}
        task = task_of(weights.kind, (weights.config.get("postprocess") or {}) | given)
        model = EoMT(**weights.network)
        model.load_state_dict(weights.state)
        return cls(model, task, weights.classes, device, precision, unpadded, compile)

    def __call__(
        self, images: ImageSource | Iterable[ImageSource], batch_size: int = 8, num_workers: int = 0
    ) -> Result | list[Result]:
        """Segment an image, or several: the result, or a list of results. See `stream`.

        Args:
            images: one image, see `load_image`, or several: any iterable, or one array or tensor with one more
                dimension. Sizes may differ.
            batch_size, num_workers: see `stream`.
        """
        one = isinstance(images, str | Path | Image.Image) or (
            isinstance(images, np.ndarray | Tensor) and images.ndim < 4
        )
        results = list(self.stream([images] if one else images, batch_size, num_workers))
        return results[0] if one else results

    def stream(
        self,
        images: Iterable[ImageSource],
        batch_size: int = 8,
        num_workers: int = 0,
        on_error: Callable[[ImageSource, InputError], None] | None = None,
    ) -> Iterator[Result]:
        """Segment any number of images, holding only those of a few batches.

        Args:
            images: images, see `load_image`; the iterable is read as they are needed.
            batch_size: the number of inputs that the network takes at a time. A semantic model has several inputs,
                its windows, for an image that is no square. Results depend on it only by rounding.
            num_workers: the number of threads that read and scale images while the network runs.
            on_error: called with an image that cannot be read and the error; the image is then left out. Without it
                the error is raised.

        Yields:
            A result per image, in their order.

        Raises:
            InputError: if `batch_size` or `num_workers` is out of range, or an image cannot be read.
        """
        if batch_size < 1 or num_workers < 0:
            raise InputError(f"batch_size={batch_size} must be at least 1, and num_workers={num_workers} at least 0")
        placed: deque[tuple[ImageSource, int, Placement]] = deque()

        def inputs() -> Iterator[tuple[Tensor, Placement]]:
            for source, prepare in self._read_ahead(images, num_workers, ahead=2 * batch_size):
                try:
                    parts, placement = prepare()
                except InputError as error:
                    if on_error is None:
                        raise
                    on_error(source, error)
                    continue
                placed.append((source, len(parts), placement))
                yield from ((part, placement) for part in parts)

        outputs: deque[Logits] = deque()
        results: deque[Future] = deque()
        waiting = inputs()
        size = None
        # Two threads: one launches while the other waits for the device.
        with closing(Background(self.device, threads=2)) as background:
            while batch := list(islice(waiting, batch_size)):
                # Only the last batch may be smaller than the first.
                size = size or min(batch_size, 1 << (len(batch) - 1).bit_length())
                outputs += self._run(*zip(*batch, strict=True), size)
                before = len(results)
                while placed and len(outputs) >= placed[0][1]:
                    source, count, placement = placed.popleft()
                    own = [outputs.popleft() for _ in range(count)]
                    finish = partial(Result, classes=self.classes, source=source)
                    results.append(background.submit(partial(self._predict, own, placement), finish))
                    if not background.concurrent:
                        yield results.popleft().result()
                # Those of the batch before were made meanwhile, and are taken while the device works on this one.
                for _ in range(before):
                    yield results.popleft().result()
            while results:
                yield results.popleft().result()

    def _read_ahead(
        self, images: Iterable[ImageSource], num_workers: int, ahead: int
    ) -> Iterator[tuple[ImageSource, Callable[[], tuple[Tensor, Placement]]]]:
        """Yield each image with a function that returns its inputs and placement, which threads make ahead."""
        if num_workers == 0:
            for image in images:
                yield image, lambda image=image: self._prepare(image)
            return
        pool = ThreadPoolExecutor(num_workers)
        started: deque[tuple[ImageSource, Future]] = deque()
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

    def _prepare(self, image: ImageSource) -> tuple[Tensor, Placement]:
        inputs, placement = self.task.geometry.prepare(load_image(image), self.network.image_size)
        if is_reduced(placement, self.network.image_size):
            name = image if isinstance(image, str | Path) else "an image"
            log.warning(
                "%s is %d x %d (width x height), too long for %d windows: it is seen at a lower resolution; "
                "cut it into pieces for a finer result",
                *(name, placement.width, placement.height, MAX_WINDOWS),
            )
        return inputs, placement

    @torch.inference_mode()
    def _run(self, parts: Sequence[Tensor], placements: Sequence[Placement], size: int) -> list[Logits]:
        """Run the network on N inputs uint8 [3, H, W], `size` at most: N outputs for one input each."""

        def run(images: Tensor, index: Tensor) -> Logits:
            return self.network(images)[-1].logits()

        dtype = PRECISIONS[self.precision]
        autocast: Any = nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)
        with autocast, self._memory_for(size):
            inputs = self._on_device(parts)
            if self.unpadded:
                output = run_unpadded(run, inputs, placements, self.network.backbone.patch_size, len(inputs))
            else:
                output = self._batches(inputs, size)
        return [Logits(*parts) for parts in zip(*(logits.split(1) for logits in output), strict=True)]

    def _on_device(self, parts: Sequence[Tensor]) -> Tensor:
        """Stack inputs; for a GPU in pinned memory, whose copy does not wait for the batch before."""
        if self.device.type != "cuda":
            return torch.stack(parts).to(self.device)
        pinned = torch.empty(len(parts), *parts[0].shape, dtype=parts[0].dtype, pin_memory=True)
        torch.stack(parts, out=pinned)
        stream = torch.cuda.current_stream(self.device)
        self._copying = self._copying or torch.cuda.Stream(self.device)
        with torch.cuda.stream(self._copying):
            inputs = pinned.to(self.device, non_blocking=True)
        stream.wait_stream(self._copying)
        inputs.record_stream(stream)
        return inputs

    @contextmanager
    def _memory_for(self, size: int) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise InputError(f"batch_size={size} does not fit into the memory of {self.device}") from error

    @torch.inference_mode()
    def _predict(self, outputs: list[Logits], placement: Placement) -> Segmentation | Instances:
        """Post-process the outputs for an image's inputs; the result is on the host."""
        output = Logits(*(torch.cat(parts) for parts in zip(*outputs, strict=True)))
        size = self.network.image_size
        (prediction,) = predict_images(self.task, output, [len(outputs)], [placement], size, self.classes)
        return type(prediction)(*(part.cpu() if isinstance(part, Tensor) else part for part in prediction))
