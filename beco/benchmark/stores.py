"""How fast stores open and give single pictures, and what they take on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.benchmark import timer

from beco.artifacts import pseudolabels, store
from beco.artifacts.store import Store
from beco.benchmark import pictures

SIZE = (375, 500)  # of VOC's pictures: height and width
READS = 300


def measure(folder: Path, entries: int, pictures_of_size: int) -> dict[str, Any]:
    """Opening and random reads of a store of `entries` tiny pictures, and bytes of pictures of VOC's size.

    The operating system has the files in memory, so that it is the format that is measured and not the disk.
    """
    return _many(folder / "many.h5", entries) | _sized(folder, pictures_of_size)


def _many(path: Path, entries: int) -> dict[str, Any]:
    ids = [f"picture_{number:07d}" for number in range(entries)]
    tiny = np.zeros((2, 2), np.uint8)
    started = timer()
    with store.create(path, classes=["a"]) as writer:
        for image_id in ids:
            writer.put("label", image_id, tiny)
    written = timer() - started
    started = timer()
    with Store(path) as opened:
        _ = opened.layers, opened.attributes, opened.get("label", ids[0])
        ready = timer() - started
        started = timer()
        listed = opened.ids("label")
        listing = timer() - started
        assert listed == ids
        return {
            "entries": entries,
            "written_per_s": entries / written,
            "opening_s": ready,
            "listing_s": listing,
            "random_read_ms": 1e3 * _random_read(opened, "label", ids),
            "bytes_per_tiny_entry": path.stat().st_size / entries,
        }


def _random_read(opened: Store, layer: str, ids: list[str]) -> float:
    """Seconds: the median of reads of pictures drawn at random."""
    rng, times = np.random.default_rng(1), []
    for index in rng.integers(0, len(ids), min(READS, 5 * len(ids))):
        started = timer()
        opened.get(layer, ids[index])
        times.append(timer() - started)
    return float(np.median(times))


def _sized(folder: Path, count: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    ids = [f"picture_{number:05d}" for number in range(count)]
    labels, cams = folder / "sized_labels.h5", folder / "sized_cams.h5"
    planes = 0
    with store.create(labels) as label_writer, store.create(cams) as cam_writer:
        for image_id in ids:
            pseudolabels.put(label_writer, image_id, *pictures.pseudo_label(rng, 20, *SIZE))
            cam = pictures.activation(rng, *SIZE)
            cam_writer.put("cam", image_id, cam, classes=list(range(len(cam))))
            planes += len(cam)
    with Store(labels) as opened, Store(cams) as opened_cams:
        return {
            "voc_sized_pictures": count,
            "label_bytes": _bytes(opened, "label", ids),
            "confidence_bytes": _bytes(opened, "confidence", ids),
            "cam_bytes": _bytes(opened_cams, "cam", ids),
            "cam_classes": planes / count,
            "file_bytes_labels": labels.stat().st_size / count,
            "file_bytes_cams": cams.stat().st_size / count,
            "label_read_ms": 1e3 * _random_read(opened, "label", ids),
            "confidence_read_ms": 1e3 * _random_read(opened, "confidence", ids),
            "cam_read_ms": 1e3 * _random_read(opened_cams, "cam", ids),
        }


def _bytes(opened: Store, layer: str, ids: list[str]) -> float:
    """Compressed bytes of a picture, on average."""
    return sum(opened.file[layer][image_id].id.get_storage_size() for image_id in ids) / len(ids)
