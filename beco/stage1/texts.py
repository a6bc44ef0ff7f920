"""What classes are called in words, and the file of these words' features that a localiser compares pictures with.

The file is a .safetensors with the tensors `classes` (K, E), `background` (n, E) and `scale` (), and the entry `texts`
of its metadata: JSON with the names of both, the template and the tower. It is made once, where a text tower is at
hand; nothing else needs one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from beco.artifacts.files import file_hash, unreadable, whole
from beco.artifacts.supervision import CAPTIONS
from beco.config import Dataset, parse_yaml, read_config
from beco.datasets import instances, shapes, voc
from beco.datasets import manifest as manifests
from beco.datasets.classes import check_classes, clean
from beco.datasets.sheet import read_sheet
from beco.errors import UserError
from beco.networks.joint import text_features
from beco.networks.weights import one_line, read_safetensors, refuse_unsound, write_safetensors
from beco.schema.base import nearest

TEMPLATE = "a clean origami {}."
"""CLIP-ES's (Lin et al., CVPR 2023)."""
BACKGROUND = [
    *("ground", "land", "grass", "tree", "building", "wall", "sky", "lake", "water", "river", "sea", "railway"),
    *("railroad", "keyboard", "helmet", "cloud", "house", "mountain", "ocean", "road", "rock", "street", "valley"),
    *("bridge", "sign"),
]
"""CLIP-ES's 25 for VOC; without those that a class is called by they are its 23 for COCO."""
WORDS = {
    **{"bird": "bird avian", "chair": "chair seat", "person": "person with clothes,people,human"},
    **{"tvmonitor": "tvmonitor screen", "tv": "tvmonitor screen", "backpack": "backpack,bag"},
    **{"umbrella": "umbrella,parasol", "handbag": "handbag,purse", "tie": "necktie", "baseball glove": "glove"},
    **{"spoon": "dessertspoon", "remote": "remote control", "hair drier": "hairdrier,blowdrier"},
}
"""What CLIP-ES says for VOC's and COCO's classes whose names mean several things (but for its `sknowboard`)."""
MEND = "make it with `beco text-features`"
TENSORS = ("classes", "background", "scale")


@dataclass(frozen=True)
class Texts:
    """What a localiser knows of its classes' names."""

    path: Path
    names: tuple[str, ...]
    """Of the K classes."""
    classes: Tensor
    """(K, E) float32 of length 1."""
    background: Tensor
    """(n, E) float32 of length 1, n ≥ 1: of what pictures show besides classes."""
    scale: float
    """The factor of a cosine between a picture and a text before the softmax."""

    def identity(self) -> str:
        """What it is known by: the hash of its file."""
        return file_hash(self.path)

    def supervision(self) -> list[str]:
        """What somebody had to write for it."""
        return [CAPTIONS]

    def of(self, classes: Sequence[str]) -> Texts:
        """The same with those of `classes` alone, in their order, found by name; UserError naming one without."""
        known = {name: place for place, name in enumerate(self.names)}
        for name in classes:
            if name not in known:
                raise UserError(f"{self.path}: has no text of the class `{name}`{nearest(name, known)}; {MEND}")
        return replace(self, names=tuple(classes), classes=self.classes[[known[name] for name in classes]])

    def refuse_other_width(self, width: int) -> None:
        """UserError unless an image tower's projection has as many features."""
        if self.classes.shape[1] != width:
            raise UserError(
                f"{self.path}: its texts have {self.classes.shape[1]} features, the image tower {width}; make it with "
                "the text tower of the encoder's weights"
            )


def read(path: Path) -> Texts:
    """What is in the file `path`; UserError if it is missing, damaged or another's."""
    try:
        tensors, metadata = read_safetensors(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file of texts; {MEND}, or change `text`") from error
    except Exception as error:
        damage = f"not readable as safetensors ({one_line(error)}); {MEND}"
        raise unreadable(path, error, damage, "a file of texts", ("empty",)) from error
    try:
        names = tuple(clean(name) for name in json.loads(metadata["texts"])["classes"])
        one, other, scale = (tensors[key] for key in TENSORS)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: no file of texts ({one_line(error)} is missing); {MEND}") from error
    refuse_unsound(tensors, path)
    shaped = one.ndim == other.ndim == 2 and one.shape[1] == other.shape[1] and scale.ndim == 0
    if not shaped or len(one) != len(names) or not len(other):
        raise UserError(
            f"{path}: {tuple(one.shape)} classes, {tuple(other.shape)} background and {len(names)} names do not fit; "
            f"{MEND}"
        )
    if not bool(torch.cat([one, other]).any(1).all()) or scale <= 0:
        raise UserError(f"{path}: a text without features, or a factor that is not above 0; {MEND}")
    return Texts(path, names, F.normalize(one.float(), dim=1), F.normalize(other.float(), dim=1), float(scale))


# --- making it ----------------------------------------------------------------------------------------------


def named(classes: str) -> list[str]:
    """The classes that a text names: parted by commas, those of a manifest.csv, or of the dataset of a config.yaml."""
    if classes.endswith(".csv"):
        return manifests.read(Path(classes), Path()).classes
    if classes.endswith((".yaml", ".yml", ".json")):
        return _of_dataset(read_config(classes, True).dataset)
    return check_classes(classes.split(","), f"`{classes}`")


def _of_dataset(dataset: Dataset) -> list[str]:
    if dataset.classes:
        return list(map(clean, dataset.classes))
    if dataset.format == "coco":
        return instances.read(Path(str(dataset.root)), dataset.train).classes
    if dataset.format == "folder":
        return read_sheet(Path(str(dataset.labels)), None).classes
    return list(voc.VOC_CLASSES if dataset.format == "voc" else shapes.CLASSES)


def words_of(text: str | None, classes: list[str]) -> dict[str, list[str]]:
    """What `classes` are called besides `WORDS`: a mapping, as YAML or a file of it, of names to a text or to several.

    UserError if it is none, or names what is no class.
    """
    given = {name: [words] for name, words in WORDS.items()}
    if text is None:
        return given
    is_file = text.endswith((".yaml", ".yml", ".json"))
    try:
        content = parse_yaml(Path(text).read_text(encoding="utf-8-sig") if is_file else text, "--words")
    except OSError as error:
        raise unreadable(text, error, "cannot be read") from error
    if not isinstance(content, dict):
        raise UserError("--words: no mapping of names to texts; write {cat: 'cat,kitten', dog: [dog, puppy]}")
    for name, words in content.items():
        several = words if isinstance(words, list) else [words]
        if not several or not all(isinstance(one, str) and one.strip() for one in several):
            raise UserError(f"--words: {name}: is no text; write what the class is called")
        if clean(str(name)) not in classes:
            raise UserError(f"--words: no class `{name}`{nearest(str(name), classes)}")
        given[clean(str(name))] = several
    return given


def make(
    classes: Sequence[str], words: Mapping[str, Sequence[str]], template: str, tower: str, weights: Path, output: Path
) -> None:
    """Write the features of the prompts of `classes` and of the background, as the text tower `tower` has them."""
    if "{}" not in template:
        raise UserError(f"--template: `{template}` has no place for a class; write {{}} where its name stands")
    called = [list(words.get(name, [name])) for name in classes]
    background = background_of(classes)
    prompts = [[template.replace("{}", one) for one in some] for some in (*called, *([one] for one in background))]
    features, scale = text_features(prompts, tower, weights)
    told = {"classes": list(classes), "words": called, "background": background, "template": template, "tower": tower}
    tensors = {
        "classes": features[: len(called)].contiguous(),
        "background": features[len(called) :].contiguous(),
        "scale": torch.tensor(scale),
    }
    with whole(output) as temporary:
        write_safetensors(temporary, tensors, {"texts": json.dumps(told, ensure_ascii=False)})


def background_of(classes: Sequence[str]) -> list[str]:
    """`BACKGROUND` without the words that a class is called by, such as `sign` beside the class `stop sign`."""
    own = {word.casefold() for name in classes for word in name.split()}
    return [word for word in BACKGROUND if word not in own]
