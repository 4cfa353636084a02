"""Shared fixtures: a small real data set, a small baseline, and trials on them."""

from __future__ import annotations

import fcntl
import gc
import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import settings

import effnet
from effnet.arch import Arch, scale
from scaling_search.data import shapes
from scaling_search.data.dataset import CacheWriter, Dataset
from scaling_search.study.settings import Study, check
from scaling_search.training.recipe import Recipe
from scaling_search.training.step import Step
from scaling_search.training.trial import Trial

if TYPE_CHECKING:
    from scaling_search.report.page import Page
    from tests.searches import WarmExecutor

# No test asserts wall time: on a busy machine an example takes longer than hypothesis' 200 ms.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


def pytest_xdist_auto_num_workers() -> int:
    """pytest's own processes: one more than cores, four at most. Its tests wait for processes of
    theirs: with as many as cores, these were idle for 40% of the time."""
    return min(4, (os.cpu_count() or 1) + 1)


@contextmanager
def one_process_at_a_time(factory: pytest.TempPathFactory, name: str) -> Iterator[Path]:
    """A path that all of pytest's processes share. Within, this process alone uses it."""
    folder = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder / name


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's cache."""
    before = os.environ.get("SCALING_SEARCH_CACHE")
    os.environ["SCALING_SEARCH_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    torch.set_num_threads(1)
    yield
    if before is None:
        del os.environ["SCALING_SEARCH_CACHE"]
    else:
        os.environ["SCALING_SEARCH_CACHE"] = before


@pytest.fixture(scope="module", autouse=True)
def _short_collections() -> None:
    """Every run ends with a collection of garbage, which looks at all objects that are not frozen:
    of pytest's own processes, with all libraries imported, millions."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _ray_like_the_others() -> None:
    """Ray runs its workers at niceness 15: beside pytest's other processes a test of three seconds
    took three minutes."""
    os.environ.setdefault("RAY_worker_niceness", "0")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """600 + 100 images of shapes, 64 px."""
    with CacheWriter(tmp_path_factory.mktemp("data") / "shapes") as writer:
        return writer.commit(
            "shapes", "generated", shapes.CLASSES, *shapes.generate(600, 0), shapes.generate(100, 1)
        )


@pytest.fixture(scope="session", autouse=True)
def _compiled(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The CPU's kernels, compiled by numba before any test. It takes 17 s of CPU time where its
    cache is empty, and each process would do it that trains before the first has ended."""
    with one_process_at_a_time(tmp_path_factory, "compiled") as mark:
        if not mark.exists():
            network = scale(check(SMALL, "test").network(), num_classes=10)
            step = Step(effnet.build(network), Recipe(), torch.device("cpu"), torch.Tensor.float)
            images, labels = torch.zeros(4, 3, 12, 12, dtype=torch.uint8), torch.zeros(4).long()
            step(lambda: (images, labels), lr=0.01, step=0)
            mark.touch()


# A network that trains in a second: seven blocks, a tenth of B0's channels.
SMALL = {
    "baseline": {"name": "b0-s4", "blocks": 7, "width": 0.1, "divisor": 2, "resolution": 12},
    "space": {"candidates": 6},
    "data": {"source": "shapes", "train_images": 96, "val_images": 60, "test_images": 50},
    "recipe": {"batch": 16, "warmup_steps": 2, "bn_images": 32},
    "rungs": [1],
    "extra": 2,
    "device": "cpu",
}


@pytest.fixture
def study() -> Study:
    return check(SMALL, "test")


@pytest.fixture(scope="session")
def warm() -> Iterator[Callable[[int], WarmExecutor]]:
    """A function that returns an executor of so many workers, which stay from test to test."""
    from tests.searches import WarmExecutor

    opened: dict[int, WarmExecutor] = {}

    def executor(workers: int) -> WarmExecutor:
        if workers not in opened:
            opened[workers] = WarmExecutor(workers)
        return opened[workers]

    yield executor
    for one in opened.values():
        one.end()


@pytest.fixture(scope="session")
def undisturbed(
    data: Dataset,
    warm: Callable[[int], WarmExecutor],
    tmp_path_factory: pytest.TempPathFactory,
) -> pd.DataFrame:
    """The table of SMALL, trained by one worker; once for all of pytest's processes."""
    from tests.searches import search

    with one_process_at_a_time(tmp_path_factory, "undisturbed") as path:
        if not path.exists():
            folder = tmp_path_factory.mktemp("one")
            _, table = search(check(SMALL, "test"), data, folder, warm(1))
            table.to_pickle(path)
        return pd.read_pickle(path)


@pytest.fixture
def small_arch(study: Study) -> Arch:
    return scale(study.network(), num_classes=10)


@pytest.fixture
def trial(data: Dataset, small_arch: Arch, tmp_path: Path) -> Trial:
    return Trial(
        arch=small_arch,
        data_digest=data.digest,
        data_folder=str(data.folder),
        recipe=Recipe(batch=16, warmup_steps=2, bn_images=32),
        seed=0,
        epochs=2,
        train_images=96,
        val_images=60,
        device="cpu",
        threads=1,
        checkpoints=str(tmp_path / "checkpoints"),
    )


def write_images(folder: Path, count: int, side: int = 24, seed: int = 0) -> None:
    """`count` random PNGs of `side` px."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, *folder.name.encode()])
    for i in range(count):
        pixels = rng.integers(0, 256, (side, side + 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


@pytest.fixture(scope="session")
def pets(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of two classes, 60 images each."""
    root = tmp_path_factory.mktemp("own") / "pets"
    for name in ("cat", "dog"):
        write_images(root / name, 60)
    return str(root)


@pytest.fixture
def other_users_folder() -> Iterator[Path]:
    """A run folder where pytest's own, which its owner alone may enter, does not lie above it."""
    with tempfile.TemporaryDirectory(prefix="run-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)
        Path(folder).chmod(0o755)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of a database on a PostgreSQL server of this session's own, from Debian's
    package."""
    pytest.importorskip("psycopg")
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not places:
        pytest.skip("no PostgreSQL server is installed (Debian: apt-get install postgresql)")
    own = []
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    if os.getuid() == 0:  # PostgreSQL refuses to run as root
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("no user postgres to run the server as")
        own = ["runuser", "-u", "postgres", "--"]
        shutil.chown(folder, "postgres")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    control = [
        *own,
        str(places[-1].parent / "pg_ctl"),
        "-D",
        str(folder / "data"),
        "-w",
        "-l",
        str(folder / "log"),
    ]
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "cwd": folder}
    subprocess.run(
        [*own, str(places[-1]), "-D", str(folder / "data"), "-A", "trust", "-U", "tests"], **quiet
    )
    subprocess.run([*control, "-o", options, "start"], **quiet)
    try:
        yield f"postgresql://tests@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], **quiet)
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def page() -> Page:
    from tests.pages import made_up_page  # plotly and pandas take seconds to import

    return made_up_page()


@pytest.fixture
def hide_package(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes a package look as if it were not installed."""
    find = importlib.util.find_spec

    def hide(hidden: str) -> None:
        def find_others(name: str, *more: Any) -> Any:
            return None if name == hidden else find(name, *more)

        monkeypatch.setattr(importlib.util, "find_spec", find_others)

    return hide
