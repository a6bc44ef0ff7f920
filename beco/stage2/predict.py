"""Inference: pictures to label maps at the pictures' own sizes, or on the squares of a squeezing protocol.

A picture's logits live on the device for as long as its batch does; what leaves it is a label map, or with a CRF the
softmax of a few pictures at a time. Of squeezed pictures that are scored at their own sizes a batch keeps the logits at
the decoder's stride alone, since each goes to another size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from beco.artifacts.files import of_memory
from beco.artifacts.folders import whole_folder
from beco.config import Prediction
from beco.datasets.manifest import Manifest
from beco.errors import UserError
from beco.networks.segmenter import Segmenter
from beco.stage2.outputs import Outputs
from beco.stage2.train import Trained, load
from beco.training.batches import layout, size_batches
from beco.training.trainer import Compute

TOO_LARGE = "take more memory than there is; set prediction.resize (a long side, such as 1000) or batch_size: 1"
MOST_BYTES = 2**29  # of one network's logits for a batch; several such tensors live at once


def predict(manifest: Manifest, networks: Path, settings: Prediction, compute: Compute, output: Path) -> None:
    """Write a palette PNG per picture of `manifest` (one split) into the folder `output`, which appears whole.

    A PNG has its picture's size, or is a square of `settings.scored_side`. Neither `compute` nor `settings.batch_size`
    changes a label, but for what the last bits of a network's logits, which may depend on the size of a batch, can do
    to a tie. Raises `UserError` if the networks were trained for other classes, or for a picture that cannot be read.
    """
    torch.set_num_threads(compute.threads)
    trained = load(networks)
    if trained.classes != manifest.classes:
        raise UserError(f"{networks}: trained for other classes than the manifest's; train again")
    chosen = chosen_networks(trained, settings, compute.chosen)
    with whole_folder(output) as folder, Outputs(folder, settings.crf, compute.threads) as outputs:
        predict_all(manifest, chosen, settings, compute, outputs)


def chosen_networks(trained: Trained, settings: Prediction, device: torch.device) -> list[Segmenter]:
    """Those of a file's networks that `settings.networks` asks for, ready to predict on a device."""
    chosen = trained.networks[:1] if settings.networks == "first" else trained.networks
    return [network.to(device).to(memory_format=layout(device)) for network in chosen]


def predict_all(
    manifest: Manifest,
    networks: Sequence[Segmenter],
    settings: Prediction,
    compute: Compute,
    outputs: Outputs,
    skip: Callable[[str, UserError], None] | None = None,
) -> None:
    """Hand `outputs` what `networks` (see `chosen_networks`) say of every picture of `manifest`.

    `skip` is told of a picture that cannot be read or for which the memory does not suffice, and the others go on;
    without it the error is raised.
    """
    device = compute.chosen
    batches = size_batches(
        manifest,
        manifest.ids,
        settings.resize,
        settings.batch_size,
        "prediction",
        squeeze=settings.squeeze,
        most_pixels=most_pixels(settings.scales, len(manifest.classes) + 1),
        threads=compute.threads,
        skip=skip,
    )
    for ids, images in batches:
        left = list(ids)
        try:
            _predict_batch(manifest, left, images.to(device), networks, settings, outputs)
        except (RuntimeError, MemoryError) as error:
            if not of_memory(error):
                raise
            for image_id in left:
                problem = UserError(f"{image_id}: {'×'.join(map(str, _size(images)[::-1]))} pixels {TOO_LARGE}")
                if skip is None:
                    raise problem from error
                skip(image_id, problem)
        if device.type == "cpu":  # networks and CRF would fight for the same cores
            outputs.wait()


def _predict_batch(
    manifest: Manifest,
    left: list[str],
    images: Tensor,
    networks: Sequence[Segmenter],
    settings: Prediction,
    outputs: Outputs,
) -> None:
    """Hand over the pictures (B, 3, h, w) of a batch; `left`, their ids, loses each as it goes."""
    fed = _size(images)
    sizes = [fed if settings.scored_side else manifest.size(image_id) for image_id in left]
    scores = picture_scores(networks, images, settings, sizes)
    for image, size, score in zip(images, sizes, scores, strict=True):
        picture = None
        if settings.crf is not None or outputs.more.overlay:
            picture = as_bytes(image) if size == fed else manifest.image(left[0])
        if settings.crf is None:
            outputs.write(left[0], *decided(score, settings, outputs.more.confidence), picture)
        else:
            assert picture is not None
            outputs.refine(left[0], picture, *believed(score, settings))
        left.pop(0)


def decided(score: Tensor, settings: Prediction, sure: bool) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
    """The label map (H, W) uint8 of the largest of scores (C, H, W); if `sure`, its probability, (H, W) in [0, 1]."""
    # the first of equals, as argmax has it, which takes four times as long on a CPU
    label = score.max(0).indices.to(torch.uint8).cpu().numpy()
    return label, _probabilities(score, settings).amax(0).float().cpu().numpy() if sure else None


def _probabilities(score: Tensor, settings: Prediction) -> Tensor:
    return score if settings.merge == "softmax" else score.softmax(0)


def most_pixels(scales: Sequence[float], channels: int) -> int:
    """Pixels (B·h·w) of the pictures of a batch whose logits, at the largest scale, take `MOST_BYTES`."""
    return int(MOST_BYTES / (4 * channels * max(1.0, *scales) ** 2))


@torch.inference_mode()
def picture_scores(
    networks: Sequence[Segmenter], images: Tensor, settings: Prediction, sizes: Sequence[tuple[int, int]]
) -> Iterator[Tensor]:
    """Scores by `settings.merge` of each picture of a batch at its size of `sizes`: (K+1, *size) float32, one by one.

    `images` (B, 3, h, w) RGB in [0, 1]. Pictures that are squeezed and scored at their own sizes have all their views
    brought there from the decoder's stride in one bilinear step and merged there, as BECO's test script has it. Others
    are merged at the size fed (`merged_scores`), and the result goes to the picture's size.
    """
    if settings.squeeze and not settings.scored_side:
        views = [list(_coarse_views(networks, _scaled(images, scale), settings.flip)) for scale in settings.scales]
        for index, size in enumerate(sizes):
            yield _merged(((view.at(index, size) for view in group) for group in views), settings.merge)[0]
    else:
        for score, size in zip(merged_scores(networks, images, settings, _size(images)), sizes, strict=True):
            yield _at_size(score[None], size)[0]


@torch.inference_mode()
def merged_scores(networks: Sequence[nn.Module], images: Tensor, settings: Prediction, size: tuple[int, int]) -> Tensor:
    """Scores by `settings.merge` over networks, scales and mirror images: (B, K+1, *size) float32.

    `images` (B, 3, h, w) RGB in [0, 1]; a network takes pictures of any size and gives logits of the same size, which
    are brought to `size` bilinearly before anything is merged. `logits`: the mean of all logits. `softmax`: the mean
    of all softmax, in [0, 1]. `max`: for each scale the mean of the logits over networks and mirror images, and of
    these the largest over the scales, as BECO's multi-scale test has it.
    """
    views = (_views(networks, _scaled(images, scale), settings.flip) for scale in settings.scales)
    return _merged(((_at_size(logits, size) for logits in group) for group in views), settings.merge)


def _merged(views: Iterable[Iterable[Tensor]], merge: str) -> Tensor:
    """Logits (B, K+1, H, W) by scale, and of each scale by network and mirror image, as one map of scores."""
    combine = torch.maximum if merge == "max" else torch.add
    total: Tensor | None = None
    scales = 0
    for group in views:
        sums, count = torch.zeros(()), 0
        for logits in group:
            sums = sums + (logits.softmax(1) if merge == "softmax" else logits)
            count += 1
        mean = sums / count
        total = mean if total is None else combine(total, mean)
        scales += 1
    assert total is not None  # there is at least one scale
    return total if merge == "max" else total / scales


def _views(networks: Sequence[nn.Module], images: Tensor, flip: bool) -> Iterator[Tensor]:
    """Logits of each network, and those of the mirrored pictures mirrored back."""
    images = images.contiguous(memory_format=layout(images.device))
    for network in networks:
        yield network(images)
        if flip:
            yield network(images.flip(-1)).flip(-1)


@dataclass(frozen=True)
class _View:
    """What one network makes of a batch at one scale, at the stride of its decoder."""

    network: Segmenter
    logits: Tensor
    """(B, K+1, h, w) float32."""
    fed: tuple[int, int]
    mirrored: bool

    def at(self, index: int, size: tuple[int, int]) -> Tensor:
        """Logits of one picture at `size`, mirrored back: (1, K+1, *size)."""
        found = self.network.enlarged(self.logits[index : index + 1], self.fed, size)
        return found.flip(-1) if self.mirrored else found


def _coarse_views(networks: Sequence[Segmenter], images: Tensor, flip: bool) -> Iterator[_View]:
    images = images.contiguous(memory_format=layout(images.device))
    for network in networks:
        yield _View(network, network.coarse(images), _size(images), False)
        if flip:
            yield _View(network, network.coarse(images.flip(-1)), _size(images), True)


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[-2], images.shape[-1]


def _scaled(images: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return images
    height, width = images.shape[-2:]
    size = (max(round(height * scale), 1), max(round(width * scale), 1))
    return F.interpolate(images, size, mode="bilinear", antialias=scale < 1, align_corners=False)


def _at_size(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, h, w) to (B, C, *size), bilinearly."""
    if tuple(scores.shape[-2:]) == size:
        return scores
    return F.interpolate(scores, size, mode="bilinear", align_corners=False)


# --- for the CRF --------------------------------------------------------------------------------------------


def believed(score: Tensor, settings: Prediction) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """What the CRF is given of scores (K+1, H, W): probabilities (C, H, W) of the label values (C,) that it weighs."""
    assert settings.crf is not None
    probabilities = _probabilities(score, settings)
    kept = kept_classes(probabilities, settings.crf.minimum_mass)
    return probabilities[kept].float().cpu().numpy(), kept.to(torch.uint8).cpu().numpy()


def kept_classes(probabilities: Tensor, minimum_mass: float) -> Tensor:
    """Label values that the CRF weighs, ascending int64: all for `minimum_mass` 0.

    Otherwise those that exceed it at some pixel of `probabilities` (C, H, W), and every one that is the largest
    somewhere, so that leaving classes out alone changes no label.
    """
    if minimum_mass == 0:
        return torch.arange(len(probabilities), device=probabilities.device)
    kept = probabilities.amax((1, 2)) > minimum_mass
    kept[probabilities.argmax(0).unique()] = True
    return kept.nonzero().flatten()


def as_bytes(image: Tensor) -> np.ndarray:
    """(3, H, W) in [0, 1] to (H, W, 3) uint8; exact for a picture that was never resized."""
    return (image * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()
