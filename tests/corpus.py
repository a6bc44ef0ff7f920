"""A corpus of bad (and of odd but good) input: generators, the command that meets each, and what has to come of it.

`test_corpus.py` runs them all and keeps `corpus.md`, the table of what is said. What other tests cover is not repeated
here: see `ELSEWHERE`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from corpus_inputs import (
    SIZE,
    Harm,
    as_mask,
    as_picture,
    cell,
    eps,
    folder,
    foreign,
    jpeg,
    labels,
    lists,
    loop,
    named,
    other_size,
    picture,
    png_header,
    prediction,
    replaced,
    table,
    tensor,
    text,
    tiny,
    train_list,
    trapped,
    weights,
    xml,
    yaml,
)
from PIL import Image


@dataclass(frozen=True)
class Case:
    """One input; `words` must all stand in the one line of the refusal, or `accepted` says what is checked instead."""

    name: str
    harm: Harm
    words: tuple[str, ...] = ()
    command: str = "manifest"
    accepted: Callable[[Path], None] | None = None


# --- what good input has to give ----------------------------------------------------------------------------


def read(at: Path, name: str = "a") -> np.ndarray:
    from beco.datasets import manifest

    return manifest.read(at / "out" / "new.csv", at / "data").image(name)


def pixels(expected: np.ndarray, within: int = 0) -> Callable[[Path], None]:
    """The picture `a` reads as this."""

    def check(at: Path) -> None:
        found = read(at)
        assert found.shape == expected.shape and found.dtype == np.uint8
        assert np.abs(found.astype(int) - expected).max() <= within

    return check


def listed(*names: str) -> Callable[[Path], None]:
    def check(at: Path) -> None:
        from beco.datasets import manifest

        found = manifest.read(at / "out" / "new.csv", at / "data").split("train")
        assert found.ids == list(names) and found.image(names[0]).shape == (*SIZE, 3)

    return check


def scored(at: Path) -> None:
    assert (at / "out" / "scores" / "metrics.json").is_file()


GREY16 = (np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) * 170).astype(np.uint16)
PALETTE = Image.fromarray(picture()).convert("P", palette=Image.Palette.ADAPTIVE)
BOMB = "<!DOCTYPE x [<!ENTITY a 'cat'>" + "".join(
    f"<!ENTITY {chr(98 + n)} '{f'&{chr(97 + n)};' * 10}'>" for n in range(9)
)
ALIASES = "a0: &a0 [x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)


def with_alpha() -> Image.Image:
    image = PALETTE.copy()
    image.info["transparency"] = bytes(range(0, 250, 5))
    return image


CASES = [
    # pictures
    Case("picture of no bytes", jpeg(b""), ("a.jpg", "truncated or damaged; copy it again")),
    Case("JPEG cut in the middle", jpeg(lambda b: b[: len(b) // 2]), ("a.jpg", "truncated or damaged; copy it again")),
    Case("JPEG cut by its last 30 bytes", jpeg(lambda b: b[:-30]), ("a.jpg", "truncated or damaged; copy it again")),
    Case("text called .jpg", jpeg(b"not a picture\n" * 20), ("a.jpg", "truncated or damaged; copy it again")),
    Case("PostScript called .jpg", eps, ("a.jpg", "truncated or damaged; copy it again")),
    Case("PNG that claims 20,000×20,000", jpeg(png_header(20_000, 20_000)), ("a.jpg", "100 million", "smaller")),
    Case("PNG that claims 2³¹−1 squared", jpeg(png_header(2**31 - 1, 2**31 - 1)), ("a.jpg", "100 million", "smaller")),
    Case("picture of 32-bit floats", as_picture(lambda: Image.new("F", (24, 16)), "TIFF"), ("a.jpg", "save it with 8")),
    Case("link to itself", loop("data/JPEGImages/a.jpg"), ("a.jpg", "symbolic links", "check the path")),
    Case("folder called .jpg", folder("data/JPEGImages/a.jpg"), ("a.jpg", "directory", "check the path")),
    Case("1×1 picture", tiny, accepted=pixels(np.array([[[9, 8, 7]]]), 3)),
    Case("CMYK JPEG", as_picture(lambda: Image.new("CMYK", (24, 16), (0, 255, 255, 0)), "JPEG"),
         accepted=pixels(np.full((*SIZE, 3), (255, 0, 0)), 3)),
    Case("16-bit grey", as_picture(lambda: Image.fromarray(GREY16), "PNG"),
         accepted=pixels(np.repeat((GREY16 // 256)[..., None], 3, axis=2))),
    Case("grey JPEG", as_picture(lambda: Image.new("L", (24, 16), 77), "JPEG"),
         accepted=pixels(np.full((*SIZE, 3), 77), 1)),
    Case("palette with alpha", as_picture(with_alpha, "PNG"), accepted=pixels(np.array(PALETTE.convert("RGB")))),
    Case("RGB with alpha", as_picture(lambda: Image.fromarray(np.dstack([picture(), picture()[..., 0]])), "PNG"),
         accepted=pixels(picture())),
    Case("PNG called .jpg", as_picture(lambda: Image.fromarray(picture()), "PNG"), accepted=pixels(picture())),
    Case("space in a name", named("my cat"), accepted=listed("my cat", "b")),
    Case("letters beyond ASCII in a name", named("Käтзе猫"), accepted=listed("Käтзе猫", "b")),
    Case("shell in a name", named("$(touch x);'\""), accepted=listed("$(touch x);'\"", "b")),
    # lists
    Case("list with Windows line ends and a BOM", train_list(b"\xef\xbb\xbfa\r\nb\r\n"), accepted=listed("a", "b")),
    Case("list with blank lines", train_list("\n\na\n \nb\n\n"), accepted=listed("a", "b")),
    Case("list in UTF-16", train_list("a\nb\n".encode("utf-16")), ("train.txt", "cannot be read as text", "copy it")),
    Case("`..` in a list", train_list("..\nb\n"), ("train.txt", "no name of a picture", "write the file's name")),
    Case("path out of the folder in a list", train_list("../../secret.jpg x\n"), ("secret.xml", "no such annotation")),
    Case("list that is a link to itself", loop("data/ImageSets/Segmentation/train.txt"), ("train.txt", "no such list")),
    # annotations
    Case("XML of no bytes", xml(""), ("a.xml", "not readable as XML", "copy it again")),
    Case("XML with a billion laughs", xml(f"{BOMB}]><annotation><object><name>&j;</name></object></annotation>"),
         ("a.xml", "defines XML entities", "remove them")),
    Case("XML with an external entity",
         xml('<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><annotation><object><name>&e;</name></object>'
             "</annotation>"),
         ("a.xml", "defines XML entities", "remove them")),
    Case("XML whose objects have no names", xml("<annotation><object><size/></object></annotation>"),
         ("a.xml", "unknown class ``", "did you mean")),
    Case("XML that declares a wrong encoding", xml(b'<?xml version="1.0" encoding="utf-8"?><a>\xff\xfe</a>'),
         ("a.xml", "not readable as XML", "copy it again")),
    Case("class name in other capitals", xml("<annotation><object><name>Cat</name></object></annotation>"),
         ("a.xml", "unknown class `Cat`", "did you mean `cat`?")),
    Case("class that only validation shows", lambda at: lists(at / "data", train="b\n"), accepted=listed("b")),
    # masks
    Case("mask of no bytes", text("data/SegmentationClass/a.png", b""), ("a.png", "truncated or damaged")),
    Case("mask of 16 bits", as_mask(lambda: Image.fromarray(np.ones(SIZE, np.uint16))), ("a.png", "I;16", "8-bit")),
    Case("mask of one bit", as_mask(lambda: Image.new("1", (24, 16))), ("a.png", "mode 1", "8-bit")),
    Case("mask with alpha", as_mask(lambda: Image.new("LA", (24, 16))), ("a.png", "mode LA", "8-bit")),
    Case("mask kept as JPEG", as_mask(lambda: Image.fromarray(picture()[..., 0]), "JPEG"),
         ("a.png", "labels go from 0 to 2", "correct the mask")),
    Case("mask of 20,000×20,000", text("data/SegmentationClass/a.png", png_header(20_000, 20_000)),
         ("a.png", "100 million", "smaller")),
    Case("mask of 1×1", as_mask(lambda: Image.new("L", (1, 1))), ("a.png", "is 1×1, its picture 24×16", "same size")),
    # manifests
    Case("manifest with a BOM", table(lambda b: b"\xef\xbb\xbf" + b), command="evaluate", accepted=scored),
    Case("manifest with Windows line ends", table(lambda b: b.replace(b"\n", b"\r\n")), command="evaluate",
         accepted=scored),
    Case("manifest with semicolons", table(lambda b: b.replace(b",", b";")), ("m.csv", "lacks the column"), "evaluate"),
    Case("manifest in UTF-16", table(lambda b: b.decode().encode("utf-16")), ("m.csv", "not readable as CSV"),
         "evaluate"),
    Case("manifest with a row too long", table(lambda b: b + b"x,val,x.jpg,,1,1,1,1,1,1,1\n"),
         ("m.csv", "not readable as CSV", "mend it"), "evaluate"),
    Case("manifest with a row too short", table(lambda b: b + b"x,val,x.jpg\n"), ("m.csv", "width", "line 5"),
         "evaluate"),
    Case("manifest that is a folder", folder("m.csv"), ("m.csv", "Is a directory", "check the path"), "evaluate"),
    Case("manifest with a column twice", table(lambda b: b.replace(b"cat,dog", b"cat,cat")),
         ("m.csv", "two columns cat", "keep one"), "evaluate"),
    Case("width NaN", cell("width", "nan"), ("m.csv", "width is `nan` in line 2", "write a whole number"), "evaluate"),
    Case("width 1e400", cell("width", "1e400"), ("m.csv", "width is `1e400` in line 2", "write a whole"), "evaluate"),
    Case("label -1", cell("cat", "-1"), ("m.csv", "cat is `-1` in line 2", "write 0 or 1"), "evaluate"),
    Case("image out of the root", cell("image", "../../etc/a.jpg"), ("m.csv", "line 2", "inside the dataset's root"),
         "evaluate"),
    Case("image at an absolute path", cell("image", "/etc/a.jpg"), ("m.csv", "line 2", "inside the dataset's root"),
         "evaluate"),
    Case("mask at an absolute path", cell("mask", "/etc/a.png"), ("m.csv", "line 2", "relative to the dataset's root"),
         "evaluate"),
    Case("id that leads out of a folder", cell("image_id", "../../a"), ("m.csv", "line 2", "without slashes"),
         "evaluate"),
    # settings
    Case("YAML with a key twice", yaml("format: voc\nroot: a\nroot: b\n"), ("s.yaml", "`root` comes twice"),
         "settings"),
    Case("YAML with tabs", yaml("format: voc\n\troot: a\n"), ("s.yaml", "not valid YAML", "\\t"), "settings"),
    Case("YAML with NaN", yaml("{format: shapes, shapes: {size: .nan}}"), ("s.yaml", "shapes.size", "nan"), "settings"),
    Case("YAML with a huge number", yaml("{format: shapes, shapes: {size: 1.0e+400}}"), ("s.yaml", "shapes.size"),
         "settings"),
    Case("YAML with a list for a word", yaml("{format: [voc]}"), ("s.yaml", "format", "'shapes', 'voc'"), "settings"),
    Case("YAML with a number for a key", yaml("{1: 2}"), ("s.yaml", "1"), "settings"),
    Case("YAML that makes objects", yaml("!!python/object/apply:os.system [touch trap]"),
         ("s.yaml", "not valid YAML", "python/object"), "settings"),
    Case("YAML of aliases for 9⁹ words", yaml(ALIASES + "format: *a9\n"), ("s.yaml", "format"), "settings"),
    Case("YAML nested 5,000 deep", yaml("[" * 5000), ("s.yaml", "not valid YAML"), "settings"),
    Case("YAML in UTF-16", yaml("{format: voc}".encode("utf-16")), ("s.yaml", "not text in UTF-8"), "settings"),
    Case("no classes", yaml("{format: voc, root: data, classes: []}"), ("s.yaml", "classes", "at least 1"),
         "settings"),
    # weights
    Case("NaN in .safetensors", weights("w.safetensors", float("nan")), ("w.safetensors", "NaN", "earlier checkpoint"),
         "train-classifier"),
    Case("infinity in .pth", weights("w.pth", float("inf")), ("w.pth", "infinity", "earlier checkpoint"),
         "train-classifier"),
    Case("code in a .pth (zip)", trapped("w.pth", True), ("w.pth", "holds more than tensors", "save its state_dict"),
         "train-classifier"),
    Case("code in a .pth (bare pickle)", trapped("w.pth", False), ("w.pth", "holds more than tensors", "save its"),
         "train-classifier"),
    Case("text called .safetensors", text("w.safetensors", "weights\n" * 20),
         ("w.safetensors", "not a readable weights file"), "train-classifier"),
    Case(".safetensors whose header claims 2⁶³ bytes", text("w.safetensors", b"\xff" * 7 + b"\x7f" + b"{}"),
         ("w.safetensors", "not a readable weights file", "copy it again"), "train-classifier"),
    Case("int8 in .pth", tensor(lambda: torch.ones(2, dtype=torch.int8)), ("w.pth", "int8", "save"),
         "train-classifier"),
    Case("sparse in .pth", tensor(lambda: torch.eye(2).to_sparse()), ("w.pth", "sparse", "save"), "train-classifier"),
    Case("meta in .pth", tensor(lambda: torch.ones(2, device="meta")), ("w.pth", "no content", "save"),
         "train-classifier"),
    Case("quantised in .pth", tensor(lambda: torch.quantize_per_tensor(torch.ones(2), 1, 0, torch.qint8)),
         ("w.pth", "quantised", "save"), "train-classifier"),
    Case("a list in .pth", tensor(lambda: [torch.ones(2)]), ("w.pth", "no table of tensors", "list", "save"),
         "train-classifier"),
    # artifacts
    Case("labels.h5 of another manifest", labels(lambda file: file.move("label/a", "label/z")),
         ("labels.h5", "no label for a", "run its stage again"), "evaluate-labels"),
    Case("labels.h5 without confidence", labels(lambda file: file.__delitem__("confidence")),
         ("labels.h5", "no confidence for a", "run its stage again"), "evaluate-labels"),
    Case("labels.h5 of an older version", labels(lambda file: file["confidence/a"].attrs.__delitem__("steps")),
         ("labels.h5", "made by an older version", "run its stage again"), "evaluate-labels"),
    Case("labels.h5 that is a folder", folder("labels.h5"), ("labels.h5", "Is a directory", "check the path"),
         "evaluate-labels"),
    Case("labels of another size", labels(lambda file: other_size(file, "a")),
         ("a", "3×3", "24×16"), "evaluate-labels"),
    Case("labels beyond the classes", labels(lambda file: replaced(file, "label/a", np.full(SIZE, 9, np.uint8))),
         ("a", "9"), "evaluate-labels"),
    Case("prediction that is missing", lambda at: (at / "predictions" / "v.png").unlink(),
         ("v.png", "no such prediction", "run `beco predict`"), "evaluate"),
    Case("prediction of another size", prediction(np.zeros((3, 3), np.uint8)), ("v", "3"), "evaluate"),
    Case("prediction beyond the classes", prediction(np.full(SIZE, 9, np.uint8)), ("v", "9"), "evaluate"),
    Case("foreign labels cut short", foreign("a.npy", b"\x93NUMPY\x01\x00"), ("foreign", "a.npy"), "import-labels"),
    Case("no scores to make tables of", lambda at: None, ("run", "metrics.json", "run the stage"), "tables"),
    Case("scores that are no JSON", text("run/metrics.json", "{"), ("metrics.json", "not readable as JSON"), "tables"),
]  # fmt: skip

ELSEWHERE = [
    ("JPEG cut at any byte", "test_corpus.py"),
    ("EXIF orientations 1 to 8, broken EXIF, a mask drawn on the picture as stored", "test_exif.py"),
    ("missing pictures, lists, annotations and masks; empty lists; ids twice; a picture in train and val",
     "test_datasets.py"),
    ("masks in RGB, of another size, with values above the classes", "test_datasets.py"),
    ("XML without objects, with an unknown class, malformed", "test_datasets.py"),
    ("manifests without columns or rows, ids twice, wrong 0/1 columns", "test_datasets.py"),
    ("unknown and wrong keys of the configuration", "test_config.py"),
    ("HDF5 that is text, cut short, of a later version; a flipped bit at any place", "test_store.py"),
    ("checkpoints that are cut, foreign, of other settings, or hold code", "test_engine.py"),
    ("weights that do not fit, hold code", "test_encoders.py"),
    ("pickles of other stage-one programs: code, arrays beyond their storage", "test_imports.py"),
    ("full disks, read-only results, kills", "test_kills.py, test_failures.py"),
]  # fmt: skip
