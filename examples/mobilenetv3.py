"""MobileNetV3 small (torchvision's): depth multiplies its 11 blocks, by repeating or leaving out
those that keep channels and side; width multiplies channels, rounded to multiples of 8 as
published."""

import copy

from torch import nn
from torchvision.models.mobilenetv3 import MobileNetV3, _mobilenet_v3_conf


def build(depth, width, resolution=96, num_classes=10, in_channels=3):
    rows, last_channels = _mobilenet_v3_conf("mobilenet_v3_small", width_mult=width)
    kept = [row for row in rows if row.stride == 1 and row.input_channels == row.out_channels]
    wanted = max(0, round(len(rows) * depth) - (len(rows) - len(kept)))
    blocks = []
    for row in rows:
        repeats = 1
        if row in kept:
            place = kept.index(row)
            repeats = wanted // len(kept) + (place < wanted % len(kept))
        blocks += [copy.copy(row) for _ in range(repeats)]
    net = MobileNetV3(blocks, last_channels, num_classes=num_classes)
    stem = net.features[0][0]
    net.features[0][0] = nn.Conv2d(in_channels, stem.out_channels, 3, 2, 1, bias=False)
    return net
