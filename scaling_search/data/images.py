"""Serves a data set's images as uint8 batches on a device, resized once or as they are read."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

_AHEAD = 3  # batches: the one that is needed now and two more
_CHUNK = 512  # images that are read and resized at a time


def free_memory(device: torch.device) -> int:
    """Return the bytes that can still be allocated on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with suppress(OSError, ValueError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 2**33  # where the system does not say (macOS has no SC_AVPHYS_PAGES)


class Images:
    """Images `at` of a data set's array [N, h, w, c], as uint8 [n, c, side, across] on a device.

    Resized once, antialiased from the original, and resident where half of the free memory holds
    them; else read from the mapped file ahead of time and resized batch by batch, through pinned
    memory to a CUDA device."""

    def __init__(
        self,
        source: NDArray[np.uint8],
        at: NDArray[np.int64],
        side: int,
        device: torch.device,
        progress: Callable[[], None] = lambda: None,
        across: int | None = None,
    ) -> None:
        """`progress` is called again and again while they are read and resized. `across`: columns
        [px] where they are not as many as the rows, `side`."""
        self._source, self._at, self.side, self.device = source, at, side, device
        self.across = across or side
        self.channels: int = source.shape[3]
        self._resident: Tensor | None = None
        shape = (len(at), self.channels, side, self.across)
        if 2 * math.prod(shape) <= free_memory(device):
            self._resident = torch.empty(shape, dtype=torch.uint8, device=device)
            for start in range(0, len(at), _CHUNK):
                index = torch.arange(start, min(start + _CHUNK, len(at)))
                self._resident[start : start + _CHUNK] = self.place(self.fetch(index))
                progress()

    @property
    def resident(self) -> bool:
        """Whether all images lie on the device."""
        return self._resident is not None

    def __len__(self) -> int:
        return len(self._at)

    def __getitem__(self, index: Tensor) -> Tensor:
        """Return the images at the places `index` of `at`. Where the images are resident, `index`
        may lie on the device, and nothing is waited for."""
        if self._resident is not None:
            return self._resident[index.to(self.device)]
        return self.place(self.fetch(index))

    def fetch(self, index: Tensor) -> Tensor:
        """Return the originals at the places `index`, uint8 [n, h, w, c] in the host's memory
        (pinned for a CUDA device). Another thread may call this."""
        rows = self._at[index.numpy()]
        order = np.argsort(rows)  # a disk reads fastest in the file's order
        images = torch.empty((len(rows), *self._source.shape[1:]), dtype=torch.uint8)
        images.numpy()[order] = self._source[rows[order]]
        return images.pin_memory() if self.device.type == "cuda" else images

    def place(self, originals: Tensor) -> Tensor:
        """Return originals as `fetch` gives them, resized and on the device."""
        return resized(originals.to(self.device, non_blocking=True), self.side, self.across)

    def batches(self, size: int, index: Tensor | None = None) -> Iterator[Tensor]:
        """Yield all images, or those at `index`, `size` at a time. The next are read meanwhile."""
        chosen = torch.arange(len(self)) if index is None else index
        parts = chosen.split(size)
        if self._resident is not None:
            for part in parts:
                yield self[part]
            return
        with ReadAhead(self, parts) as originals:
            for batch in originals:
                yield self.place(batch)


class ReadAhead:
    """Iterates over the originals of `parts` (indices) of `images`, two of them read ahead.

    A thread reads, so that the disk and the device work at the same time. Iterate within a `with`
    block, which ends the thread."""

    def __init__(self, images: Images, parts: Sequence[Tensor]) -> None:
        self._images = images
        self._waiting = deque(parts)
        self._reading: deque[Future[Tensor]] = deque()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._reader.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        """Return the originals of the next part. Raises OSError where the data have vanished."""
        while self._waiting and len(self._reading) < _AHEAD:
            self._reading.append(self._reader.submit(self._images.fetch, self._waiting.popleft()))
        if not self._reading:
            raise StopIteration
        return self._reading.popleft().result()


def resized(images: Tensor, side: int, across: int | None = None) -> Tensor:
    """Resize uint8 [n, h, w, c] to [n, c, side, across] on the same device, antialiased; to squares
    where `across` is not given."""
    images = images.permute(0, 3, 1, 2)
    size = (side, across or side)
    if size == tuple(images.shape[2:]):
        return images.contiguous()
    scaled = F.interpolate(images.float(), size=size, mode="bilinear", antialias=True)
    return scaled.round_().clamp_(0, 255).to(torch.uint8)


class Colours(Protocol):
    """Mean and standard deviation of each channel, of pixels in 0..1: a Dataset's, for instance."""

    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def std(self) -> tuple[float, ...]: ...
    @property
    def channels(self) -> int: ...


class Normalise:
    """Subtracts the data set's mean and divides by its standard deviation, channel by channel.

    uint8 [n, c, s, s] → float32 [n, channels, s, s], channels_last. `channels` are the data's own,
    or more: grey becomes so many equal ones."""

    def __init__(self, data: Colours, device: torch.device, channels: int | None = None) -> None:
        self._channels = channels or data.channels
        # mean and std are of pixels in [0, 1]; as one scale and one shift, it is one pass each
        std = torch.tensor(data.std).view(1, -1, 1, 1) * 255
        self._scale = (1 / std).to(device)
        self._shift = (-torch.tensor(data.mean).view(1, -1, 1, 1) * 255 / std).to(device)

    def __call__(self, images: Tensor) -> Tensor:
        x = (
            images.contiguous(memory_format=torch.channels_last)
            .float()
            .mul_(self._scale)
            .add_(self._shift)
        )
        return x.expand(-1, self._channels, -1, -1).contiguous(memory_format=torch.channels_last)
