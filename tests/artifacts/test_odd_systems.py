"""File systems that refuse: no locks, no permission, a failing disk, a stale handle; nothing of it is taken for damage.

A small library, compiled here and loaded before the C library, gives the numbers that such systems give.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from shutil import which

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from safetensors.torch import save_file

from beco.artifacts.store import create
from beco.datasets.palette import write_index_png

LOCKS = ("ENOLCK", "EOPNOTSUPP", "EINVAL")
REFUSALS = (("OPEN", "EACCES"), ("OPEN", "ESTALE"), ("OPEN", "EMFILE"), ("READ", "EIO"), ("READ", "ESTALE"))
WRITES = ("EIO", "ESTALE", "ENOSPC", "EDQUOT", "EOVERFLOW")

READERS = """
import torch
from beco.artifacts import files, store, text
from beco.networks import encoders, weights
from beco.training import checkpoint
from beco.datasets import instances, manifest, palette, sheet, voc
from beco.errors import UserError
from beco.evaluation.tables import tables
from beco.plan import against
from beco.exchange import foreign, foreign_formats

def layer():
    with store.Store(odd / "a.h5") as reader:
        return reader.get("label", "a")

def unfit(read, *arguments):
    try:
        return read(*arguments)
    except foreign.Unfit as error:
        raise UserError(f"{arguments[0]}: {error.kind.what} ({error.detail}); {error.kind.mend}") from error

def opened():
    with palette.opened(odd / "a.jpg") as picture:
        return picture.load()

def resumed():
    module = torch.nn.Linear(1, 1)
    optimiser = torch.optim.SGD(module.parameters(), 0.1)
    found = checkpoint.Checkpoint(odd / "a.pt", {})
    return found.load(module, optimiser, None, torch.device("cpu"), True)

readers = {
    "a.h5": layer,
    "a.json": lambda: files.read_json(odd / "a.json"),
    "a.txt": lambda: files.file_hash(odd / "a.txt"),
    "a.csv": lambda: tables.read_csv(odd / "a.csv"),
    "manifest.csv": lambda: manifest.read(odd / "manifest.csv", odd),
    "labels.csv": lambda: sheet._lines(odd / "labels.csv"),
    "a.xml": lambda: voc.read_objects(odd / "a.xml", ["cat"]),
    "train.txt": lambda: voc.read_list(odd, "train"),
    "instances_a.json": lambda: instances._content(odd / "instances_a.json"),
    "a.yaml": lambda: text.read_text(odd / "a.yaml", "save it as such"),
    "a.png": lambda: palette.read_index_png(odd / "a.png"),
    "a.jpg": opened,
    "times.txt": lambda: against.read(odd / "times.txt"),
    "a.safetensors": lambda: weights.read_weights(odd / "a.safetensors"),
    "a.pth": lambda: weights.read_weights(odd / "a.pth"),
    "network.safetensors": lambda: encoders.load_network(odd / "network.safetensors"),
    "a.pt": resumed,
    "a.npy": lambda: unfit(foreign.read_dictionary, odd / "a.npy"),
    "b.png": lambda: unfit(foreign_formats._pixels, odd / "b.png", (3, 3)),
}
"""

LOOK = """
import errno, json, os, sys
from pathlib import Path
import numpy as np
odd = Path(sys.argv[1])
{readers}
def said(work):
    try:
        work()
        return ""
    except UserError as error:
        return str(error)
    except Exception as error:
        return f"{{type(error).__name__}}: {{error}}"

def under(call, number, work):
    os.environ["ODD_PATH"], os.environ[f"ODD_{{call}}"] = str(odd), str(getattr(errno, number))
    try:
        return said(work)
    finally:
        del os.environ[f"ODD_{{call}}"]

def store_written():
    with store.create(odd / "new.h5") as writer:
        writer.put("label", "a", np.random.default_rng(0).integers(0, 255, (300, 300), dtype=np.uint8))

def checkpoint_written():
    with files.whole(odd / "new.pt") as path:
        torch.save({{"a": torch.rand(99, 99)}}, path)

def held():
    files.hold(odd / "held")
    files._held.clear()

writers = {{
    "new.h5": store_written,
    "new.json": lambda: files.write_json(odd / "new.json", 1),
    "new.png": lambda: palette.write_index_png(odd / "new.png", np.zeros((9, 9), np.uint8)),
    "new.safetensors": lambda: encoders.save_network(torch.nn.Linear(1, 1), odd / "new.safetensors", {{}}),
    "new.pt": checkpoint_written,
}}
print(json.dumps({{
    "sound": {{name: said(read) for name, read in readers.items()}},
    "locks": {{f"{{number}} {{name}}": under("LOCK", number, work)
              for number in {locks} for name, work in {{**readers, **writers, "hold": held}}.items()}},
    "maps": {{name: under("MMAP", "ENODEV", read) for name, read in readers.items()}},
    "again": {{name: under("READ", "EAGAIN", readers[name]) for name in ("a.jpg", "a.png")}},
    "refused": {{f"{{number}} {{name}}": under(call, number, read)
                for call, number in {refusals} for name, read in readers.items()}},
    "written": {{f"{{number}} {{name}}": under("WRITE", number, write)
                for number in {writes} for name, write in writers.items()}},
    "left": sorted(path.name for path in odd.iterdir() if ".tmp" in path.name),
}}))
"""


@pytest.fixture(scope="module")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which ODD_PATH and ODD_<call> take effect."""
    compiler = which("cc") or which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("no C compiler, or not Linux")
    library = tmp_path_factory.mktemp("library") / "preloaded.so"
    command = [compiler, "-shared", "-fPIC", "-o", str(library), str(ROOT / "tests" / "preloaded.c"), "-ldl"]
    subprocess.run(command, check=True)
    return {**os.environ, "LD_PRELOAD": str(library)}


def files_to_read(odd: Path) -> None:
    """One sound file for each reader."""
    (odd / "ImageSets" / "Segmentation").mkdir(parents=True)
    with create(odd / "a.h5") as writer:
        writer.put("label", "a", np.ones((3, 3), np.uint8))
    texts = {
        "a.json": "{}", "a.txt": "x", "a.csv": "class,iou\ncat,1\n", "labels.csv": "image,labels\na.jpg,cat\n",
        "manifest.csv": "image_id,split,image,mask,width,height,cat\na,train,a.jpg,,3,3,1\n",
        "a.xml": "<annotation><object><name>cat</name></object></annotation>", "a.yaml": "x: 1\n",
        "ImageSets/Segmentation/train.txt": "a\n", "times.txt": "s\tcpu_time\n1\t1\n",
        "instances_a.json": '{"images": [{"id": 1, "file_name": "a.jpg", "height": 3, "width": 3}], '
        '"categories": [{"id": 1, "name": "cat"}], "annotations": []}',
    }  # fmt: skip
    for name, text in texts.items():
        (odd / name).write_text(text)
    for name in ("a.png", "b.png"):
        write_index_png(odd / name, np.ones((3, 3), np.uint8))
    Image.fromarray(np.zeros((3, 3, 3), np.uint8)).save(odd / "a.jpg")
    save_file({"a": torch.ones(2)}, odd / "a.safetensors")
    save_file({"a": torch.ones(2)}, odd / "network.safetensors", {"classes": "[]"})
    torch.save({"a": torch.ones(2)}, odd / "a.pth")
    torch.save({"a": 1}, odd / "a.pt")
    np.save(odd / "a.npy", {"keys": np.zeros(1, np.int64)}, allow_pickle=True)


@pytest.fixture(scope="module")
def outcomes(preloaded: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What is said on each odd system, all from one process."""
    odd = tmp_path_factory.mktemp("odd")
    files_to_read(odd)
    code = LOOK.format(readers=READERS, locks=LOCKS, refusals=REFUSALS, writes=WRITES)
    done = subprocess.run([sys.executable, "-c", code, str(odd)], env=preloaded, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_files_are_sound(outcomes: dict[str, dict[str, str]]) -> None:
    assert {name: text for name, text in outcomes["sound"].items() if text} == {}


@pytest.mark.parametrize("kind", ["locks", "maps"])
def test_what_the_work_does_without(outcomes: dict[str, dict[str, str]], kind: str) -> None:
    """Locks and maps into memory: reading, writing and holding go on where a file system has none."""
    assert len(outcomes[kind]) >= 15
    assert {name: text for name, text in outcomes[kind].items() if text} == {}


def test_a_refusal_is_told_in_the_systems_words(outcomes: dict[str, dict[str, str]]) -> None:
    assert len(outcomes["refused"]) >= 5 * 15
    for case, text in outcomes["refused"].items():
        number, name = case.split()
        assert f"/{name}: " in text and os.strerror(getattr(errno, number)) in text, (case, text)
        assert "; " in text and "\n" not in text and "again" not in text.replace("run this again", ""), (case, text)
        assert not any(word in text for word in ("damaged", "remove", "copy", "Error:")), (case, text)


def test_a_picture_that_is_to_be_asked_for_again(outcomes: dict[str, dict[str, str]]) -> None:
    for name, text in outcomes["again"].items():
        assert f"/{name}: cannot be read ({os.strerror(errno.EAGAIN)}); " in text, text


def test_what_cannot_be_written_is_told_and_leaves_nothing(outcomes: dict[str, dict[str, str]]) -> None:
    for case, text in outcomes["written"].items():
        number, name = case.split()
        reason = "is full" if number in ("ENOSPC", "EDQUOT") else os.strerror(getattr(errno, number))
        reason = "most likely the disk is full" if name == "new.pt" and reason not in text else reason  # torch's own
        assert f"/{name}: cannot be written" in text and reason in text and "\n" not in text, (case, text)
    assert outcomes["left"] == []
