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
    all_masks,
    as_mask,
    as_picture,
    cell,
    cells,
    coco,
    eps,
    folder,
    foreign,
    jpeg,
    labels,
    link,
    lists,
    loop,
    named,
    other_size,
    picture,
    pictures_as_masks,
    png_header,
    prediction,
    renamed,
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


def classes_found(*names: str) -> Callable[[Path], None]:
    def check(at: Path) -> None:
        from beco.datasets import manifest

        assert manifest.read(at / "out" / "new.csv", at / "data").classes == list(names)

    return check


def scored(at: Path) -> None:
    assert (at / "out" / "scores" / "metrics.json").is_file()


GREY16 = (np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) * 170).astype(np.uint16)
PALETTE = Image.fromarray(picture()).convert("P", palette=Image.Palette.ADAPTIVE)
BOMB = "<!DOCTYPE x [<!ENTITY a 'cat'>" + "".join(
    f"<!ENTITY {chr(98 + n)} '{f'&{chr(97 + n)};' * 10}'>" for n in range(9)
)
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d" * 32 + b"\nsize 12345\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body></body></html>\n"
HEIC = b"\x00\x00\x00\x24ftypheic\x00\x00\x00\x00mif1heic" + bytes(200)
ALIASES = "a0: &a0 [x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)


def with_alpha() -> Image.Image:
    image = PALETTE.copy()
    image.info["transparency"] = bytes(range(0, 250, 5))
    return image


CASES = [
    # pictures
    Case("picture of no bytes", jpeg(b""), ("a.jpg", "is empty", "copy it again")),
    Case("JPEG cut in the middle", jpeg(lambda b: b[: len(b) // 2]), ("a.jpg", "truncated or damaged; copy it again")),
    Case("JPEG cut by its last 30 bytes", jpeg(lambda b: b[:-30]), ("a.jpg", "truncated or damaged; copy it again")),
    Case("text called .jpg", jpeg(b"not a picture\n" * 20), ("a.jpg", "is a text")),
    Case("PostScript called .jpg", eps, ("a.jpg", "PostScript", "not read; convert it")),
    Case("HEIC called .jpg", jpeg(HEIC), ("a.jpg", "HEIC", "not read; convert it")),
    Case("Git-LFS pointer called .jpg", jpeg(LFS), ("a.jpg", "Git-LFS pointer", "`git lfs pull`")),
    Case("web page called .jpg", jpeg(PAGE), ("a.jpg", "an HTML page", "download it again")),
    Case("server's error in JSON called .jpg", jpeg(b'{"error": "not found"}\n'), ("a.jpg", "JSON", "download it")),
    Case("server's error in XML called .jpg", jpeg(b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>'),
         ("a.jpg", "XML", "download it")),
    Case("ZIP archive called .jpg", jpeg(b"PK\x03\x04" + bytes(60)), ("a.jpg", "ZIP archive", "unpack it")),
    Case("bytes of no format called .jpg", jpeg(bytes(range(128, 256))), ("a.jpg", "no format", "convert it")),
    Case("link to nothing called .jpg", link("data/JPEGImages/a.jpg", "gone.jpg"), ("a.jpg", "link to gone.jpg")),
    Case("link of git-annex called .jpg", link("data/JPEGImages/a.jpg", "../.git/annex/objects/x/a.jpg"),
         ("a.jpg", "`git annex get`")),
    Case("PNG that claims 20,000×20,000", jpeg(png_header(20_000, 20_000)), ("a.jpg", "100 million", "smaller")),
    Case("PNG that claims 2³¹−1 squared", jpeg(png_header(2**31 - 1, 2**31 - 1)), ("a.jpg", "100 million", "smaller")),
    Case("picture of 32-bit floats", as_picture(lambda: Image.new("F", (24, 16)), "TIFF"), ("a.jpg", "save it with 8")),
    Case("link to itself", loop("data/JPEGImages/a.jpg"), ("a.jpg", "symbolic links", "check the path")),
    Case("folder called .jpg", folder("data/JPEGImages/a.jpg"), ("a.jpg", "is a folder", "name a file")),
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
    Case("AVIF called .jpg", as_picture(lambda: Image.new("RGB", (24, 16), (200, 40, 40)), "AVIF"),
         accepted=pixels(np.full((*SIZE, 3), (200, 40, 40)), 4)),
    Case("ICO called .jpg", as_picture(lambda: Image.new("RGB", (16, 16), (200, 40, 40)), "ICO"),
         accepted=pixels(np.full((16, 16, 3), (200, 40, 40)))),
    Case("space in a name", named("my cat"), accepted=listed("my cat", "b")),
    Case("letters beyond ASCII in a name", named("Käтзе猫"), accepted=listed("Käтзе猫", "b")),
    Case("shell in a name", named("$(touch x);'\""), accepted=listed("$(touch x);'\"", "b")),
    # lists
    Case("list with Windows line ends and a BOM", train_list(b"\xef\xbb\xbfa\r\nb\r\n"), accepted=listed("a", "b")),
    Case("list with blank lines", train_list("\n\na\n \nb\n\n"), accepted=listed("a", "b")),
    Case("list in UTF-16", train_list("a\nb\n".encode("utf-16")), ("train.txt", "UTF-16", "save it")),
    Case("`..` in a list", train_list("..\nb\n"), ("train.txt", "no name of a picture", "write the file's name")),
    Case("path out of the folder in a list", train_list("../../secret.jpg x\n"), ("secret.xml", "no such annotation")),
    Case("list that is a link to itself", loop("data/ImageSets/Segmentation/train.txt"), ("train.txt", "symbolic")),
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
    Case("XML that declares an unknown encoding", xml('<?xml version="1.0" encoding="nothing"?><annotation/>'),
         ("a.xml", "not readable as XML", "copy it again")),
    Case("object called background", xml("<annotation><object><name>background</name></object></annotation>"),
         ("a.xml", "label 0", "leave it out")),
    Case("picture called .JPG", renamed("data/JPEGImages/a.jpg", "data/JPEGImages/a.JPG"),
         ("a.jpg", "there is a.JPG", "rename it to a.jpg")),
    Case("mask called .PNG", renamed("data/SegmentationClass/a.png", "data/SegmentationClass/a.PNG"),
         ("a.png", "there is a.PNG", "rename it to a.png")),
    Case("list in UTF-16 without a BOM", train_list("a\nb\n".encode("utf-16-le")), ("train.txt", "UTF-16", "save it")),
    # own labels
    Case("names with commas", cells("cat, dog", "dog", "cat"), ("labels.csv: line 2", "write cat;dog"), "folder"),
    Case("names with spaces", cells("cat dog", "dog", "cat"), ("labels.csv: line 2", "write cat;dog"), "folder"),
    Case("JSON for names", cells('{"choices":["cat","dog"]}', "dog", "cat"), ("line 2", "write cat;dog"), "folder"),
    Case("tuple for names", cells("('cat','dog')", "dog", "cat"), ("line 2", "write cat;dog"), "folder"),
    Case("nan for no name", cells("nan", "dog", "cat"), ("line 2", "leave the cell empty"), "folder"),
    Case("background among names", cells("cat;background", "dog", "cat"), ("line 2", "leave it out"), "folder"),
    Case("list of names nested 5,000 deep", cells("[" * 5000 + "]" * 5000, "dog", "cat"), ("line 2", "not a list"),
         "folder"),
    Case("names in Unicode's two forms", cells("Ba\u0308r", "dog", "B\u00e4r"), command="folder",
         accepted=classes_found("B\u00e4r", "dog")),
    Case("own labels in UTF-16 without a BOM", text("labels.csv", "image,cat\na.jpg,1\n".encode("utf-16-le")),
         ("labels.csv", "UTF-16", "CSV UTF-8"), "folder"),
    Case("backslash in a name", text("labels.csv", "image,cat\na.jpg,1\nv.jpg,1\nsub\\b.jpg,1\n"),
         ("labels.csv: line 4", "backslash", "write /"), "folder"),
    # COCO
    Case("COCO without annotations", coco(lambda c: c.update(annotations=[])), ("instances_train.json", "is empty"),
         "coco"),
    Case("COCO with a category for background", coco(lambda c: c["categories"].append({"id": 0, "name": "background"})),
         ("instances_train.json", "label 0", "dataset.classes: [cat, dog]"), "coco"),
    Case("COCO with a category without a name", coco(lambda c: c["categories"][0].update(name="")),
         ("instances_train.json", "no name"), "coco"),
    Case("COCO with a backslash in a name", coco(lambda c: c["images"][0].update(file_name="sub\\a.jpg")),
         ("instances_train.json", "backslash", "write /"), "coco"),
    Case("COCO with a name that leaves the root", coco(lambda c: c["images"][0].update(file_name="../../a.jpg")),
         ("instances_train.json", "inside dataset.root"), "coco"),
    Case("COCO with a number of 400 digits", coco(lambda c: c["annotations"][0]["segmentation"][0].append(10**399)),
         ("instances_train.json", "not pairs of numbers"), "coco"),
    Case("COCO nested 100,000 deep", text("data/annotations/instances_train.json", "[" * 100_000),
         ("instances_train.json", "not readable as JSON", "copy it again"), "coco"),
    # masks
    Case("mask of no bytes", text("data/SegmentationClass/a.png", b""), ("a.png", "is empty")),
    Case("mask that is a Git-LFS pointer", text("data/SegmentationClass/a.png", LFS), ("a.png", "`git lfs pull`")),
    Case("mask that is a web page", text("data/SegmentationClass/a.png", PAGE), ("a.png", "an HTML page")),
    Case("mask of 16 bits", as_mask(lambda: Image.fromarray(np.ones(SIZE, np.uint16))), ("a.png", "I;16", "8-bit")),
    Case("mask of one bit", as_mask(lambda: Image.new("1", (24, 16))), ("a.png", "mode 1", "8-bit")),
    Case("mask with alpha", as_mask(lambda: Image.new("LA", (24, 16))), ("a.png", "mode LA", "8-bit")),
    Case("mask kept as JPEG", as_mask(lambda: Image.fromarray(picture()[..., 0]), "JPEG"),
         ("a.png", "is a JPEG, which changes label values", "8-bit grey PNG")),
    Case("mask of 20,000×20,000", text("data/SegmentationClass/a.png", png_header(20_000, 20_000)),
         ("a.png", "100 million", "smaller")),
    Case("masks of 0 and 255", all_masks({1: 255, 2: 255}), ("hold none of the classes", "255 means no opinion")),
    Case("masks with two classes swapped", all_masks({1: 2, 2: 1}), ("2 cat, 1 dog", "order of the classes")),
    Case("masks of 255 alone", all_masks({0: 255, 1: 255, 2: 255}), ("255", "write label values")),
    Case("palette that an editor sorted anew", all_masks({0: 1, 1: 0}, colours={0: 1, 1: 0}),
         ("a.png", "the palette is in another order", "1 cat")),
    Case("pictures given as masks", pictures_as_masks, ("a.png", "is a JPEG, which changes label values")),
    Case("mask of 1×1", as_mask(lambda: Image.new("L", (1, 1))), ("a.png", "is 1×1, its picture 24×16", "same size")),
    # manifests
    Case("manifest with a BOM", table(lambda b: b"\xef\xbb\xbf" + b), command="evaluate", accepted=scored),
    Case("manifest with Windows line ends", table(lambda b: b.replace(b"\n", b"\r\n")), command="evaluate",
         accepted=scored),
    Case("manifest with semicolons", table(lambda b: b.replace(b",", b";")), ("m.csv", "lacks the column"), "evaluate"),
    Case("manifest in UTF-16", table(lambda b: b.decode().encode("utf-16")), ("m.csv", "UTF-16", "save it"),
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
         ("w.safetensors", "is a text, not a weights file"), "train-classifier"),
    Case(".safetensors that is a Git-LFS pointer", text("w.safetensors", LFS), ("w.safetensors", "`git lfs pull`"),
         "train-classifier"),
    Case(".pth that is a Git-LFS pointer", text("w.pth", LFS), ("w.pth", "`git lfs pull`"), "train-classifier"),
    Case(".pth that is a web page", text("w.pth", PAGE), ("w.pth", "an HTML page", "download it"), "train-classifier"),
    Case(".pth of no bytes", text("w.pth", b""), ("w.pth", "is empty", "copy it again"), "train-classifier"),
    Case(".pth that is a picture", text("w.pth", png_header(3, 3)), ("w.pth", "a picture (PNG)"), "train-classifier"),
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
    Case("labels.h5 that is a folder", folder("labels.h5"), ("labels.h5", "is a folder"), "evaluate-labels"),
    Case("labels.h5 that is a Git-LFS pointer", text("labels.h5", LFS), ("labels.h5", "`git lfs pull`"),
         "evaluate-labels"),
    Case("labels of another size", labels(lambda file: other_size(file, "a")),
         ("a", "3×3", "24×16"), "evaluate-labels"),
    Case("labels beyond the classes", labels(lambda file: replaced(file, "label/a", np.full(SIZE, 9, np.uint8))),
         ("a", "9"), "evaluate-labels"),
    Case("prediction that is missing", lambda at: (at / "predictions" / "v.png").unlink(),
         ("v.png", "no such prediction", "run `beco predict-split`"), "evaluate"),
    Case("prediction of another size", prediction(np.zeros((3, 3), np.uint8)), ("v", "3"), "evaluate"),
    Case("prediction beyond the classes", prediction(np.full(SIZE, 9, np.uint8)), ("v", "9"), "evaluate"),
    Case("prediction that is a Git-LFS pointer", text("predictions/v.png", LFS), ("v.png", "`git lfs pull`"),
         "evaluate"),
    Case("scores that are a web page", text("run/metrics.json", PAGE), ("metrics.json", "an HTML page"), "tables"),
    Case("foreign labels that are Git-LFS pointers", foreign("a.npy", LFS), ("foreign", "`git lfs pull`"),
         "import-labels"),
    Case("foreign labels cut short", foreign("a.npy", b"\x93NUMPY\x01\x00"), ("foreign", "a.npy"), "import-labels"),
    Case("no scores to make tables of", lambda at: None, ("run", "metrics.json", "run the stage"), "tables"),
    Case("scores that are no JSON", text("run/metrics.json", "{"), ("metrics.json", "not readable as JSON"), "tables"),
]  # fmt: skip

ELSEWHERE = [
    ("JPEG cut at any byte", "test_corpus.py"),
    ("cells of own labels, splits, 0/1 and UTF-16", "test_sheet.py"),
    ("files of another suffix or case, ids of VOC's lists", "test_voc_names.py"),
    ("COCO's categories, names, turned pictures, odd values", "test_coco_lists.py"),
    ("EXIF orientations 1 to 8, broken EXIF, a mask drawn on the picture as stored", "test_exif.py"),
    ("missing pictures, lists, annotations and masks; empty lists; ids twice; a picture in train and val",
     "test_datasets.py"),
    ("masks in RGB, of another size, with values above the classes", "test_datasets.py"),
    ("XML without objects, with an unknown class, malformed", "test_datasets.py"),
    ("manifests without columns or rows, ids twice, wrong 0/1 columns", "test_datasets.py"),
    ("unknown and wrong keys of the configuration", "test_config.py"),
    ("HDF5 that is text, cut short, of a later version; a flipped bit at any place", "test_store.py"),
    ("checkpoints that are cut, foreign, of other settings, or hold code", "test_engine.py"),
    ("weights that do not fit, hold code", "test_weight_files.py"),
    ("pickles of other stage-one programs: code, arrays beyond their storage", "test_imports.py"),
    ("full disks, read-only results, kills", "test_kills.py, test_failures.py"),
]  # fmt: skip
