"""Label maps in the formats of other programs: pseudo-labels (`labels.h5`) or a folder of predictions.

* `palette-png`: a folder of <image_id>.png in VOC's colours, 255 where there is no opinion.
* `coco-json`: one file in COCO's format for objects. A class of a picture is one annotation, its mask an uncompressed
  run-length encoding in column-major order, as the COCO API reads it. Pixels without an opinion belong to none.
* `cvat`: what CVAT imports as "Segmentation mask 1.1": `labelmap.txt`, `ImageSets/Segmentation/default.txt` and RGB
  masks in `SegmentationClass`; zipped if the output is called .zip. There, no opinion is background: not annotated.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
from PIL import Image

from beco.artifacts.files import whole
from beco.artifacts.folders import whole_folder
from beco.artifacts.pseudolabels import UNCERTAIN, PseudoLabels
from beco.datasets.belonging import check_kind, check_label
from beco.datasets.manifest import Manifest
from beco.datasets.palette import read_index_png, voc_palette, write_index_png
from beco.errors import UserError

NOWHERE = "the class names are not in these files"


@dataclass(frozen=True)
class Source:
    """Label maps by image id."""

    path: Path
    ids: list[str]
    label: Callable[[str], np.ndarray]
    """(H, W) uint8 of a picture: 0 = background, 1…K, 255 = no opinion."""
    classes: list[str] | None
    """Names of the foreground classes; None if neither the files nor a manifest say."""
    images: dict[str, str]
    """The picture's path by image id; empty without a manifest."""

    manifest: Manifest | None

    def maps(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every image id with its label map. UserError for a value that no class has, or another size."""
        for image_id in self.ids:
            label = self.label(image_id)
            if self.manifest is not None:
                check_label(self.path, image_id, label, self.manifest)
            top = int(label[label != UNCERTAIN].max(initial=0))
            if self.classes is not None and top > len(self.classes):
                raise UserError(
                    f"{self.path}: {image_id}: holds the value {top}, but there are {len(self.classes)} classes; "
                    "give the manifest that it was made with"
                )
            yield image_id, label

    def image(self, image_id: str) -> str:
        """Path of the picture, as far as it is known."""
        return self.images.get(image_id, image_id)

    def names(self) -> list[str]:
        """The class names, or a UserError that says how to give them."""
        if self.classes is None:
            raise UserError(f"{self.path}: {NOWHERE}; give --manifest manifest.csv")
        return self.classes


def open_source(path: Path, manifest: Manifest | None = None) -> Source:
    """The label maps of `labels.h5`, or of a folder of <image_id>.png; `manifest` names classes and picture files.

    UserError if there is nothing there, if it is something else, or if the manifest names other classes or pictures.
    """
    images = {} if manifest is None else {name: str(manifest.table.at[name, "image"]) for name in manifest.ids}
    classes = None if manifest is None else manifest.classes
    if path.is_dir():
        ids = sorted(file.stem for file in path.glob("*.png"))
        if not ids:
            raise UserError(f"{path}: holds no PNG; give labels.h5 or the folder of predictions")
        return _known(Source(path, ids, lambda name: read_index_png(path / f"{name}.png"), classes, images, manifest))
    reader = PseudoLabels(path)
    check_kind(reader.store, "labels")
    own = reader.store.attributes.get("classes")
    if own is not None and not (isinstance(own, list) and all(isinstance(name, str) for name in own)):
        raise UserError(f"{path}: its attribute classes is no list of names; remove the file and run its stage again")
    if own and classes and own != classes:
        raise UserError(f"{path}: made for other classes than the manifest's; give the manifest it was made with")
    return _known(Source(path, reader.ids(), reader.label, own or classes, images, manifest))


def _known(source: Source) -> Source:
    """`source`, or a UserError if the manifest does not list its pictures or there are none."""
    if not source.ids:
        raise UserError(f"{source.path}: holds no picture; run the stage that makes it again")
    strangers = [] if source.manifest is None else sorted(set(source.ids) - set(source.manifest.ids))
    if strangers:
        raise UserError(
            f"{source.path}: holds {len(strangers)} pictures that the manifest does not list, such as {strangers[0]}; "
            "give the manifest that it was made with"
        )
    return source


def write_palette_pngs(source: Source, output: Path) -> None:
    """Write a folder of palette PNGs."""
    with whole_folder(output) as folder:
        for image_id, label in source.maps():
            write_index_png(folder / f"{image_id}.png", label)


# --- COCO ---------------------------------------------------------------------------------------------------


def write_coco_json(source: Source, output: Path) -> None:
    """Write one JSON file; images are numbered from 1 in the order of their ids, categories are the label values."""
    categories = [{"id": value, "name": name} for value, name in enumerate(source.names(), 1)]
    images: list[dict[str, object]] = []
    with whole(output) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.write('{"annotations": [')  # one at a time: as Python objects all runs would take gigabytes
        count = 0
        for number, (image_id, label) in enumerate(source.maps(), 1):
            height, width = label.shape
            images.append({"id": number, "file_name": source.image(image_id), "width": width, "height": height})
            count = _write_annotations(stream, label, number, count)
        rest = {
            "images": images,
            "categories": categories,
            "info": {"description": f"beco export of {source.path.name}"},
        }
        stream.write("\n], " + json.dumps(rest, ensure_ascii=False)[1:] + "\n")


def _write_annotations(stream: IO[str], label: np.ndarray, number: int, count: int) -> int:
    for value in np.unique(label[(label != 0) & (label != UNCERTAIN)]):
        mask = label == value
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        left, top = int(columns[0]), int(rows[0])
        annotation = {
            "id": count + 1,
            "image_id": number,
            "category_id": int(value),
            "segmentation": {"size": list(mask.shape), "counts": run_lengths(mask)},
            "area": int(mask.sum()),
            "bbox": [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1],
            "iscrowd": 0,
        }
        stream.write(",\n" if count else "\n")
        stream.write(json.dumps(annotation))
        count += 1
    return count


def run_lengths(mask: np.ndarray) -> list[int]:
    """Lengths of the runs of an (H, W) bool mask read column by column, zeros and ones in turn, zeros first.

    COCO's uncompressed encoding: a mask that begins with a one has a first run of 0.
    """
    flat = np.concatenate([[False], mask.ravel(order="F")])
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff([0, *ends, mask.size]).tolist()


# --- CVAT ---------------------------------------------------------------------------------------------------


def write_cvat(source: Source, output: Path) -> None:
    """Write the layout of CVAT's "Segmentation mask 1.1", as a folder or (called .zip) as the archive to upload.

    Masks are named as the pictures are in the task: by their paths without suffix, for which the manifest is needed
    where the pictures lie in folders of their own.
    """
    palette = voc_palette()
    names = ["background", *source.names()]
    if wrong := [name for name in names if ":" in name or "\n" in name]:
        raise UserError(f"class `{wrong[0]}`: CVAT's labelmap.txt has no way to write it; rename the class")
    lines = [f"{name}:{','.join(str(part) for part in palette[k])}::" for k, name in enumerate(names)]
    with (whole if output.suffix == ".zip" else whole_folder)(output) as temporary:
        folder = temporary.with_suffix("") if output.suffix == ".zip" else temporary
        try:
            (folder / "ImageSets" / "Segmentation").mkdir(parents=True)
            stems = [PurePosixPath(source.image(image_id)).with_suffix("").as_posix() for image_id in source.ids]
            if not source.images:
                stems = source.ids
            for stem, (_, label) in zip(stems, source.maps(), strict=True):
                path = folder / "SegmentationClass" / f"{stem}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(palette[np.where(label == UNCERTAIN, 0, label)]).save(path)
            (folder / "labelmap.txt").write_text(
                "\n".join(["# label:color_rgb:parts:actions", *lines, ""]), encoding="utf-8"
            )
            listed = "".join(f"{stem}\n" for stem in stems)
            (folder / "ImageSets" / "Segmentation" / "default.txt").write_text(listed, encoding="utf-8")
            if folder != temporary:
                shutil.make_archive(str(folder), "zip", folder)
        finally:
            if folder != temporary:
                shutil.rmtree(folder, ignore_errors=True)


FORMATS: dict[str, Callable[[Source, Path], None]] = {
    "palette-png": write_palette_pngs,
    "coco-json": write_coco_json,
    "cvat": write_cvat,
}


def export(source: Source, form: str, output: Path) -> None:
    """Write `source` as one of `FORMATS` to `output`: a folder, a JSON file, or a folder or archive."""
    if form not in FORMATS:
        raise UserError(f"--format: no format `{form}`; known: {', '.join(FORMATS)}")
    FORMATS[form](source, output)
