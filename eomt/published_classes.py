"""Classes of the datasets on which EoMT models are published: official ids, names, things and stuff."""

from __future__ import annotations

from collections.abc import Sequence

from eomt.classes import Classes, SegmentClass
from eomt.errors import InputError

# The official category ids and names of COCO (Lin et al., arXiv 1405.0312), and of its stuff as panoptic
# segmentation merges it (Kirillov et al., arXiv 1801.00868).
_COCO_THINGS = """
1 person, 2 bicycle, 3 car, 4 motorcycle, 5 airplane, 6 bus, 7 train, 8 truck, 9 boat, 10 traffic light, 11 fire
hydrant, 13 stop sign, 14 parking meter, 15 bench, 16 bird, 17 cat, 18 dog, 19 horse, 20 sheep, 21 cow, 22 elephant,
23 bear, 24 zebra, 25 giraffe, 27 backpack, 28 umbrella, 31 handbag, 32 tie, 33 suitcase, 34 frisbee, 35 skis, 36
snowboard, 37 sports ball, 38 kite, 39 baseball bat, 40 baseball glove, 41 skateboard, 42 surfboard, 43 tennis racket,
44 bottle, 46 wine glass, 47 cup, 48 fork, 49 knife, 50 spoon, 51 bowl, 52 banana, 53 apple, 54 sandwich, 55 orange,
56 broccoli, 57 carrot, 58 hot dog, 59 pizza, 60 donut, 61 cake, 62 chair, 63 couch, 64 potted plant, 65 bed, 67
dining table, 70 toilet, 72 tv, 73 laptop, 74 mouse, 75 remote, 76 keyboard, 77 cell phone, 78 microwave, 79 oven, 80
toaster, 81 sink, 82 refrigerator, 84 book, 85 clock, 86 vase, 87 scissors, 88 teddy bear, 89 hair drier, 90
toothbrush
"""
_COCO_STUFF = """
92 banner, 93 blanket, 95 bridge, 100 cardboard, 107 counter, 109 curtain, 112 door-stuff, 118 floor-wood, 119 flower,
122 fruit, 125 gravel, 128 house, 130 light, 133 mirror-stuff, 138 net, 141 pillow, 144 platform, 145 playingfield,
147 railroad, 148 river, 149 road, 151 roof, 154 sand, 155 sea, 156 shelf, 159 snow, 161 stairs, 166 tent, 168 towel,
171 wall-brick, 175 wall-stone, 176 wall-tile, 177 wall-wood, 178 water-other, 180 window-blind, 181 window-other, 184
tree-merged, 185 fence-merged, 186 ceiling-merged, 187 sky-other-merged, 188 cabinet-merged, 189 table-merged, 190
floor-other-merged, 191 pavement-merged, 192 mountain-merged, 193 grass-merged, 194 dirt-merged, 195 paper-merged, 196
food-other-merged, 197 building-other-merged, 198 rock-merged, 199 wall-other-merged, 200 rug-merged
"""

# The first name of each row of the benchmark's objectInfo150.txt.
_ADE20K_NAMES = """
wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass,
cabinet, sidewalk, person, earth, door, table, mountain, plant, curtain, chair,
car, water, painting, sofa, shelf, house, sea, mirror, rug, field,
armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion,
base, box, column, signboard, chest of drawers, counter, sand, sink, skyscraper, fireplace,
refrigerator, grandstand, path, stairs, runway, case, pool table, pillow, screen door, stairway,
river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill, bench,
countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel,
bus, towel, light, truck, tower, chandelier, awning, streetlight, booth, television,
airplane, dirt track, apparel, pole, land, bannister, escalator, ottoman, bottle, buffet,
poster, stage, van, ship, fountain, conveyer belt, canopy, washer, plaything, swimming pool,
stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball,
food, step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher,
screen, blanket, sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan,
pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass, clock, flag
"""

# The colours in which ADE20K's segmentations are usually shown.
_ADE20K_COLORS = """
787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07
e005ff ebff07 96053d 787846 08ff33 ff0652 8fff8c ccff04 ff3307 cc4603
0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0 0907e6 dcdcdc ff095c 7009ff
08ffd6 07ffe0 ffb806 0aff47 ff290a 07ffff e0ff08 6608ff ff3d06 ffc207
ff7a08 00ff14 ff0829 ff0599 0633ff eb0cff a09614 00a3ff 8c8c8c fa0a0f
14ff00 1fff00 ff1f00 ffe000 99ff00 0000ff ff4700 00ebff 00adff 1f00ff
0bc8c8 ff5200 00fff5 003dff 00ff70 00ff85 ff0000 ffa300 ff6600 c2ff00
008fff 33ff00 0052ff 00ff29 00ffad 0a00ff adff00 00ff99 ff5c00 ff00ff
ff00f5 ff0066 ffad00 ff0014 ffb8b8 001fff 00ff3d 0047ff ff00cc 00ffc2
00ff52 000aff 0070ff 3300ff 00c2ff 007aff 00ffa3 ff9900 00ff0a ff7000
8fff00 5200ff a3ff00 ffeb00 08b8aa 8500ff 00ff5c b800ff ff001f 00b8ff
00d6ff ff0070 5cff00 00e0ff 70e0ff 46b8a0 a300ff 9900ff 47ff00 ff00a3
ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff ff007a fff500 0abed4 d6ff00
00ccff 1400ff ffff00 0099ff 0029ff 00ffcc 2900ff 29ff00 ad00ff 00f5ff
4700ff 7a00ff 00ffb8 005cff b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff
"""

# The 50 classes without instances in the benchmark's instance annotations.
_ADE20K_STUFF = {
    *(0, 1, 2, 3, 4, 5, 6, 9, 11, 13, 16, 17, 21, 25, 26, 28, 29, 34, 40, 46, 48, 51, 52, 54, 59, 60, 61, 63, 68, 77),
    *(79, 84, 91, 94, 96, 99, 100, 101, 105, 106, 109, 113, 114, 117, 122, 128, 131, 140, 141, 145),
}


def _categories(table: str, is_thing: bool) -> list[dict]:
    rows = (row.split(maxsplit=1) for row in table.replace("\n", " ").split(","))
    return [{"id": int(number), "name": name.strip(), "isthing": is_thing} for number, name in rows]


COCO_INSTANCE = Classes.from_categories(_categories(_COCO_THINGS, True))
"""The 80 things in the order of their category ids."""

COCO_PANOPTIC = Classes.from_categories([*_categories(_COCO_THINGS, True), *_categories(_COCO_STUFF, False)])
"""80 things, then 53 kinds of stuff, each in the order of the category ids."""

ADE20K = Classes(
    tuple(
        SegmentClass(k + 1, name.strip(), (red, green, blue), k not in _ADE20K_STUFF)
        for k, (name, (red, green, blue)) in enumerate(
            zip(_ADE20K_NAMES.split(","), map(bytes.fromhex, _ADE20K_COLORS.split()), strict=True)
        )
    )
)
"""The 150 classes of the scene-parsing benchmark (Zhou et al., arXiv 1608.05442) in its order; `id` is the value in
its PNGs, 1..150."""

CITYSCAPES = Classes(
    (
        SegmentClass(7, "road", (128, 64, 128), False),
        SegmentClass(8, "sidewalk", (244, 35, 232), False),
        SegmentClass(11, "building", (70, 70, 70), False),
        SegmentClass(12, "wall", (102, 102, 156), False),
        SegmentClass(13, "fence", (190, 153, 153), False),
        SegmentClass(17, "pole", (153, 153, 153), False),
        SegmentClass(19, "traffic light", (250, 170, 30), False),
        SegmentClass(20, "traffic sign", (220, 220, 0), False),
        SegmentClass(21, "vegetation", (107, 142, 35), False),
        SegmentClass(22, "terrain", (152, 251, 152), False),
        SegmentClass(23, "sky", (70, 130, 180), False),
        SegmentClass(24, "person", (220, 20, 60), True),
        SegmentClass(25, "rider", (255, 0, 0), True),
        SegmentClass(26, "car", (0, 0, 142), True),
        SegmentClass(27, "truck", (0, 0, 70), True),
        SegmentClass(28, "bus", (0, 60, 100), True),
        SegmentClass(31, "train", (0, 80, 100), True),
        SegmentClass(32, "motorcycle", (0, 0, 230), True),
        SegmentClass(33, "bicycle", (119, 11, 32), True),
    )
)
"""The 19 evaluated classes of Cityscapes (Cordts et al., arXiv 1604.01685) by train id; the ids are those of
`*_labelIds.png`."""

# Names of the datasets, and the kinds of segmentation for which models of each are published, the most likely first.
_KINDS: tuple[tuple[Classes, str, tuple[str, ...]], ...] = (
    (COCO_PANOPTIC, "COCO panoptic", ("panoptic",)),
    (COCO_INSTANCE, "COCO instance", ("instance",)),
    (ADE20K, "ADE20K", ("semantic", "panoptic")),
    (CITYSCAPES, "Cityscapes", ("semantic",)),
)


def classes_by_count(count: int) -> Classes | None:
    """Classes of the published dataset that has `count` of them, or None."""
    return next((classes for classes, *_ in _KINDS if len(classes) == count), None)


def classes_by_names(names: Sequence[str]) -> Classes | None:
    """Classes of the published dataset with these names in this order, or None.

    Lists in circulation differ in details, such as "door" and "door-stuff" or a blank at the end, so that one
    name in ten may differ.
    """
    found = classes_by_count(len(names))
    if found is None:
        return None
    same = sum(_plain(one) == _plain(other) for one, other in zip(names, found.names, strict=True))
    return found if same >= 0.9 * len(names) else None


def dataset_of(classes: Classes) -> str | None:
    """Name of the published dataset with these classes, or None."""
    return next((name for known, name, _ in _KINDS if known == classes), None)


def kind_of(classes: Classes) -> str:
    """Kind of segmentation for which the classes of a published dataset are used.

    Raises:
        InputError: if there are several, or they are of none.
    """
    kinds = next((kinds for known, _, kinds in _KINDS if known == classes), ())
    if len(kinds) == 1:
        return kinds[0]
    what = "ADE20K's, of which there are semantic and panoptic models" if kinds else "of no published dataset"
    raise InputError(
        f"its {len(classes)} classes are {what}: choose its task, or say kind=semantic, instance or panoptic"
    )


def _plain(name: str) -> str:
    return name.split(",")[0].strip().lower().replace("_", " ")
