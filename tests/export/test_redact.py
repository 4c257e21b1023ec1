"""Paths, secrets and accounts stay out of exports."""

import pytest

from eomt.errors import InputError
from eomt.export.redact import LOCAL, redact


def test_what_of_a_configuration_is_portable():
    config, overrides = redact(
        {"a": {"b": "x y", "c": "file:///x", "d": [1, {"e": "~/x"}]}, "ckpt": "runs/a"},
        ["a.b='x y'", "a.c=file:///x", "ckpt=runs/a", "+callbacks.x=1", "~logger", "a={b: '/x'}", "hydra.job.name=x"],
    )
    assert config == {"a": {"b": "x y", "c": None, "d": [1, {"e": None}]}, "ckpt": LOCAL}
    assert overrides == ["a.b='x y'"]
    # There were other weights: said, but not where they lie. A Hub id is no path.
    assert redact({"weights": "/home/someone/dinov3.bin", "ckpt": None})[0] == {"weights": LOCAL, "ckpt": None}
    assert redact({"weights": "hidden"}, ["weights=${oc.env:MINE}"])[0] == {"weights": LOCAL}
    for stays in (LOCAL, "owner/name", None):
        assert redact({"weights": stays})[0] == {"weights": stays}


def test_a_runs_configuration_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / ".hydra").mkdir()
    written = tmp_path / ".hydra" / "config.yaml"
    aliases = "a0: &a0 [x, x]\n" + "".join(f"a{k + 1}: &a{k + 1} [*a{k}, *a{k}]\n" for k in range(60))
    for text in ("a: [", "a: " + "[" * 10**5, aliases):
        written.write_text(text)
        with pytest.raises(InputError, match=r"config\.yaml"):
            redact({}, run=tmp_path)
