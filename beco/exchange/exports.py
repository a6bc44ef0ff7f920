"""Label maps in the formats of other programs: pseudo-labels (`labels.h5`) or a folder of predictions.

* `palette-png`: a folder of <image_id>.png in VOC's colours, 255 where there is no opinion; what lies in folders of
  `beco predict` does so here.
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
from beco.artifacts.noted import noted as read_noted
from beco.artifacts.pseudolabels import UNCERTAIN, PseudoLabels
from beco.datasets.belonging import check_kind, check_label
from beco.datasets.manifest import Manifest
from beco.datasets.palette import read_index_png, voc_palette, write_index_png
from beco.datasets.paths import image_id as id_of
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
    """The picture's path by image id, as far as a manifest or the files themselves say."""

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
    """The label maps of `labels.h5`, or of a folder; `manifest` names classes and picture files.

    UserError if there is nothing there, if it is something else, or if the manifest names other classes or pictures.
    """
    if path.is_dir():
        return _in_folder(path, manifest)
    images = {} if manifest is None else _images(manifest)
    reader = PseudoLabels(path)
    check_kind(reader.store, "labels")
    own = reader.store.attributes.get("classes")
    if own is not None and not (isinstance(own, list) and all(isinstance(name, str) for name in own)):
        raise UserError(f"{path}: its attribute classes is no list of names; remove the file and run its stage again")
    classes = _agreed(path, own, manifest)
    return _known(Source(path, reader.ids(), reader.label, classes, images, manifest))


def _in_folder(path: Path, manifest: Manifest | None) -> Source:
    """The label maps <image_id>.png of a folder, at any depth: an id is the path without the suffix.

    Of a folder of `beco predict` its journal says which files are label maps, what the classes are and of which
    picture each map is. With a manifest a path is also known by the id that the manifest has for it, with `__` for `/`.
    """
    noted = read_noted(path)
    others = noted.others if noted else frozenset()
    found = sorted(file.relative_to(path).as_posix() for file in path.rglob("*.png") if file.is_file())
    names = [name for name in found if name not in others and not name.startswith(".") and "/." not in name]
    if not names:
        raise UserError(f"{path}: holds no PNG; give labels.h5 or the folder of predictions")
    listed = set() if manifest is None else set(manifest.ids)
    files, images = dict[str, str](), {} if manifest is None else _images(manifest)
    for name in names:
        own = name.removesuffix(".png")
        known = own if own in listed or id_of(name) not in listed else id_of(name)
        if other := files.get(known):
            raise UserError(f"{path}: {other} and {name} are both of picture {known}; remove one")
        files[known] = name
        if noted and known not in images and name in noted.pictures:
            images[known] = noted.pictures[name]
    classes = _agreed(path, noted.classes if noted else None, manifest)
    return _known(Source(path, sorted(files), lambda one: read_index_png(path / files[one]), classes, images, manifest))


def _images(manifest: Manifest) -> dict[str, str]:
    return {name: str(manifest.table.at[name, "image"]) for name in manifest.ids}


def _agreed(path: Path, own: list[str] | None, manifest: Manifest | None) -> list[str] | None:
    """The class names that label maps say themselves, or else a manifest's; UserError if the two differ."""
    if own and manifest is not None and own != manifest.classes:
        raise UserError(f"{path}: made for other classes than the manifest's; give the manifest it was made with")
    return own or (None if manifest is None else manifest.classes)


def _known(source: Source) -> Source:
    """`source`, or a UserError if the manifest does not list its pictures or there are none."""
    if not source.ids:
        raise UserError(f"{source.path}: holds no picture; run the stage that makes it again")
    strangers = [] if source.manifest is None else sorted(set(source.ids) - set(source.manifest.ids))
    if strangers:
        raise UserError(
            f"{source.path}: holds {len(strangers)} pictures that the manifest does not list, such as {strangers[0]}; "
            f"give the manifest that it was made with{', or none' if source.path.is_dir() else ''}"
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
            stems = [
                PurePosixPath(source.images[one]).with_suffix("").as_posix() if one in source.images else one
                for one in source.ids
            ]
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
