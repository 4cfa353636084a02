"""Functions as baselines, written into files as users write them."""

from __future__ import annotations

import textwrap
from pathlib import Path

# Five convolutions at most: counts in a few milliseconds, trains in less than a second.
SMALL = """
    import torch
    from torch import nn

    def build(depth, width, resolution=12, num_classes=10, in_channels=3):
        channels = max(1, round(32 * width))
        layers = [nn.Conv2d(in_channels, channels, 3, 2, 1), nn.ReLU()]
        for _ in range(max(1, int(4 * depth + 0.5))):
            layers += [nn.Conv2d(channels, channels, 3, 1, 1), nn.BatchNorm2d(channels), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                             nn.Linear(channels, num_classes))
"""


def write(folder: Path, source: str = SMALL, name: str = "net.py") -> str:
    """Write a file with a function `build`; the place of the function."""
    (folder / name).write_text(textwrap.dedent(source))
    return f"{folder / name}:build"
