"""The benchmark as a whole: what is asked for is measured, printed as a table and written as JSON."""

from __future__ import annotations

import logging
import platform
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from beco.artifacts.files import write_json
from beco.artifacts.sources import commit
from beco.benchmark import crfs, pictures, presets, stages, stores, training
from beco.datasets import manifest as manifests
from beco.datasets.manifest import Manifest
from beco.errors import UserError
from beco.training.trainer import Compute, describe

PARTS = ("training", "stages", "stores", "crf")
ROUNDS = {"demo": 15, "paper": 1}
SLOWEST_OPENING, SLOWEST_READ = 1.0, 2.0  # seconds, milliseconds


@dataclass(frozen=True)
class Options:
    """What to measure, as the command line has it; None: by preset."""

    preset: str = "demo"
    network: str | None = None
    settings: str | None = None
    recipe: str = "beco"
    classes: int | None = None
    rounds: int | None = None
    quick: bool = False
    size: int = 256
    entries: int = 100_000
    pictures: int | None = None
    manifest: Path | None = None
    labels: Path | None = None
    root: Path | None = None
    split: str = "train"


def run(what: str, options: Options, compute: Compute, output: Path | None) -> dict[str, Any]:
    """Measure one of `PARTS`, or `all`; print the tables, and write `output` if it is given."""
    if what not in (*PARTS, "all"):
        raise UserError(f"--what: no part `{what}`; known: {', '.join(PARTS)}, all")
    if compute.devices * compute.nodes != 1:
        raise UserError("--devices: one device is measured; leave it out")
    torch.set_num_threads(compute.threads)
    device = compute.chosen
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    result: dict[str, Any] = {
        "device": describe(device),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": compute.threads,
        "commit": commit(),
    }
    for part in PARTS if what == "all" else (what,):
        with tempfile.TemporaryDirectory(prefix="beco-benchmark-") as folder:
            result[part] = _measured(part, options, compute, device, Path(folder))
        print(f"\n{part} on {result['device']}\n{table(result[part])}")
    for line in remarks(result):
        print(line)
    if output:
        write_json(output, result)
    return result


def _measured(part: str, options: Options, compute: Compute, device: torch.device, folder: Path) -> dict[str, Any]:
    if part == "stages":
        return stages.measure(folder, 64 if options.quick else options.size, 0.1 if options.quick else 1.0)
    if part == "stores":
        return stores.measure(folder, *((500, 8) if options.quick else (options.entries, 200)))
    if part == "crf":
        return crfs.measure(_crf_pictures(options))
    chosen = presets.setting(
        options.preset, options.network, options.settings, options.recipe, options.classes, device.type
    )
    rounds = options.rounds or (2 if options.quick else 30 if device.type == "cuda" else ROUNDS[options.preset])
    if options.manifest is None:
        loader = pictures.training_set(folder, chosen.training, chosen.classes)
    elif options.labels is None or options.root is None:
        raise UserError("--manifest: needs --root and --labels, too; give all three or none")
    else:
        own = options.manifest, options.root, options.labels
        loader = pictures.own_set(*own, options.split, chosen.training, chosen.classes)
    return {"preset": options.preset} | training.measure(chosen, compute, rounds, loader)


def _crf_pictures(options: Options) -> Manifest | int:
    """The first pictures of the user's, or the number of those to be made up."""
    count = options.pictures or (2 if options.quick else 24)
    if options.manifest is None:
        return count
    if options.root is None:
        raise UserError("--manifest: needs --root, too; give both or none")
    chosen = manifests.read(options.manifest, options.root).split(options.split)
    return Manifest(chosen.root, chosen.table.iloc[:count], chosen.classes)


def table(values: dict[str, Any]) -> str:
    """Names and values, one a line; figures to four digits."""
    rows = [(name, f"{value:.4g}" if isinstance(value, float) else str(value)) for name, value in _flat(values)]
    return pd.DataFrame(rows, columns=["measure", "value"]).to_string(index=False, header=False)


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def remarks(result: dict[str, Any]) -> list[str]:
    """What is slower than it should be, in words."""
    found, measured = [], result.get("stores", {})
    for name in ("opening_s", "listing_s"):
        if measured.get(name, 0) >= SLOWEST_OPENING:
            found.append(f"stores: {name} is {measured[name]:.2f}, {SLOWEST_OPENING:g} s or more")
    slow = {name: value for name, value in measured.items() if name.endswith("read_ms") and value > SLOWEST_READ}
    found += [f"stores: {name} is {value:.2f}, more than {SLOWEST_READ:g} ms" for name, value in slow.items()]
    return found
