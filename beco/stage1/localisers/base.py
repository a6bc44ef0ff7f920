"""What localisers share: a backbone with a class map per class, and the places that a method fills in."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset

from beco.artifacts import supervision
from beco.artifacts.files import file_hash
from beco.config import Cam, Crop, Encoder
from beco.datasets.manifest import Manifest
from beco.datasets.saliency import Saliency
from beco.errors import UserError
from beco.networks import encoders
from beco.networks.frozen import fix_statistics
from beco.networks.tokens import PlainTransformer
from beco.schema.stage1 import inputs_of
from beco.stage1.merging import multi_scale_maps
from beco.stage1.texts import Texts
from beco.training.augment import ClassifierPictures, Normalise
from beco.training.sampling import Draws

SHARPNESS = 5.0
"""Of the soft maximum of `Localiser.scored`."""


@dataclass(frozen=True)
class Inputs:
    """What a localiser has besides pictures and their labels; its INPUTS say which it wants."""

    labels: Path | None = field(
        default=None, metadata={"what": "the labels.h5 of a stage-one recipe", "supervision": supervision.of_store}
    )
    start: Path | None = field(
        default=None,
        metadata={"what": "the classifier.safetensors that it goes on from", "supervision": supervision.of_network},
    )
    saliency: Saliency | None = field(
        default=None, metadata={"what": "a folder of saliency maps", "supervision": Saliency.supervision}
    )
    text: Texts | None = field(
        default=None, metadata={"what": "a file of beco text-features", "supervision": Texts.supervision}
    )

    def checked(self, method: str, options: dict[str, Any], when: str = "INPUTS") -> Inputs:
        """Itself, if it is what a localiser with these options wants in its training (INPUTS) or for its maps
        (MAP_INPUTS); else a `UserError`.
        """
        wanted = inputs_of(method, options, when)
        for one in fields(self):
            given = getattr(self, one.name) is not None
            if given and one.name not in wanted:
                raise UserError(f"--{one.name}: `{method}` does not use it; leave it out")
            if not given and one.name in wanted:
                raise UserError(f"--{one.name}: `{method}` needs it; give {one.metadata['what']}")
        return self

    def supervision(self) -> list[str]:
        """What people gave who made these, and the labels of the pictures, which every localiser has."""
        given = [one for one in fields(self) if getattr(self, one.name) is not None]
        found = [one.metadata["supervision"](getattr(self, one.name)) for one in given]
        return supervision.together([supervision.IMAGE_LABELS], *found)

    def hashes(self) -> dict[str, str]:
        """What each is known by."""
        given = {one.name: getattr(self, one.name) for one in fields(self)}
        return {
            name: file_hash(one) if isinstance(one, Path) else one.identity()
            for name, one in given.items()
            if one is not None
        }


class Localiser(nn.Module, ABC):
    """Backbone at a given output stride with a class map per class.

    The head is a 1×1 convolution without bias, so that the average of a class map is the class's logit and the map
    itself is the class activation map (Zhou et al. 2016, section 2; in this form since Ahn et al. 2019).

    A method is a subclass in a file of its own beside this one. It writes `losses`, and what of the rest is otherwise
    with it: `pictures` for what it learns from, `begin` for where it starts, `parameter_groups` for its rates; `view`,
    or all of `score`, for its maps, and `finished` or `normalised` for what is made of their sum over the views. The
    constants at the top of its file are its own settings and further inputs, see `beco.schema.slots.LOCALISERS`.
    """

    classifies = True
    """Whether `forward` says which classes a picture shows, so that its mAP means something."""
    method: str
    """The name of its file."""

    def __init__(
        self, encoder: Encoder, output_stride: int, classes: int, dilate: bool, options: dict[str, Any]
    ) -> None:
        super().__init__()
        self.method = type(self).__module__.rpartition(".")[2]
        self.options = options
        """Settings of the method's own, complete."""
        self.fixed_statistics = False
        """Whether the backbone's batch norm stays in evaluation mode in training, too."""
        self.normalise = Normalise(encoder)
        self.backbone = encoders.create_backbone(encoder, output_stride, dilate)
        width = encoders.feature_channels(self.backbone)[-1]
        self.head = nn.Conv2d(width, classes, 1, bias=False)

    def train(self, mode: bool = True) -> Localiser:
        """Set the mode, but for batch norm whose statistics are fixed."""
        super().train(mode)
        if self.fixed_statistics:
            fix_statistics(self.backbone)
        return self

    # --- learning -------------------------------------------------------------------------------------------

    def begin(self, inputs: Inputs) -> None:
        """Take over what it starts from besides its encoder's weights, before training."""

    def pictures(self, manifest: Manifest, crop: Crop, mean: Any, inputs: Inputs) -> Dataset[dict[str, Tensor]]:
        """What it learns from: items keyed by (index, draw seed), with at least `image` (3, S, S) uint8 and `target`
        (K,) float32 in {0, 1}. `mean` is the encoder's, for what lies outside of a picture.
        """
        return ClassifierPictures(manifest, crop, mean)

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], bool]]:
        """What learns, and whether it is a head; frozen parameters are left out, lest weight decay moves them."""
        encoder = {id(parameter) for parameter in self.backbone.parameters()}
        learning = [parameter for parameter in self.backbone.parameters() if parameter.requires_grad]
        return [(learning, False), ([one for one in self.parameters() if id(one) not in encoder], True)]

    def depths(self) -> dict[int, int]:
        """How many layers lie behind each parameter of the encoder, by its id."""
        return encoders.layer_depths(self.backbone)

    def totals(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scalars of the whole batch that the losses of its parts are divided by, summed over all processes."""
        return {}

    @abstractmethod
    def losses(
        self, images: Tensor, batch: dict[str, Tensor], step: int, steps: int, draws: Draws
    ) -> dict[str, Tensor]:
        """Scalars by name, of which `loss` is learnt from.

        `images`: the batch's, (B, 3, H, W) float32 RGB in [0, 1], after colour augmentation if there is any. `batch`:
        the items of `pictures` and what `totals` adds. Draw at random from `draws` alone.
        """

    # --- what it says of pictures ---------------------------------------------------------------------------

    def prepare(self, manifest: Manifest, inputs: Inputs) -> None:
        """Take what its maps want besides the pictures, before they are inferred: its MAP_INPUTS, or other pictures
        of `manifest` (one split).
        """

    def maps(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) RGB in [0, 1] -> class maps (B, K, ⌈H/stride⌉, ⌈W/stride⌉), before the ReLU."""
        return self.head(self.backbone(self.normalise(images))[-1])

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) RGB in [0, 1] -> logits (B, K)."""
        return self.scored(self.maps(images))

    def scored(self, maps: Tensor) -> Tensor:
        """Class maps (B, K, h, w) -> scores (B, K): the mean of each, or on plain transformers a soft maximum.

        Every token of a plain transformer sees the whole picture, and with a mean any of them may speak for an object
        elsewhere. A method's option `pool`, where it has one, may say otherwise. The soft maximum is
        log(mean(exp(r · map))) / r with r = 5 (Pinheiro & Collobert, CVPR 2015).
        """
        pool = self.options.get("pool", "auto")
        if pool == "auto":
            pool = "lse" if isinstance(self.backbone, PlainTransformer) else "mean"
        if pool == "lse":
            cells = maps.shape[2] * maps.shape[3]
            return ((SHARPNESS * maps.flatten(2)).logsumexp(2) - math.log(cells)) / SHARPNESS
        return maps.amax((2, 3)) if pool == "max" else maps.mean((2, 3))

    @property
    def stride(self) -> int:
        """Pixels to a cell of `view`."""
        return encoders.feature_strides(self.backbone)[-1]

    def view(self, images: Tensor, targets: Tensor) -> Tensor:
        """One view of pictures that show the classes `targets` (B, K) float32 -> what is summed over the views:
        (B, C, ⌈H/stride⌉, ⌈W/stride⌉) float32; plane k is of class k here.
        """
        return self.maps(images).float().relu()

    def score(self, images: Tensor, targets: Tensor, ids: list[str], settings: Cam) -> Tensor:
        """What `finished` is given, of pictures of one size: (B, 3, h, w) -> (B, C, ⌈h/4⌉, ⌈w/4⌉) float32, here the
        sum of `view` over scales and mirror images.
        """
        return multi_scale_maps(self, images, targets, settings)

    def finished(self, planes: Tensor, image_id: str, values: list[int]) -> Tensor:
        """A picture's planes of `score` (C, h, w) -> those of its classes `values` (1…K): (K', h, w) in [0, 1]."""
        return self.normalised(planes[[value - 1 for value in values]])

    def normalised(self, planes: Tensor) -> Tensor:
        """The planes (K', h, w) of the classes in a picture, summed over its views, brought to [0, 1]: each divided by
        its maximum (plus 1e-5, as IRN does).
        """
        return planes / (planes.amax((1, 2), keepdim=True) + 1e-5)
