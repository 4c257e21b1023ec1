"""A report as one HTML page, with charts in SVG and pictures in it."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from eomt.files import replacing

# Beyond these a page would be slow, or a chart could not be read.
_POINTS, _CLASSES, _CHARACTERS, _SIDE = 300, 40, 300, 512
# The inside of a chart, in its own units: left, top, right, bottom.
_LEFT, _TOP, _RIGHT, _BOTTOM = 54, 8, 392, 156


@dataclass(frozen=True)
class Example:
    """An image with its score in percent; `pictures` are titles and uint8 pictures [H, W, 3]."""

    name: str
    score: float
    pictures: Sequence[tuple[str, np.ndarray]]


@dataclass(frozen=True)
class Page:
    """The content of a report; what is empty is left out.

    Attributes:
        title, subtitle: of the page.
        scores: percent by name.
        curves: titles, and below each the series of a chart: optimizer step to value.
        rows: scores of each class, as `Metric.per_class` gives them.
        classes: the names of the C classes.
        confusion: int64 [C, C + 1], see `MeanIoU.confusion`; None for none.
        examples: titles, and images below each.
        settings: the configuration, plain and resolved.
    """

    title: str
    subtitle: str
    scores: Mapping[str, float]
    curves: Mapping[str, Mapping[str, Mapping[int, float]]] = field(default_factory=dict)
    rows: Sequence[Mapping[str, Any]] = ()
    classes: Sequence[str] = ()
    confusion: np.ndarray | None = None
    examples: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def write(self, path: str | Path) -> None:
        """Write the page, whole or not at all."""
        template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
        environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        environment.filters |= {"jpeg": _jpeg, "percent": _percent}
        text = environment.from_string(template).render(
            page=self,
            charts={title: _chart(series, title.startswith("Gradient")) for title, series in self.curves.items()},
            bars=_bars(self.rows),
            table=None if self.confusion is None else _shares(self.confusion),
            settings=list(_flat(self.settings)),
        )
        with replacing(path) as temporary:
            # A file's name may hold bytes that are no text.
            temporary.write_bytes(text.encode("utf-8", "replace"))


def _chart(series: Mapping[str, Mapping[int, float]], logarithmic: bool) -> dict[str, Any]:
    """Lines in a chart's units, each with its last value, and the chart's limits; numbers that are not finite are left
    out."""
    drawn = {}
    for name, values in series.items():
        found = [(step, y) for step, y in values.items() if math.isfinite(y) and (y > 0 or not logarithmic)]
        if found:
            drawn[name] = found[:: -(-len(found) // _POINTS)] + found[-1:]
    points = [point for line in drawn.values() for point in line] or [(0, 1.0)]
    steps, values = zip(*points, strict=True)
    scale = math.log10 if logarithmic else float
    low, width = scale(min(values)), scale(max(values)) - scale(min(values)) or 1
    lines = []
    for name, found in drawn.items():
        places = [
            (
                round(_LEFT + (step - min(steps)) / (max(steps) - min(steps) or 1) * (_RIGHT - _LEFT), 1),
                round(_BOTTOM - (scale(value) - low) / width * (_BOTTOM - _TOP), 1),
            )
            for step, value in found
        ]
        name = name.rpartition("/")[2]
        label = f"block {name}" if name.isdecimal() else name
        lines.append({"label": label, "places": places, "last": f"{found[-1][1]:.4g}"})
    limits = {"low": f"{min(values):.3g}", "high": f"{max(values):.3g}", "first": min(steps), "last": max(steps)}
    return {"lines": lines, **limits, "box": (_LEFT, _TOP, _RIGHT, _BOTTOM)}


def _bars(rows: Sequence[Mapping[str, Any]]) -> tuple[str, list[tuple[str, float]]]:
    """The name of the rows' first score, and classes with it, the best first."""
    name = next((key for row in rows for key, value in row.items() if isinstance(value, float)), "")
    found = [(str(row["name"]), float(row[name])) for row in rows if name in row and not math.isnan(row[name])]
    return name, sorted(found, key=lambda bar: -bar[1])


def _shares(confusion: np.ndarray) -> list[tuple[int, list[tuple[int, float]]]]:
    """Rows of the most frequent classes: the class, and columns with their shares of its pixels."""
    total = confusion.sum(1)
    classes = [k for k in np.argsort(-total, kind="stable")[:_CLASSES].tolist() if total[k]]
    columns = [*sorted(classes), confusion.shape[1] - 1]
    return [(k, [(c, float(confusion[k, c] / total[k])) for c in columns]) for k in sorted(classes)]


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and values, as they are typed; long ones cut off."""
    if isinstance(value, Mapping) and (value or not name):
        for key, entry in value.items():
            yield from _flat(entry, f"{name}.{key}".lstrip("."))
    else:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        yield name, text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]} ..."


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"


def _jpeg(picture: np.ndarray) -> str:
    """A picture as the address of an image."""
    image, buffer = Image.fromarray(picture), io.BytesIO()
    image.thumbnail((_SIDE, _SIDE))
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
