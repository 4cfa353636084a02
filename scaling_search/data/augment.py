"""What an epoch does to its images: their order, flips, shifts and cutout, drawn from (seed,
epoch)."""

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
    """Images [n, c, side, side] flipped where `mirror` [n] says so, moved by `shift` [n, 2] px
    (down, right; edges repeated), with a grey square of `cutout` px around `centre` [n, 2]; None
    leaves a change out. All on the images' device, without a copy or a wait, so that a captured
    step holds it."""
    n, channels, side, _ = images.shape
    pixels = torch.arange(side, device=images.device)
    if mirror is not None or shift is not None:
        rows = columns = pixels.expand(n, side)
        if mirror is not None:
            columns = torch.where(mirror[:, None], side - 1 - pixels, columns)
        if shift is not None:
            rows = (rows + shift[:, :1]).clamp_(0, side - 1)
            columns = (columns + shift[:, 1:]).clamp_(0, side - 1)
        places = (rows[:, :, None] * side + columns[:, None, :]).view(n, 1, -1)
        images = images.flatten(2).gather(2, places.expand(-1, channels, -1)).view(images.shape)
    if centre is not None:
        outside = (
            2 * (pixels - centre[:, :, None])
        ).abs() >= cutout  # [n, 2, side]: of its rows, columns
        keep = outside[:, 0][:, None, :, None] | outside[:, 1][:, None, None, :]
        images = torch.where(keep, images, 128)
    return images


def epoch_order(count: int, batch: int, seed: int, epoch: int) -> Iterator[Tensor]:
    """Index batches of one epoch: a fresh permutation from (seed, epoch), the incomplete last batch
    left out."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(count, generator=generator)
    for i in range(0, max(1, count // batch) * batch, batch):
        yield order[i : i + batch]


def mirrored(count: int, seed: int, epoch: int) -> Tensor:
    """Which images are flipped in this epoch: half of them in the first, drawn from the seed, then
    every image in turn (alternating flip: two epochs show each image both ways, where chance would
    show half of them twice alike)."""
    first = torch.rand(count, generator=torch.Generator().manual_seed(seed)) < 0.5
    return first ^ bool(epoch % 2)
