"""The data sets that have a name: downloaded, checked, cached."""

import gzip
import hashlib
import io
import socket
import struct
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest

from scaling_search import UserError
from scaling_search.data import hub, named, network, shapes, sources


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
    monkeypatch.setattr(named, "_DEBIAN", folder)
    monkeypatch.setenv("SCALING_SEARCH_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="does not have its known SHA-256"):
        sources.load("fashion-mnist")
    digests = {
        name: hashlib.sha256(gzip.decompress((folder / name).read_bytes())).hexdigest()
        for name in arrays
    }
    monkeypatch.setattr(named, "_FASHION_SHA256", digests)
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
    monkeypatch.setattr(named, "_DEBIAN", tmp_path / "absent")
    monkeypatch.setattr(named, "_FASHION_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/")
    monkeypatch.setattr(shapes, "generate", lambda count, seed: _few(count, seed))
    monkeypatch.setenv("SCALING_SEARCH_CACHE", str(tmp_path / "cache"))
    assert network.CONNECT_SECONDS <= 5, "people wait for it"
    monkeypatch.setattr(network, "CONNECT_SECONDS", 0.3)
    # the server never answers: only giving up ends these
    assert sources.load("auto").name == "shapes"
    with pytest.raises(UserError, match="use --data shapes"):
        sources.load_or_explain("fashion-mnist")
    silent.close()
    # a portal that answers every address with its own page is no network either
    monkeypatch.setattr(named, "_FASHION_URL", serve(b"<html>please log in</html>"))
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
    monkeypatch.setattr(hub, "is_installed", lambda: False)
    monkeypatch.setattr(named, "_CIFAR_URL", serve(buffer.getvalue()))
    with pytest.raises(UserError, match="published checksum"):
        sources.load("cifar10")
    monkeypatch.setattr(named, "_CIFAR_URL", serve(buffer.getvalue()))
    monkeypatch.setattr(named, "_CIFAR_MD5", hashlib.md5(buffer.getvalue()).hexdigest())
    loaded = sources.load("cifar10")
    first = rows["data_batch_1"][0]
    assert (loaded.train_images[0] == first[1:].reshape(3, 32, 32).transpose(1, 2, 0)).all()
    assert len(loaded.train_labels) == 100
    assert loaded.native == 32
    monkeypatch.setattr(named, "_CIFAR_URL", "http://127.0.0.1:9/")
    assert sources.load("cifar10").digest == loaded.digest, "from the cache"
