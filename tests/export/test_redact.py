"""Paths, secrets and accounts stay out of exports."""

from eomt.export.redact import LOCAL, redact


def test_what_of_a_configuration_is_portable():
    config = {"a": {"b": "x y", "c": "file:///x", "d": [1, {"e": "~/x"}], "f": {"g": "x"}}, "ckpt": "runs/a"}
    redacted = {"a": {"b": "x y", "c": None, "d": [1, {"e": None}], "f": None}, "ckpt": LOCAL}
    assert redact(config | {"callbacks": {"x": 1}, "logger": {}, "hydra": {}}, ["a.f"]) == redacted
    # There were other weights: said, but not where they lie. A Hub id is no path.
    assert redact({"weights": "/home/someone/dinov3.bin", "ckpt": None}) == {"weights": LOCAL, "ckpt": None}
    assert redact({"weights": "hidden"}, ["weights"]) == {"weights": LOCAL}
    for stays in (LOCAL, "owner/name", None):
        assert redact({"weights": stays}) == {"weights": stays}
