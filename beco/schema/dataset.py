"""Where the pictures come from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from beco.schema.base import Count, Name, Place, Section

Share = Annotated[float, Field(gt=0, lt=1)]


class Shapes(Section):
    """The embedded dataset, drawn by `beco draw-shapes`."""

    seed: int = Field(0, ge=0, description="seed of every draw; the same seed gives the same files")
    train: Count = Field(800, description="training pictures")
    val: Count = Field(200, description="validation pictures")
    size: int = Field(64, ge=48, le=512, description="width and height in pixels")


class Coco(Section):
    """How COCO's instances become image-level labels and label maps; published numbers differ in this."""

    overlap: Literal["file", "area"] = Field(
        "file", description="file: a later instance of the file lies on top (official code); area: a smaller one"
    )
    crowd: Literal["ignore", "background"] = Field(
        "background", description="crowd regions in the masks: 255, below all instances, or 0 (official code)"
    )
    crowd_labels: bool = Field(False, description="a crowd alone is enough for the image-level label of its class")

    @staticmethod
    def mask_keys() -> set[str]:
        """The settings of the masks alone: a change of them leaves the manifest as it is."""
        return {"overlap", "crowd"}


class Dataset(Section):
    """Where the pictures and their image-level labels come from."""

    name: Name = Field("shapes", description="names the folder under `results`")
    format: Literal["shapes", "voc", "coco", "folder"] = Field(
        "shapes",
        description="shapes: drawn here; voc: a VOC devkit on disk; coco: instances_*.json on disk; folder: your own "
        "pictures and a CSV",
    )
    root: Place | None = Field(
        None,
        description="the folder that holds JPEGImages (voc), annotations (coco) or the pictures (folder); not used by "
        "shapes",
    )
    train: str = Field(
        "train",
        description="training list: ImageSets/Segmentation/<train>.txt (voc), "
        "annotations/instances_<train>.json (coco)",
    )
    val: str = Field("val", description="list for evaluation, likewise")
    classes: list[str] | None = Field(
        None,
        min_length=1,
        description="class names in label order 1…, without background; null: the 20 of VOC, COCO's categories by "
        "their id (what has no annotation may be left out here), or those of the CSV (folder)",
    )
    labels: Place | None = Field(
        None, description="the CSV of image-level labels (folder), see beco/datasets/folder.py"
    )
    masks: Place | None = Field(
        None, description="folder with <picture's path without suffix>.png for some or all pictures (folder)"
    )
    saliency: Place | None = Field(
        None,
        description="folder of saliency maps, grey pictures named as the training pictures, for the methods that want "
        "them; null with shapes: the union of the true objects",
    )
    val_share: Share = Field(0.2, description="share of the pictures for validation, if the CSV has no split (folder)")
    shapes: Shapes = Field(default_factory=Shapes, description="how the embedded set is drawn")
    coco: Coco = Field(default_factory=Coco, description="what is made of COCO's instances")

    def identity(self) -> dict[str, Any]:
        """What makes it this dataset and no other; results of two datasets must not share a folder."""
        if self.format == "shapes":
            return {"format": "shapes"}
        root = str(Path(str(self.root)).resolve())
        if self.format == "folder":
            return {"format": self.format, "root": root, "labels": str(Path(str(self.labels)).resolve())}
        return {"format": self.format, "root": root, "train": self.train, "val": self.val, "classes": self.classes}
