"""The page of demo.py: an image in; segments under the pointer, a picture, a COCO JSON and a label PNG out."""

from __future__ import annotations

import html
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eomt.cli.main import log
from eomt.cli.meanings import keys_of
from eomt.cli.predict import load_segmenter
from eomt.errors import InputError
from eomt.files import write_json
from eomt.inference.html_figure import SCRIPT, STYLE, html_figure
from eomt.inference.result import Result
from eomt.inference.segmenter import Segmenter
from eomt.photo import IMAGE_SUFFIXES, open_image, read_photo
from eomt.postprocess.draw import DRAWN_SCORE
from eomt.postprocess.writers import SemanticWriter

HERE = ("127.0.0.1", "localhost")
KEPT = 3600  # seconds that an upload and its results are kept


def serve(cfg: Mapping[str, Any]) -> None:
    """Serve the page until the process is stopped; uploads and results are removed then.

    Args:
        cfg: demo.py's checked configuration.

    Raises:
        InputError: if Gradio is not installed, the weights cannot be read, or the address cannot be listened at.
    """
    try:
        socket.create_server((cfg["host"], cfg["port"])).close()  # before the weights are read
    except (OSError, TypeError) as error:  # the latter of a name that cannot be encoded
        fault = (getattr(error, "strerror", None) or str(error)).partition(" (")[0]
        raise InputError(f"host={cfg['host']} port={cfg['port']}: {fault}; choose another") from error
    with tempfile.TemporaryDirectory(prefix="eomt-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # read when it is imported
        # Gradio asks its own page whether it is there, which no proxy knows.
        direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
        os.environ["NO_PROXY"] = os.environ["no_proxy"] = ",".join((*HERE, cfg["host"], direct))
        try:
            import gradio
        except ImportError as error:
            raise InputError(f"demo.py needs {error.name}: pip install -e '.[demo]'") from error
        page = build(load_segmenter(cfg, "uploaded images"), cfg["max_megapixels"], Path(folder))
        fonts = {"font": ("system-ui", "sans-serif"), "font_mono": ("ui-monospace", "monospace")}  # none of Google's
        hidden = {"quiet": True, "footer_links": [], "enable_monitoring": False, "run_history": False}
        _, address, _ = page.launch(
            server_name=cfg["host"], server_port=cfg["port"], share=False, prevent_thread_lock=True, **hidden,
            max_file_size=f"{cfg['max_megabytes']}mb", theme=gradio.themes.Default(**fonts),
        )  # fmt: skip
        if cfg["host"] not in HERE:
            log.warning("host=%s: whoever reaches this machine can use the page, without a password", cfg["host"])
        log.info("open %s in a browser; Ctrl-C ends it", address)
        try:
            threading.Event().wait()
        finally:
            page.close(verbose=False)


def build(segmenter: Segmenter, max_megapixels: int, folder: Path) -> Any:
    """Build the page, a `gradio.Blocks`.

    Args:
        segmenter: the segmenter; sliders set the thresholds of its task.
        max_megapixels: larger images are refused before they are decoded.
        folder: receives the files for download.
    """
    import gradio

    task, meanings = segmenter.task, keys_of("predict")
    assert is_dataclass(task), "load_segmenter puts no views around it"
    options = [field.name for field in fields(task) if field.name.endswith("threshold")]
    slider = partial(gradio.Slider, 0, 1, step=0.01)
    with gradio.Blocks(title="EoMT", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as page:
        gradio.Markdown(f"## EoMT: {task.kind} segmentation, {len(segmenter.classes)} classes")
        with gradio.Row():
            with gradio.Column(scale=1, min_width=300):
                upload = gradio.File(label="Image", file_types=list(IMAGE_SUFFIXES), height=160)
                start = DRAWN_SCORE if task.kind == "instance" else 0
                sliders = [slider(start, label="threshold", info="segments with lower scores are left out")]
                with gradio.Accordion("Post-processing", open=False, visible=bool(options)):
                    for name in options:
                        key = meanings.get(f"postprocess.{name}")
                        sliders.append(slider(getattr(task, name), label=name, info=key and key.meaning))
            with gradio.Column(scale=2, min_width=300):
                figure = gradio.HTML(css_template=STYLE, js_on_load=SCRIPT)
                with gradio.Row():
                    button = partial(gradio.DownloadButton, interactive=False, size="sm", min_width=80)
                    buttons = [button(label) for label in ("Picture", "COCO JSON", "Label PNG")]
        events = [upload.upload, upload.clear, *(moved.release for moved in sliders)]
        function = _function(segmenter, options, max_megapixels, folder)
        gradio.on(events, function, [upload, *sliders], [figure, *buttons], trigger_mode="always_last")
    return page.queue(max_size=16)


def _function(segmenter: Segmenter, options: list[str], max_megapixels: int, folder: Path) -> Callable[..., list]:
    """The function behind the page, which Gradio calls for one visitor at a time."""
    import gradio

    @lru_cache(maxsize=2)  # a threshold that moves does not take the network
    def result(path: str, *values: float) -> Result:
        assert is_dataclass(segmenter.task)
        segmenter.task = replace(segmenter.task, **dict(zip(options, values, strict=True)))
        return segmenter(read_upload(Path(path), max_megapixels))

    def segment(path: str | None, threshold: float, *values: float) -> list:
        text, files = "", [None] * 3
        try:
            if path is not None:
                whole = result(path, *values)
                shown = whole.above(threshold)
                painted = shown.picture(threshold=0)
                text = html_figure(shown, painted, len(whole) - len(shown))
                files = write_downloads(shown, painted, Path(path).name, Path(tempfile.mkdtemp(dir=folder)))
        except InputError as error:
            text = f'<p role="alert">{html.escape(str(error))}</p>'
        return [text, *(gradio.DownloadButton(value=file, interactive=file is not None) for file in files)]

    return segment


def read_upload(path: Path, max_megapixels: int) -> np.ndarray:
    """Read an image, uint8 [H, W, 3]; InputError if it is none, damaged, or too large."""
    width = height = 0
    with suppress(Exception), open_image(path) as image:  # what is no image, is said below
        width, height = image.size
    if width * height > max_megapixels * 10**6:
        raise InputError(f"{path.name} has {width} x {height} pixels, more than max_megapixels={max_megapixels}")
    with path.open("rb") as file:
        return read_photo(file, path.name).pixels


def write_downloads(result: Result, painted: Image.Image, name: str, folder: Path) -> list[Path | None]:
    """Write the picture, a COCO JSON that is a data set of its own, and the label PNG, where its values fit."""
    (height, width), stem = result.size, Path(name).stem
    picture, document, labels = (folder / f"{stem}_{end}" for end in ("segments.png", "coco.json", "labels.png"))
    painted.save(picture, compress_level=1)
    rows = result.to_coco(1)
    for number, (row, area, box) in enumerate(zip(rows, result.areas.tolist(), result.boxes.tolist(), strict=True), 1):
        left, top, right, bottom = box
        row |= {"id": number, "area": area, "bbox": [left, top, right - left, bottom - top], "iscrowd": 0}
    image = {"id": 1, "file_name": name, "height": height, "width": width}
    write_json(document, {"images": [image], "annotations": rows, "categories": result.classes.to_list()})
    with suppress(InputError):
        SemanticWriter(folder, result.classes).save(result.prediction.flat(), labels.name, 1)
    labels = folder / SemanticWriter.pictures / labels.name
    return [picture, document, labels if labels.is_file() else None]
