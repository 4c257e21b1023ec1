"""The page of demo.py: what it takes and gives, and the whole of it in a browser."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from eomt.classes import Classes
from eomt.cli.demo import read_upload, serve, write_downloads
from eomt.errors import InputError
from eomt.inference.result import Result
from eomt.postprocess.types import Segmentation
from tests.running import ROOT, typed

# Notes each connection and each name that is looked up.
NOTES = """
import sys
def note(event, given):
    if event in ("socket.connect", "socket.getaddrinfo"):
        where = given[1] if event == "socket.connect" else given
        print(where[0] if isinstance(where, tuple) else "local", file=open({path!r}, "a"))
sys.addaudithook(note)
"""

# A place in the window that shows a segment.
INSIDE = """
const box = arguments[0].getBoundingClientRect();
for (let y = Math.ceil(box.top); y < box.bottom; y++)
  for (let x = Math.ceil(box.left); x < box.right; x += 3)
    if (document.elementFromPoint(x, y)?.tagName === "path") return [x, y];
"""


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.jpg", b"no image", "a.jpg cannot be read: it is no image in JPEG, PNG"),
        (
            "a.png",
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
            "a.png cannot be read: it is no image in JPEG, PNG",
        ),
        ("a.bmp", Image.new("1", (1500, 1000)), "a.bmp has 1500 x 1000 pixels, more than max_megapixels=1"),
    ],
)
def test_an_upload_is_refused_in_one_line(name, content, line, tmp_path):
    path = tmp_path / name
    content.save(path) if isinstance(content, Image.Image) else path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_upload(path, max_megapixels=1)
    assert str(error.value).startswith(line)
    assert str(tmp_path) not in str(error.value)


@pytest.mark.parametrize("host", ["ü..b", "192.0.2.1"])
def test_an_address_that_is_none_is_refused_in_one_line(host):
    with pytest.raises(InputError, match=f"^host={host} port=7860: [^(]+; choose another$"):
        serve({"host": host, "port": 7860})


def test_downloads(tmp_path):
    ids = np.zeros((30, 40), np.int32)
    ids[2:20, 3:30] = 1
    ids[6:10, 8:12] = 2
    classes = Classes.from_list([{"id": 9, "name": "sky", "isthing": 0}, {"id": 4, "name": "dog"}])
    prediction = Segmentation(torch.from_numpy(ids), torch.tensor([0, 1]), torch.tensor([0.9, 0.5]))
    result = Result(prediction, classes, np.zeros((30, 40, 3), np.uint8))
    picture, document, labels = write_downloads(result, result.picture(), "photo.jpg", tmp_path)
    assert np.array_equal(Image.open(picture), result.picture())
    assert np.array_equal(Image.open(labels), np.array([0, 9, 4])[ids])
    coco = COCO(document)
    assert coco.loadImgs(1)[0] == {"id": 1, "file_name": "photo.jpg", "height": 30, "width": 40}
    for number, row in coco.anns.items():
        assert np.array_equal(coco.annToMask(row), ids == number)
        assert row["area"] == (ids == number).sum()
    assert [row["bbox"] for row in coco.anns.values()] == [[3, 2, 27, 18], [8, 6, 4, 4]]
    assert [coco.cats[row["category_id"]]["name"] for row in coco.anns.values()] == ["sky", "dog"]


def test_a_port_in_use_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"host=127.0.0.1 port={port}: Address already in use; choose another"):
            typed("demo", "ckpt=nothing.ckpt", f"port={port}")


@pytest.fixture
def browser(tmp_path):
    """Chromium, which saves into a folder of its own."""
    pytest.importorskip("gradio", reason="needs Gradio: pip install -e '.[demo]'")
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install selenium")
    if not shutil.which("chromium") or not shutil.which("chromedriver"):
        pytest.skip("needs Chromium and its driver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    for flag in (*flags.split(), "disable-component-update", "disable-sync", f"user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(f"--{flag}")
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path / "saved")})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, run, tmp_path):
    """The address of the page of a run, whose process is stopped at the end as by Ctrl-C."""
    (tmp_path / "sitecustomize.py").write_text(NOTES.format(path=str(tmp_path / "reached.txt")))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = [f"ckpt={run}/checkpoints/last.ckpt", "device=cpu", f"port={port}", "max_megapixels=1", "max_megabytes=1"]
    own = {"PYTHONPATH": str(tmp_path), "TMPDIR": str(tmp_path), "http_proxy": "http://127.0.0.1:9"}
    command = [sys.executable, "demo.py", *options]
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | own, stdout=subprocess.PIPE, text=True) as process:
        try:
            lines = iter(process.stdout.readline, "")
            assert any(line.startswith(f"open http://127.0.0.1:{port}/") for line in lines)
            yield f"http://127.0.0.1:{port}/"
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
    assert not list(tmp_path.glob("eomt-demo-*"))


@pytest.mark.slow
def test_the_page_in_a_browser(browser, page, tmp_path):
    from selenium.webdriver import Keys
    from selenium.webdriver.common.actions.action_builder import ActionBuilder

    def wait(what):
        end = time.monotonic() + 120
        while not (found := what()):
            assert time.monotonic() < end
            time.sleep(0.1)
        return found

    def all_of(selector):
        return browser.find_elements("css selector", selector)

    def put(path):
        for close in all_of("button[aria-label='Clear'], button[aria-label='Remove file']"):
            close.click()
        wait(lambda: not all_of("figure, p[role=alert]"))
        wait(lambda: all_of("input[type=file]"))[0].send_keys(str(path))

    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)).save(tmp_path / "photo.png")
    browser.get(page)
    put(tmp_path / "photo.png")
    wait(lambda: all_of("figure path"))
    count = len(all_of("figure path"))
    assert "below" not in all_of("figcaption")[0].text
    picture = all_of("figure svg")[0]
    browser.execute_script("arguments[0].scrollIntoView()", picture)
    place = browser.execute_script(INSIDE, picture)
    pointer = ActionBuilder(browser)
    pointer.pointer_action.move_to_location(*place)
    pointer.perform()
    assert all_of("figure output")[0].text in {path.get_attribute("aria-label") for path in all_of("figure path")}
    for label, suffix in (("Picture", "segments.png"), ("COCO JSON", "coco.json"), ("Label PNG", "labels.png")):
        browser.find_element("xpath", f"//button[contains(., '{label}')]").click()
        wait((tmp_path / "saved" / f"photo_{suffix}").is_file)
    assert Image.open(tmp_path / "saved" / "photo_labels.png").size == (90, 60)
    rows = json.loads((tmp_path / "saved" / "photo_coco.json").read_text())["annotations"]
    assert len(rows) == count

    box = all_of("input[type=number]")[0]
    box.send_keys(Keys.CONTROL, "a")
    box.send_keys("1", Keys.TAB)
    wait(lambda: all_of("figcaption") and f"nothing; {count} below the threshold" == all_of("figcaption")[0].text)

    Image.new("1", (1500, 1000)).save(tmp_path / "large.png")
    put(tmp_path / "large.png")
    assert wait(lambda: all_of("p[role=alert]"))[0].text.startswith("large.png has 1500 x 1000 pixels, more than")
    (tmp_path / "heavy.png").write_bytes(bytes(2 * 10**6))
    put(tmp_path / "heavy.png")
    wait(lambda: "exceed" in browser.page_source)

    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}
    assert [url for url in asked if not url.startswith((page, "data:", "blob:", "chrome"))] == []
    reached = set(Path(tmp_path / "reached.txt").read_text().split())
    assert reached <= {"127.0.0.1", "local", "localhost"}
