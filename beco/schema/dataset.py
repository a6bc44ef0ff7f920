"""Where the pictures come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from beco.schema.base import Count, Name, Section


class Shapes(Section):
    """The embedded dataset, drawn by `beco draw-shapes`."""

    seed: int = Field(0, ge=0, description="seed of every draw; the same seed gives the same files")
    train: Count = Field(800, description="training pictures")
    val: Count = Field(200, description="validation pictures")
    size: int = Field(64, ge=48, le=512, description="width and height in pixels")


class Dataset(Section):
    """Where the pictures and their image-level labels come from."""

    name: Name = Field("shapes", description="names the folder under `results`")
    format: Literal["shapes", "voc"] = Field("shapes", description="shapes: drawn here; voc: a VOC devkit on disk")
    root: str | None = Field(None, description="the folder that holds JPEGImages (voc); not used by shapes")
    train: str = Field("train", description="split list for training: ImageSets/Segmentation/<train>.txt")
    val: str = Field("val", description="split list for evaluation")
    classes: list[str] | None = Field(
        None, min_length=1, description="class names in label order 1…; null: the 20 of VOC"
    )
    shapes: Shapes = Field(default_factory=Shapes, description="how the embedded set is drawn")

    def identity(self) -> dict[str, Any]:
        """What makes it this dataset and no other; results of two datasets must not share a folder."""
        if self.format == "shapes":
            return {"format": "shapes"}
        root = str(Path(str(self.root)).resolve())
        return {"format": self.format, "root": root, "train": self.train, "val": self.val, "classes": self.classes}
