"""Applies RandAugment to a whole batch by a fixed sequence of kernels, which a CUDA graph can hold.

The 14 operations, their order and their magnitudes are those of torchvision's v2.RandAugment by
default: two operations an image, magnitude 9 of 31, nearest pixel, black outside (Cubuk et al.
2019, arXiv:1909.13719).

In each of two rounds an image goes through three stages: a geometric one (each pixel is looked up
at another place), a curve (each value of a channel becomes another) and a blend (with its grey, its
mean or a blurred image). Its operation changes it in one of them; the others leave every bit as it
is, so that nothing branches on what is drawn.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

OPERATIONS = (
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
)
ROUNDS = 2  # operations an image
# What these do depends on the whole image, so no table can hold it.
_IMAGE_DEPENDENT = ("Contrast", "Sharpness", "AutoContrast", "Equalize")
_MAGNITUDE, _BINS = 9, 31  # torchvision's defaults
_VALUES = 256  # of a pixel


def _magnitude(first: float, last: float) -> float:
    """Return the strength in bin _MAGNITUDE, from those of the first and last bin, in float32."""
    return float(torch.linspace(first, last, _BINS)[_MAGNITUDE])


_BLEND = _magnitude(0.0, 0.9)  # brightness, color, contrast and sharpness change by this fraction


def randaugmented(images: Tensor, operations: Tensor, signs: Tensor) -> Tensor:
    """Return uint8 images [n, c, s, s], c 1 or 3, altered by their operations, one after the other.

    `operations` [n, 2] int64 are places in OPERATIONS; `signs` [n, 2] bool say where a magnitude is
    negative (Identity and the last four have none). Both lie on the images' device.

    The first call for a device, a side and a number of channels copies constants there, so that it
    has to come before a capture. Later ones copy nothing from the host and wait for nothing.
    """
    constants = _constants(*images.shape[1:], images.device)
    rows = torch.add(signs, operations, alpha=2)
    places, inside = _places(
        constants.matrices[rows], constants.centred_rows, constants.centred_columns
    )
    curves = constants.curves[rows]
    factors, weights = constants.factors[rows], constants.weights[rows]
    chosen = operations[:, :, None] == constants.image_dependent
    for step in range(ROUNDS):
        images = _moved(images, places[:, step], inside[:, step])
        contrast, sharpness, autocontrast, equalize = chosen[:, step, :, None, None].unbind(1)
        other = _other_image(images, contrast, sharpness)
        images = _curved(images, curves[:, step, None], autocontrast, equalize, constants)
        images = _blended(images, other, factors[:, step], weights[:, step])
    return images


@dataclass(frozen=True, slots=True)
class _Constants:
    """Tensors on a device: tables with a row for each 2 · operation + sign, and what images share.

    Tables: `matrices` [28, 2, 3] lead from a place in the new image to the one in the old (see
    _matrix), `curves` [28, 256] are what each value becomes, `factors` [28, 1, 1, 1] belong to the
    image in a blend and `weights` [28, 1, 1, 1] to the other image, in units of _BLEND.
    Shared: `image_dependent` [4] int64 are the operations of _IMAGE_DEPENDENT, `centred_rows` [h]
    and `centred_columns` [w] the distances of rows and columns from the image's centre in px,
    `values` [256] 0 to 255, `one` [1, 1, 1] int32. All but `image_dependent` and `one` are
    float32."""

    matrices: Tensor
    curves: Tensor
    factors: Tensor
    weights: Tensor
    image_dependent: Tensor
    centred_rows: Tensor
    centred_columns: Tensor
    values: Tensor
    one: Tensor


@functools.cache
def _constants(channels: int, height: int, width: int, device: torch.device) -> _Constants:
    """Return the constants for images of so many channels and px, made once for a device."""
    values = torch.arange(float(_VALUES))
    count = 2 * len(OPERATIONS)
    matrices = torch.empty((count, 2, 3), dtype=torch.float64)
    curves = values.repeat(count, 1)
    factors, weights = torch.ones(count), torch.zeros(count)
    for row in range(count):
        operation, sign = OPERATIONS[row // 2], -1 if row % 2 else 1
        matrices[row] = torch.tensor(_matrix(operation, sign, height, width), dtype=torch.float64)
        if operation == "Posterize":
            dropped_bits = round(_MAGNITUDE / ((_BINS - 1) / 4))  # of 8
            curves[row] = values - values % 2**dropped_bits
        if operation == "Solarize":
            curves[row] = torch.where(values >= 255 * _magnitude(1.0, 0.0), 255 - values, values)
        if operation == "Color" and channels == 1:
            continue  # it is grey already
        if operation in ("Brightness", "Color", "Contrast"):
            factors[row] = 1.0 + sign * _BLEND
        if operation in ("Color", "Contrast", "Sharpness"):
            weights[row] = -sign
    image_dependent = [OPERATIONS.index(name) for name in _IMAGE_DEPENDENT]
    return _Constants(
        matrices=matrices.float().to(device),
        curves=curves.to(device),
        factors=factors.view(-1, 1, 1, 1).to(device),
        weights=weights.view(-1, 1, 1, 1).to(device),
        image_dependent=torch.tensor(image_dependent).to(device),
        centred_rows=(torch.arange(height) - (height - 1) / 2).to(device),
        centred_columns=(torch.arange(width) - (width - 1) / 2).to(device),
        values=values.to(device),
        one=torch.ones((1, 1, 1), dtype=torch.int32).to(device),
    )


def _matrix(operation: str, sign: int, height: int, width: int) -> list[list[float]]:
    """Return two rows that lead from (x, y, 1) in the new image to x and y in the old one, px.

    The new image's are measured from its centre, the old one's from its first pixel."""
    shear = sign * _magnitude(0.0, 0.3)
    across = sign * int(_magnitude(0.0, 150.0 / 331.0 * width))  # whole px
    down = sign * int(_magnitude(0.0, 150.0 / 331.0 * height))
    angle = sign * math.radians(_magnitude(0.0, 30.0))
    x, y = (width - 1) / 2, (height - 1) / 2  # the centre
    if operation == "ShearX":  # the upper edge stays; in ShearY the left one
        return [[1.0, shear, x + shear * height / 2], [0.0, 1.0, y]]
    if operation == "ShearY":
        return [[1.0, 0.0, x], [shear, 1.0, y + shear * width / 2]]
    if operation == "TranslateX":
        return [[1.0, 0.0, x - across], [0.0, 1.0, y]]
    if operation == "TranslateY":
        return [[1.0, 0.0, x], [0.0, 1.0, y - down]]
    if operation == "Rotate":
        cosine, sine = math.cos(angle), math.sin(angle)
        return [[cosine, -sine, x], [sine, cosine, y]]
    return [[1.0, 0.0, x], [0.0, 1.0, y]]


def _places(
    matrices: Tensor, centred_rows: Tensor, centred_columns: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the old pixel nearest to where matrices [n, rounds, 2, 3] lead from each new one.

    int64 [n, rounds, h · w]; with it whether that place is inside the image, bool."""
    height, width = len(centred_rows), len(centred_columns)
    across = torch.addcmul(matrices[..., 2:], matrices[..., :1], centred_columns)
    down = matrices[..., 1:2] * centred_rows
    exact = (across[..., None, :] + down[..., :, None]).round_()  # [n, rounds, 2, h, w]: x, then y
    exact_x, exact_y = exact.unbind(2)
    columns, rows = exact_x.clamp(0, width - 1), exact_y.clamp(0, height - 1)
    inside = (columns == exact_x) & (rows == exact_y)
    places = torch.add(columns, rows, alpha=width).long()
    return places.flatten(2), inside.flatten(2)


def _moved(images: Tensor, places: Tensor, inside: Tensor) -> Tensor:
    """Return images [n, c, h, w] of the pixels at `places` [n, h · w], black where not `inside`."""
    places = places[:, None].expand(-1, images.shape[1], -1)
    return (images.flatten(2).gather(2, places) * inside[:, None]).view(images.shape)


def _other_image(images: Tensor, contrast: Tensor, sharpness: Tensor) -> Tensor:
    """Return what each image is blended with, float [n, c, s, s].

    That is its mean where `contrast` [n, 1, 1], what a blur adds to it where `sharpness` [n, 1, 1],
    else its grey."""
    grey = images.float()
    if images.shape[1] == 3:
        red, green, blue = images.unbind(1)
        # torchvision's order of operations: a last bit may decide what floor comes to
        grey = red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()[:, None]
    mean = grey.mean((1, 2, 3), keepdim=True)
    plain = torch.where(contrast[..., None], mean, grey)
    return torch.where(sharpness[..., None], _blurring(images.float()), plain)


def _blurring(images: Tensor) -> Tensor:
    """Return what a 3 × 3 blur adds to float images [n, c, s, s]; zero at their edges.

    The kernel is 5 in the middle and 1 around it, over 13. Sums of whole numbers are exact; a
    convolution in TF32 would not be, and pooling takes four times as long on a CPU."""
    middle = images[..., 1:-1, 1:-1]
    rows = (images[..., :-2, :] + images[..., 1:-1, :]).add_(images[..., 2:, :])
    sums = (rows[..., :-2] + rows[..., 1:-1]).add_(rows[..., 2:])
    added = torch.zeros_like(images)
    added[..., 1:-1, 1:-1] = sums.add_(middle, alpha=4).div_(13).round_().sub_(middle)
    return added


def _curved(
    images: Tensor, curves: Tensor, autocontrast: Tensor, equalize: Tensor, constants: _Constants
) -> Tensor:
    """Return images [n, c, s, s] with each value replaced by that of the image's curve [n, 1, 256].

    Where `autocontrast` or `equalize` [n, 1, 1], each channel has a curve of its own, made here."""
    pixels = images.flatten(2).long()
    low, high = pixels.aminmax(dim=2, keepdim=True)
    spread = high - low
    stretched = (constants.values - low).div_(spread * (1 / 255))
    curves = torch.where(autocontrast & (spread > 0), stretched, curves)
    # the histogram evened out, in whole numbers as Pillow does it
    counts = torch.zeros((*pixels.shape[:2], _VALUES), dtype=torch.int32, device=images.device)
    counts.scatter_add_(2, pixels, constants.one.expand_as(pixels))
    below = counts.cumsum(2, dtype=torch.int32).sub_(counts)
    step = below.gather(2, high) // 255  # pixels to a value, the brightest ones not counted
    evened = (below + step // 2) // step.clamp(min=1)
    curves = torch.where(equalize & (step > 0), evened, curves)
    curves = curves.clamp(0, 255).to(torch.uint8)
    return curves.expand(-1, images.shape[1], -1).gather(2, pixels).view(images.shape)


def _blended(images: Tensor, other: Tensor, factors: Tensor, weights: Tensor) -> Tensor:
    """Return images · factors + other · weights · _BLEND as uint8, fractions cut off.

    Factors and weights are [n, 1, 1, 1]. _BLEND is a number, not a tensor, so that it becomes part
    of a fused multiply-add, as in torchvision's blend: with one rounding more, some values would
    differ from its by one."""
    blended = torch.add(images * factors, other * weights, alpha=_BLEND)
    return blended.clamp_(0, 255).to(torch.uint8)
