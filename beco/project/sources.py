"""Sources as their jobs will make them, before the first job: a localiser may not fit its encoder, its options each
other, or a network, of stage two as well, the one that it is to go on from, which would be told after the hours that
this one takes.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from beco.config import Config
from beco.errors import UserError
from beco.networks.encoders import save_network
from beco.networks.segmenter import build
from beco.stage1 import train
from beco.stage1.localisers.base import Inputs

CLASSES = ["one", "another"]
"""Of the networks that are made; how many there are is the same for all sources."""


def misfits(config: Config) -> list[str]:
    """A line for each source that something is made of and whose network cannot be made, with random weights in place
    of an encoder's; where it starts from another source's network, from a random one. Then one for each network of
    stage two that does not fit the classifier that it starts from.
    """
    problems, used, begun = [], config.used_sources(), _begun(config)
    starts = {config.sources[name].start for name in used} | {start for _, start in begun}
    made = [name for name in config.in_order() if name in used]
    chosen = [name for name in made if name in starts or config.sources[name].method != "cam"]  # that fits its encoder
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen:
            try:
                _make(config, name, Path(folder))
            except UserError as error:
                start = config.sources[name].start
                told = str(error).replace(str(_file(Path(folder), start)), f"`{start}`") if start else str(error)
                problems.append(f"sources.{name}: {told}")
        for network, start in begun:
            file = _file(Path(folder), start)
            try:
                if file.is_file():  # of one that cannot be made, that is said
                    build(config.networks[network], len(CLASSES), file)
            except UserError as error:
                problems.append(f"networks.{network}.encoder: {str(error).replace(str(file), f'`{start}`')}")
    return problems


def _begun(config: Config) -> list[tuple[str, str]]:
    """The networks that start from the classifier of a source whose encoder is not the very same, and these sources."""
    found: dict[tuple[str, str], None] = {}
    for name, experiment in config.experiments.items():
        start = config.start_of(name)
        own, theirs = config.networks[experiment.network].encoder, config.sources[start].classifier.encoder
        alike = all(getattr(own, key) == getattr(theirs, key) for key in ("name", "options", "drop"))
        if own.weights == "classifier" and not alike:
            found[experiment.network, start] = None
    return list(found)


def _make(config: Config, name: str, folder: Path) -> None:
    source = config.sources[name]
    encoder = source.classifier.encoder.model_copy(update={"weights": None})
    settings = source.classifier.model_copy(update={"encoder": encoder})
    network = train.build(source.method, settings, len(CLASSES), source.options)
    inputs = Inputs(start=_file(folder, source.start)) if source.start else Inputs()
    if source.start and _file(folder, source.start).is_file():  # of one that cannot be made, that is said
        network.begin(inputs)
    wanted = train.Wanted(settings, source.method, source.options)
    save_network(network, _file(folder, name), wanted.metadata(CLASSES))


def _file(folder: Path, source: str) -> Path:
    return folder / f"{source}.safetensors"
