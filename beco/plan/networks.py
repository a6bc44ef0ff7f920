"""What a pass through a network costs, counted on tensors without content: FLOPs, and the memory of its activations."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from beco.benchmark.bare import forward_flops, frozen_flops
from beco.config import Classifier, Encoder, Network
from beco.networks import encoders
from beco.networks.segmenter import build as build_segmenter
from beco.stage1 import train as localisers
from beco.stage1.refine.irn import IrnNetwork

FLOAT = 4  # bytes


@dataclass(frozen=True)
class Spec:
    """A network of a configuration; as text, so that equal ones are one."""

    kind: str
    """classifier, irn or segmenter."""
    settings: str
    """JSON of `Classifier` (the first two) or `Network`."""
    classes: int

    def build(self) -> nn.Module:
        """The network with random weights, on the CPU. UserError as in the stages."""
        if self.kind == "segmenter":
            network = Network.model_validate_json(self.settings)
            return build_segmenter(network.model_copy(update={"encoder": _bare(network.encoder)}), self.classes)
        settings = Classifier.model_validate_json(self.settings)
        settings = settings.model_copy(update={"encoder": _bare(settings.encoder)})
        if self.kind == "classifier":
            return localisers.build("cam", settings, self.classes, {})
        built = IrnNetwork(settings.encoder, settings.output_stride, settings.dilate)
        encoders.prepare_backbone(built.backbone, settings.encoder)
        built.backbone.requires_grad_(False)
        return built


def classifier(settings: Classifier, classes: int) -> Spec:
    """The classifier of stage one."""
    keys = {"encoder", "output_stride", "dilate", "frozen_stages", "batch_norm"}
    return Spec("classifier", settings.model_dump_json(include=keys), classes)


def irn(settings: Classifier, classes: int) -> Spec:
    """IRN on the classifier's backbone."""
    return Spec("irn", settings.model_dump_json(include={"encoder", "output_stride", "dilate"}), classes)


def segmenter(settings: Network, classes: int) -> Spec:
    """One network of stage two."""
    return Spec("segmenter", settings.model_dump_json(), classes)


def _bare(encoder: Encoder) -> Encoder:
    return encoder.model_copy(update={"weights": None})


@cache
def forward(spec: Spec, height: int, width: int) -> int:
    """FLOPs (a multiplication and an addition are two) of one picture through the network."""
    return forward_flops(lambda: _on_paper(spec), height, width)


@cache
def step(spec: Spec, size: int) -> int:
    """FLOPs of one picture of `size`² through forward and backward pass.

    The backward pass counts twice the forward pass of what learns: once for the gradient of what comes in, once for
    that of the weights. torch's own counter takes the backward pass of a grouped convolution for that of a full one.
    """
    return 3 * forward(spec, size, size) - 2 * frozen_flops(lambda: _on_paper(spec), size, size)


@cache
def parameters(spec: Spec) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in _on_paper(spec).parameters())


@cache
def saved_bytes(spec: Spec, height: int, width: int) -> int:
    """Bytes of float32 that the forward pass of one picture keeps for the backward pass, but for the parameters."""
    network = _on_paper(spec).train()
    known = {_storage(one) for one in (*network.parameters(), *network.buffers())}
    total = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal total
        if (name := _storage(tensor)) not in known:
            known.add(name)
            total += tensor.untyped_storage().nbytes()
        return tensor

    images = torch.empty(2, 3, height, width, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        found = network(images)  # held until the end: a storage that was freed would lend its name to another
    del found
    return total // 2


@cache
def _on_paper(spec: Spec) -> nn.Module:
    """The network without the content of its tensors."""
    try:
        with torch.device("meta"):
            return spec.build()
    except RuntimeError:  # some encoders read a tensor while they are built
        return spec.build().to("meta")


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
