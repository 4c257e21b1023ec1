"""Recognition of a folder of data by the names of its files: the task and the keys that read it.

A function of `LAYOUTS` knows one layout. None walks through a folder: they ask for names, and list the first
thousands of those of single folders. It imports nothing heavy, for the command line asks before all else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from eomt.errors import InputError

_MOST_NAMES = 10_000  # of one folder
_MOST_JSONS = 24  # of one folder that are looked into
_MOST_YAMLS = 4
_LOOKED_AT = 64  # MiB at a JSON's start, in which its first image is looked for
_NESTED = 3  # folders in one another with nothing else in them, as archives are unpacked
_SPLITS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
# Words in the names of folders.
_PHOTOS = {"images", "image", "imgs", "img", "photos", "photo", "jpegimages", "rgb", "inputs"}
_MASKS = {"masks", "mask", "labels", "label", "annotations", "annotation", "annot", "annots", "ann", "anns", "gt"}
_MASKS |= {"segmentation", "segmentations", "seg", "segs", "targets", "target", "segmentationclass"}
_NO_MASKS = {"panoptic", "instance", "instances"}  # PNGs of ids
_MOST_FOLDERS, _MOST_INSIDE = 200, 50
_CLASS_FILES = (
    "classes.txt",
    "classes.json",
    "labelmap.txt",
    "class_names.txt",
    "labels.txt",
    "codes.txt",
    "names.txt",
)
OWN_DATA = ("coco_instance", "coco_panoptic", "folder_semantic")
"""The tasks that are for any data set of their form."""

_WAY_OUT = "see docs/own_data.md, or name the files by keys of data.train and data.val"
_COCO_WORDS = {"instances", "panoptic", "coco", "annotations", "result"}
_OTHER_JSONS = ("captions", "person_keypoints", "image_info", "stuff")  # of COCO
SHARE = 0.9
"""The part of the images that is trained on where nothing is set aside for validation."""


class Layout(NamedTuple):
    """A form of data that a folder has.

    Attributes:
        what: in words.
        readings: for each task that can be trained the values of keys of `data`, such as `train.images`, paths below
            the folder. The first is chosen unless `task=` is typed.
    """

    what: str
    readings: Mapping[str, Mapping[str, Any]]


def find_layout(root: Path, task: str | None) -> tuple[str, dict[str, Any]]:
    """Find out what a folder is and how it is read.

    Args:
        root: the folder.
        task: the task that is typed, or None.

    Returns:
        What it is, in words with the tasks that could be chosen instead; and the keys as they would be typed, `task`
        and keys of `data`, with their values. A typed task that the folder is not for gives no keys.

    Raises:
        InputError: if no layout fits and no task is typed, or if the file that describes the folder is damaged.
    """
    folder: Path = root
    for _ in range(_NESTED):
        inner = [name for name in names(folder) if not name.startswith((".", "__MACOSX"))]
        folder = folder / inner[0] if len(inner) == 1 and (folder / inner[0]).is_dir() else folder
    found: dict[str, Layout] = {}
    faults: list[InputError] = []
    for function in LAYOUTS:
        try:
            layout = function(folder)
        except InputError as error:
            faults.append(error)
            continue
        if layout is not None:
            found |= {name: layout for name in layout.readings if name not in found}
    if faults and task not in found:
        raise faults[0]
    tasks = list(found)
    if task not in (None, *tasks):
        if found and task in OWN_DATA:
            what = f"{found[tasks[0]].what}, for task={' or '.join(tasks)}"
            raise InputError(f"data.root={root} is {what}, not for task={task}; {_WAY_OUT}")
        return "", {}
    if not found and (unread := _masks_of_other_kinds(folder)):
        raise InputError(f"data.root={root}: the masks in {unread} must be PNGs: JPEG alters values; export them anew")
    if not found:
        looked_for = ", ".join((function.__doc__ or "").splitlines()[0].rstrip(".") for function in LAYOUTS)
        raise InputError(f"data.root={root} is nothing that is known here; looked for {looked_for}; {_WAY_OUT}")
    chosen = task or tasks[0]
    others = [f"task={name}" for name in tasks if name != chosen]
    below = folder.relative_to(root).as_posix()
    keys = {f"data.{key}": _moved(key, value, below) for key, value in found[chosen].readings[chosen].items()}
    also = f" (also for {' or '.join(others)})" if others else ""
    return found[chosen].what + also, {"task": chosen, **keys}


def names(folder: Path) -> list[str]:
    """The first names in a folder, sorted; none if it is no folder that can be read."""
    with suppress(OSError), os.scandir(folder) as entries:
        found = sorted(entry.name for entry in islice(entries, _MOST_NAMES))
        return [name for name in found if name.isprintable()]
    return []


def split_of(name: str) -> str | None:
    """The set for which a file or folder is, "train", "val" or "test", by the words in its name."""
    found = _words(name)
    return next((split for split, words in _SPLITS.items() if found & {*words}), None)


def _words(name: str) -> set[str]:
    """The words of a name; CamVid's trainannot are two."""
    return set(re.findall("[a-z]+", re.sub("annots?(?=$|[^a-z])", " annot", name.lower())))


def both(splits: Mapping[Any, Mapping[str, Any]]) -> dict[str, Any]:
    """The keys of both sets from those of one set each, as `{"train": {"images": ...}}`.

    Where there is nothing to validate on but a test set, that is taken; where there is one set alone, it is divided.
    """
    train = splits.get("train") or splits.get(None) or splits.get("val") or splits["test"]
    val = splits.get("val") or splits.get("test") or train
    keys = {f"{split}.{key}": value for split, of in (("train", train), ("val", val)) for key, value in of.items()}
    return keys | ({"split": SHARE} if val is train else {})


def _moved(key: str, value: Any, below: str) -> Any:
    """The value of a key of `data` where the layout was found below the root."""
    paths = ("images", "annotations", "labels", "names")
    is_path = key.rpartition(".")[2] in paths or (key == "classes" and isinstance(value, str))
    return os.path.normpath(os.path.join(below, value)) if is_path and value is not None else value


def _builtin(folder: Path) -> Layout | None:
    """the built-in shapes."""
    if (folder / "semantic_trainval2017.zip").is_file():
        return Layout("the built-in shapes", {f"shapes_{kind}": {} for kind in ("panoptic", "instance", "semantic")})
    return None


def _ade20k(folder: Path) -> Layout | None:
    """ADE20K (ADEChallengeData2016)."""
    if not _is_there(folder / "ADEChallengeData2016"):
        return None
    return Layout("ADE20K as downloaded", {"ade20k_semantic": {}, "ade20k_panoptic": {}})


def _cityscapes(folder: Path) -> Layout | None:
    """Cityscapes (leftImg8bit, gtFine)."""
    if not all(
        _is_there(folder / name) or _is_there(folder / f"{name}_trainvaltest") for name in ("leftImg8bit", "gtFine")
    ):
        return None
    readings: dict[str, dict[str, Any]] = {f"cityscapes_{kind}": {} for kind in ("semantic", "panoptic", "instance")}
    # As the official scripts write them.
    for end in ("", "_trainId"):
        jsons = {split: f"gtFine/cityscapes_panoptic_{split}{end}.json" for split in ("train", "val")}
        if all((folder / name).is_file() for name in jsons.values()):
            sets = {split: {"images": f"leftImg8bit/{split}", "annotations": name} for split, name in jsons.items()}
            readings["coco_panoptic"] = both(sets)
    return Layout("Cityscapes as downloaded", readings)


def _coco(folder: Path) -> Layout | None:
    """COCO's JSONs (annotations/*.json, train/_annotations.coco.json, one JSON)."""
    if all(_is_there(folder / f"{split}2017") for split in ("train", "val")):
        truths = {"panoptic": "panoptic_annotations", "instance": "annotations"}
        names_of = {"panoptic": "panoptic", "instance": "instances"}
        own = {
            f"coco_{kind}": {}
            for kind, archive in truths.items()
            if _is_there(folder / f"{archive}_trainval2017")
            or (folder / "annotations" / f"{names_of[kind]}_train2017.json").is_file()
        }
        if own:
            return Layout("COCO 2017 as downloaded", own)
    found: dict[str, dict[str | None, dict[str, str]]] = {}
    several: set[str] = set()
    strays: list[tuple[str | None, Path, InputError]] = []
    for path in _jsons(folder):
        split = split_of(path.stem) or split_of(path.parent.relative_to(folder).as_posix())
        try:
            seen = _peek(path)
        except InputError as error:
            strays.append((split, path, error))
            continue
        if seen is None:
            continue
        first, panoptic = seen
        task, name = f"coco_{'panoptic' if panoptic else 'instance'}", path.relative_to(folder).as_posix()
        sets = found.setdefault(task, {})
        if split is None and split in sets:
            several.add(task)
        images = _photos_of(path, first, folder, split).relative_to(folder).as_posix()
        sets.setdefault(split, {"images": images, "annotations": name})
    has = {split for sets in found.values() for split in sets}
    if "val" in has:
        has.add("test")  # not used then
    for split, path, error in strays:
        if _is_expected(path, split, has):
            raise InputError(f"{error}; repair it, move it away, or name the files by keys") from error
    readings = {
        task: both(sets)
        for task, sets in sorted(found.items(), reverse=True)
        if {*sets} - {None} or task not in several
    }
    return Layout(f"a data set with JSONs of COCO's form{_unused_photos(folder, has)}", readings) if readings else None


def _is_expected(path: Path, split: str | None, has: Collection[str | None]) -> bool:
    """True for a JSON that is not of COCO's form, but stands where that of a set is expected which has no other."""
    from datasets.readers.labelme import is_labelme

    is_named = bool(_words(path.stem) & {"coco", "instances", "panoptic"})
    is_named |= split is not None and path.parent.name == "annotations"
    # Lists and statistics lie beside JSONs of COCO's form, too.
    needed = split not in has and None not in has and (split is not None or not has)
    return needed and (is_named or bool(has)) and not is_labelme(path)


def _unused_photos(folder: Path, has: Collection[str | None]) -> str:
    """The folders of photos that seem to be of a set without ground truth, in words with a comma before them."""
    if None in has:
        return ""
    from eomt.photo import IMAGE_SUFFIXES

    said = []
    for place in _below(folder):
        if split_of(place) not in (None, *has) and not _words(place) & (_MASKS | _NO_MASKS):
            photos = [name for name in names(folder / place) if name.lower().endswith(IMAGE_SUFFIXES)]
            said += [f"{place} ({len(photos)} photos)"] * bool(photos)
    return f", but none for the photos in {' and '.join(said)}, which are not used" if said else ""


def _jsons(folder: Path) -> Iterator[Path]:
    """JSONs that may be of COCO's form, in the folders where tools put them."""
    splits = [name for name in _below(folder) if split_of(name) and "/" not in name]
    for place in (folder / "annotations", folder, *(folder / name for name in splits)):
        files = [name for name in names(place) if name.endswith(".json") and not name.startswith((".", *_OTHER_JSONS))]
        # Beyond the first names of a large folder, too.
        files += ["_annotations.coco.json"] * (place / "_annotations.coco.json").is_file()
        yield from (
            place / name for name in sorted({*files}, key=lambda name: ("coco" not in name, name))[:_MOST_JSONS]
        )


def _peek(path: Path) -> tuple[str, bool] | None:
    """The name of the first image of a JSON of COCO's form, and whether it is panoptic; None if it is none.

    The name is empty if it lies far back, or the JSON is damaged: the reader says so.

    Raises:
        InputError: if it is JSON, but names no images.
    """
    from datasets.files.source import Folder
    from datasets.readers.coco_json import ROW_ERRORS, file_name, stream_arrays

    has_pngs, words = _is_there(path.with_suffix("")), _words(path.stem)
    image, panoptic = None, has_pngs and "panoptic" in words
    try:
        chunks = islice(Folder(path.parent).chunks(path.name), _LOOKED_AT)
        keys = ("images", "annotations") if has_pngs else ("images",)
        for key, row in stream_arrays(chunks, keys, str(path)):
            if not isinstance(row, Mapping):
                raise TypeError
            if key == "images" and image is None:
                image = file_name(row)
            elif key == "annotations":
                panoptic = "segments_info" in row
            if image is not None and (key == "annotations" or not has_pngs):
                break
    except InputError as error:
        is_cut = error.__cause__ is not None  # not for a JSON without images
        if image is None and not is_cut:
            raise
        if image is None and (split_of(path.stem) or words & _COCO_WORDS):
            image = ""
    except ROW_ERRORS:
        image = image or ""
    else:
        if image is None:
            raise InputError(f"{path} names no images")
    return None if image is None else (image, panoptic)


def _photos_of(path: Path, name: str, folder: Path, split: str | None) -> Path:
    """The folder, or the archive without its `.zip`, with the images of a JSON."""
    below = [place for place in _below(folder) if not _words(place) & (_MASKS | _NO_MASKS)]
    below.sort(key=lambda place: (split_of(place) != split, not _words(place) & _PHOTOS, place.count("/")))
    places = [path.parent, *(folder / place for place in below)]
    slashed = name.strip().replace("\\", "/")
    for part in (slashed, slashed.rpartition("/")[2]) if name else ():
        for place in (*places, folder):  # a name such as images/train/1.jpg counts from above
            if (place / part).is_file():
                return place
    return next((place for place in places[1:] if not place.is_dir() or _holds_photos(place)), path.parent)


def _below(folder: Path) -> list[str]:
    """Folders in a folder and in these, some hundred at most, and archives without their `.zip`."""
    found: list[str] = []
    for parent in ("", *_folders_in(folder)):
        found += (f"{parent}{name}" for name in _folders_in(folder / parent))
    return [name.rstrip("/") for name in found[:_MOST_FOLDERS]]


def _folders_in(folder: Path) -> list[str]:
    with suppress(OSError), os.scandir(folder) as entries:
        first = islice((e for e in entries if e.name.isprintable() and e.name[0] != "."), _MOST_NAMES)
        found = [f"{e.name.removesuffix('.zip')}/" for e in first if e.name.endswith(".zip") or e.is_dir()]
        return sorted(found)[:_MOST_INSIDE]
    return []


def _is_there(path: Path) -> bool:
    """True for a folder, or an archive of that name."""
    return path.is_dir() or path.with_name(f"{path.name}.zip").is_file()


def _holds_photos(folder: Path, deeper: bool = True) -> bool:
    from eomt.photo import IMAGE_SUFFIXES

    return _holds(folder, IMAGE_SUFFIXES, deeper)


def _holds(folder: Path, endings: tuple[str, ...], deeper: bool = True) -> bool:
    """True if files of these endings are in a folder or, if `deeper`, in the first one in it."""
    inside = names(folder)
    few = deeper and len(inside) < 1000
    inner = next((folder / name for name in inside if (folder / name).is_dir()), None) if few else None
    return any(name.lower().endswith(endings) for name in [*inside, *(names(inner) if inner else ())])


def _yolo(folder: Path) -> Layout | None:
    """YOLO segmentation (data.yaml)."""
    here = [name for name in names(folder) if name.endswith((".yaml", ".yml")) or name == "classes.txt"]
    for name in sorted(here, key=lambda name: (name != "data.yaml", name))[:_MOST_YAMLS]:
        has_no_yaml = name == "classes.txt"
        if has_no_yaml and not _holds(folder / "labels", (".txt",)):  # Label Studio's
            continue
        from datasets.readers.yolo import description, folders

        try:
            entries, _ = description(folder / name)
        except InputError:
            if name == "data.yaml":
                raise
            continue
        sets: Mapping[str | None, str | None] = {split: folders(folder / name, entries, split) for split in _SPLITS}
        if has_no_yaml:
            inner = {split_of(place): f"images/{place}" for place in names(folder / "images") if split_of(place)}
            sets = inner or {None: "images"}
        found = {split: {"images": images, "annotations": name} for split, images in sets.items() if images is not None}
        if found:
            return Layout(f"a YOLO data set ({name})", {"coco_instance": {"format": "yolo", **both(found)}})
    return None


def _voc(folder: Path) -> Layout | None:
    """Pascal VOC (SegmentationClass)."""
    places = [name for name in names(folder) if name in ("SegmentationClass", "SegmentationClassPNG")]
    if not places:
        return None
    from datasets.readers.voc import CLASSES, VOID_COLORS, class_file, folders

    shown, objects = folders(folder)
    lists = "ImageSets/Segmentation"
    named = {split_of(name): f"{lists}/{name}" for name in names(folder / lists) if name.endswith(".txt")}
    labels, images = shown.name, "JPEGImages" if (folder / "JPEGImages").is_dir() else "images"
    sets = {split: {"images": images, "labels": labels, "names": name} for split, name in named.items()}
    file = class_file(folder)
    void = {"color_labels": True, "ignore": VOID_COLORS} if file is not None and file.name == "labelmap.txt" else {}
    classes = {"classes": file.name if file else [*CLASSES]}
    readings = {"folder_semantic": {**both(sets or {None: {"images": images, "labels": labels}}), **classes, **void}}
    if objects.is_dir():
        truths = {split: {"images": images, "annotations": name} for split, name in named.items()}
        keys = {"format": "voc", **both(truths or {None: {"images": images, "annotations": labels}})}
        readings |= {"coco_instance": keys, "coco_panoptic": keys}
    return Layout("a data set in Pascal VOC's layout", readings)


def _labelme(folder: Path) -> Layout | None:
    """LabelMe's JSONs."""
    below = [".", *_below(folder)]
    jsons = (folder / name / file for name in below for file in names(folder / name) if file.endswith(".json"))
    first = list(islice(jsons, _MOST_JSONS))
    if not first:
        return None
    from datasets.readers.labelme import is_labelme

    if not any(map(is_labelme, first)):
        return None
    sets: dict[str | None, dict[str, str]] = {}
    for name in below:
        if _holds_photos(folder / name, False):
            split = split_of(name)
            sets.setdefault(split, {"images": name if split else ".", "annotations": "."})
    readings = {"coco_instance": {"format": "labelme", **both(sets)}}
    return Layout("a folder of LabelMe's JSONs", readings) if sets else None


def _masks(folder: Path) -> Layout | None:
    """images and label PNGs in folders (images and masks, also in train and val)."""
    words = {name: _words(name) for name in _below(folder)}
    masks = [name for name in words if words[name] & _MASKS and not words[name] & _NO_MASKS]
    masks = [name for name in masks if _holds(folder / name, (".png",))]
    sets: dict[str | None, dict[str, str]] = {}
    for name in sorted(words, key=lambda name: not words[name] & _PHOTOS) if masks else ():
        split = split_of(name)
        is_named = split is not None or words[name] & _PHOTOS
        of_set = [mask for mask in masks if split_of(mask) == split]
        if is_named and not words[name] & _MASKS and of_set and _holds_photos(folder / name):
            sets.setdefault(split, {"images": name, "labels": of_set[0]})
    if not sets:
        return None
    unused = _unused_photos(folder, {*sets, *["test"] * ("val" in sets)})
    file = next((name for name in _CLASS_FILES if (folder / name).is_file()), None)
    classes = {} if file is None else {"classes": file}
    colors = {"color_labels": True} if file == "labelmap.txt" else {}
    return Layout(
        f"a data set of images and label PNGs{unused}", {"folder_semantic": {**both(sets), **classes, **colors}}
    )


def _masks_of_other_kinds(folder: Path) -> str | None:
    """The folder of masks beside a folder of photos, if they are photos' files, such as JPEGs."""
    from eomt.photo import IMAGE_SUFFIXES

    words = {name: _words(name) for name in _below(folder)}
    masks = (name for name in words if words[name] & _MASKS and not words[name] & _NO_MASKS)
    has_photos = any(words[name] & _PHOTOS and not words[name] & _MASKS for name in words)
    kinds = tuple(kind for kind in IMAGE_SUFFIXES if kind != ".png")
    return next((name for name in masks if has_photos and _holds(folder / name, kinds)), None)


def _tables(folder: Path) -> Layout | None:
    """Hugging Face's Parquet or Arrow files (columns of images and masks)."""
    sets: dict[str | None, str] = {}
    first = None
    for place in [".", *_below(folder)]:
        for name in names(folder / place):
            if name.endswith((".parquet", ".arrow")) and not name.startswith("cache-"):
                first = first or folder / place / name
                split, word = split_of(name) or split_of(place), re.match("[A-Za-z]*", name)
                sets.setdefault(split, f"{place}/{word[0] if word else ''}*{Path(name).suffix}".removeprefix("./"))
    if first is None:
        return None
    from datasets.files.table import Columns, columns

    try:
        found = columns(first)
    except InputError:  # said when it is opened, unless the folder is something else
        found = Columns(["image", "label"], None)
    masks = [name for name in found.images if _words(name) & _MASKS]
    photos = [name for name in found.images if name not in masks[:1]]
    photos.sort(key=lambda name: not _words(name) & _PHOTOS)
    masks = masks or photos[1:]
    if not photos or not masks:
        return None
    keys = {split: {"images": f"{name}:{photos[0]}", "labels": f"{name}:{masks[0]}"} for split, name in sets.items()}
    file = next((name for name in ("id2label.json", *_CLASS_FILES) if (folder / name).is_file()), None)
    classes = {"classes": file or found.classes} if file or found.classes else {}
    return Layout("a Hugging Face data set", {"folder_semantic": {**both(keys), **classes}})


LAYOUTS: list[Callable[[Path], Layout | None]] = [
    _builtin,
    _ade20k,
    _cityscapes,
    _yolo,
    _coco,
    _labelme,
    _voc,
    _masks,
    _tables,
]
"""The layouts, the first that fits counts; the first line of each one's docstring says what is looked for."""
