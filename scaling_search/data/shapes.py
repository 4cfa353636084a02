"""Generates a built-in data set: colour images whose class is an outline and the way that fine
stripes inside it run.

The outline can be read at any resolution and is easy; the stripes' period is 4-10 px of 64, so the
finer they are, the sooner they blur away at low resolution: a network that sees finely is rewarded.
A single layer of filters sees their direction, so short runs learn it steadily. (Stripes against
checks, the classes until 2026-11, take a product of features: runs learnt it late and at once, and
the seed decided whether before their end.) Mirroring an image keeps its class. Colours, position,
size, rotation, phase and background carry nothing. The images follow from the seed alone.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

SIDE = 64  # px
_GENERATED_AT_ONCE = 500  # images; with another number the same seed would draw other images

OUTLINES = ("disc", "square", "triangle", "cross", "ring")
ORIENTATIONS = ("upright", "lying")  # of the stripes
CLASSES = tuple(
    f"{orientation} {outline}" for outline, orientation in itertools.product(OUTLINES, ORIENTATIONS)
)

Floats = NDArray[np.float32]


def _inside(outline: str, x: Floats, y: Floats) -> NDArray[np.bool_]:
    """Return whether the points (x, y), in units of the shape's radius, lie inside the outline."""
    if outline == "disc":
        return x**2 + y**2 < 0.9
    if outline == "square":
        return np.maximum(abs(x), abs(y)) < 0.8
    if outline == "triangle":
        return (y > -0.6) & (np.sqrt(3) * abs(x) + y < 1.1)
    if outline == "cross":
        return (np.minimum(abs(x), abs(y)) < 0.33) & (np.maximum(abs(x), abs(y)) < 1.0)
    squared_radius = x**2 + y**2  # of the ring
    return (squared_radius < 1.0) & (squared_radius > 0.3)


def _batch(labels: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return an image of each label, [n, 64, 64, 3]. The order of the draws is part of the data."""
    n = len(labels)

    def draw(low: float, high: float, *shape: int) -> Floats:
        """Return uniform numbers [n, *shape], by default one for each image, [n, 1, 1]."""
        return rng.uniform(low, high, (n, *(shape or (1, 1)))).astype(np.float32)

    grid = np.arange(SIDE, dtype=np.float32)
    y, x = np.meshgrid(grid, grid, indexing="ij")
    centre_x, centre_y, radius = draw(27, 37), draw(27, 37), draw(20, 26)
    turn = draw(-0.35, 0.35)  # radians
    # each pixel in the shape's own coordinates
    u, v = (x - centre_x) / radius, (y - centre_y) / radius
    u, v = np.cos(turn) * u + np.sin(turn) * v, np.cos(turn) * v - np.sin(turn) * u

    # the stripes in image pixels; their tilt lies evenly on both sides, so that a mirrored image
    # stays in its class
    angle, period = draw(-0.5, 0.5), draw(4, 10)
    angle += (labels % len(ORIENTATIONS))[:, None, None] * np.float32(np.pi / 2)
    phase = (np.cos(angle) * x + np.sin(angle) * y) * 2 * np.pi / period + draw(0, 2 * np.pi)
    stripes = np.sign(np.sin(phase))[..., None]

    mask = np.empty((n, SIDE, SIDE, 1), dtype=bool)
    for i, outline in enumerate(OUTLINES):
        has_outline = labels // len(ORIENTATIONS) == i
        mask[has_outline, ..., 0] = _inside(outline, u[has_outline], v[has_outline])

    # the background is a colour that changes slowly across the image
    slope = np.stack([x, y], -1) / SIDE - 0.5
    ramp = np.einsum("hwk,nkc->nhwc", slope, draw(-30, 30, 2, 3))
    background = draw(20, 90, 1, 1, 3) + ramp
    body = draw(130, 190, 1, 1, 3) + stripes * draw(20, 60, 1, 1, 1)
    image = np.where(mask, body, background)
    image += rng.normal(0, 8, image.shape).astype(np.float32)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def generate(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return `count` images [count, 64, 64, 3] and their labels, every class equally often."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count, dtype=np.int64) % len(CLASSES))
    batches: list[NDArray[np.uint8]] = []
    for i in range(0, count, _GENERATED_AT_ONCE):
        batches.append(_batch(labels[i : i + _GENERATED_AT_ONCE], rng))
    return np.concatenate(batches), labels
