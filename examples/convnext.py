"""A ConvNeXt (timm's): depth multiplies its blocks, most of them in the third stage, width its
channels."""

from timm.models.convnext import ConvNeXt


def build(depth, width, resolution=64, num_classes=10, in_channels=3):
    depths = [max(1, round(count * depth)) for count in (1, 1, 3, 1)]
    return ConvNeXt(
        in_chans=in_channels,
        num_classes=num_classes,
        depths=depths,
        dims=[round(count * width) for count in (20, 40, 80, 160)],
        patch_size=2,
    )
