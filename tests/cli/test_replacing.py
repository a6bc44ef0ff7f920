"""No command puts its file in the place of another's; what it wrote itself it writes anew."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from commands import run
from corpus_inputs import SETTINGS, SIZE, reads, sound
from results_for_tests import make_manifest, make_run
from test_overwriting import refused

from beco.artifacts import store
from beco.benchmark import report as benchmark
from beco.cli import app, replacing
from beco.config import Comparison
from beco.datasets.palette import write_index_png
from beco.evaluation.tables import comparisons
from beco.evaluation.tables.tables import Results
from beco.networks.weights import write_safetensors
from beco.plan import trial

CASES: dict[str, list[str]] = {
    "manifest": ["manifest", "--root", "data", "--settings", SETTINGS],
    "text_features": ["text-features", "cat", "--tower", "t", "--weights", "labels.h5"],
    "cams": ["cams", *reads(Path()), "--classifier", "labels.h5"],
    "refine": ["refine", *reads(Path()), "--cams", "labels.h5", "--irn", "labels.h5"],
    "labels": ["labels", *reads(Path()), "--cams", "labels.h5"],
    "import_labels": ["import-labels", "foreign", *reads(Path()), "--background", "0.1"],
    "gather": ["gather", "labels.h5"],
    "export_labels": ["export-labels", "labels.h5", "--format", "coco-json"],
    "archive": ["archive", "foreign"],
    "sweep_labels": ["sweep-labels", *reads(Path()), "--cams", "labels.h5", "--background", "0.3"],
    "comparison": ["comparison", "--settings", "{title: t, experiments: [one]}", "--runs", "one:0:crf=foreign"],
    "report": ["report", *reads(Path()), "--runs", "one:0:crf=foreign"],
    "plan": ["plan", "--configfile", "labels.csv"],
    "benchmark": ["benchmark", "--what", "crf"],
}


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    sound(tmp_path)
    for name in ("a", "b"):
        write_index_png(tmp_path / "foreign" / f"{name}.png", np.ones(SIZE, np.uint8))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "content", [b"precious", b'{"mine": 1}', b"name,value\na,1\n", b"\x89HDF\r\n\x1a\n mine", b"\x1f\x8b\x08"]
)
def test_a_file_of_others_stays(at: Path, name: str, content: bytes) -> None:
    (at / "precious.csv").write_bytes(content)
    line = refused(at, [*CASES[name], "-o", "precious.csv"])
    kind = replacing.KINDS[name]["output"].name
    assert line == f"beco: precious.csv: is there, is not {kind}, and would be lost; name another file, or move it"


def test_so_does_what_is_written_beside(at: Path) -> None:
    for name in ("manifest", "comparison"):
        for suffix in [place for place in replacing.KINDS[name] if place.startswith(".")]:
            (at / f"new{suffix}").write_text("precious")
            assert f"new{suffix}: is there, is not" in refused(at, [*CASES[name], "-o", "new.csv"])
            assert f"new{suffix}: is there, is not" in refused(at, [*CASES[name], "-o", "new"])
            (at / f"new{suffix}").unlink()
    (at / "trial").write_text("precious")
    assert "trial: is there, is not a trial" in refused(at, [*CASES["plan"], "--save", "trial"])


def test_a_device_is_no_file(at: Path) -> None:
    os.mkfifo(at / "pipe")
    assert "pipe: is a pipe, a device or such" in refused(at, ["gather", "labels.h5", "-o", "pipe"])


def test_score_maps_are_no_labels(at: Path) -> None:
    with store.create(at / "cams.h5") as writer:
        writer.put("cam", "a", np.zeros((1, 2, 2), np.float16), classes=[1])
    assert "is not labels of beco" in refused(at, [*CASES["labels"], "-o", "cams.h5"])
    assert "is not score maps of beco" in refused(at, ["cams", *reads(at), "--classifier", "m.csv", "-o", "labels.h5"])


@pytest.mark.parametrize("name", ["manifest", "gather", "import_labels", "export_labels", "archive"])
def test_what_it_wrote_itself_is_written_anew(at: Path, name: str) -> None:
    (at / "new.csv").touch()  # as mktemp makes it
    for _ in range(2):
        status, error = run([*CASES[name], "-o", "new.csv", *(["--allow-missing"] if name == "import_labels" else [])])
        assert status == 0, error
    assert (at / "new.csv").stat().st_size


def of(name: str, place: str = "output") -> replacing.Kind:
    return replacing.KINDS[name][place]


def test_what_takes_long_to_make_is_known_too(at: Path) -> None:
    def known(name: str, path: Path, place: str = "output") -> bool:
        return replacing._is_ours(path, of(name, place))

    write_safetensors(at / "texts", {}, {"texts": "{}"})
    write_safetensors(at / "network", {}, {"classes": "[]"})
    assert known("text_features", at / "texts") and not known("text_features", at / "network")
    runs = [make_run(at / "results", make_manifest(at), "one", 0, "crf", 1)]
    comparisons.write_comparison(Comparison(experiments=["one"], title="t"), Results(runs), at / "table.csv")
    for place, suffix in (("output", ".csv"), (".md", ".md"), (".tex", ".tex")):
        assert known("comparison", at / f"table{suffix}", place)
    template = Path(benchmark.__file__).parents[1] / "evaluation" / "report" / "report.html.j2"
    assert known("report", template)  # its head is written as it stands there
    (at / "sweep").write_text("background,miou,boundary_iou\n")
    assert known("sweep_labels", at / "sweep") and {"device", "gpu", "took"} <= set(trial.Trial.__annotations__)


def test_every_command_that_writes_a_file_is_known() -> None:
    names = {str(info.callback.__name__) for info in app.registered_commands if info.callback}
    folders = {"draw_shapes", "render_masks", "train_classifier", "train_irn", "train", "predict", "predict_split"}
    folders |= {"evaluate", "evaluate_labels", "tables", "init"}
    assert names - folders - {"check", "weights"} == set(replacing.KINDS) == set(CASES)
