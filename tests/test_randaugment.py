"""RandAugment of a batch against torchvision's, image by image; captured on a stand-in for CUDA."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import Tensor

from scaling_search.data.dataset import Dataset
from scaling_search.data.images import Images
from scaling_search.data.randaugment import OPERATIONS, ROUNDS, randaugmented
from scaling_search.training.batches import Batches
from scaling_search.training.recipe import Recipe
from scaling_search.training.trial import Trial
from tests.cuda_stub import stub

GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")


def images(channels: int, side: int) -> Tensor:
    """Twelve of them: noise, a ramp, one value alone, low contrast, a dark channel, few values."""
    generator = torch.Generator().manual_seed(side + channels)
    shape = (12, channels, side, side)
    made = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    made[1] = torch.arange(side * side).view(side, side) % 256
    made[2] = 77
    made[3] = made[3] // 4 + 90
    made[4, 0] = 5
    made[5] = made[5] // 64
    made[6] = made[6, :1]  # grey
    return made


def by_torchvision(image: Tensor, operation: int, sign: bool) -> Tensor:
    """The image altered by torchvision's RandAugment, whose draws are these."""
    policy = pytest.importorskip("torchvision.transforms.v2").RandAugment()
    name = list(policy._AUGMENTATION_SPACE)[operation]
    magnitudes, signed = policy._AUGMENTATION_SPACE[name]
    strengths = magnitudes(policy.num_magnitude_bins, *image.shape[-2:])
    magnitude = 0.0 if strengths is None else float(strengths[policy.magnitude])
    if signed and sign:
        magnitude = -magnitude
    return policy._apply_image_or_video_transform(
        image, name, magnitude, interpolation=policy.interpolation, fill=policy._fill
    )


def alone(pictures: Tensor, operation: int, sign: bool) -> Tensor:
    """Ours, of one operation: the other one is identity."""
    operations = torch.zeros((len(pictures), ROUNDS), dtype=torch.int64)
    operations[:, 1] = operation
    return randaugmented(pictures, operations, torch.full(operations.shape, sign))


def test_operations_are_torchvisions() -> None:
    v2 = pytest.importorskip("torchvision.transforms.v2")
    assert tuple(v2.RandAugment._AUGMENTATION_SPACE) == OPERATIONS
    assert v2.RandAugment().num_ops == ROUNDS


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("operation", range(len(OPERATIONS)), ids=OPERATIONS)
def test_each_operation_is_torchvisions(operation: int, channels: int) -> None:
    """Colors to the bit. A pixel whose place is midway between two, up to rounding, may be either:
    at most one in a thousand.

    These sides fill whole vectors: where an image does not, torchvision may round its last few
    values otherwise than the others."""
    for side in (32, 64):
        pictures = images(channels, side)
        for sign in (False, True):
            ours = alone(pictures, operation, sign)
            theirs = torch.stack([by_torchvision(x, operation, sign) for x in pictures])
            assert ours.dtype == torch.uint8
            assert ours.shape == pictures.shape
            unequal = (ours != theirs).float().mean().item()
            assert unequal <= (1e-3 if OPERATIONS[operation] in GEOMETRIC else 0.0)


def test_every_operation_but_identity_alters_images() -> None:
    pictures = images(3, 32)
    for operation, name in enumerate(OPERATIONS):
        for sign in (False, True):
            same = torch.equal(alone(pictures, operation, sign), pictures)
            assert same == (name == "Identity"), name


@pytest.mark.parametrize("side", [23, 2])
def test_odd_and_tiny_sides(side: int) -> None:
    pictures = images(3, side)
    for operation in range(len(OPERATIONS)):
        for sign in (False, True):
            ours = alone(pictures, operation, sign).int()
            theirs = torch.stack([by_torchvision(x, operation, sign) for x in pictures]).int()
            if OPERATIONS[operation] in GEOMETRIC:
                assert (ours != theirs).float().mean().item() <= 1e-3
            else:
                assert (ours - theirs).abs().max() <= 1


@pytest.mark.parametrize("channels", [3, 1])
def test_mixed_operations_equal_each_alone(channels: int) -> None:
    """All 14 × 14 pairs in one batch: each image goes through its first, then its second."""
    count = len(OPERATIONS)
    first, second = torch.arange(count).repeat_interleave(count), torch.arange(count).repeat(count)
    operations = torch.stack((first, second), 1)
    signs = torch.stack((first % 2 == 0, second % 3 == 0), 1)
    pictures = images(channels, 16).repeat(17, 1, 1, 1)[: count * count]
    before = pictures.clone()
    batch = randaugmented(pictures, operations, signs)
    assert torch.equal(pictures, before), "the originals stay"
    assert torch.equal(batch, randaugmented(pictures, operations, signs))
    for i in range(0, count * count, 5):
        one = alone(pictures[i : i + 1], int(operations[i, 0]), bool(signs[i, 0]))
        one = alone(one, int(operations[i, 1]), bool(signs[i, 1]))
        assert torch.equal(batch[i : i + 1], one), operations[i]


def test_batches_draw_every_operation_and_both_signs(data: Dataset) -> None:
    """Other draws of the recipe are the same without it; a step's draws are the same each time."""
    at = torch.arange(500).numpy()
    labels = torch.tensor(data.train_labels[:500])
    loaded = []
    for randaugment in (False, True, True):
        recipe = Recipe(batch=250, shift=0.1, cutout=0.3, randaugment=randaugment)
        batches = Batches(Images(data.train_images, at, 16, torch.device("cpu")), labels, recipe, 7)
        batches.seek(1)
        loaded.append((batches._draws.clone(), *batches.load()))
    (plain, plain_images, _), (drawn, altered, _), (again, same, _) = loaded
    assert torch.equal(plain[:, :6], drawn[:, :6])
    assert not plain[:, 6:].any()
    assert torch.equal(drawn, again)
    assert torch.equal(altered, same)
    assert torch.equal(altered, randaugmented(plain_images, drawn[:, 6:8], drawn[:, 8:].bool()))
    for at_round in (6, 7):
        assert drawn[:, at_round].unique().tolist() == list(range(len(OPERATIONS)))
    for sign in (8, 9):
        assert drawn[:, sign].unique().tolist() == [0, 1]


@stub.needs_stub
def test_captured_steps_hold_it(trial: Trial, data: Dataset) -> None:
    """It takes at most 150 graph nodes, no copy from the host and no wait, in color and in grey.

    A training with it is captured, also where images are read ahead of the step. From then on a
    step launches its graph, copies nothing from pageable memory and waits for nothing."""
    recipe = dataclasses.replace(trial.recipe, randaugment=True)
    settings = dataclasses.replace(trial, recipe=recipe, device="cuda", epochs=1)
    code = f"""
import json
from pathlib import Path
import torch
from scaling_search.data import images as data_images
from scaling_search.data.dataset import Dataset
from scaling_search.data.randaugment import randaugmented
from scaling_search.training.preparation import prepare
from scaling_search.training.trial import Trial
from tests.cuda_stub import counters

for channels in (3, 1):
    images = torch.zeros((8, channels, 32, 32), dtype=torch.uint8, device="cuda")
    operations = torch.zeros((8, 2), dtype=torch.int64, device="cuda")
    signs = operations > 0
    randaugmented(images, operations, signs)
    torch.cuda.synchronize()
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        counters.reset()
        randaugmented(images, operations, signs)
        counts = counters.read()
    assert 50 < counts["captured_nodes"] <= 150, counts
    others = "launches", "synchronisations", "host_to_device_pageable", "host_to_device_pinned"
    assert not any(counts[name] for name in (*others, "refused")), counts

trial = Trial.from_dict(json.loads({json.dumps(settings.as_dict())!r}))
free = data_images.free_memory
for resident in (True, False):
    data_images.free_memory = free if resident else lambda device: 0
    ready = prepare(trial, Dataset.open(Path(trial.data_folder)))
    assert ready.images.resident == resident
    batches, step = ready.batches, ready.step
    step.model.train()
    for at in range(5):
        counters.reset()
        batches.seek(at)
        step(batches.load, 0.001, at)
    counts = counters.read()
    batches.close()
    assert step.captured, step.eager
    assert counts["graph_replays"] == 1 and counts["refused"] == 0, counts
    assert counts["host_to_device_pageable"] == counts["synchronisations"] == 0, counts
"""
    stub.check("-c", code)
