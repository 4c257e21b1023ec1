"""The pictures of the built-in dataset."""

import numpy as np
import pytest

from datasets.shapes.dataset import shape_scene
from datasets.shapes.draw import MIN_AREA
from datasets.shapes.kinds import STUFF, THINGS

THING_IDS = {kind.id for kind in THINGS}


@pytest.fixture(scope="module")
def scenes():
    return [shape_scene(0, "train", index, 96) for index in range(150)]


def test_scenes_have_what_the_tasks_need(scenes):
    things = [sum(s.category_id in THING_IDS and not s.crowd for s in scene.segments) for scene in scenes]
    assert 3 < np.mean(things) < 6
    assert 0.01 < np.mean(np.array(things) == 0) < 0.12
    assert 0.04 < np.mean([any(s.crowd for s in scene.segments) for scene in scenes]) < 0.2
    assert 0.15 < np.mean([(scene.ids == 0).any() for scene in scenes]) < 0.5
    seen = {s.category_id for scene in scenes for s in scene.segments}
    assert seen == {kind.id for kind in THINGS + STUFF}
    shapes_seen = {scene.ids.shape for scene in scenes}
    sides = np.array(sorted(shapes_seen))
    assert len(shapes_seen) > 100
    assert sides.min() >= 72
    assert sides.max() <= 120
    # From small to half the picture.
    widths = [
        np.ptp(np.flatnonzero((scene.ids == number).any(axis=0))) + 1
        for scene in scenes
        for number, s in enumerate(scene.segments, start=1)
        if s.category_id in THING_IDS and not s.crowd
    ]
    assert min(widths) < 14
    assert max(widths) > 48


def test_every_segment_is_visible_and_stuff_is_one_segment_per_kind(scenes):
    for scene in scenes:
        area = np.bincount(scene.ids.ravel(), minlength=len(scene.segments) + 1)
        assert len(area) == len(scene.segments) + 1
        assert (area[1:] >= MIN_AREA).all()
        stuff = [s.category_id for s in scene.segments if s.category_id not in THING_IDS]
        assert len(stuff) == len(set(stuff))
