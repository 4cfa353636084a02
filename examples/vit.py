"""A small vision transformer: depth multiplies its layers, width its channels, resolution its
tokens."""

import torch
from torch import nn


class ViT(nn.Module):
    def __init__(self, layers, channels, hidden, resolution, num_classes, in_channels, patch=2):
        super().__init__()
        side = -(-resolution // patch)  # tokens; the last is padded where the patch does not fit
        self.pad = (0, side * patch - resolution) * 2
        self.patches = nn.Conv2d(in_channels, channels, patch, stride=patch)
        self.positions = nn.Parameter(0.02 * torch.randn(side**2, channels))
        layer = nn.TransformerEncoderLayer(
            channels, 1, hidden, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, num_classes))

    def forward(self, x):
        tokens = self.patches(nn.functional.pad(x, self.pad)).flatten(2).transpose(1, 2)
        return self.head(self.layers(tokens + self.positions).mean(1))


def build(depth, width, resolution=16, num_classes=10, in_channels=3):
    layers, channels = max(1, round(6 * depth)), max(1, round(24 * width))
    return ViT(layers, channels, round(48 * width), resolution, num_classes, in_channels)
