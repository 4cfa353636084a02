"""What a pass over the images does to them: their order, flips, shifts and cutout."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def augmented(
    images: Tensor,
    mirror: Tensor | None = None,
    shift: Tensor | None = None,
    centre: Tensor | None = None,
    cutout: int = 0,
) -> Tensor:
    """Return images [n, c, h, w] flipped where `mirror` [n] says so, moved by `shift` [n, 2] px
    (down, right; edges repeated), with a grey square of `cutout` px around `centre` [n, 2].

    None leaves a change out. All of it happens on the images' device, without a copy or a wait, so
    that a captured step holds it."""
    if mirror is not None or shift is not None:
        images = _moved(images, mirror, shift)
    if centre is not None:
        images = _cut_out(images, centre, cutout)
    return images


def _moved(images: Tensor, mirror: Tensor | None, shift: Tensor | None) -> Tensor:
    """Return each image's pixels looked up where a flip and a shift take them from."""
    n, channels, side, across = images.shape
    rows = torch.arange(side, device=images.device).expand(n, side)
    columns = torch.arange(across, device=images.device).expand(n, across)
    if mirror is not None:
        columns = torch.where(mirror[:, None], across - 1 - columns, columns)
    if shift is not None:
        rows = (rows + shift[:, :1]).clamp_(0, side - 1)
        columns = (columns + shift[:, 1:]).clamp_(0, across - 1)
    sources = (rows[:, :, None] * across + columns[:, None, :]).view(n, 1, -1)
    return images.flatten(2).gather(2, sources.expand(-1, channels, -1)).view(images.shape)


def _cut_out(images: Tensor, centre: Tensor, size: int) -> Tensor:
    """Return the images with a grey square around `centre`; at the border it is cut off."""
    rows = torch.arange(images.shape[-2], device=images.device)
    columns = torch.arange(images.shape[-1], device=images.device)
    outside_rows = (2 * (rows - centre[:, :1])).abs() >= size  # [n, rows]
    outside_columns = (2 * (columns - centre[:, 1:])).abs() >= size
    keep = outside_rows[:, None, :, None] | outside_columns[:, None, None, :]
    return torch.where(keep, images, 128)


def pass_order(count: int, batch: int, seed: int, number: int) -> Iterator[Tensor]:
    """Yield the index batches of one pass: a fresh permutation from the seed and the pass's number,
    without the incomplete last batch."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
    order = torch.randperm(count, generator=generator)
    whole_batches = max(1, count // batch)  # fewer images than a batch are one
    for start in range(0, whole_batches * batch, batch):
        yield order[start : start + batch]


def mirrored(count: int, seed: int, number: int) -> Tensor:
    """Return which images are flipped in the pass of this number, bool [count].

    In the first one it is half of them, drawn from the seed; from then on each image alternates
    (the alternating flip of Jordan 2024, arXiv:2404.00498): two passes show each image both ways,
    where chance would show half of them twice alike."""
    first = torch.rand(count, generator=torch.Generator().manual_seed(seed)) < 0.5
    return first ^ bool(number % 2)
