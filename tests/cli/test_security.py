"""Nothing that others have written is run, and no path of theirs leads out of its folder."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from commands import run
from conftest import BIN, ROOT, Checkout
from corpus_inputs import COMMANDS, png_header, sound
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beco.config import parse_yaml
from beco.datasets import manifest
from beco.datasets.palette import MOST_PIXELS
from beco.errors import UserError

SOURCES = sorted((ROOT / "beco").rglob("*.py"))
HOSTILE = "a b;$(touch x)'\"&"


# --- the sources --------------------------------------------------------------------------------------------


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """Every call in a file, by its dotted name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def given_as(call: ast.Call, keyword: str) -> str | None:
    return next((ast.unparse(item.value) for item in call.keywords if item.arg == keyword), None)


def is_unsafe(name: str, call: ast.Call) -> bool:
    """Whether a call would run what it reads, or hand text to a shell."""
    match name.split(".")[-2:]:
        case ["torch", "load"]:
            return given_as(call, "weights_only") != "True"
        case ["np" | "numpy", "load"]:
            return given_as(call, "allow_pickle") == "True"
        case ["pickle", "load" | "loads" | "Unpickler"] | ["joblib" | "dill" | "marshal" | "shelve", _]:
            return True
        case ["pd" | "pandas", "read_pickle"] | ["os", "system" | "popen"]:
            return True
        case ["yaml", "load" | "load_all"]:
            return "Loader" not in (ast.unparse(call.args[1]) if len(call.args) > 1 else "")
        case ["yaml", loader]:
            return loader in ("full_load", "unsafe_load", "UnsafeLoader", "FullLoader")
        case ["subprocess", _]:
            return given_as(call, "shell") is not None
        case [*_, "extractall" | "eval" | "exec"]:
            return not name.endswith(".eval")  # of torch modules
    return False


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_runs_what_it_reads(path: Path) -> None:
    found = [f"line {call.lineno}: {name}" for name, call in calls(path) if is_unsafe(name, call)]
    assert not found
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import)
                for alias in node.names}  # fmt: skip
    assert not imported & {"xml.etree.ElementTree", "lxml", "xml.dom.minidom", "xml.sax"}


def test_the_search_finds_what_it_looks_for() -> None:
    bad = ["torch.load(p)", "pickle.loads(b)", "yaml.load(t)", "os.system(c)", "np.load(p, allow_pickle=True)"]
    bad += ["subprocess.run(c, shell=True)", "torch.load(p, weights_only=False)", "a.extractall(p)", "eval(t)"]
    good = ["torch.load(p, weights_only=True)", "yaml.load(t, _Loader)", "model.eval()", "subprocess.run([c])"]
    for text, unsafe in [*((text, True) for text in bad), *((text, False) for text in good)]:
        call = ast.parse(text, mode="eval").body
        assert isinstance(call, ast.Call)
        assert is_unsafe(ast.unparse(call.func), call) == unsafe, text


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["python/object/apply:os.mkdir", "python/name:os.system", "python/module:os", "python/tuple"]))
def test_no_tag_of_yaml_makes_an_object(tag: str) -> None:
    with pytest.raises(UserError, match="not valid YAML"):
        parse_yaml(f"a: !!{tag} [trap]", "here")
    assert not Path("trap").exists()


# --- paths --------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["..", ".", "a", "", "~", "..."]), min_size=1, max_size=6).map("/".join))
def test_a_manifest_is_read_or_its_paths_stay_inside(tmp_path: Path, path: str) -> None:
    header = "image_id,split,image,mask,width,height,cat"
    (tmp_path / "m.csv").write_text(f"{header}\na,train,{path or '.'},,1,1,1\n")
    root = tmp_path / "deep" / "root"
    inside = Path(os.path.normpath(root / (path or "."))).is_relative_to(root)
    try:
        found = manifest.read(tmp_path / "m.csv", root)
    except UserError as error:
        assert not inside and "inside the dataset's root" in str(error)
    else:
        assert inside and found.ids == ["a"]


@pytest.mark.parametrize("name", ["../a", "/a", "a/b", "..", ".", "a\\b"])
def test_no_output_is_named_by_a_path(tmp_path: Path, name: str) -> None:
    sound(tmp_path)
    text = (tmp_path / "m.csv").read_text()
    (tmp_path / "m.csv").write_text(text.replace("\nv,", f"\n{name},"))
    status, error = run(COMMANDS["evaluate"](tmp_path))
    assert status == 1 and f"image_id is `{name}` in line 4; use a name without slashes" in error


def test_a_list_cannot_lead_out_of_its_folder(tmp_path: Path) -> None:
    sound(tmp_path)
    outside = tmp_path / "secret"
    shutil.copy(tmp_path / "data" / "JPEGImages" / "a.jpg", f"{outside}.jpg")
    lists = tmp_path / "data" / "ImageSets" / "Segmentation"
    (lists / "train.txt").write_text("/../../secret.jpg /../../secret.png\n")
    status, error = run(COMMANDS["manifest"](tmp_path))
    assert status == 1 and "data/Annotations/secret.xml: no such annotation" in error


def test_links_within_a_dataset_are_followed(tmp_path: Path) -> None:
    """A folder of links is how datasets are kept on one disk; that is the user's own doing."""
    sound(tmp_path)
    (tmp_path / "data" / "JPEGImages").rename(tmp_path / "elsewhere")
    (tmp_path / "data" / "JPEGImages").symlink_to(tmp_path / "elsewhere")
    assert run(COMMANDS["manifest"](tmp_path))[0] == 0


# --- size ---------------------------------------------------------------------------------------------------


def test_a_bomb_is_refused_in_bounded_memory(tmp_path: Path) -> None:
    """A PNG of 400 million pixels, really so: 400 kB of zeros that would take 1.2 GB as RGB."""
    import zlib

    content = png_header(20_000, 20_000)
    start, end = content.index(b"IDAT") - 4, content.index(b"IEND") - 4
    packer = zlib.compressobj(9)
    row = b"\0" * 20_001
    body = b"".join(packer.compress(row) for _ in range(20_000)) + packer.flush()
    chunk = len(body).to_bytes(4, "big") + b"IDAT" + body + zlib.crc32(b"IDAT" + body).to_bytes(4, "big")
    path = tmp_path / "a.png"
    path.write_bytes(content[:start] + chunk + content[end:])
    assert path.stat().st_size < 500_000
    code = (
        "import resource, sys; from beco.datasets.manifest import read_picture\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: read_picture(sys.argv[1])\n"
        "except Exception as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([str(BIN / "python"), "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True)
    message, kilobytes = done.stdout.splitlines()
    assert "has more than 100 million pixels; make it smaller" in message and int(kilobytes) < 50_000


def test_the_limit_is_where_it_is_said_to_be(tmp_path: Path) -> None:
    width = 10_000
    (tmp_path / "a.png").write_bytes(png_header(width, MOST_PIXELS // width + 1))
    with pytest.raises(UserError, match="100 million"):
        manifest.read_picture(tmp_path / "a.png")
    with pytest.raises(UserError, match="truncated or damaged"):  # not larger than the limit, so it is decoded
        (tmp_path / "b.png").write_bytes(png_header(width, 50)[:60])
        manifest.read_picture(tmp_path / "b.png")


# --- the shell ----------------------------------------------------------------------------------------------


FAKE = """#!/bin/sh
for word in "$@"; do printf '%s\\0' "$word"; done >> "$RECORD"
printf '\\n\\0' >> "$RECORD"
"""


@pytest.mark.road
def test_every_path_reaches_every_command_whole(tmp_path: Path) -> None:
    """Project, dataset root and results under names that a shell would run. `bash` itself reads what is planned, with a
    `beco` that only writes down its arguments; `test_kills.py` walks real roads in such a folder."""
    checkout = Checkout(tmp_path / HOSTILE)
    root, results, weights = (f"{kind} {HOSTILE}" for kind in ("data", "results", "weights"))
    config = yaml.safe_load((checkout.folder / "tests" / "tiny.yaml").read_text())
    config["results"] = results
    config["dataset"] = {"name": "tiny", "format": "voc", "root": root, "classes": ["cat", HOSTILE]}
    config["classifier"]["encoder"] = {"like": "tiny", "weights": weights}
    config["labels"]["foreign"] = {"refine": "import", "source": {"path": root}}
    config["labels"]["walked"] = {"refine": "irn"}
    config["experiments"] = {name: {"recipe": "beco", "labels": name} for name in ("crf", "foreign", "walked")}
    (checkout.folder / "hostile.yaml").write_text(yaml.safe_dump(config, allow_unicode=True))
    planned = checkout.run("snakemake", "-n", "-p", "--cores", "1", "--configfile", "hostile.yaml")
    assert planned.returncode == 0, planned.stdout + planned.stderr
    commands = [line[line.index("beco --log") :] for line in planned.stdout.splitlines() if "beco --log" in line]
    fake, record = tmp_path / "bin" / "beco", tmp_path / "record"
    fake.parent.mkdir()
    fake.write_text(FAKE)
    fake.chmod(0o755)
    environment = {**os.environ, "PATH": f"{fake.parent}{os.pathsep}{os.environ['PATH']}", "RECORD": str(record)}
    for command in commands:
        subprocess.run(["bash", "-euc", command], cwd=checkout.folder, env=environment, check=True)
    calls = [text.split("\0")[:-1] for text in record.read_bytes().decode().split("\n\0")[:-1]]
    assert len(calls) == len(commands) and {call[2] for call in calls} >= {
        "manifest", "train-classifier", "cams", "gather", "labels", "import-labels", "train-irn", "refine", "train",
        "predict-split", "evaluate", "evaluate-labels", "tables", "report",
    }  # fmt: skip
    for call in calls:
        assert call[0] == "--log" and call[1].startswith(f"{results}/tiny/logs/")
        assert all(HOSTILE in word or json.dumps(HOSTILE)[1:-1] in word for word in call if "touch x" in word)
        if "--root" in call:
            assert call[call.index("--root") + 1] == root
    assert not [path for path in tmp_path.rglob("x") if path.is_file()]
