"""The logs of a run that was stopped and resumed, read as one."""

import pytest

from eomt.training.callbacks.curves import plot, read_logs

HEADER = "epoch,pq,step,train/loss"


def write_log(folder, version, *rows):
    path = folder / "csv" / f"version_{version}" / "metrics.csv"
    path.parent.mkdir(parents=True)
    path.write_text("".join(f"{row}\n" for row in (HEADER, *rows)))
    return path


def test_a_resumed_run_takes_the_place_of_what_it_did_again(tmp_path):
    """Killed after step 3, resumed from the checkpoint of before the validation after step 1; and once more."""
    write_log(tmp_path, 0, "0,,0,0.9", "0,,1,0.8", "0,10,1,", "0,,2,0.7", "0,,3,0.6")
    write_log(tmp_path, 1, "0,10,1,", "0,,2,0.7")
    write_log(tmp_path, 10, "0,,3,0.6", "0,20,3,")
    write_log(tmp_path, 2)
    write_log(tmp_path, "0_old", "0,,7,0.1")
    whole = {"train/loss": {0: 0.9, 1: 0.8, 2: 0.7, 3: 0.6}, "pq": {1: 10, 3: 20}}
    assert read_logs(tmp_path) == whole


@pytest.mark.parametrize("cut", ["0,1", "0,,0.", "0,,2,0.5,0.2\n", "0,1\n", "0,,x,0.5\n", "0,,2,0.\x005\n"])
def test_half_a_line_is_left_out(tmp_path, cut):
    path = write_log(tmp_path, 0, "0,,0,0.9", "0,,1,0.8")
    with path.open("a") as file:
        file.write(cut)
    write_log(tmp_path, 1, "0,,2,0.7")
    assert read_logs(tmp_path) == {"train/loss": {0: 0.9, 1: 0.8, 2: 0.7}}


def test_curves_are_drawn(tmp_path):
    plot({"train/loss": {0: 2.0, 1: 1.0}, "lr/head": {0: 0.1}, "other": {0: 1.0}}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    plot({"other": {0: 1.0}}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
