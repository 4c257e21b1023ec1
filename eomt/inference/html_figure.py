"""A result's picture for a page in the browser: what is under the pointer tells its class and score."""

from __future__ import annotations

import base64
import html
import io
from collections import Counter

from PIL import Image

from eomt.inference.result import Result
from eomt.postprocess.geometry import outlines

SHOWN, TRACED = 1600, 640  # pixels of the longer side: of the picture in the page, and of the outlines over it
STYLE = """
figure {position: relative; margin: 0} figcaption {padding-top: 4px}
svg {display: block; max-width: 100%; max-height: 80vh; border-radius: 8px}
path {fill: transparent; fill-rule: evenodd; cursor: crosshair}
path:hover {fill: rgb(255 255 255 / 0.35)}
output {position: absolute; pointer-events: none; padding: 2px 8px; border-radius: 4px; white-space: nowrap;
  color: white; background: rgb(0 0 0 / 0.8); transform: translate(-50%, -150%)}
output:empty {display: none}
"""
SCRIPT = """
const show = (event) => {
  const name = element.querySelector("output");
  if (!name) return;
  const box = name.parentElement.getBoundingClientRect(), half = name.offsetWidth / 2;
  name.textContent = event.target.getAttribute("aria-label") || "";
  name.style.left = `${Math.max(half, Math.min(event.clientX - box.left, box.width - half))}px`;
  name.style.top = `${event.clientY - box.top}px`;
};
for (const type of ["pointermove", "pointerdown", "pointerleave"]) element.addEventListener(type, show);
"""


def html_figure(result: Result, painted: Image.Image, hidden: int = 0) -> str:
    """The picture in HTML, with an invisible outline over each segment that tells its class and score.

    Args:
        result: the result; where instances overlap, the pointer meets the one that is painted.
        painted: its picture.
        hidden: the number of segments that were left out, for the caption.
    """
    picture, file = painted.copy(), io.BytesIO()
    picture.thumbnail((SHOWN, SHOWN))
    picture.save(file, "JPEG", quality=90)
    source = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    step = -(-max(result.size) // TRACED)
    ids = result.map[::step, ::step]
    height, width = ids.shape
    paths: list[str] = []
    for number, (name, score) in enumerate(zip(result.names, result.scores.tolist(), strict=True), start=1):
        rings = "".join(f"M{' '.join(f'{x},{y}' for x, y in ring.tolist())}Z" for ring in outlines(ids == number))
        paths.append(f'<path d="{rings}" aria-label="{html.escape(name)} {100 * score:.0f}%"/>')
    found = ", ".join(f"{count} {name}" for name, count in Counter(result.names).items()) or "nothing"
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" width="{SHOWN}"><image width="{width}" height="{height}" '
        f'preserveAspectRatio="none" href="{source}"/>{"".join(paths)}</svg><output></output>'
        f"<figcaption>{html.escape(found)}{f'; {hidden} below the threshold' if hidden else ''}</figcaption></figure>"
    )
