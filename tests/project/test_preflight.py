"""Before the first job: what would fail hours later is told, estimates only warn, and nothing is looked at twice."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import typer
from conftest import Checkout
from plans import config
from safetensors.torch import save_file

from beco.cli import dataset as cli
from beco.datasets.manifest import Manifest
from beco.errors import UserError
from beco.project import check, preflight, room


def of_weights(path: Path) -> dict[str, Any]:
    """Settings of networks, not of the classifier, that start from a file."""
    encoder = {"name": "resnet10t", "weights": str(path)}
    return {"networks": {"default": {"encoder": encoder, "decoder_channels": 8}}}


def test_the_quick_look_leaves_the_pictures_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = {"name": "own", "format": "voc", "root": str(tmp_path / "gone")}
    of = config(results=str(tmp_path), dataset=dataset)
    cli.check(settings=of.model_dump_json(), quick=True)
    assert capsys.readouterr().out == ""
    with pytest.raises(typer.Exit):
        cli.check(settings=of.model_dump_json())
    assert "gone" in capsys.readouterr().out


def test_results_that_are_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    for wrong, name in (("file", "file"), ("file/deep", "file"), ("gone", "gone")):
        with pytest.raises(UserError, match=f"results: {tmp_path / name} is no folder; "):
            preflight.refuse_results(tmp_path / wrong / "shapes")
    for right in (tmp_path, tmp_path / "new" / "deep"):
        preflight.refuse_results(right)


def test_it_takes_the_list_of_an_earlier_run(tmp_path: Path) -> None:
    listed = "image_id,split,image,mask,width,height,cat\na,train,a.jpg,,90,80,1\nb,val,b.jpg,,90,80,0\n"
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "manifest.csv").write_text(listed)
    of = config(results=str(tmp_path), dataset={"name": "own", "format": "voc", "root": "gone"})
    data = check.check(of, quick=True)[0]
    assert data.notes[0] == "2 pictures (1 train, 1 val), 1 classes, no masks"
    assert "no picture of val shows cat" in data.notes[1]
    assert "batch_size (8)" in data.problems[0] and "more than the 1 training pictures" in data.problems[0]


def test_estimates_warn_and_do_not_stop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1))  # type: ignore[attr-defined]
    settings = config(results=str(tmp_path)).model_dump_json()
    cli.check(settings=settings, quick=True)
    said = capsys.readouterr().out
    assert said.startswith("beco: perhaps too little: ") and "make room" in said and said.count("\n") == 1
    with pytest.raises(typer.Exit) as stopped:
        cli.check(settings=settings)
    assert stopped.value.exit_code == 1 and "To mend: 1." in capsys.readouterr().out


def test_room_for_what_is_scored_on_squares(tmp_path: Path) -> None:
    rows = [["a", "train", "a.jpg", "", 90, 80, 1], ["b", "val", "b.jpg", "", 100, 40, 0]]
    names = ["image_id", "split", "image", "mask", "width", "height", "cat"]
    pictures = Manifest(tmp_path, pd.DataFrame(rows, columns=names).set_index("image_id"), ["cat"])
    own, square = (config(prediction={"squeeze": 96, "score_at": where}) for where in ("picture", "square"))
    runs = sum(len(experiment.seeds) for experiment in own.experiments.values())
    assert check.disk(square, pictures) - check.disk(own, pictures) == runs * (96 * 96 - 100 * 40)
    large = config(prediction={"squeeze": 8192, "score_at": "square"})
    assert check.memory(large, pictures) == room.PROCESS + room.scores(8192**2, 2)
    assert check.memory(own, pictures, on_gpu=True) == room.PROCESS + room.scores(90 * 80, 2)


def test_another_machine_is_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    of = config(results=str(tmp_path), compute={"device": "cuda"})
    with pytest.raises(UserError, match="cuda asked for, but torch sees no GPU"):
        cli.check(settings=of.model_dump_json(), quick=True)
    cli.check(settings=of.model_dump_json(), quick=True, elsewhere=True)


def answer(code: str) -> list[str]:
    """A process that stands for the look."""
    return [sys.executable, "-c", f"import os, signal, sys\n{code}"]


def test_only_what_is_new_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[bool] = []

    def look(question: str) -> dict[str, Any]:
        looks.append(json.loads(question)["elsewhere"])
        return {"wrong": "", "doubts": []}

    monkeypatch.setattr(preflight, "_asked", look)
    weights = tmp_path / "w.safetensors"
    of, other = (
        config(results=str(tmp_path), **of_weights(weights)),
        config(results=str(tmp_path), gallery=3, **of_weights(weights)),
    )
    for asked, times in ((of, 1), (of, 1), (other, 2), (other, 2)):
        preflight.preflight(asked, tmp_path / "own")
        assert len(looks) == times
    weights.write_bytes(b"now it is there")
    preflight.preflight(other, tmp_path / "own")
    preflight.preflight(other, tmp_path / "own", elsewhere=True)
    assert looks == [False, False, False, True]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", ["killed", "signal 9", "memory"]),
        ("os.kill(os.getpid(), signal.SIGSEGV)", ["killed", "signal 11", "beco check"]),
        ("import nothing_of_that_name", ["status 1", "nothing_of_that_name", "beco check"]),
        ("print('no answer'); sys.stderr.write('over\\n' * 9 + 'the end\\n')", ["status 0", "over | over | the end"]),
        ("sys.exit(3)", ["status 3", "beco check"]),
    ],
)
def test_a_look_that_does_not_come_back_says_how_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, words: list[str]
) -> None:
    monkeypatch.setattr(preflight, "LOOK", answer(code))
    with pytest.raises(UserError) as refused:
        preflight.preflight(config(results=str(tmp_path)), tmp_path / "own")
    said = str(refused.value)
    assert "\n" not in said and all(word in said for word in words), said


def test_a_look_at_a_long_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux hands over at most 131,071 bytes as one argument."""
    one = {"recipe": "single", "seeds": list(range(10))}
    of = config(results=str(tmp_path), experiments={f"e{number}": one for number in range(200)})
    assert len(of.model_dump_json()) > 131_071
    count = "import json; found = json.load(sys.stdin)['config']['experiments']\n"
    count += "print(json.dumps({'wrong': str(len(found)), 'doubts': []}))"
    monkeypatch.setattr(preflight, "LOOK", answer(count))
    with pytest.raises(UserError, match=r"^200$"):
        preflight.preflight(of, tmp_path / "own")


def test_modules_of_the_current_folder_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("random.py", "torch.py", "beco.py"):
        (tmp_path / name).write_text("raise SystemExit('a stranger')\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    of = config(results=str(tmp_path), **of_weights(tmp_path / "w.safetensors"))
    with pytest.raises(UserError, match=r"^networks\.default\.encoder: "):
        preflight.preflight(of, tmp_path / "own")


def test_what_was_found_is_told_whole_and_again(tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "w.safetensors")
    labels = {"theirs": {"refine": "import", "source": {"path": str(tmp_path / "gone labels")}}}
    single = {"a": {"recipe": "single", "labels": "theirs"}}
    of = config(
        results=str(tmp_path),
        labels=labels,
        experiments=single,
        comparisons={},
        **of_weights(tmp_path / "w.safetensors"),
    )
    for _ in range(2):
        with pytest.raises(UserError) as refused:
            preflight.preflight(of, tmp_path / "own")
        first, *others = str(refused.value).splitlines()
        assert first == "configuration: 2 problems:" and len(others) == 2
        assert others[0].startswith("networks.default.encoder: ") and "w.safetensors" in others[0]
        assert others[1].startswith("labels.theirs.source.path: ") and "gone labels: no such folder" in others[1]
    assert not (tmp_path / "own" / preflight.NAME).exists()


@pytest.mark.road
def test_no_job_starts_that_a_later_one_would_be_in_vain_for(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "w.safetensors")
    changes = of_weights(Path("w.safetensors")) | {"results": "out put"}
    options = [f"{key}={value}" for key, value in changes.items()]
    done = checkout.snakemake("--config", *options)
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("beco: ")]
    assert done.returncode == 1 and len(said) == 1 and "Traceback" not in done.stderr, done.stderr
    assert said[0].startswith("beco: networks.default.encoder: w.safetensors: lacks")
    assert [path.name for path in (tmp_path / "out put" / "tiny").iterdir()] == [".lock"]  # and no job was started
    assert checkout.snakemake("--dry-run", "--config", *options).returncode == 0
    stamp = tmp_path / "out put" / "tiny" / preflight.NAME
    deployed = checkout.snakemake("--sdm", "env-modules", "--until", "draw_shapes", "--config", *options)
    assert deployed.returncode == 0 and not stamp.exists()  # who knows what is installed there
    done = checkout.snakemake("--until", "manifest", "--config", "results=out put")
    assert done.returncode == 0 and stamp.is_file()
