"""Folds, augmentation, the cache, and what --data may name."""

import errno
import fcntl
import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from scaling_search import UserError
from scaling_search.data import shapes, sources
from scaling_search.data.augment import augmented, mirrored, pass_order
from scaling_search.data.dataset import (
    FOLDS,
    CacheWriter,
    Dataset,
    content_hashes,
    remove_abandoned,
    split,
)
from scaling_search.data.images import Images, Normalise, resized
from tests.users import as_another_user

# ---- folds and batches


def test_folds_rotate_and_cover(data: Dataset) -> None:
    everything = set(range(len(data.train_labels)))
    held: set[int] = set()
    for seed in range(FOLDS):
        train, val = split(data.train_hashes, seed)
        assert set(train) | set(val) == everything
        assert not set(train) & set(val)
        assert not held & set(val)
        held |= set(val)
        again = split(data.train_hashes, seed + FOLDS)
        assert (again[1] == val).all()
        assert len(val) == pytest.approx(len(everything) / FOLDS, rel=0.35)
    assert held == everything


@given(st.integers(0, 9), st.integers(1, 300), st.integers(1, 60))
def test_limits_take_a_fixed_part(
    data: Dataset, seed: int, train_limit: int, val_limit: int
) -> None:
    train, val = split(data.train_hashes, seed, train_limit, val_limit)
    all_train, all_val = split(data.train_hashes, seed)
    assert set(train) <= set(all_train)
    assert set(val) <= set(all_val)
    assert len(train) == min(train_limit, len(all_train))
    assert len(val) == min(val_limit, len(all_val))
    smaller, _ = split(data.train_hashes, seed, max(1, train_limit // 2))
    assert set(smaller) <= set(train)


def test_equal_images_share_a_fold() -> None:
    images = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
    hashes = content_hashes(np.concatenate([images, images]))
    assert (hashes[:10] == hashes[10:]).all()
    assert len(set(hashes.tolist())) == 10


def test_pass_order_is_a_permutation_without_the_rest() -> None:
    batches = list(pass_order(103, 10, 7, 3))
    assert len(batches) == 10
    assert len(torch.cat(batches).unique()) == 100
    assert torch.equal(batches[0], next(iter(pass_order(103, 10, 7, 3))))
    assert not torch.equal(batches[0], next(iter(pass_order(103, 10, 7, 4))))


# ---- images


def test_resize_is_antialiased_like_pillow(data: Dataset) -> None:
    ours = resized(torch.tensor(data.train_images[:20]), 20)
    for image, mine in zip(data.train_images[:20], ours, strict=True):
        pillow = np.asarray(Image.fromarray(image).resize((20, 20), Image.Resampling.BILINEAR))
        difference = np.abs(mine.permute(1, 2, 0).numpy().astype(int) - pillow)
        assert difference.max() <= 2
    assert torch.equal(
        resized(torch.tensor(data.train_images[:3]), 64).permute(0, 2, 3, 1),
        torch.tensor(data.train_images[:3]),
    )


def test_augmentation_flips_and_shifts() -> None:
    torch.manual_seed(0)
    image = torch.arange(36, dtype=torch.uint8).view(1, 1, 6, 6).expand(200, 1, 6, 6)
    assert torch.equal(augmented(image), image)
    mirror = torch.rand(200) < 0.5
    flipped = augmented(image, mirror)
    assert torch.equal(flipped, torch.where(mirror.view(-1, 1, 1, 1), image.flip(3), image))
    moved = augmented(image, shift=torch.randint(-2, 3, (200, 2)))
    wanted = set()
    for down, right in itertools.product(range(-2, 3), repeat=2):
        rows = np.clip(np.arange(6) + down, 0, 5)
        columns = np.clip(np.arange(6) + right, 0, 5)
        wanted.add(tuple(image[0, 0][np.ix_(rows, columns)].flatten().tolist()))
    seen = {tuple(m.flatten().tolist()) for m in moved}
    assert seen <= wanted
    assert len(seen) > 15


def test_cutout_is_one_grey_square_inside() -> None:
    torch.manual_seed(0)
    images = torch.zeros(300, 3, 12, 12, dtype=torch.uint8)
    cut = augmented(images, centre=torch.randint(0, 12, (300, 2)), cutout=5)
    assert set(cut.unique().tolist()) == {0, 128}
    assert (cut[:, 0] == cut[:, 2]).all()
    rows, cols = (cut[:, 0] > 0).any(2).sum(1), (cut[:, 0] > 0).any(1).sum(1)
    assert torch.equal((cut[:, 0] > 0).flatten(1).sum(1), rows * cols)
    assert rows.max() == cols.max() == 5
    assert rows.min() >= 3, "at the border the square is cut off"


def test_alternating_flip_shows_every_image_both_ways() -> None:
    first, second = mirrored(1000, 3, 0), mirrored(1000, 3, 1)
    assert torch.equal(first, ~second)
    assert torch.equal(first, mirrored(1000, 3, 2))
    assert 420 < first.sum() < 580
    assert not torch.equal(first, mirrored(1000, 4, 0))


def test_images_beyond_memory_are_read_batch_by_batch(
    data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = np.array([7, 3, 500, 41, 42])
    inside = Images(data.train_images, at, 20, torch.device("cpu"))
    monkeypatch.setattr("scaling_search.data.images.free_memory", lambda device: 1000)
    outside = Images(data.train_images, at, 20, torch.device("cpu"))
    assert outside._resident is None
    assert inside._resident is not None
    index = torch.tensor([4, 0, 2])
    assert torch.equal(inside[index], outside[index])
    assert len(outside) == 5
    assert torch.equal(inside[index][1], resized(torch.tensor(data.train_images[7:8]), 20)[0])
    assert all(
        torch.equal(a, b) for a, b in zip(inside.batches(2), outside.batches(2), strict=True)
    )


def test_normalised_has_mean_zero_and_three_channels(data: Dataset) -> None:
    x = Normalise(data, torch.device("cpu"))(torch.tensor(data.train_images).permute(0, 3, 1, 2))
    assert x.shape[1] == 3
    assert x.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=0.02, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3)), torch.ones(3), atol=0.02, rtol=0)


# ---- shapes


def test_shapes_are_deterministic_balanced_and_need_resolution() -> None:
    images, labels = shapes.generate(200, 3)
    again, _ = shapes.generate(200, 3)
    other, _ = shapes.generate(200, 4)
    assert (images == again).all()
    assert not (images == other).all()
    assert images.shape == (200, 64, 64, 3)
    assert images.dtype == np.uint8
    assert np.bincount(labels).tolist() == [20] * 10
    # the stripes are fine: reducing to 12 px takes most of the contrast inside the shapes away
    middle = images[:, 24:40, 24:40].astype(float)
    small = resized(torch.tensor(images), 12)[:, :, 5:7, 5:7].float().numpy()
    assert small.std((2, 3)).mean() < 0.5 * middle.std((1, 2)).mean()


def test_stripes_run_as_the_class_says() -> None:
    """Brightness changes along the rows of upright stripes and down the columns of lying ones.
    Their tilt is to either side equally often: a mirrored image stays in its class."""
    images, labels = shapes.generate(600, 3)
    filled = labels // len(shapes.ORIENTATIONS) != shapes.OUTLINES.index("ring")
    middle = images[filled, 24:40, 24:40].astype(float).mean(-1)
    orientation = labels[filled] % len(shapes.ORIENTATIONS)
    down, along = np.gradient(middle, axis=(1, 2))
    upright = abs(along).mean((1, 2)) > abs(down).mean((1, 2))
    says_upright = orientation == shapes.ORIENTATIONS.index("upright")
    assert (upright == says_upright).mean() > 0.95
    to_one_side = (along * down).mean((1, 2)) > 0
    for kind in (says_upright, ~says_upright):
        assert 0.35 < to_one_side[kind].mean() < 0.65


def test_means_and_deviations_of_colours(tmp_path: Path) -> None:
    images, labels = shapes.generate(100, 3)
    for colours in (images, images[..., :1]):
        with CacheWriter(tmp_path / str(colours.shape[3])) as writer:
            data = writer.commit("s", "g", shapes.CLASSES, colours, labels, (colours, labels))
        fractions = colours / 255
        np.testing.assert_allclose(data.mean, fractions.mean((0, 1, 2)), rtol=1e-12)
        np.testing.assert_allclose(data.std, fractions.std((0, 1, 2)), rtol=1e-12)


# ---- the cache


def test_unwritable_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SCALING_SEARCH_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(UserError, match="set SCALING_SEARCH_CACHE"):
        sources.load("shapes")


def test_no_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container without accounts."""
    for name in ("SCALING_SEARCH_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", _no_home)
    with pytest.raises(UserError, match="no home folder; set SCALING_SEARCH_CACHE"):
        sources.load("shapes")


def _no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_the_cache_of_another_user(
    other_users_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that only its owner may enter."""
    monkeypatch.setenv("SCALING_SEARCH_CACHE", str(other_users_folder / "cache"))
    (other_users_folder / "cache").mkdir(mode=0o700)

    def load() -> str:
        with pytest.raises(UserError) as caught:
            sources.load("shapes")
        return str(caught.value)

    said = as_another_user(other_users_folder, load)
    assert "Permission denied; set SCALING_SEARCH_CACHE to a folder that can be written" in said


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_one_line_and_nothing_stays(small_disk: Path) -> None:
    """Written through memory, a file with holes on a full disk would end the process (SIGBUS)."""
    images = np.random.default_rng(0).integers(0, 256, (1000, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(1000) % 2
    with (
        pytest.raises(UserError, match="No space left on device; set SCALING_SEARCH_CACHE"),
        CacheWriter(small_disk / "x") as writer,
    ):
        writer.commit("s", "g", ("a", "b"), images, labels, (images, labels))
    assert list(small_disk.iterdir()) == []
    with (
        pytest.raises(UserError, match="No space left on device"),
        CacheWriter(small_disk / "x") as writer,
    ):
        writer.array("train_images", 1000, (64, 64), 3)
    assert list(small_disk.iterdir()) == []


def test_a_folder_without_its_lock_yet_is_nobodys_prey(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process starts between the making of the folder and its lock."""
    flock = fcntl.flock

    def start_another(file: int, operation: int) -> None:
        if not operation & fcntl.LOCK_NB:
            remove_abandoned(tmp_path)
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", start_another)
    with CacheWriter(tmp_path / "x") as writer:
        assert writer.array("train_images", 10, (8, 8), 3).shape == (10, 8, 8, 3)
    assert list(tmp_path.iterdir()) == []


def test_without_locks_the_cache_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on some network file systems."""

    def refuse(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    images, labels = shapes.generate(200, 0)
    with CacheWriter(tmp_path / "x") as writer:
        writer.commit("s", "g", shapes.CLASSES, images, labels, None)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_disk_that_fills_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with (
        pytest.raises(UserError, match="No space left on device; set SCALING_SEARCH_CACHE"),
        CacheWriter(tmp_path / "x") as writer,
    ):
        writer.array("train_images", 10, (8, 8), 3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_what_a_killed_reader_left_is_removed(sent: signal.Signals, tmp_path: Path) -> None:
    script = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # nohup ignores it, for its children too
        "from scaling_search.data.dataset import CacheWriter\n"
        "writer = CacheWriter(pathlib.Path(sys.argv[1]) / 'x')\n"
        "writer.array('train_images', 10, (8, 8), 3)\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
        (left,) = tmp_path.iterdir()
        remove_abandoned(tmp_path)
        assert left.exists(), "its owner lives"
        reader.send_signal(sent)
    assert left.exists()
    remove_abandoned(tmp_path)
    assert not left.exists()


def test_damaged_cache_is_named(tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text("{")
    with pytest.raises(UserError, match="delete the folder to have it rebuilt"):
        Dataset.open(tmp_path)


@pytest.mark.parametrize("name", ["meta.json", "train_images.npy", "test_labels.npy"])
def test_an_empty_file_in_the_cache_is_named(name: str, tmp_path: Path) -> None:
    images, labels = shapes.generate(200, 0)
    with CacheWriter(tmp_path / "x") as writer:
        writer.commit("s", "g", shapes.CLASSES, images, labels, None)
    (tmp_path / "x" / name).write_bytes(b"")
    with pytest.raises(UserError, match="delete the folder to have it rebuilt"):
        Dataset.open(tmp_path / "x")


def test_describe_says_where_and_how_much(data: Dataset) -> None:
    line = data.describe(96, 60)
    assert line.startswith("shapes (generated) · ")
    assert " · 10 classes (upright disc, lying disc, upright square, …) of 60 images · " in line
    assert "100 test · RGB, 64 × 64 px · 64 px native · each run uses 96 / 60" in line


def test_two_processes_may_fill_the_cache_at_once(tmp_path: Path) -> None:
    arrays = shapes.generate(200, 0), shapes.generate(50, 1)
    with CacheWriter(tmp_path / "x") as one, CacheWriter(tmp_path / "x") as two:
        a = one.commit("s", "g", shapes.CLASSES, *arrays[0], arrays[1])
        b = two.commit("s", "g", shapes.CLASSES, *arrays[0], arrays[1])
    assert a.digest == b.digest
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
