"""Free text in the CSV of labels: what is a name, what only looks like one, and the mend that is told."""

from __future__ import annotations

import csv
import logging
import unicodedata
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from beco.config import Dataset
from beco.datasets import formats, manifest
from beco.datasets.sheet import Sheet, read_sheet
from beco.errors import Problems, UserError

PLAIN = ["cat", "dog", "cat;dog", "cat|dog", "traffic light"]


def build(folder: Path, rows: list[list[str]], **keys: object) -> manifest.Manifest:
    """The manifest of a CSV of these rows, and of a picture for each that names one."""
    for row in rows[1:]:
        (folder / "pictures").mkdir(exist_ok=True)
        Image.new("RGB", (20, 12)).save(folder / "pictures" / row[0])
    with (folder / "labels.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(rows)
    section = {"format": "folder", "root": str(folder / "pictures"), "labels": str(folder / "labels.csv")}
    return formats.build(Dataset.model_validate(section | keys), folder / "manifest.csv")


def labelled(folder: Path, *cells: str, **keys: object) -> manifest.Manifest:
    return build(folder, [["image", "labels"], *([f"{n}.png", cell] for n, cell in enumerate(cells))], **keys)


def refused(folder: Path, rows: list[list[str]], **keys: object) -> list[str]:
    with pytest.raises(UserError) as caught:
        build(folder, rows, **keys)
    assert not (folder / "manifest.csv").exists()
    found = caught.value.lines if isinstance(caught.value, Problems) else [str(caught.value)]
    assert not any("\n" in line for line in found)
    return found


def refused_label(folder: Path, cell: str, *others: str, **keys: object) -> str:
    """The one line that a cell of `labels` on line 2 is refused with, beside sound ones."""
    cells = [cell, *PLAIN, *others]
    (line,) = refused(folder, [["image", "labels"], *([f"{n}.png", text] for n, text in enumerate(cells))], **keys)
    return line


@pytest.mark.parametrize(
    ("cell", "mend"),
    [
        ("cat, dog", "write cat;dog "),
        ("cat,dog", "write cat;dog "),
        ("cat、dog", "write cat;dog "),
        ("cat; dog；bird", "write dog;bird "),
        ("cat dog", "write cat;dog,"),
        ("cat/dog", "write cat;dog,"),
        ("cat and dog", "write cat;dog,"),
        ("Cat & Dog", "write cat;dog,"),
        ("cat_dog", "write cat;dog,"),
        ("traffic light cat", "write traffic light;cat,"),
        ("cat traffic  light", "write cat;traffic light,"),
        ('{"choices":["cat","dog"]}', "write cat;dog "),
        ('{"choices": ["cat", {"deep": ["dog"]}]}', "write cat;dog "),
        ("('cat','dog')", "write cat;dog "),
        ("{'cat'}", "write cat "),
        ("(cat)", "write cat "),
        ("<cat>", "write cat "),
        ('"cat"', "write cat "),
        ("'cat'", "write cat "),
        ("“cat”", "write cat "),
        ("['cat, dog']", "write cat;dog "),
        ("[['cat'], ['dog']]", "write cat"),
        ("(1, 2)", "write 1;2 "),
        ("[", "not a list of names"),
        ("[" * 5000 + "]" * 5000, "not a list of names"),
        ("[{[]: 1}]", "not a list of names"),
        ("['cat' 'dog']", "not a list of names"),
        ("['cat'\n 'dog']", "not a list of names"),
        ("('cat' 'dog')", "write cat;dog "),
        ("[1, 0]", "write the names alone"),
        ("[True, False]", "write the names alone"),
        ("['cat', 0.9]", "write the names alone"),
        ("0.9", "write the names alone"),
        ("cat=1;dog=0", "write the names alone"),
        ("cat:0.93", "write the names alone"),
        ("cat 93%", "write the names alone"),
        ("cat – dog", "write cat;dog,"),
        ("cat، dog", "write cat;dog "),
        ("cat・dog", "write cat;dog,"),
        ("cat·dog", "write cat;dog,"),
        ("cat／dog", "write cat;dog,"),
        ("cat＆dog", "write cat;dog,"),
        ("cat und dog", "write cat;dog,"),
        ("cat, and dog", "write cat;"),
        ("dog y traffic light", "write dog;traffic light,"),
        ("#cat #dog", "write cat;dog,"),
        ("cat\ndog", "write cat;dog "),
        ("cat\tdog", "write cat;dog "),
        ("nan", "leave the cell empty"),
        ("None", "leave the cell empty"),
        ("NULL", "leave the cell empty"),
        ("N/A", "leave the cell empty"),
        ("cat;nan", "leave the cell empty"),
        ("[None]", "leave the cell empty"),
        ("background", "leave it out"),
        ("_Background_", "leave it out"),
        ("Dog", "differ by their case alone"),
        ("dog.", "`dog.` and `dog` look like one class"),
        ("ｄｏｇ", "look like one class; write one of them, or list both in dataset.classes"),
        ("traffic-light", "`traffic light` and `traffic-light` look like one class"),
        ("traffic_light", "look like one class"),
        ("Trafficlight", "look like one class"),
        ("traffic–light", "look like one class"),
    ],
)
def test_what_is_no_name(tmp_path: Path, cell: str, mend: str) -> None:
    line = refused_label(tmp_path, cell)
    assert "labels.csv: line " in line and mend in line
    assert len(line) < len(str(tmp_path)) + 300


@pytest.mark.parametrize(
    "name", ["traffic light", "potted plant", "hot dog", "tv/monitor", "bird's nest", "black-and-white cat", "dog_bed",
             "3", "class 3", "7-11", "C#", "A-", "A+", "Type: I", "v1.5",
             "Salt and pepper", "Père David’s deer", "T-shirt", "C++", "日本 犬"],
)  # fmt: skip
def test_what_is_a_name(tmp_path: Path, name: str) -> None:
    """As long as it is not made of names that other cells have."""
    assert labelled(tmp_path, name, "cat;dog", f"dog;{name}", "dog").classes == sorted(["cat", "dog", name])


def test_names_of_the_settings_are_names_whatever_they_hold(tmp_path: Path) -> None:
    classes = ["building, edifice", "bat (animal)", "cat dog", "nan", "cat", "dog"]
    cells = ["building, edifice;cat", "bat (animal)", "cat dog", "nan", "dog", "dog"]
    assert labelled(tmp_path, *cells, *cells, classes=classes).classes == classes
    (tmp_path / "manifest.csv").unlink()
    assert "unknown class `cat and dog`; write cat;dog," in refused_label(
        tmp_path, "cat and dog", classes=["cat", "dog", "traffic light"]
    )


def test_names_that_look_alike_are_told_once_each(tmp_path: Path) -> None:
    cells = ["hot-dog", "hot dog", "hot_dog", "hotdog", "hot-dog", "hotdog"]
    said = refused(tmp_path, [["image", "labels"], *([f"{n}.png", cell] for n, cell in enumerate(cells))])
    assert [line.partition(": `")[2].split("`")[0] for line in said] == ["hot-dog", "hot dog", "hot_dog"]
    assert all("and `hotdog` look like one class" in line for line in said)
    classes = ["hot-dog", "hot dog", "hot_dog", "hotdog"]
    assert labelled(tmp_path, *cells, *cells, classes=classes).classes == classes  # as the mend says


def test_numbers_are_names_where_the_settings_have_them(tmp_path: Path) -> None:
    assert labelled(tmp_path, "[1, 2]", "[1]", "2;1", "0.5", "0.5", classes=["1", "2", "0.5"]).classes[0] == "1"
    (tmp_path / "manifest.csv").unlink()
    assert labelled(tmp_path, "1", "2", "['1', '2']", "1").classes == ["1", "2"]
    (tmp_path / "manifest.csv").unlink()
    assert labelled(tmp_path, "1-1", "11", "1-1", "11").classes == ["1-1", "11"]


def test_names_are_brought_to_one_spelling(tmp_path: Path) -> None:
    apart = unicodedata.normalize("NFD", "Bär")
    found = labelled(tmp_path, "Bär", f"{apart};dog", "\u200bdog\u00a0", "dog", "traffic\u00a0light", "traffic  light")
    assert found.classes == ["Bär", "dog", "traffic light"]
    columns = [["image", apart, "dog"], ["0.png", "1", "0"], ["1.png", "1", "1"], ["2.png", "0", "1"]]
    assert build(tmp_path, columns, classes=["dog", "Bär"]).classes == ["dog", "Bär"]


@pytest.mark.parametrize("cell", ["cat, dog", "cat dog", "cat;dog", "[cat"])
def test_the_mend_fits_what_parts_the_cells(tmp_path: Path, cell: str) -> None:
    labelled(tmp_path, "cat", "dog", "cat")
    lines = ["image;labels", f"0.png;{cell}", "1.png;dog", "2.png;cat"]
    (tmp_path / "own.csv").write_text("\n".join(lines))
    section = {"format": "folder", "root": str(tmp_path / "pictures"), "labels": str(tmp_path / "own.csv")}
    with pytest.raises(Problems) as caught:
        formats.build(Dataset.model_validate(section), tmp_path / "other.csv")
    assert any("line 2: " in line and "cat|dog" in line for line in caught.value.lines)
    (tmp_path / "own.csv").write_text("\n".join(lines).replace(cell, "cat|dog"))  # as the mend says
    assert formats.build(Dataset.model_validate(section), tmp_path / "other.csv").classes == ["cat", "dog"]


def test_names_parted_by_bare_commas(tmp_path: Path) -> None:
    (line,) = refused(tmp_path, [["image", "labels"], ["0.png", "cat"], ["1.png", "cat"], ["2.png", "cat", " dog"]])
    assert "line 4: 3 fields for 2 columns; write several labels as cat;dog" in line


def test_many_cells_alike_are_one_line(tmp_path: Path) -> None:
    line = refused_label(tmp_path, "cat, dog", "dog, cat", "cat, dog, cow")
    assert "`cat, dog` holds" in line and "(and 2 more like it)" in line


def test_the_classes_found_are_told_with_their_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "beco"):
        labelled(tmp_path, *PLAIN, "")
    assert "1 cat (3), 2 dog (3), 3 traffic light (1)" in caplog.text


@given(st.text(st.sampled_from("cat dog,;|[](){}'\"\n\\é&/:"), max_size=12))
def test_any_cell_is_a_name_or_has_a_reason(tmp_path_factory: pytest.TempPathFactory, cell: str) -> None:
    path = tmp_path_factory.mktemp("sheet") / "labels.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([["image", "labels"], ["a.png", cell], ["b.png", "cat"], ["c.png", "dog"]])
    sheet = read_sheet(path, None)
    assert {"cat", "dog"} <= set(sheet.classes)
    for name in sheet.classes:
        assert not set(name) & set(',;|[](){}"\n') and name == name.strip()


# --- columns ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "mend"),
    [
        ("1.000000", "write 1 for it"),
        ("0.0000", "write 0 for it"),
        ("TRUE", "write 1 for it"),
        ("no", "write 0 for it"),
        ("", "write 0 for it"),
        ("nan", "write 0 for it"),
        ("2", "write 0 or 1"),
        ("0.7", "write 0 or 1"),
        ("inf", "write 0 or 1"),
    ],
)
def test_numbers_that_are_not_0_or_1(tmp_path: Path, value: str, mend: str) -> None:
    rows = [["image", "cat"], ["0.png", "1"], ["1.png", value], ["2.png", "1"], ["3.png", "0"]]
    (line,) = refused(tmp_path, rows)
    assert "line 3: column `cat` holds" in line and mend in line


@pytest.mark.parametrize(
    ("word", "mend"),
    [
        ("Train", "write train"), ("TRAINING", "write train"), ("Val", "write val"), ("valid", "write val"),
        ("validation", "write val"), ("test", "write val"), ("0", "write train or val"), ("", "write train or val"),
    ],
)  # fmt: skip
def test_words_for_a_split(tmp_path: Path, word: str, mend: str) -> None:
    rows = [["image", "cat", "split"], ["0.png", "1", "train"], ["1.png", "1", "val"], ["2.png", "1", word]]
    (line,) = refused(tmp_path, rows)
    assert f"line 4: split is `{word}`; {mend}" in line and line.endswith(mend)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([["image", "label"], ["0.png", "cat"], ["1.png", "cat"]], ["`label` holds `cat`", "call the column `labels`"]),
        ([["image", "cat", "Split"], ["0.png", "1", "train"], ["1.png", "1", "val"]], ["small letters, `split`"]),
        ([["image", "labels", "Split"], ["0.png", "cat", "val"], ["1.png", "cat", "train"]], ["write `split`"]),
        ([["image", "Background", "cat"], ["0.png", "1", "1"], ["1.png", "1", "1"]], ["`Background`", "leave it out"]),
    ],
)
def test_names_of_columns(tmp_path: Path, rows: list[list[str]], words: list[str]) -> None:
    assert any(all(word in line for word in words) for line in refused(tmp_path, rows))


def written(folder: Path, text: str) -> Sheet:
    """What is read of a CSV of this text."""
    (folder / "labels.csv").write_text(text, encoding="utf-8")
    found = read_sheet(folder / "labels.csv", None)
    manifest.refuse(found.problems, "")
    return found


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ('image;"cat, big";dog\na.png;1;0\n', ["cat, big", "dog"]),
        ('"cat, big, old";image\n1;a.png\n', ["cat, big, old"]),
        ("image\tcat;x\ta,b\na.png\t1\t0\n", ["cat;x", "a,b"]),
        ("sep=;\nimage;cat\na.png;1\n", ["cat"]),
        ("sep=\t\nimage\tlabels\na.png\tcat\n", ["cat"]),
        ('"sep=,"\nimage,labels\na.png,cat|dog\n', ["cat", "dog"]),
    ],
)
def test_what_parts_the_cells(tmp_path: Path, text: str, classes: list[str]) -> None:
    assert written(tmp_path, text).classes == classes


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image|labels\na.png|cat\n", "parted by `|`; save it with commas"),
        ("sep=|\nimage|labels\na.png|cat\n", "parted by `|`; save it with commas"),
        ("sep=;\nimage;cat\na.png;2\n", "line 3: column `cat` holds `2`"),
        ("IMAGE,Labels\na.png,cat\n", "write `image` for `IMAGE`, `labels` for `Labels`, in small letters"),
        ("picture,labels\na.png,cat\n", "(there are: picture, labels)"),
        ("labels\ncat\n", "(there are: labels)"),
    ],
)
def test_headers_that_are_none(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        written(tmp_path, text)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("first", ["[Content_Types].xml", "docProps/app.xml", "xl/workbook.xml", None])
def test_a_spreadsheet_is_to_be_saved_as_csv(tmp_path: Path, first: str | None) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(bytes.fromhex("d0cf11e0a1b11ae1") + bytes(600))  # of before 2007
    if first:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(first, "<x/>" * 400)
    with pytest.raises(UserError, match=r"labels\.csv: is an Office file \(a spreadsheet, .*; save it as CSV UTF-8$"):
        read_sheet(path, None)


@pytest.mark.parametrize("encoding", ["utf-32", "utf-32-le", "utf-32-be"])
def test_utf32_is_named_as_such(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("image,labels\na.png,größe\n", encoding=encoding)
    with pytest.raises(UserError, match=r"not text in UTF-8 \(it looks like UTF-32\); save it as"):
        read_sheet(path, None)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16"])
@pytest.mark.parametrize("name", ["cat", "größe"])
def test_utf16_is_named_as_such(tmp_path: Path, encoding: str, name: str) -> None:
    labelled(tmp_path, "cat", "cat")
    (tmp_path / "utf16.csv").write_bytes(f"image,labels\n0.png,{name}\n1.png,{name}\n".encode(encoding))
    with pytest.raises(UserError, match=r"utf16\.csv: not text in UTF-8 \(it looks like UTF-16\); save it as"):
        labelled(tmp_path, "cat", "cat", labels=str(tmp_path / "utf16.csv"))


@pytest.mark.parametrize("name", ["sub\\a.png", "a\nb.png"])
def test_names_of_pictures_that_cannot_be_used(tmp_path: Path, name: str) -> None:
    """Even where there is such a file, and before anything is written."""
    rows = [["image", "cat"], ["0.png", "1"], ["1.png", "1"], [name, "1"]]
    (line,) = refused(tmp_path, rows)
    assert "labels.csv: line " in line


def test_a_mask_of_another_case_is_named_unless_it_is_anothers(tmp_path: Path) -> None:
    rows = [["image", "cat"], ["a.png", "1"], ["A.png", "1"], ["b.png", "1"]]
    masks = tmp_path / "masks"
    masks.mkdir()
    Image.new("L", (20, 12), 1).save(masks / "A.png")
    assert build(tmp_path, rows, masks=str(masks)).with_masks().ids == ["A"]
    (tmp_path / "manifest.csv").unlink()
    Image.new("L", (20, 12), 1).save(masks / "b.PNG", format="PNG")
    (line,) = refused(tmp_path, rows, masks=str(masks))
    assert "b.png: no such mask, but there is b.PNG; rename it to b.png" in line


@pytest.mark.parametrize("name", ["mask", "image", "split", "image_id", "width"])
@pytest.mark.parametrize("in_cells", [True, False], ids=["labels", "dataset.classes"])
def test_a_class_that_is_called_as_a_column(tmp_path: Path, name: str, in_cells: bool) -> None:
    """It is refused with whatever else is wrong, and with nothing that only follows from its name."""
    rows = [["image", "labels"], *([f"{n}.png", text] for n, text in enumerate([name, "cat", f"cat;{name}", name]))]
    said = refused(tmp_path, rows, **({} if in_cells else {"classes": ["cat", name]}))
    assert len(said) == 1 and f"{name} is reserved; choose another name for the class" in said[0]


@pytest.mark.parametrize("values", [["0", "1"], ["1.0", "0.0"], ["1", ""]])
def test_a_column_mask_of_0_and_1_is_no_column_of_paths(tmp_path: Path, values: list[str]) -> None:
    rows = [["image", "mask", "no_mask"], *([f"{n}.png", values[n % 2], str(n % 2)] for n in range(6))]
    (line,) = refused(tmp_path, rows)
    assert "line 1: column `mask` holds" in line and "`mask` names a path; rename the class" in line
