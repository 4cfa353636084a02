"""The batches of a run: which images each step sees, and how each of them is altered.

Everything random is drawn on the CPU from (seed, pass) or (seed, step). A pass shows every training
image once; an epoch is a pass, or as many images as the study says, across passes. A CUDA device
gets the draws of many steps in one copy, and a step picks its own row of them there, so that a
captured step holds its data too: no copy from pageable memory and no wait between two steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scaling_search.data.augment import augmented, mirrored, pass_order
from scaling_search.data.images import Images, ReadAhead
from scaling_search.data.randaugment import OPERATIONS, ROUNDS, randaugmented
from scaling_search.training.recipe import Recipe

_PLANNED = 512  # steps at most whose draws lie on a CUDA device: 5 MB at batch 128
# columns of a step's draws, one row an image
_INDEX, _MIRROR, _SHIFT, _CENTRE = 0, 1, slice(2, 4), slice(4, 6)
_OPERATIONS, _SIGNS = slice(6, 6 + ROUNDS), slice(6 + ROUNDS, 6 + 2 * ROUNDS)
_COLUMNS = 6 + 2 * ROUNDS


def step_seed(seed: int, step: int) -> int:
    """Return the seed of torch's generators before this step of the run."""
    return (seed << 32) + step + 1


class Batches:
    """`seek` a step, then `load` its batch: uint8 images [n, c, s, s] and int64 labels [n].

    Both lie on the device. On CUDA `load` reads memory whose place never changes, so that it may be
    captured. `per_epoch` are the steps of an epoch of `epoch_images` (None: of a pass)."""

    def __init__(
        self,
        images: Images,
        labels: Tensor,
        recipe: Recipe,
        seed: int,
        epoch_images: int | None = None,
    ) -> None:
        self._images, self._labels, self._recipe, self._seed = images, labels, recipe, seed
        self.size = min(recipe.batch, len(labels))
        self._per_pass = len(labels) // self.size  # steps
        self.per_epoch = self._per_pass
        if epoch_images is not None:
            self.per_epoch = max(1, epoch_images // self.size)
        self._shift = round(recipe.shift * images.side)  # px, both ways
        self._cutout = round(recipe.cutout * images.side)
        self._pass = -1
        self._order: list[Tensor] = []  # indices of the pass's batches
        self._plain = True  # whether this pass alters no image
        self._mirrored: Tensor | None = None  # in this pass, per image
        self._reader: ReadAhead | None = None
        self._reads_next = 0  # the step whose images it gives next
        self._draws = torch.empty(0, dtype=torch.int64)  # of the present step, on a CPU
        self._images_now: Tensor | None = None  # its images, where they are read ahead
        # on CUDA: the draws of many steps, and which of them is the present one
        self._plan: Tensor | None = None
        self._planned_from, self._planned_to = 0, 0
        self._cursor = torch.zeros(1, dtype=torch.int64, device=images.device)
        if images.device.type == "cuda":
            shape = (min(_PLANNED, self._per_pass), self.size, _COLUMNS)
            self._plan = torch.zeros(shape, dtype=torch.int64, device=images.device)
            if not images.resident:
                maps = (self.size, images.channels, images.side, images.across)
                self._images_now = torch.empty(maps, dtype=torch.uint8, device=images.device)

    def close(self) -> None:
        """End the thread that reads ahead."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def seek(self, step: int) -> None:
        """Make `load` give the batch of this step of the run; seed torch's generators for it."""
        number, i = divmod(step, self._per_pass)
        if number != self._pass:
            self._begin_pass(number)
        torch.manual_seed(step_seed(self._seed, step))
        if self._plan is None:
            self._draws = self._draw(i, None)
        else:
            if not self._planned_from <= step < self._planned_to:
                self._plan_steps(self._plan, step, i)
            self._cursor.fill_(step - self._planned_from)
        if not self._images.resident:
            images = self._images.place(self._read(step, i))
            if self._plan is not None and self._images_now is not None:
                self._images_now.copy_(images)
            else:
                self._images_now = images

    def load(self) -> tuple[Tensor, Tensor]:
        """Return the images and labels of the step that was sought."""
        draws = self._step_draws()
        labels = self._labels[draws[:, _INDEX]]
        images = self._images[draws[:, _INDEX]] if self._images_now is None else self._images_now
        return self._altered(images, draws), labels

    def _read(self, step: int, i: int) -> Tensor:
        """Return the originals of this step, the pass's batch i. The reader goes forward only: for
        any other step than the next one it begins anew."""
        if self._reader is None or step != self._reads_next:
            self.close()
            self._reader = ReadAhead(self._images, self._order[i:])
        self._reads_next = step + 1
        return next(self._reader)

    def _begin_pass(self, number: int) -> None:
        """Draw the order of a pass."""
        count, recipe = len(self._labels), self._recipe
        self._pass = number
        self._order = list(pass_order(count, self.size, self._seed, number))
        self._plain = number < recipe.plain_passes
        if recipe.flip and not self._plain:
            self._mirrored = mirrored(count, self._seed, number)
        self.close()  # what it would read next is of the pass before

    def _draw(self, i: int, generator: torch.Generator | None) -> Tensor:
        """Return the draws [n, columns] of the pass's batch i, on the CPU.

        Without a generator they come from torch's global one."""
        index, n = self._order[i], self.size
        side, across = self._images.side, self._images.across
        draws = torch.zeros((n, _COLUMNS), dtype=torch.int64)
        draws[:, _INDEX] = index
        if self._plain:
            # cutout's centre is off the image
            draws[:, _CENTRE] = -self._cutout - max(side, across)
            return draws
        if self._mirrored is not None:
            draws[:, _MIRROR] = self._mirrored[index]
        if self._shift:
            low, high = -self._shift, self._shift + 1
            for column in range(_SHIFT.start, _SHIFT.stop):
                draws[:, column] = torch.randint(low, high, (n,), generator=generator)
        if self._cutout:
            if side == across:
                centre = torch.randint(0, side, (2, n), generator=generator)
            else:
                rows = torch.randint(0, side, (n,), generator=generator)
                centre = torch.stack([rows, torch.randint(0, across, (n,), generator=generator)])
            draws[:, _CENTRE] = centre.t()
        if self._recipe.randaugment:
            shape = (n, ROUNDS)
            draws[:, _OPERATIONS] = torch.randint(0, len(OPERATIONS), shape, generator=generator)
            draws[:, _SIGNS] = torch.randint(0, 2, shape, generator=generator)
        return draws

    def _plan_steps(self, plan: Tensor, step: int, i: int) -> None:
        """Draw as many steps from this one on as there is room for, up to the end of the pass, and
        copy them to the device at once."""
        count = min(len(plan), self._per_pass - i)
        generator = torch.Generator()
        draws = torch.zeros((count, self.size, _COLUMNS), dtype=torch.int64)
        for at in range(count):
            generator.manual_seed(step_seed(self._seed, step + at))
            draws[at] = self._draw(i + at, generator)
        plan[:count].copy_(draws.pin_memory(), non_blocking=True)
        self._planned_from, self._planned_to = step, step + count

    def _step_draws(self) -> Tensor:
        """Return the draws [n, columns] of the present step, on the device."""
        if self._plan is None:
            return self._draws
        return self._plan.index_select(0, self._cursor)[0]

    def _altered(self, images: Tensor, draws: Tensor) -> Tensor:
        """Return the images augmented as the draws say."""
        if self._plain and self._plan is None:
            return images
        # a captured step does the same in every pass: in a plain one, draws that change nothing
        mirror = draws[:, _MIRROR].bool() if self._recipe.flip else None
        shift = draws[:, _SHIFT] if self._shift else None
        centre = draws[:, _CENTRE] if self._cutout else None
        images = augmented(images, mirror, shift, centre, self._cutout)
        if self._recipe.randaugment:
            images = randaugmented(images, draws[:, _OPERATIONS], draws[:, _SIGNS].bool())
        return images
