"""One's own pictures and a CSV: what is read, how it is split, and that everything wrong is told at once."""

from __future__ import annotations

import logging
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from beco.config import Dataset
from beco.datasets import folder, formats, manifest
from beco.datasets.palette import write_index_png
from beco.errors import Problems, UserError

SIZE = (12, 20)  # height, width: unequal, so that a swap shows


def add_picture(root: Path, name: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(name)).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def add_mask(path: Path, value: int = 1, size: tuple[int, int] = SIZE) -> None:
    mask = np.zeros(size, np.uint8)
    mask[2:5, 3:9] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    write_index_png(path, mask)


PICTURES = ["a b.png", "größe/Tag 1.webp", "c.jpg", "d.bmp", "e.tif"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Five pictures of five formats, with a space, an umlaut and a folder among their names."""
    for name in PICTURES:
        add_picture(tmp_path / "pictures", name)
    return tmp_path / "pictures"


def build(root: Path, *lines: str, **keys: object) -> manifest.Manifest:
    """The manifest of a CSV of these lines."""
    sheet = root.parent / "labels.csv"
    sheet.write_text("\n".join([*lines, ""]), encoding="utf-8")
    dataset = Dataset.model_validate({"format": "folder", "root": str(root), "labels": str(sheet), **keys})
    return formats.build(dataset, root.parent / "manifest.csv")


def refusal(root: Path, *lines: str, **keys: object) -> list[str]:
    """The lines that a CSV is refused with; no manifest may be left behind."""
    with pytest.raises(UserError) as caught:
        build(root, *lines, **keys)
    assert not (root.parent / "manifest.csv").exists()
    return caught.value.lines if isinstance(caught.value, Problems) else [str(caught.value)]


COLUMNS = ["image,cat,dog", "a b.png,1,0", "größe/Tag 1.webp,1,1", "c.jpg,0,1", "d.bmp,0,0", "e.tif,1,0"]


# --- what is read -------------------------------------------------------------------------------------------


def test_columns_of_zero_and_one(root: Path) -> None:
    found = build(root, *COLUMNS)
    assert found.classes == ["cat", "dog"]
    assert found.ids == ["a b", "c", "d", "e", "größe__Tag 1"]
    assert found.labels().tolist() == [[1, 0], [0, 1], [0, 0], [1, 0], [1, 1]]
    assert found.size("größe__Tag 1") == SIZE
    assert found.image("größe__Tag 1").shape == (*SIZE, 3)
    assert found.present("d") == []
    assert Counter(found.table["split"]) == {"train": 4, "val": 1}


@pytest.mark.parametrize(
    ("both", "none"), [("cat;dog", ""), ("dog | cat", " "), ("\"['dog', 'cat']\"", "[]"), ('"[""cat"",""dog""]"', "[]")]
)
def test_a_column_of_names_means_the_same(root: Path, both: str, none: str) -> None:
    lines = ["labels,image", "cat,a b.png", f"{both},größe/Tag 1.webp", "dog,c.jpg", f"{none},d.bmp", "cat,e.tif"]
    named, columns = build(root, *lines), build(root, *COLUMNS)
    assert named.classes == columns.classes  # alphabetical
    assert named.table.equals(columns.table)


def test_classes_of_the_settings_give_the_order(root: Path) -> None:
    found = build(root, *COLUMNS, classes=["dog", "cat"])
    assert found.classes == ["dog", "cat"]
    assert found.present("a b") == [2]


def test_what_spreadsheets_write(root: Path) -> None:
    """A byte-order mark, semicolons, carriage returns, blank lines, and pandas' 1.0."""
    plain = build(root, *COLUMNS).table
    text = "\ufeff" + "\r\n".join([*COLUMNS, "", ""]).replace(",", ";").replace("1;0", "1.0;0.0")
    (root.parent / "labels.csv").write_bytes(text.encode())
    dataset = Dataset(format="folder", root=str(root), labels=str(root.parent / "labels.csv"))
    assert formats.build(dataset, root.parent / "manifest.csv").table.equals(plain)


def test_decomposed_names_are_the_same_names(root: Path) -> None:
    """macOS hands out `o` and a combining mark; the ids, and so the split, are those of the composed name."""
    (root / "größe").rename(root / unicodedata.normalize("NFD", "größe"))
    found = build(root, *COLUMNS)
    assert "größe__Tag 1" in found.ids
    assert found.image("größe__Tag 1").shape == (*SIZE, 3)


def test_a_split_column_is_followed(root: Path) -> None:
    lines = [f"{line},{word}" for line, word in zip(COLUMNS, ["split", "val", "train", "train", "val", "train"])]  # noqa: B905
    found = build(root, *lines)
    assert found.split("val").ids == ["a b", "d"]


def test_names_without_their_suffix(root: Path) -> None:
    """As lists of VOC have them; a dot in a name is no suffix."""
    add_picture(root, "größe/v1.2.jpg")
    named = ["image,cat,dog", "a b,1,0", "größe/Tag 1,1,1", "c.jpg,0,1", "./d,0,1", "größe/v1.2,1,1"]
    spelt = ["image,cat,dog", "a b.png,1,0", "größe/Tag 1.webp,1,1", "c.jpg,0,1", "d.bmp,0,1", "größe/v1.2.jpg,1,1"]
    assert build(root, *named).table.equals(build(root, *spelt).table)
    add_mask(root.parent / "masks" / "größe" / "v1.2.png")
    assert build(root, *named, masks=str(root.parent / "masks")).with_masks().ids == ["größe__v1.2"]


def test_names_without_suffix_that_mean_several_or_none(root: Path) -> None:
    add_picture(root, "c.png")
    (root / "d.txt").write_text("notes are no picture")
    several, twice, none = refusal(
        root, "image,cat,dog", "c,1,0", "d,1,1", "d.bmp,1,1", "E,0,1", "a b.png,1,1", "größe/Tag 1,1,1"
    )
    assert several.endswith("line 2: c may be c.jpg and c.png; write the one that is meant, with its suffix")
    assert "lines 3, 4: d.bmp comes 2 times; keep one" in twice
    assert none.endswith("no such picture, but there is e.tif; write e.tif where E is named")


# --- masks --------------------------------------------------------------------------------------------------


def test_masks_for_some_pictures(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    masks = root.parent / "my masks"
    add_mask(masks / "a b.png", 2)
    add_mask(masks / "größe" / "Tag 1.png")
    with caplog.at_level(logging.INFO, "beco"):
        found = build(root, *COLUMNS, masks=str(masks))
    assert found.with_masks().ids == ["a b", "größe__Tag 1"]
    assert found.mask("a b").max() == 2
    assert found.table.at["a b", "mask"] == "../my masks/a b.png"
    (masks / "größe" / "Tag 1.png").rename(masks / "größe__Tag 1.png")  # by its id, as predictions are named
    assert build(root, *COLUMNS, masks=str(masks)).with_masks().ids == ["a b", "größe__Tag 1"]


def test_a_mask_column(root: Path) -> None:
    add_mask(root / "masks" / "first.png")
    found = build(root, "image,cat,mask", "a b.png,1,masks/first.png", "c.jpg,1,", "d.bmp,0,")
    assert found.with_masks().ids == ["a b"]


def test_without_masks_it_says_so(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "beco"):
        build(root, *COLUMNS[:-1])
    said = caplog.text
    assert "nothing can be measured" in said
    assert "1 pictures show no class" in said
    assert "1 pictures are not in the CSV" in said


def test_wrong_masks(root: Path) -> None:
    masks = root.parent / "masks"
    add_mask(masks / "a b.png", 3)
    add_mask(masks / "c.png", size=(20, 12))
    Image.new("RGB", (20, 12)).save(masks / "d.png")
    value, size, colour = refusal(root, *COLUMNS, masks=str(masks))
    assert "a b.png" in value and "holds the value 3, but labels go from 0 to 2" in value
    assert "c.png" in size and "12×20" in size
    assert "d.png" in colour and "colours" in colour


def test_masks_beyond_the_classes_are_told_in_one_line(root: Path) -> None:
    """Of twenty classes, of which the CSV has two, and with whatever else is wrong."""
    masks = root.parent / "masks"
    for name, value in (("a b", 8), ("c", 20), ("größe/Tag 1", 8)):
        add_mask(masks / f"{name}.png", value)
    (root / "d.bmp").write_bytes(b"BM")
    beyond, damaged = refusal(root, *COLUMNS, masks=str(masks))
    assert beyond.startswith(f"3 masks, such as {masks / 'a b.png'}".replace(str(masks), str(root / "../masks")))
    assert "hold values beyond the classes (8, 20): labels go from 0 to 2 (and 255); correct the masks or" in beyond
    assert "d.bmp" in damaged


def test_a_folder_of_masks_for_other_pictures(root: Path) -> None:
    add_mask(root.parent / "masks" / "other.png")
    (line,) = refusal(root, *COLUMNS, masks=str(root.parent / "masks"))
    assert "no file there has the name of a picture, such as a b.png" in line


# --- splits -------------------------------------------------------------------------------------------------


def test_the_split_does_not_depend_on_the_order_of_rows(root: Path) -> None:
    first = build(root, *COLUMNS).table
    assert build(root, COLUMNS[0], *reversed(COLUMNS[1:])).table.equals(first)


def test_the_split_is_that_of_the_hashes() -> None:
    """By hand: `printf 'b' | sha256sum` begins 3e23, of `c` 2e7d, of `d` 18ac, of `a` ca97."""
    shown = {name: {"cat"} for name in "abcd"}
    assert folder.split_by_hash(shown, 0.5) == {"d", "c"}
    assert folder.split_by_hash(shown | {"d": {"dog"}}, 0.5) == {"c", "b"}  # the only dog stays for training


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(st.text("abcdef", min_size=1), st.sets(st.sampled_from("xyz")), min_size=2, max_size=40),
    st.floats(0.01, 0.99),
)
def test_training_sees_every_class(shown: dict[str, set[str]], share: float) -> None:
    val = folder.split_by_hash(shown, share)
    left = [names for name, names in shown.items() if name not in val]
    assert left and len(val) <= max(round(share * len(shown)), 1)
    assert set().union(*left) == set().union(*shown.values())
    assert folder.split_by_hash(dict(reversed(shown.items())), share) == val


# --- what is refused ----------------------------------------------------------------------------------------


def test_everything_wrong_is_told_at_once(root: Path) -> None:
    add_picture(root, "c.png")
    (root / "e.tif").write_bytes((root / "e.tif").read_bytes()[:200])
    lines = [
        "image,cat,dog,notes,bird",
        "a b.png,2,0,nice,0",  # 2: not 0/1
        "größe/Tag 1.webp,1,1,,0",
        "c.jpg,0,1,,0",
        "c.png,0,1,,0",  # 5: the id of c.jpg
        "d.bmp,0,0,,0",
        "d.bmp,0,0,,0",  # 7: again
        "e.tif,1,0,,0",  # damaged
        "gone.jpg,1,0,,0",  # missing
        "../out.jpg,1,0,,0",
        "/etc/out.jpg,1,0,,0",
        ",1,0,,0",
        "a b.png,1",
    ]
    found = refusal(root, *lines)
    for words in [
        ["line 2", "column `cat` holds `2`", "write 0 or 1"],
        ["line 2", "column `notes` holds `nice`", "remove the column"],
        ["no training picture shows `bird`"],
        ["c.jpg (line 4), c.png (line 5)", "the same id `c`", "rename"],
        ["lines 6, 7: d.bmp comes 2 times"],
        ["e.tif", "truncated or damaged"],
        ["gone.jpg", "no such picture"],
        ["line 10", "../out.jpg leaves the folder"],
        ["line 11", "/etc/out.jpg leaves the folder"],
        ["line 12", "no image"],
        ["line 13", "2 fields for 5 columns"],
    ]:
        assert sum(all(word in line for word in words) for line in found) == 1, (words, found)
    assert len(found) == 12  # and `notes` is no class that a training picture shows


@pytest.mark.parametrize(
    ("lines", "keys", "words"),
    [
        (["file,cat", "c.jpg,1"], {}, ["no column `image`", "there are: file, cat"]),
        (["image,cat"], {}, ["lists no pictures"]),
        (["image,split", "c.jpg,train"], {}, ["names no class"]),
        (["image,labels,cat", "c.jpg,cat,1", "d.bmp,cat,0"], {}, ["unknown column `cat` beside `labels`"]),
        (["image,cat,dgo", "c.jpg,1,1", "d.bmp,1,1"], {"classes": ["cat", "dog"]}, ["`dgo`", "did you mean `dog`?"]),
        (["image,labels", "c.jpg,cat;dgo", "d.bmp,cat;dog"], {"classes": ["cat", "dog"]}, ["line 2", "`dgo`", "`dog`"]),
        (["image,labels", "c.jpg,cat", "d.bmp,cat", "e.tif,Cat"], {}, ["`Cat` and `cat` differ by their case"]),
        (["image,labels", "c.jpg,[cat", "d.bmp,['cat'"], {}, ["line 3", "not a list of names"]),
        (["image,labels", "c.jpg,[cat]", "d.bmp,cat", "e.tif,cat"], {}, ["line 2", "not a list of names"]),
        (["image,cat,cat", "c.jpg,1,1", "d.bmp,1,1"], {}, ["column `cat` comes 2 times"]),
        ([",image,cat", "0,c.jpg,1", "1,d.bmp,1"], {}, ["a column has no name", "index=False"]),
        (["image,background", "c.jpg,1", "d.bmp,1"], {}, ["background is label 0", "leave it out"]),
        (["image,cat,split", "c.jpg,1,train", "d.bmp,1,test"], {}, ["line 3", "split is `test`"]),
        (["image,cat,split", "c.jpg,1,train", "d.bmp,1,train"], {}, ["no val picture"]),
        (["image,cat,split", "c.jpg,0,train", "d.bmp,1,val"], {}, ["no training picture shows `cat`"]),
        (["image,cat", "c.jpg,1"], {}, ["no picture can be spared for validation"]),
        (["image,cat,mask", "c.jpg,1,../m.png", "d.bmp,1,"], {}, ["mask ../m.png leaves its folder"]),
        (['image,cat', '"c.jpg,1'], {}, ["not readable as CSV"]),
        (["image,cat", "c.jpg,1"], {"labels": "none.csv"}, ["none.csv: no such file"]),
        (["image,cat", "c.jpg,1"], {"masks": "none"}, ["dataset.masks: none is not a folder"]),
    ],
)  # fmt: skip
def test_refusals(root: Path, lines: list[str], keys: dict[str, object], words: list[str]) -> None:
    found = refusal(root, *lines, **keys)
    assert any(all(word in line for word in words) for line in found), found


def test_a_root_that_is_no_folder(root: Path) -> None:
    (line,) = refusal(root / "nowhere", *COLUMNS)
    assert "nowhere is not a folder; set it to the folder of your pictures" in line


def test_other_encodings_are_refused(root: Path) -> None:
    (root.parent / "latin.csv").write_bytes("image,größe\nc.jpg,1\n".encode("latin-1"))
    (line,) = refusal(root, "unused", labels=str(root.parent / "latin.csv"))
    assert "not text in UTF-8" in line and "save it as `CSV UTF-8`" in line


def test_254_classes_and_no_more(root: Path) -> None:
    def lines(count: int) -> list[str]:
        return ["image," + ",".join(f"c{n}" for n in range(count)), *(f"{name}" + ",1" * count for name in PICTURES)]

    assert len(build(root, *lines(254)).classes) == 254
    (root.parent / "manifest.csv").unlink()
    assert any("255 classes; give 1 to 254" in line for line in refusal(root, *lines(255)))
