"""Shared fixtures: a small real data set, a small baseline, and trials on them."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
import torch

from effnet.arch import Arch
from scaling_search.data import shapes
from scaling_search.data.dataset import CacheWriter, Dataset
from scaling_search.study.settings import Study, check
from scaling_search.training.recipe import Recipe
from scaling_search.training.trial import Trial

if TYPE_CHECKING:
    from scaling_search.report.page import Page


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


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """600 + 100 images of shapes, 64 px."""
    with CacheWriter(tmp_path_factory.mktemp("data") / "shapes") as writer:
        return writer.commit(
            "shapes", "generated", shapes.CLASSES, *shapes.generate(600, 0), shapes.generate(100, 1)
        )


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
def undisturbed(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The table of SMALL, trained by one worker."""
    from scaling_search.driver.executors.local import LocalExecutor
    from tests.searches import search

    _, table = search(check(SMALL, "test"), data, tmp_path_factory.mktemp("one"), LocalExecutor(1))
    return table


@pytest.fixture
def small_arch(study: Study) -> Arch:
    from effnet.arch import scale

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
