"""Folds, augmentation, the cache, and what --data may name."""

import gzip
import hashlib
import io
import itertools
import json
import socket
import struct
import tarfile
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
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
    cache_root,
    content_hashes,
    split,
)
from scaling_search.data.images import Images, Normalise, resized
from tests.conftest import write_images

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


# ---- reading folders and parquet


def test_folder_without_splits(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write_images(tmp_path / "pets" / name, 40)
    loaded = sources.load(str(tmp_path / "pets"))
    assert loaded.classes == ("cat", "dog")
    assert loaded.native == 24
    assert len(loaded.train_labels) + len(loaded.test_labels) == 80
    assert 1 <= len(loaded.test_labels) <= 20
    assert sources.load(str(tmp_path / "pets")).folder == loaded.folder
    # the pixels are the files': the middle square of one of them is there
    file = tmp_path / "pets" / "dog" / "3.png"
    square = np.asarray(Image.open(file))[:, 3:27]
    everything = np.concatenate([loaded.train_images, loaded.test_images])
    where = np.flatnonzero((everything == square).all((1, 2, 3)))
    labels = np.concatenate([loaded.train_labels, loaded.test_labels])
    assert len(where) == 1
    assert labels[where[0]] == 1


def test_folder_with_train_and_val(tmp_path: Path) -> None:
    for part, count in (("train", 40), ("val", 8)):
        for name in ("cat", "dog"):
            write_images(tmp_path / part / name, count, seed=count)
    loaded = sources.load(str(tmp_path))
    assert (len(loaded.train_labels), len(loaded.test_labels)) == (80, 16)
    assert "val as test" in loaded.describe()


def test_folder_changes_are_seen(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write_images(tmp_path / name, 40)
    before = sources.load(str(tmp_path))
    Image.new("RGB", (30, 30), "red").save(tmp_path / "cat" / "new.png")
    assert sources.load(str(tmp_path)).digest != before.digest


def test_grey_images_stay_one_channel(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(30):
            Image.fromarray(rng.integers(0, 256, (20, 20), dtype=np.uint8)).save(
                tmp_path / name / f"{i}.png"
            )
    assert sources.load(str(tmp_path)).train_images.shape[3] == 1


def parquet_file(
    path: Path, count: int, seed: int, image: str = "image", label: str = "label"
) -> None:
    rng = np.random.default_rng(seed)
    cells = []
    for _ in range(count):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(buffer, "PNG")
        cells.append({"bytes": buffer.getvalue(), "path": None})
    table = pa.table({image: cells, label: pa.array(np.arange(count) % 3)})
    names = {"info": {"features": {label: {"names": ["x", "y", "z"], "_type": "ClassLabel"}}}}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(names)}), path)


def test_parquet_folder(tmp_path: Path) -> None:
    parquet_file(tmp_path / "train-00000-of-00002.parquet", 45, 0, "img")
    parquet_file(tmp_path / "train-00001-of-00002.parquet", 45, 1, "img")
    parquet_file(tmp_path / "test-00000-of-00001.parquet", 12, 2, "img")
    loaded = sources.load(str(tmp_path))
    assert (len(loaded.train_labels), len(loaded.test_labels), loaded.classes) == (
        90,
        12,
        ("x", "y", "z"),
    )
    assert loaded.test_labels.tolist() == [0, 1, 2] * 4


@pytest.mark.parametrize(
    "names",
    [("train/0000", "test/0000"), ("cifar-train", "cifar_test"), ("data/train-1", "data/val-1")],
)
def test_parquet_splits_by_folder_or_name(tmp_path: Path, names: tuple[str, str]) -> None:
    parquet_file(tmp_path / f"{names[0]}.parquet", 60, 0)
    parquet_file(tmp_path / f"{names[1]}.parquet", 12, 1)
    loaded = sources.load(str(tmp_path))
    assert (len(loaded.train_labels), len(loaded.test_labels)) == (60, 12)


def test_parquet_single_file(tmp_path: Path) -> None:
    parquet_file(tmp_path / "all.parquet", 60, 0)
    loaded = sources.load(str(tmp_path / "all.parquet"))
    assert len(loaded.train_labels) + len(loaded.test_labels) == 60
    assert len(loaded.test_labels) > 0


def test_refused_data(tmp_path: Path) -> None:
    cases: list[tuple[str, str]] = [
        ("no-such-thing", "unknown data 'no-such-thing': known are auto, fashion-mnist")
    ]
    (tmp_path / "empty").mkdir()
    cases.append((str(tmp_path / "empty"), "no image in any class folder"))
    write_images(tmp_path / "one" / "cat", 30)
    cases.append((str(tmp_path / "one"), r"only one class folder \(cat\)"))
    for name in ("cat", "dog"):
        write_images(tmp_path / "broken" / name, 20)
    good = (tmp_path / "broken" / "dog" / "7.png").read_bytes()
    (tmp_path / "broken" / "dog" / "7.png").write_bytes(good[: len(good) // 2])
    cases.append((str(tmp_path / "broken"), r"dog/7\.png: not a readable image"))
    for name in ("cat", "dog"):
        write_images(tmp_path / "junk" / name, 20)
    (tmp_path / "junk" / "cat" / "0.png").write_bytes(b"not an image")
    cases.append((str(tmp_path / "junk"), r"cat/0\.png: not a readable image"))
    pq.write_table(pa.table({"text": ["a"], "label": [0]}), tmp_path / "text.parquet")
    cases.append((str(tmp_path / "text.parquet"), "no image column .* its columns are text, label"))
    pq.write_table(pa.table({"image": [b"x"], "name": ["a"]}), tmp_path / "nolabel.parquet")
    cases.append((str(tmp_path / "nolabel.parquet"), "no integer label column"))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nonsense")
    cases.append((str(tmp_path / "bad.parquet"), "not a readable parquet file"))
    (tmp_path / "x.zip").write_bytes(b"PK")
    cases.append((str(tmp_path / "x.zip"), "a file must be .parquet"))
    for name in ("cat", "dog"):
        write_images(tmp_path / "few" / name, 2)
    cases.append((str(tmp_path / "few"), "too few for 5 validation folds"))
    parquet_file(tmp_path / "mixed" / "train.parquet", 60, 0)
    parquet_file(tmp_path / "mixed" / "other.parquet", 60, 1)
    cases.append((str(tmp_path / "mixed"), "name the parquet files train"))
    rows = pa.table(
        {
            "image": pq.read_table(tmp_path / "mixed" / "train.parquet")["image"][:12],
            "label": range(12),
        }
    )
    parquet_file(tmp_path / "labels" / "train.parquet", 60, 0)
    pq.write_table(rows, tmp_path / "labels" / "test.parquet")
    cases.append(
        (
            str(tmp_path / "labels"),
            "the test split has label 11, but there are only the classes 0 to 2",
        )
    )
    cases.append(("~nobody-of-this-name/x", "data ~nobody-of-this-name/x: "))
    for part, classes in (("train", ("a", "b")), ("val", ("a", "c"))):
        for name in classes:
            write_images(tmp_path / "differ" / part / name, 20)
    cases.append((str(tmp_path / "differ"), "class 'c' is not among the classes"))
    before = set(cache_root().iterdir()) if cache_root().exists() else set()
    for spec, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            sources.load(spec)
        assert "\n" not in str(caught.value)
    assert set(cache_root().iterdir()) == before, "a refused data set leaves nothing behind"


def test_unwritable_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SCALING_SEARCH_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(UserError, match="set SCALING_SEARCH_CACHE"):
        sources.load("shapes")


def test_damaged_cache_is_named(tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text("{")
    with pytest.raises(UserError, match="delete the folder to have it rebuilt"):
        Dataset.open(tmp_path)


# ---- the named sets


def idx(array: np.ndarray) -> bytes:
    return gzip.compress(
        struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
    )


def test_fashion_mnist_is_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file of the right form and wrong content is refused; with its own digest it is read."""
    rng = np.random.default_rng(0)
    arrays = {
        "train-images-idx3-ubyte.gz": rng.integers(0, 256, (100, 28, 28), dtype=np.uint8),
        "train-labels-idx1-ubyte.gz": (np.arange(100) % 10).astype(np.uint8),
        "t10k-images-idx3-ubyte.gz": rng.integers(0, 256, (20, 28, 28), dtype=np.uint8),
        "t10k-labels-idx1-ubyte.gz": (np.arange(20) % 10).astype(np.uint8),
    }
    folder = tmp_path / "debian"
    folder.mkdir()
    for name, array in arrays.items():
        (folder / name).write_bytes(idx(array))
    monkeypatch.setattr(sources, "_DEBIAN", folder)
    monkeypatch.setenv("SCALING_SEARCH_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="does not have its known SHA-256"):
        sources.load("fashion-mnist")
    digests = {
        name: hashlib.sha256(gzip.decompress((folder / name).read_bytes())).hexdigest()
        for name in arrays
    }
    monkeypatch.setattr(sources, "_FASHION_SHA256", digests)
    loaded = sources.load("auto")
    assert loaded.name == "fashion-mnist"
    assert loaded.native == 28
    assert (loaded.train_images[..., 0] == arrays["train-images-idx3-ubyte.gz"]).all()
    assert loaded.test_labels.tolist() == (np.arange(20) % 10).tolist()


@pytest.mark.skipif(
    not Path("/usr/share/datasets/fashion-mnist").is_dir(), reason="Debian's package is not there"
)
def test_fashion_mnist_of_debian(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SCALING_SEARCH_CACHE", str(tmp_path))
    loaded = sources.load("auto")
    assert len(loaded.train_labels) == 60_000
    assert len(loaded.test_labels) == 10_000
    assert np.bincount(loaded.test_labels).tolist() == [1000] * 10


def test_auto_gives_up_on_a_silent_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    silent = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr(sources, "_DEBIAN", tmp_path / "absent")
    monkeypatch.setattr(sources, "_FASHION_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/")
    monkeypatch.setattr(shapes, "generate", lambda count, seed: _few(count, seed))
    monkeypatch.setenv("SCALING_SEARCH_CACHE", str(tmp_path / "cache"))
    assert sources.CONNECT_SECONDS <= 5, "people wait for it"
    monkeypatch.setattr(sources, "CONNECT_SECONDS", 0.3)
    # the server never answers: only giving up ends these
    assert sources.load("auto").name == "shapes"
    with pytest.raises(UserError, match="use --data shapes"):
        sources.load_or_explain("fashion-mnist")
    silent.close()
    # a portal that answers every address with its own page is no network either
    monkeypatch.setattr(sources, "_FASHION_URL", serve(b"<html>please log in</html>"))
    with pytest.raises(UserError, match="not to be had from the network"):
        sources.load_or_explain("fashion-mnist")


_generate = shapes.generate


def _few(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    return _generate(count // 50, seed)


def serve(content: bytes) -> str:
    """One answer over HTTP on loopback."""
    server = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(
                b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content
            )
        server.close()

    threading.Thread(target=answer, daemon=True).start()
    return f"http://127.0.0.1:{server.getsockname()[1]}/"


def test_cifar10_is_downloaded_and_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    rows = {}
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
            rows[name] = rng.integers(0, 256, (20, 3073), dtype=np.uint8)
            rows[name][:, 0] = np.arange(20) % 10
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            info.size = rows[name].size
            tar.addfile(info, io.BytesIO(rows[name].tobytes()))
    monkeypatch.setenv("SCALING_SEARCH_CACHE", str(tmp_path))
    monkeypatch.setattr(sources, "_CIFAR_URL", serve(buffer.getvalue()))
    with pytest.raises(UserError, match="published checksum"):
        sources.load("cifar10")
    monkeypatch.setattr(sources, "_CIFAR_URL", serve(buffer.getvalue()))
    monkeypatch.setattr(sources, "_CIFAR_MD5", hashlib.md5(buffer.getvalue()).hexdigest())
    loaded = sources.load("cifar10")
    first = rows["data_batch_1"][0]
    assert (loaded.train_images[0] == first[1:].reshape(3, 32, 32).transpose(1, 2, 0)).all()
    assert len(loaded.train_labels) == 100
    assert loaded.native == 32
    monkeypatch.setattr(sources, "_CIFAR_URL", "http://127.0.0.1:9/")
    assert sources.load("cifar10").digest == loaded.digest, "from the cache"


def test_describe_says_where_and_how_much(data: Dataset) -> None:
    line = data.describe(96, 60)
    assert line.startswith("shapes (generated) · ")
    assert "100 test · 64 px native · each run uses 96 / 60" in line


def test_two_processes_may_fill_the_cache_at_once(tmp_path: Path) -> None:
    arrays = shapes.generate(200, 0), shapes.generate(50, 1)
    with CacheWriter(tmp_path / "x") as one, CacheWriter(tmp_path / "x") as two:
        a = one.commit("s", "g", shapes.CLASSES, *arrays[0], arrays[1])
        b = two.commit("s", "g", shapes.CLASSES, *arrays[0], arrays[1])
    assert a.digest == b.digest
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
