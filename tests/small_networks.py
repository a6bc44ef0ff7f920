"""Networks of stage two that are built and run in no time, one for each architecture."""

from __future__ import annotations

from typing import Any

from beco.config import Network

TINY = {"name": "resnet10t", "options": {"channels": [8, 16, 24, 32]}}
SMALL_MIT = {"embed_dims": [8, 16, 24, 32], "num_heads": [1, 2, 3, 4], "depths": [1, 1, 1, 1]}
MIT = {"name": "mit_b0", "options": SMALL_MIT}
SMALL: dict[str, dict[str, Any]] = {
    "deeplabv2": {"encoder": TINY, "atrous_rates": (1, 2)},
    "deeplabv3plus": {"encoder": TINY, "decoder_channels": 8, "low_level_channels": 6, "atrous_rates": (1, 2, 3)},
    "segformer": {"encoder": MIT, "embedding_channels": 12, "decoder_channels": 8, "output_stride": 32},
}
ARCHITECTURES = list(SMALL)


def network(architecture: str = "deeplabv3plus", **settings: Any) -> Network:
    return Network.model_validate({"architecture": architecture, **SMALL[architecture], **settings})
