"""The inter-pixel relation network: class boundaries and displacements on a frozen backbone (Ahn et al., CVPR 2019).

Both branches read all stages of a backbone like the classifier's, with its weights or with those that it started from.
As in the authors' program, the backbone learns nothing here and its batch norm stays in inference mode; so the branches
share features but no gradients. Only the boundaries take part in semantic pseudo-labels; displacements tell instances
apart, and are trained and kept for that.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beco.artifacts.files import file_hash
from beco.artifacts.grids import STRIDE, grid
from beco.config import Encoder
from beco.errors import UserError
from beco.networks import encoders
from beco.training.augment import Normalise

STARTED_FROM = ("encoder", "output_stride", "dilate", "start", "weights")
"""What the metadata of a network says of its backbone."""
TOGETHER = 64  # pictures of one size, in inference
MOST_PIXELS = 2**21  # of such a batch: eleven of VOC


class Reduced(nn.Module):
    """1×1 convolution, group norm, resizing to the size asked for, ReLU; a larger map is first averaged down to it."""

    def __init__(self, channels: int, width: int, groups: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, width, 1, bias=False)
        self.norm = nn.GroupNorm(groups, width)

    def forward(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        if features.shape[-2] > size[0] or features.shape[-1] > size[1]:
            features = F.adaptive_avg_pool2d(features, size)
        return resized(self.norm(self.convolution(features)), size).relu()


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear between pixel centres."""
    return maps if maps.shape[-2:] == size else F.interpolate(maps, size, mode="bilinear", align_corners=False)


class BoundaryBranch(nn.Module):
    """Every stage reduced to 32 channels at stride 4, then one 1×1 convolution to one map (IRNet architecture in the
    paper).
    """

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(Reduced(width, 32, 4) for width in channels)
        self.head = nn.Conv2d(32 * len(channels), 1, 1)

    def forward(self, features: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Features of all stages -> logits (B, *size) of the class boundary map."""
        stages = [stage(maps, size) for stage, maps in zip(self.stages, features, strict=True)]
        return self.head(torch.cat(stages, 1))[:, 0]


class DisplacementBranch(nn.Module):
    """A pyramid: the deep stages joined at stride 8, these and the shallow ones at stride 4 (likewise).

    Stages at stride 4 or finer get 64 channels in 8 groups, then 128 in 16; deeper ones 256 in 16 each. Of a plain
    transformer all are deeper ones.
    """

    def __init__(self, channels: list[int], strides: list[int]) -> None:
        super().__init__()
        self.shallow = sum(stride <= STRIDE for stride in strides)
        widths = [256 if k >= self.shallow else 64 if k == 0 else 128 for k in range(len(channels))]
        self.stages = nn.ModuleList(
            Reduced(channel, width, 8 if width == 64 else 16) for channel, width in zip(channels, widths, strict=True)
        )
        self.deep = Reduced(sum(widths[self.shallow :]), 256, 16)
        self.joined = Reduced(sum(widths[: self.shallow]) + 256, 256, 16)
        self.head = nn.Conv2d(256, 2, 1, bias=False)

    def forward(self, features: list[Tensor], size: tuple[int, int], half: tuple[int, int]) -> Tensor:
        """Features of all stages -> displacements (B, 2, *size), (y, x) in pixels of that map; `half` is stride 8."""
        stages = [
            stage(maps, size if k < self.shallow else half)
            for k, (stage, maps) in enumerate(zip(self.stages, features, strict=True))
        ]
        deep = self.deep(torch.cat(stages[self.shallow :], 1), size)
        return self.head(self.joined(torch.cat([*stages[: self.shallow], deep], 1), size))


class IrnNetwork(nn.Module):
    """Backbone at a given output stride, in inference mode for good, and the two branches.

    Pictures are continued below and to the right to a multiple of the largest stride, and the maps cut again. So every
    map covers exactly what it is resized and joined with, and the mirror image's cells are the picture's.
    """

    mean_displacement: Tensor

    def __init__(self, encoder: Encoder, output_stride: int, dilate: bool = True) -> None:
        super().__init__()
        self.normalise = Normalise(encoder)
        self.backbone = encoders.create_backbone(encoder, output_stride, dilate)
        channels, strides = encoders.feature_channels(self.backbone), encoders.feature_strides(self.backbone)
        plain = len(set(strides)) == 1  # a transformer's maps, all of one stride
        if len(channels) < 3 or strides[-1] <= STRIDE or (strides[0] > STRIDE and not plain):
            raise UserError(
                f"encoder.name: `{encoder.name}` has features at strides {', '.join(map(str, strides))}; IRN wants "
                "three stages or more, of which one at stride 4 or finer and one coarser, or all of a plain transformer"
            )
        self.boundary = BoundaryBranch(channels)
        self.displacement = DisplacementBranch(channels, strides)
        self.register_buffer("mean_displacement", torch.zeros(2))
        self.multiple = math.lcm(strides[-1], 2 * STRIDE)
        self.backbone.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> IrnNetwork:
        """Set the branches' mode; the backbone stays in inference mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) RGB in [0, 1] -> boundary logits (B, h, w) and displacements (B, 2, h, w), h = ⌈H/4⌉."""
        height, width = grid(*images.shape[-2:])
        logits, field = self._maps(self._continued(images))
        return logits[..., :height, :width], field[..., :height, :width]

    def _continued(self, images: Tensor) -> Tensor:
        """Normalised, with the last row and column repeated: a frame of one colour would be a boundary."""
        bottom, right = (-side % self.multiple for side in images.shape[-2:])
        return F.pad(self.normalise(images), (0, right, 0, bottom), mode="replicate")

    def _maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        height, width = images.shape[-2:]
        with torch.no_grad():
            features = self.backbone(images)
        size = grid(height, width)
        return self.boundary(features, size), self.displacement(features, size, grid(height, width, 2 * STRIDE))

    @torch.inference_mode()
    def infer(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) RGB in [0, 1] -> boundaries (B, h, w) in [0, 1] and displacements (B, 2, h, w), float32.

        Boundaries are those of the mean logit of the picture and its mirror image, at one scale. From displacements
        the mean over the training pictures is subtracted: a constant shift costs nothing in training, where only
        differences count (the mean shift of the authors' program).
        """
        height, width = grid(*images.shape[-2:])
        continued = self._continued(images)
        logits, field = self._maps(torch.cat([continued, continued.flip(-1)]))
        straight, mirrored = logits.float().chunk(2)
        edges = torch.sigmoid((straight + mirrored.flip(-1)) / 2)
        field = field[: len(images)].float() - self.mean_displacement[:, None, None]
        return edges[..., :height, :width], field[..., :height, :width]


def starting_from(path: Path, start: str, classes: list[str] | None = None) -> tuple[IrnNetwork, dict[str, str]]:
    """A network on a backbone like that of the classifier in `path`, its branches still random, and its metadata.

    With `start` classifier the backbone has the classifier's weights, with encoder those that the classifier's encoder
    starts from. The metadata is the classifier's and names these weights: the hash of their file, or imagenet.
    UserError for an encoder that starts from random weights: the backbone will not learn; and for a file that is no
    classifier, or, if `classes` are given, one of other classes.
    """
    state, metadata = encoders.load_network(path, "classifier", classes)
    metadata = {"dilate": "true", **metadata, "start": start}
    with encoders.described(path):
        encoder = encoder_of(metadata)
    if start == "encoder":
        if encoder.weights is None:
            raise UserError(
                f"start: encoder, but the encoder of {path} starts from random weights, and IRN's backbone never "
                "learns; set start to classifier, or encoder.weights"
            )
        return _built(metadata, encoder), metadata | {"weights": str(encoders.weights_hash(encoder))}
    with encoders.described(path):
        network = _built(metadata)
        backbone = {key: value for key, value in state.items() if key.startswith("backbone.")}
        encoders.refuse_pooled(path, metadata, network.backbone)
        inner = {key.removeprefix("backbone."): value for key, value in backbone.items()}
        encoders.load_whole(network.backbone, inner, path)
    return network, metadata | {"weights": file_hash(path)}


def encoder_of(metadata: dict[str, str]) -> Encoder:
    """The encoder that the metadata of a classifier or of this network describes."""
    return Encoder.model_validate_json(metadata["encoder"])


def load(path: Path, classes: list[str] | None = None) -> tuple[IrnNetwork, list[str]]:
    """The network that `beco train-irn` saved, in inference mode, and its class names.

    UserError if the file is something else, or if `classes` are given and are not its own.
    """
    state, metadata = encoders.load_network(path, "irn", classes)
    with encoders.described(path):
        network = _built(metadata)
        encoders.refuse_pooled(path, metadata, network.backbone)
        encoders.load_whole(network, state, path)
    return network.eval(), json.loads(metadata["classes"])


def _built(metadata: dict[str, str], encoder: Encoder | None = None) -> IrnNetwork:
    """A network as described, its backbone with the weights of `encoder`; None: random, to be loaded."""
    encoder = encoder or encoder_of(metadata).model_copy(update={"weights": None})
    network = IrnNetwork(encoder, int(metadata["output_stride"]), json.loads(metadata.get("dilate", "true")))
    encoders.prepare_backbone(network.backbone, encoder)
    network.backbone.requires_grad_(False)
    return network
