"""The picture in HTML: outlines that are the segments, and names that stay text."""

import html
import re

import numpy as np
import torch
from PIL import Image, ImageDraw

from eomt.classes import Classes
from eomt.inference.html_figure import html_figure
from eomt.inference.result import Result
from eomt.postprocess.types import Segmentation


def test_outlines_are_the_segments_and_names_are_text():
    ids = np.zeros((30, 40), np.int32)
    ids[2:20, 3:30] = 1
    ids[6:10, 8:12] = 2
    hostile = "<img src=x onerror=alert(1)> \"q' </svg>"
    classes = Classes.from_list([{"id": 1, "name": hostile}, {"id": 2, "name": "dog"}])
    prediction = Segmentation(torch.from_numpy(ids), torch.tensor([0, 1]), torch.tensor([0.934, 0.5]))
    result = Result(prediction, classes, np.zeros((30, 40, 3), np.uint8))
    text = html_figure(result, result.picture(), hidden=3)
    paths = re.findall(r'<path d="([^"]*)" aria-label="([^"]*)"', text)
    assert [html.unescape(label) for _, label in paths] == [f"{hostile} 93%", "dog 50%"]
    assert "<img" not in text
    assert text.endswith("1 dog; 3 below the threshold</figcaption></figure>")
    for number, (path, _) in enumerate(paths, start=1):
        # Four times as large, so that pixels' middles lie inside or outside; holes by the even-odd rule.
        found = np.zeros((120, 160), bool)
        for ring in re.findall(r"M([^Z]+)Z", path):
            sheet = Image.new("1", (160, 120))
            corners = [tuple(4 * int(value) for value in point.split(",")) for point in ring.split()]
            ImageDraw.Draw(sheet).polygon(corners, fill=1)
            found ^= np.array(sheet)
        assert (found[2::4, 2::4] == (ids == number)).all()
