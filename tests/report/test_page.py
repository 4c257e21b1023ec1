"""The page of a report: whole in itself, safe whatever names it shows, and small."""

from html.parser import HTMLParser

import numpy as np
import pytest

from eomt.report.page import Example, Page

HOSTILE = "\"'><script src=//x.org/a.js></script><img src=x onerror=alert(1)>{{ 7 * 7 }}\udcff\x00"
VOID = {"meta", "img"}


class Reader(HTMLParser):
    """Elements with their attributes, the text, and what is left open."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.open, self.text = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def count(self, tag):
        return sum(name == tag for name, _ in self.elements)


def page_of(name, side, num_classes, steps):
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
    example = Example(name, 12.34, [(title, noise) for title in ("image", "ground truth", "prediction", "errors")])
    names = [f"{name}{k}" for k in range(num_classes)]
    return Page(
        title=name,
        subtitle=name,
        scores={"miou": 50.04, "mean_accuracy": float("nan")},
        curves={
            "Loss": {"train/loss": {step: 1 / (step + 1) for step in range(steps)}},
            "Gradient norm before clipping": {"g": {0: 0.0, 1: 1.0, 2: float("nan"), 3: 100.0}},
            "Validation": {name: {5: 1.0}},
        },
        rows=[{"id": k, "name": text, "iou": float(k % 100)} for k, text in enumerate(names)],
        classes=names,
        confusion=generator.integers(0, 1000, (num_classes, num_classes + 1)),
        examples={"Worst": [example] * 5, "Best": [example] * 5},
        settings={"data": {"classes": names, "root": None, name: {}}, "text": name},
    )


@pytest.mark.parametrize(("name", "side", "num_classes", "steps"), [("cup", 20, 3, 40), (HOSTILE, 640, 150, 100_000)])
def test_a_page_needs_nothing_else_and_runs_nothing(tmp_path, name, side, num_classes, steps):
    page_of(name, side, num_classes, steps).write(tmp_path / "report.html")
    content = (tmp_path / "report.html").read_bytes()
    assert len(content) < 10e6
    page = Reader(content.decode())
    assert not page.open
    assert not {"script", "link", "iframe", "object", "form", "a", "base"} & {tag for tag, _ in page.elements}
    for tag, attributes in page.elements:
        assert not {"href", "srcset", "action"} & attributes.keys()
        assert not any(key.startswith("on") for key in attributes)
        assert tag != "img" or attributes["src"].startswith("data:image/jpeg;base64,")
        assert "url(" not in attributes.get("style", "")
    assert b"url(" not in content[: content.index(b"</style>")]
    assert page.count("img") == 40
    assert page.count("polyline") == 3
    assert "49" not in page.text or "{{ 7 * 7 }}" in page.text
    shown = min(num_classes, 40)
    assert page.count("th") == 1 + (shown + 1) + shown
    assert ("most frequent of 150 classes" in page.text) == (num_classes == 150)


def test_an_empty_page_says_what_there_is(tmp_path):
    Page("title", "subtitle", {"pq": 1.0}).write(tmp_path / "report.html")
    page = Reader((tmp_path / "report.html").read_text())
    assert "Curves" not in page.text
    assert page.count("svg") == page.count("img") == page.count("table") == 0
    assert "pq" in page.text
