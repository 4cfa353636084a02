"""A ResNet of basic blocks (timm's): depth multiplies its blocks, spread over four stages, width
its channels."""

from timm.models.resnet import BasicBlock, ResNet


def build(depth, width, resolution=96, num_classes=10, in_channels=3):
    blocks = max(4, round(8 * depth))
    layers = [blocks // 4 + (stage < blocks % 4) for stage in (2, 1, 3, 0)]
    channels = [round(count * width) for count in (16, 32, 64, 128)]
    return ResNet(
        BasicBlock,
        layers,
        num_classes,
        in_channels,
        stem_width=round(16 * width),
        channels=channels,
    )
