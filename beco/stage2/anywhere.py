"""A trained network on any pictures: `beco predict`, which wants no manifest and no truth.

The label maps are those of the workflow: the same networks, settings and code (`beco.stage2.predict`). Each picture is
noted once its files are there (`beco.stage2.journal`), and a picture that was noted before is not predicted again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import torch

from beco.artifacts.files import file_hash, read_json, write_csv
from beco.artifacts.text import readable
from beco.config import Prediction
from beco.datasets.loose import Bad, Loose, find, measure
from beco.datasets.manifest import MOST_LINES, Manifest, refuse
from beco.datasets.palette import voc_palette
from beco.errors import UserError
from beco.stage2 import journal
from beco.stage2.outputs import Counts, More, Outputs
from beco.stage2.predict import chosen_networks, predict_all
from beco.stage2.train import Trained
from beco.training.trainer import Compute

log = logging.getLogger("beco")

NETWORKS = "networks.safetensors"
SHARES, SKIPPED, LEGEND = "shares.csv", "skipped.csv", "legend.csv"


@dataclass(frozen=True)
class Choices:
    """What a user may choose beside the settings."""

    more: More = field(default_factory=More)
    refuse_bad: bool = False
    """Stop before anything is written if a picture cannot be read; otherwise it is left out and told."""
    replace: bool = False
    """Drop what other networks or settings, or pictures of the same names, have left in the output."""


def networks_file(path: Path) -> Path:
    """The file of networks that a path means: itself, or the one in a run's folder. UserError if there is none."""
    if not path.is_dir():
        return path
    if (path / NETWORKS).is_file():
        return path / NETWORKS
    below = sorted(
        found.parent for depth in ("*", "*/*", "*/*/*", "*/*/*/*") for found in path.glob(f"{depth}/{NETWORKS}")
    )
    mend = f"did you mean {below[0]}?" if below else "name a run's folder, such as results/…/seed0, or the file itself"
    raise UserError(f"{path}: holds no {NETWORKS}; {mend}")


def settings_of(trained: Trained, path: Path) -> Prediction:
    """How a file's networks are meant to predict; of a file that does not say, the defaults, with a warning."""
    if trained.prediction is None:
        log.warning("%s: does not say how it is to predict; the defaults are taken, see --settings", path)
        return Prediction()
    settings = trained.prediction.averaged
    beside = path.with_name("metrics.json")
    if path.name == NETWORKS and beside.is_file():
        measured = read_json(beside).get("protocol", {})
        own = settings.model_dump(mode="json")
        other = [key for key in own if key in measured and measured[key] != own[key] and key != "batch_size"]
        if other:
            log.warning(
                "%s: was measured with another %s than it was trained for; --settings gives others",
                beside, ", ".join(other),
            )  # fmt: skip
    return settings


def predict(
    networks: Path,
    inputs: Sequence[Path],
    settings: Prediction,
    trained: Trained,
    compute: Compute,
    output: Path,
    choices: Choices,
) -> None:
    """Write a palette PNG per picture of `inputs`, folders or files, into `output`, named as the picture.

    `trained` is what the file `networks` holds. Beside them come `shares.csv`, each class's share of each label map
    that is there; `legend.csv`, the colours; `skipped.csv`, if pictures cannot be read; and what `choices.more` asks
    for. Raises `UserError` as `loose.find` and `Journal` do, if pictures are bad and `choices.refuse_bad`, and if none
    can be read.
    """
    torch.set_num_threads(compute.threads)
    chosen = chosen_networks(trained, settings, compute.chosen)
    found = find(inputs, output, (journal.NAME,))
    manifest, bad = measure(found, trained.classes, compute.threads, choices.refuse_bad)
    if choices.refuse_bad:
        refuse(bad.values(), f"{inputs[0]}")
    wanted = {one.image_id: _wanted(one, choices.more) for one in found}
    good = {image_id: one for image_id, one in wanted.items() if one.name not in bad}
    _refuse_shared(good)
    made_by = _made_by(networks, trained, settings)
    unread = [one for one in wanted.values() if one.name in bad]
    beside = (SHARES, SKIPPED, LEGEND)
    with journal.Journal(output, made_by, [*good.values()], unread, beside, choices.replace) as noted:
        for one in filter(noted.knows, unread):  # it was read once, and is what it was: a disk that fails, perhaps
            del bad[one.name]
        left = [image_id for image_id, one in good.items() if not noted.has(one)]
        _begin(output, noted, len(found) - len(bad) - len(left), bool(left))

        def done(image_id: str, counts: Counts) -> None:
            noted.note(wanted[image_id], _facts(counts, manifest.size(image_id)))

        def skip(image_id: str, error: UserError) -> None:
            if choices.refuse_bad:
                raise error
            bad[wanted[image_id].name] = str(error)

        with Outputs(output, settings.crf, compute.threads, choices.more, done) as outputs:
            predict_all(_part(manifest, left), chosen, settings, compute, outputs, skip)
        write_csv(_shares(noted.lines.values(), trained.classes), output / SHARES)
        write_csv(_legend(trained.classes), output / LEGEND)
    _tell(output, found, bad)


def _wanted(one: Loose, more: More) -> journal.Picture:
    return journal.Picture(one.name, one.path, str(one.place), more.files(one.image_id))


def _begin(output: Path, noted: journal.Journal, kept: int, more: bool) -> None:
    """Say what was there, and remove the tables that are going to be others: a kill must not leave them."""
    if kept:
        log.info("%s: %d pictures are there and kept", output, kept)
    if noted.dropped:
        log.info("%s: %d label maps removed, whose pictures are others now", output, noted.dropped)
    if noted.dropped or more:
        for name in (SHARES, SKIPPED):
            (output / name).unlink(missing_ok=True)


def _refuse_shared(pictures: dict[str, journal.Picture]) -> None:
    """UserError if two pictures would have the same file, or the file of one is the folder of another's."""
    first: dict[str, journal.Picture] = {}
    for one in pictures.values():
        for name in one.files.values():
            if (other := first.setdefault(name, one)) is not one:
                raise UserError(f"{one.path} and {other.path}: files made of both would be called {name}; rename one")
    for name, one in first.items():
        if above := next((str(path) for path in PurePosixPath(name).parents if str(path) in first), None):
            raise UserError(
                f"{one.path} and {first[above].path}: {above} would be a folder and a file; rename one, or give them "
                "to two calls with two outputs"
            )


def _made_by(networks: Path, trained: Trained, settings: Prediction) -> dict[str, Any]:
    protocol = settings.averaged.model_dump(mode="json", exclude={"batch_size"})
    return {"networks": file_hash(networks), "classes": trained.classes, "prediction": protocol}


def _part(manifest: Manifest, ids: list[str]) -> Manifest:
    return replace(manifest, table=manifest.table.loc[ids])


def _facts(counts: Counts, size: tuple[int, int]) -> dict[str, Any]:
    pixels = {str(value): int(counts[value]) for value in np.flatnonzero(counts)}
    return {"height": size[0], "width": size[1], "pixels": pixels}


def _shares(lines: Iterable[journal.Line], classes: list[str]) -> pd.DataFrame:
    """Of each label map, by its picture's name, the share of background and of each class, in [0, 1]."""
    rows = []
    for line in sorted(lines, key=lambda line: line["image"]):
        counts = [line["pixels"].get(str(value), 0) for value in range(len(classes) + 1)]
        rows.append([line["image"], line["width"], line["height"], *(count / sum(counts) for count in counts)])
    return pd.DataFrame(rows, columns=["image", "width", "height", "background", *classes])


def _legend(classes: list[str]) -> pd.DataFrame:
    """The colour of each label value, in label maps and overlays alike; in overlays the background is bare."""
    names = ["background", *classes]
    colours = ["#{:02x}{:02x}{:02x}".format(*colour) for colour in voc_palette()[: len(names)]]
    return pd.DataFrame({"value": range(len(names)), "name": names, "colour": colours})


def _tell(output: Path, found: list[Loose], bad: Bad) -> None:
    """Say what came of it, and list the pictures that cannot be read, in a file and here."""
    if bad:
        listed = sorted((readable(name), reason) for name, reason in bad.items())
        write_csv(pd.DataFrame(listed, columns=["image", "reason"]), output / SKIPPED)
        for reason in list(bad.values())[:MOST_LINES]:
            log.warning("left out: %s", reason)
    else:
        (output / SKIPPED).unlink(missing_ok=True)
    log.info("%s: %d pictures, each class's share in %s", output, len(found) - len(bad), SHARES)
    if bad:
        log.warning("%d pictures cannot be read and are left out; all are listed in %s", len(bad), output / SKIPPED)
    if len(bad) == len(found):
        raise UserError(f"{output}: none of {len(bad)} pictures could be read; see {SKIPPED}")
