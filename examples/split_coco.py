"""Split one JSON in COCO's form, as annotation tools write it, into a training and a validation set.

python examples/split_coco.py ANNOTATIONS.json        every fifth image is for validation
python examples/split_coco.py ANNOTATIONS.json 10     every tenth

train.json and val.json are written beside it; images stay where they are.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(path: Path, every: int = 5) -> None:
    whole = json.loads(path.read_text(encoding="utf-8"))
    images = sorted(whole["images"], key=lambda image: image["file_name"])
    chosen = {"val": images[every - 1 :: every], "train": [row for k, row in enumerate(images, 1) if k % every]}
    for split, rows in chosen.items():
        target = path.with_name(f"{split}.json")
        if target.exists():
            sys.exit(f"error: {target} is there already: move it away first")
        ids = {row["id"] for row in rows}
        annotations = [row for row in whole["annotations"] if row["image_id"] in ids]
        target.write_text(json.dumps({**whole, "images": rows, "annotations": annotations}), encoding="utf-8")
        print(f"{target}: {len(rows)} images, {len(annotations)} annotations")


if __name__ == "__main__":
    match sys.argv[1:]:
        case [path]:
            main(Path(path))
        case [path, every] if every.isdecimal() and int(every) > 1:
            main(Path(path), int(every))
        case _:
            sys.exit("error: give a JSON, as in: python examples/split_coco.py annotations.json")
