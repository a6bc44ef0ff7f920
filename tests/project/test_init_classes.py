"""`beco init --classes`: the mend that is told where names of the CSV are doubtful, and followed."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from beco.cli import dataset as cli
from beco.config import read_config
from beco.errors import Problems, UserError
from beco.project.init import names_in

CELLS = ["cat", "hot dog", '"cat (old);hot dog"', "hot-dog", "cat", "hot-dog", "hot dog", "cat (old)"]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "dataset.root"  # a name that only looks like a key
    folder.mkdir()
    for number in range(len(CELLS)):
        Image.new("RGB", (20, 12)).save(folder / f"{number}.png")
    (tmp_path / "l.csv").write_text("image,labels\n" + "".join(f"{n}.png,{cell}\n" for n, cell in enumerate(CELLS)))
    return folder


def test_the_mend_names_the_option_and_works(tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(Problems) as caught:
        cli.init(tmp_path / "p", pictures, tmp_path / "l.csv")
    said = caught.value.lines
    assert any("`cat (old)` holds" in line and "list it in --classes" in line for line in said)
    assert any("look like one class" in line and "list both in --classes" in line for line in said)
    assert "dataset.classes" not in str(caught.value)
    cli.init(tmp_path / "p", pictures, tmp_path / "l.csv", classes="hot dog, cat (old),hot-dog,cat")
    found = read_config(str(tmp_path / "p" / "config.yaml"), is_file=True)
    assert found.dataset.classes == ["hot dog", "cat (old)", "hot-dog", "cat"]


def test_names_parted_by_commas() -> None:
    assert names_in('cat, "building, edifice" ,dog') == ["cat", "building, edifice", "dog"]
    for text in ("", " ", "cat,,dog", "cat,cat", "cat,Cat", "mask", "background"):
        with pytest.raises(UserError, match=r"^--classes: "):
            names_in(text)


def test_other_keys_are_told_as_options(tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(UserError, match=r"l2\.csv: no such file; set --labels to"):
        cli.init(tmp_path / "p", pictures, tmp_path / "l2.csv")
    (pictures / "0.png").unlink()
    with pytest.raises(UserError, match=r"/dataset\.root/0\.png: no such picture"):
        cli.init(tmp_path / "p", pictures, tmp_path / "l.csv", classes="cat,hot dog,hot-dog,cat (old)")
    with pytest.raises(UserError, match=r"^--images: .* is not a folder"):
        cli.init(tmp_path / "p", tmp_path / "none", tmp_path / "l.csv")
