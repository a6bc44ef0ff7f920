"""Every command that takes an artifact, and every artifact that is another's: one line, and nothing is left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from commands import run
from corpus_inputs import CLASSES, SIZE, put, reads, sound
from small_networks import TINY, network

from beco.artifacts import pseudolabels
from beco.artifacts.files import write_json
from beco.artifacts.store import create
from beco.config import Encoder
from beco.datasets import manifest as manifests
from beco.datasets.palette import write_index_png
from beco.errors import UserError
from beco.evaluation.report.gallery import labels_gallery
from beco.evaluation.tables.tables import MapSource, classifier_table
from beco.networks import encoders
from beco.networks.segmenter import build
from beco.networks.weights import write_safetensors
from beco.stage1 import localisers
from beco.stage1.maps import CELLS
from beco.stage1.refine.irn import IrnNetwork

MANIFESTS = {  # of other pictures, of the same names where it matters
    "classes": ("cat,dog", "cat,cow"),
    "order": ("cat,dog", "dog,cat"),
    "ids": ("\na,train", "\nz,train"),
    "sizes": ("24,16", "40,32"),
    "labels": ("24,16,1,0\nb", "24,16,1,1\nb"),
}


def maps(path: Path, classes: list[str], size: tuple[int, int] = (4, 6), **attributes: object) -> None:
    """Class maps of the training pictures a and b."""
    with create(path, classes=classes, **attributes) as writer:
        for image_id, value in (("a", 1), ("b", 2)):
            writer.put("cam", image_id, np.full((1, *size), 0.5, np.float16), classes=[value])


def networks(folder: Path, classes: list[str]) -> None:
    """Untrained networks of each kind, as the trainings save them."""
    encoder, named = Encoder.model_validate(TINY), json.dumps(classes)
    first = {"encoder": encoder.model_dump_json(), "output_stride": "16", "dilate": "true", "classes": named}
    encoders.save_network(localisers.make("cam", encoder, 16, len(classes)), folder / "classifier.safetensors", first)
    encoders.save_network(IrnNetwork(encoder, 16), folder / "irn.safetensors", {**first, "start": "classifier"})
    second = {"network": network("deeplabv2").model_dump_json(), "classes": named, "count": "1"}
    member = build(network("deeplabv2"), len(classes))
    encoders.save_network(torch.nn.ModuleList([member]), folder / "networks.safetensors", second)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound folder with one of every artifact, and of some a copy that is of an older version."""
    folder = tmp_path_factory.mktemp("doors")
    sound(folder)
    maps(folder / "cams.h5", CLASSES, cam={"resize": None}, **CELLS)
    maps(folder / "scores.h5", CLASSES, walk={"resize": None}, **CELLS)
    maps(folder / "old.h5", CLASSES, cam={"resize": None})
    maps(folder / "old_scores.h5", CLASSES, walk={"resize": None})
    maps(folder / "stretched.h5", CLASSES, (16, 24), cam={"resize": None}, **CELLS)
    networks(folder, CLASSES)
    with create(folder / "beyond.h5", labels={}, classes=CLASSES) as writer:
        for name in ("a", "b"):
            pseudolabels.put(writer, name, np.full(SIZE, 9, np.uint8), np.zeros(SIZE))
    shutil.copytree(folder / "predictions", folder / "beyond")
    write_index_png(folder / "beyond" / "v.png", np.full(SIZE, 9, np.uint8))
    write_json(folder / "list.json", [1])
    for kind, (old, new) in MANIFESTS.items():
        (folder / f"{kind}.csv").write_text((folder / "m.csv").read_text().replace(old, new))
    return folder


Door = Callable[[Path, str], list[str]]
TRAIN = "{schedule: {steps: 1, batch_size: 2}, crop: {size: 32}}"
NETWORK = (
    "{architecture: deeplabv2, atrous_rates: [1, 2], encoder: {name: resnet10t, options: {channels: [8, 16, 24, 32]}"
)
NONE = "{refine: none}"


def door(command: str, *options: str | tuple[str, str]) -> Door:
    """A command with the artifact under trial as its last option, or as its argument."""

    def arguments(at: Path, artifact: str) -> list[str]:
        given = [word for one in options for word in ((f"--{one[0]}", str(at / one[1])) if len(one) == 2 else [one])]
        return [command, *reads(at), *given, str(at / artifact), "--output", str(at / "out" / "new")]

    return arguments


DOORS: dict[str, Door] = {
    "labels": door("labels", "--settings", NONE, "--cams"),
    "labels, irn": door("labels", "--settings", "{refine: irn}", "--cams"),
    "sweep-labels": door("sweep-labels", "--settings", NONE, "--background", "0.3", "--cams"),
    "refine": door("refine", ("irn", "irn.safetensors"), "--cams"),
    "refine, irn": door("refine", ("cams", "cams.h5"), "--irn"),
    "cams": door("cams", "--classifier"),
    "train-irn": door("train-irn", ("classifier", "classifier.safetensors"), "--settings", TRAIN, "--labels"),
    "train-irn, classifier": door("train-irn", ("labels", "labels.h5"), "--settings", TRAIN, "--classifier"),
    "train": door("train", "--recipe", "single", "--network", NETWORK + "}}", "--settings", TRAIN, "--labels"),
    "train, classifier": door(
        "train", "--recipe", "single", ("labels", "labels.h5"), "--settings", TRAIN, "--network",
        NETWORK + ", weights: classifier}}", "--classifier",
    ),
    "predict-split": door("predict-split", "--networks"),
    "evaluate-labels": door("evaluate-labels", "--labels"),
    "evaluate": door("evaluate", "--predictions"),
    "export-labels": lambda at, artifact: [
        "export-labels", str(at / artifact), *put(at, "manifest", "m.csv"), "--output", str(at / "out" / "new"),
    ],
    "gather": lambda at, artifact: [
        "gather", str(at / "labels.h5"), str(at / artifact), "--output", str(at / "out" / "new"),
    ],
    "archive": lambda at, artifact: [
        "archive", str(at / artifact), *put(at, "manifest", "m.csv"), "--output", str(at / "out" / "new"),
    ],
    "tables": lambda at, artifact: [
        "tables", "--runs", f"one:0:crf={at / artifact}", "--output", str(at / "out" / "new"),
    ],
}  # fmt: skip
RIGHT = {
    "labels": "cams.h5", "labels, irn": "scores.h5", "sweep-labels": "cams.h5", "refine": "cams.h5",
    "refine, irn": "irn.safetensors", "cams": "classifier.safetensors", "predict-split": "networks.safetensors",
    "evaluate-labels": "labels.h5", "evaluate": "predictions", "export-labels": "labels.h5",
    "train-irn, classifier": "classifier.safetensors", "train, classifier": "classifier.safetensors",
    "train-irn": "labels.h5", "train": "labels.h5",
}  # fmt: skip
STORES = ["cams.h5", "scores.h5", "labels.h5"]
TENSORS = ["classifier.safetensors", "irn.safetensors", "networks.safetensors"]
OTHERS = [*STORES, *TENSORS, "predictions", "m.csv", "list.json", "nothing"]
MORE = {
    "labels": ["old.h5", "stretched.h5"], "labels, irn": ["old_scores.h5"], "refine": ["old.h5", "stretched.h5"],
    "sweep-labels": ["old.h5"], "evaluate-labels": ["beyond.h5"], "train": ["beyond.h5"], "evaluate": ["beyond"],
    "export-labels": ["beyond.h5", "beyond"], "archive": ["beyond"],
}  # fmt: skip
ALSO_RIGHT = {"export-labels": ["predictions"], "gather": ["labels.h5"], "archive": ["predictions"]}


def wrong_for(name: str) -> list[str]:
    right = [RIGHT.get(name, ""), *ALSO_RIGHT.get(name, [])]
    return [other for other in OTHERS if other not in right] + MORE.get(name, [])


def refused(made: Path, tmp_path: Path, arguments: list[str]) -> str:
    """The one line of a refusal; nothing may be written."""
    arguments = [word.replace(str(made / "out"), str(tmp_path / "out")) for word in arguments]
    status, error = run(arguments)
    lines = [line for line in error.splitlines() if line.startswith("beco: ")]
    assert status == 1 and len(lines) == 1 and "Traceback" not in error, error
    left = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not [path for path in left if path.suffix in (".h5", ".png", ".safetensors") or ".tmp" in path.name], left
    return lines[0]


@pytest.mark.parametrize(("name", "artifact"), [(name, one) for name in DOORS for one in wrong_for(name)])
def test_another_kind_of_artifact(made: Path, tmp_path: Path, name: str, artifact: str) -> None:
    line = refused(made, tmp_path, DOORS[name](made, artifact))
    assert Path(artifact).stem in line or "label" in line or " v:" in line, line
    assert "; " in line or ": run " in line, line


@pytest.mark.parametrize("content", [[1], {"miou": 1.0}, {"ap": [1]}])
def test_tables_of_what_is_no_classifiers_file(tmp_path: Path, content: object) -> None:
    write_json(tmp_path / "classifier" / "classifier.json", content)
    with pytest.raises(UserError, match=r"classifier\.json: holds no precision by class; run beco train-classifier"):
        classifier_table([MapSource("cam", tmp_path)])


@pytest.mark.parametrize("artifact", ["labels.h5", "classes"])
def test_maps_that_a_report_cannot_show(made: Path, tmp_path: Path, artifact: str) -> None:
    shutil.copy(made / (artifact if artifact != "classes" else "cams.h5"), tmp_path / "cams.h5")
    manifest = manifests.read(made / ("classes.csv" if artifact == "classes" else "m.csv"), made / "data")
    with pytest.raises(UserError, match=r"cams\.h5"):
        labels_gallery(manifest.split("train"), [MapSource("cam", tmp_path)], [], 1)


def test_a_source_that_holds_nothing(made: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("tables", "report"):
        given = ["--source", f"cam={tmp_path / 'empty'}", "--runs", f"one:0:crf={made}"]
        more = ["--manifest", str(made / "m.csv"), "--root", str(made / "data")] * (name == "report")
        line = refused(made, tmp_path, [name, *given, *more, "--output", str(tmp_path / "out" / "new")])
        assert "empty: holds neither cams.h5 nor classifier/classifier.json" in line, line


def other(layer: str, array: object) -> Callable[[h5py.File], None]:
    """Put another array in the place of one of picture a, with the attributes that it had."""

    def change(file: h5py.File) -> None:
        kept = dict(file[layer]["a"].attrs)
        del file[layer]["a"]
        file[layer]["a"] = array
        file[layer]["a"].attrs.update(kept)

    return change


def external(file: h5py.File) -> None:
    del file["label"]["a"]
    file["label"]["a"] = h5py.ExternalLink("elsewhere.h5", "/label/a")


def soft(file: h5py.File) -> None:
    del file["label"]["a"]
    file["label"]["a"] = h5py.SoftLink("/label/b")


def grouped(file: h5py.File) -> None:
    del file["label"]["a"]
    file["label"].create_group("a")


def alone(file: h5py.File) -> None:
    del file["confidence"]
    file["confidence"] = np.zeros(3)


LABELS: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "3 axes": (other("label", np.zeros((*SIZE, 3), np.uint8)), "shape (16, 24, 3)"),
    "strings": (other("label", np.full(SIZE, b"cat")), "type |S3"),
    "of any length": (other("label", "cat"), "type object"),
    "floats": (other("label", np.full(SIZE, 255, np.float32)), "type float32"),
    "int16": (other("label", np.full(SIZE, 300, np.int16)), "type int16"),
    "compound": (other("label", np.zeros(SIZE, "u1,u1")), "type ["),
    "empty": (other("label", h5py.Empty("u1")), "shape None"),
    "0×0": (other("label", np.zeros((0, 0), np.uint8)), "0×0"),
    "confidence, floats": (other("confidence", np.zeros(SIZE, np.float32)), "type float32"),
    "confidence, another size": (other("confidence", np.zeros((4, 5), np.uint8)), "confidence of a is 5×4"),
    "confidence, no group": (alone, "confidence is an HDF5 dataset"),
    "external link": (external, "link to elsewhere.h5"),
    "soft link": (soft, "link to /label/b"),
    "group": (grouped, "label/a is an HDF5 group"),
    "no JSON": (lambda file: file.attrs.modify("classes", "cat, dog"), "classes is no JSON"),
    "a number": (lambda file: file.attrs.modify("classes", "3"), "classes"),
    "steps": (lambda file: file["confidence"]["a"].attrs.create("steps", np.zeros((2, 3), np.uint8)), "steps of a"),
}


@pytest.mark.parametrize("name", ["export-labels", "evaluate-labels", "train", "train-irn"])
@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_another_form(made: Path, tmp_path: Path, kind: str, name: str) -> None:
    change, words = LABELS[kind]
    path = tmp_path / "labels.h5"
    shutil.copy(made / "labels.h5", path)
    with h5py.File(path, "r+") as file:
        change(file)
    arguments = [str(path) if word == str(made / "labels.h5") else word for word in DOORS[name](made, "labels.h5")]
    if name == "export-labels" and ("confidence" in kind or kind == "steps"):
        assert run([word.replace(str(made / "out"), str(tmp_path / "out")) for word in arguments])[0] == 0
        return  # which looks at no confidence
    line = refused(made, tmp_path, arguments)
    assert line.startswith(f"beco: {path}: ") and words in line and "; " in line and "damaged" not in line, line


NUMBERS = {
    "nan": np.full((1, 4, 6), np.nan, np.float16),
    "negative": np.full((1, 4, 6), -0.1, np.float16),
    "above 1": np.full((1, 4, 6), 1.5, np.float16),
    "infinite": np.full((1, 4, 6), np.inf, np.float16),
    "bytes": np.ones((1, 4, 6), np.uint8),
    "a plane": np.ones((4, 6), np.float16),
    "text": np.full((1, 4, 6), b"0.5"),
}


@pytest.mark.parametrize("numbers", NUMBERS)
def test_maps_that_are_no_activations(made: Path, tmp_path: Path, numbers: str) -> None:
    for given, key in (("cams.h5", "cam"), ("scores.h5", "walk")):
        with create(tmp_path / given, classes=CLASSES, **{key: {"resize": None}}, **CELLS) as writer:
            for image_id, value in (("a", 1), ("b", 2)):
                writer.put("cam", image_id, NUMBERS[numbers], classes=[value])
    for name in ("labels", "labels, irn", "sweep-labels", "refine"):
        mine = str(tmp_path / RIGHT[name])
        line = refused(made, tmp_path, [mine if str(made / RIGHT[name]) == word else word
                                        for word in DOORS[name](made, RIGHT[name])])  # fmt: skip
        assert mine in line and " a h" in line, line
    with pytest.raises(UserError, match=r"cams\.h5"):
        labels_gallery(
            manifests.read(made / "m.csv", made / "data").split("train"), [MapSource("cam", tmp_path)], [], 1
        )


@pytest.mark.parametrize("kind", MANIFESTS)
@pytest.mark.parametrize("name", [name for name in RIGHT if name != "evaluate"])  # it compares PNGs with masks alone
def test_another_manifest(made: Path, tmp_path: Path, name: str, kind: str) -> None:
    """The right artifact of other classes, another order of them, other ids, sizes or image-level labels."""
    seen = {"classes", "order"} if RIGHT[name].endswith("safetensors") else {"classes", "order", "ids", "sizes"}
    seen |= {"labels"} if RIGHT[name] in ("cams.h5", "scores.h5") else set()
    if kind not in seen:
        pytest.skip("does not matter here")
    arguments = [
        str(made / f"{kind}.csv") if word == str(made / "m.csv") else word for word in DOORS[name](made, RIGHT[name])
    ]
    line = refused(made, tmp_path, arguments)
    assert any(one in line for one in ("a: ", *STORES, *TENSORS)), line


@pytest.mark.parametrize("name", ["labels", "labels, irn", "sweep-labels", "refine", "cams", "predict-split",
                                  "evaluate-labels", "evaluate", "export-labels"])  # fmt: skip
def test_the_right_one_is_taken(made: Path, tmp_path: Path, name: str) -> None:
    arguments = [word.replace(str(made / "out"), str(tmp_path / "out")) for word in DOORS[name](made, RIGHT[name])]
    status, error = run(arguments)
    assert status == 0, error
    assert (tmp_path / "out" / "new").exists()


def test_an_older_version_is_refused_with_the_mend(made: Path, tmp_path: Path) -> None:
    line = refused(made, tmp_path, DOORS["labels"](made, "old.h5"))
    assert "old.h5: made by an older version" in line and "beco cams" in line


@pytest.mark.parametrize("spoil", ["tensors", "text", "weights"])
@pytest.mark.parametrize("name", ["cams", "refine, irn", "predict-split", "train-irn, classifier"])
def test_a_network_that_is_not_what_it_says(made: Path, tmp_path: Path, name: str, spoil: str) -> None:
    state, metadata = encoders.load_network(made / RIGHT[name])
    one = next(one for one in state if "backbone.layer1" in one and one.endswith("weight"))
    key = "network" if "network" in metadata else "encoder"
    if spoil == "text":
        metadata = {**metadata, key: "{"}
    elif spoil == "tensors":
        state.pop(one)
    else:
        state[one] = state[one].to(torch.int8)
    write_safetensors(tmp_path / RIGHT[name], state, metadata)
    line = refused(made, tmp_path, [word if word != str(made / RIGHT[name]) else str(tmp_path / RIGHT[name])
                                    for word in DOORS[name](made, RIGHT[name])])  # fmt: skip
    assert str(tmp_path / RIGHT[name]) in line and "; " in line
