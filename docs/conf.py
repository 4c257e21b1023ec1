"""Sphinx: `sphinx-build -W -b html docs docs/_build`. It needs no internet."""

import json
import re
import subprocess
import sys
from pathlib import Path
from textwrap import indent

from docutils import nodes
from docutils.parsers.rst import Directive

sys.path.insert(0, str(Path(__file__).parents[1]))

from eomt.cli.meanings import keys_of

ROOT = Path(__file__).parents[1]

project = "EoMT"
copyright = "the EoMT contributors, Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
napoleon_use_ivar = True
autodoc_default_options = {"members": True, "exclude-members": "forward, kind, monitor, geometry, writer"}
python_maximum_signature_line_length = 88

html_theme = "pydata_sphinx_theme"
html_title = "EoMT"
html_show_sourcelink = False
html_theme_options = {"show_prev_next": False, "secondary_sidebar_items": ["page-toc"]}
copybutton_prompt_text = "$ "


class Settings(Directive):
    """A table of keys with defaults and meanings: the command, then the sections to show, or none for the others."""

    required_arguments, optional_arguments = 1, 20

    def run(self) -> list[nodes.Node]:
        command, *sections = self.arguments
        keys = keys_of(command).values()
        rows = [key for key in keys if (key.name.partition(".")[0] if "." in key.name else "") in (sections or [""])]
        if not rows:
            raise self.error(f"configs/{command}.yaml has no key in {sections}")
        return [table(("key", "default", "meaning"), [(key.name, key.default, key.meaning) for key in rows], 2)]


class Recipes(Directive):
    """A table of the published recipes: each experiment with the first line of its file."""

    def run(self) -> list[nodes.Node]:
        rows = []
        for path in sorted((ROOT / "configs" / "experiment").glob("*_*_*.yaml")):
            about = path.read_text(encoding="utf-8").splitlines()[1].removeprefix("# ")
            rows.append((f"experiment={path.stem}", about))
        return [table(("recipe", "what it is"), rows, 1)]


class Mistakes(Directive):
    """A table of mistyped commands, and the line that each ends in; the build fails if one does not."""

    def run(self) -> list[nodes.Node]:
        done = subprocess.run([sys.executable, ROOT / "docs" / "mistakes.py"], capture_output=True, check=True)
        rows = []
        for answer in json.loads(done.stdout.splitlines()[-1]):
            *said, last = answer["printed"].splitlines()
            if answer["status"] != 1 or not last.startswith("error: ") or "Traceback" in "".join(said):
                raise self.error(f"{answer['typed']} does not end in one clear line: {answer['printed']}")
            rows.append((answer["typed"], last))
        return [table(("typed", "printed"), rows, 2)]


def table(titles: tuple[str, ...], rows: list[tuple[str, ...]], literals: int) -> nodes.table:
    """A table whose first columns are code."""
    group = nodes.tgroup(cols=len(titles))
    group += [nodes.colspec(colwidth=1) for _ in titles]
    head, body = nodes.thead(), nodes.tbody()
    head += _row(titles, 0)
    body += [_row(row, literals) for row in rows]
    group += [head, body]
    whole = nodes.table("", group)
    whole["classes"] += ["settings"]
    return whole


def _row(cells: tuple[str, ...], literals: int) -> nodes.row:
    row = nodes.row()
    for column, cell in enumerate(cells):
        text = nodes.literal(text=cell) if column < literals else nodes.Text(cell)
        row += nodes.entry("", nodes.paragraph("", "", text))
    return row


def plain_docstring(app, what, name, thing, options, lines: list[str]) -> None:
    """Docstrings are plain text with `code` and the odd table of bars: make that reStructuredText."""
    text = "\n".join(lines)
    parts = re.split(r"`([^`]+)`", text.replace("``", "`"))
    parts[::2] = [part.replace("*", r"\*") for part in parts[::2]]
    # A letter right behind the code, as of a plural, needs a mark between.
    after = [r"\ " if rest[:1].isalnum() else "" for rest in parts[2::2]]
    parts[1::2] = [f"``{part}``{mark}" for part, mark in zip(parts[1::2], after, strict=True)]
    text = re.sub(r"(?m)(^\|.*\n?)+", lambda bars: "::\n\n" + indent(bars[0], "    "), "".join(parts))
    lines[:] = text.split("\n")


def without_note(app, name: str, source: list[str]) -> None:
    """Leave out the line of a page that is for readers of the clone."""
    source[0] = re.sub(r"(?s)\*In the clone this page lacks .*?\*\n\n", "", source[0])


def setup(app) -> None:
    app.connect("source-read", without_note)
    app.connect("autodoc-process-docstring", plain_docstring, priority=400)
    app.add_directive("settings", Settings)
    app.add_directive("recipes", Recipes)
    app.add_directive("mistakes", Mistakes)
