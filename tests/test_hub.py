"""Data sets of the Hugging Face Hub, against a local repository in its layout."""

import sys
from pathlib import Path

import numpy as np
import pytest

from scaling_search import UserError
from scaling_search.cli import main
from scaling_search.data import hub, named, network, sources
from scaling_search.data.dataset import cache_root
from scaling_search.data.source import AS_THEY_ARE, Options
from tests.conftest import write_images
from tests.parquet_files import cells, write

CARD = """---
dataset_info:
  features:
  - name: img
    dtype: image
  - name: label
    dtype:
      class_label:
        names:
          '0': cat
          '1': dog
          '2': bird
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
  - split: test
    path: data/test-*
---
"""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """60 and 12 images of three classes, as `push_to_hub` lays them out."""
    monkeypatch.setenv("SCALING_SEARCH_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "pets"
    for seed, (split, count) in enumerate((("train", 60), ("test", 12))):
        columns = {"img": cells(count, seed), "label": np.arange(count) % 3}
        write(root / "data" / f"{split}-00000-of-00001.parquet", columns)
    (root / "README.md").write_text(CARD)
    return root


def test_a_repository_is_read(repository: Path) -> None:
    data = sources.load(f"hf:{repository}")
    assert data.name == "pets"
    assert data.classes == ("cat", "dog", "bird")
    assert (len(data.train_labels), len(data.test_labels)) == (60, 12)
    assert "test as test" in data.describe()
    # the same pixels and labels as the files give
    assert data.digest == sources.load(str(repository / "data")).digest
    names = {file.name for file in data.folder.iterdir()}
    assert not {name for name in names if name.startswith(".")}, "what was downloaded is gone"
    assert sources.load(f"hf:{repository}").folder == data.folder


def test_a_changed_repository_is_read_anew(repository: Path) -> None:
    before = sources.load(f"hf:{repository}")
    columns = {"img": cells(60, 7), "label": np.arange(60) % 3}
    write(repository / "data" / "train-00000-of-00001.parquet", columns)
    assert sources.load(f"hf:{repository}").digest != before.digest


def test_a_repository_of_image_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes are folders, as the library reads them; a split of another name is said."""
    monkeypatch.setenv("SCALING_SEARCH_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "pets"
    for split, count in (("train", 24), ("test", 6)):
        for name in ("cat", "dog"):
            write_images(root / split / name, count, seed=count)
    data = sources.load(f"hf:{root}")
    assert data.classes == ("cat", "dog")
    assert (len(data.train_labels), len(data.test_labels)) == (48, 12)
    assert data.digest == sources.load(str(root)).digest
    write_images(root / "train" / "cat", 25)
    assert sources.load(f"hf:{root}").digest != data.digest


def test_splits_of_other_names_are_said(repository: Path) -> None:
    card = CARD.replace(
        "path: data/test-*", "path: data/test-*\n  - split: extra\n    path: data/x-*"
    )
    (repository / "README.md").write_text(card)
    columns = {"img": cells(6, 5), "label": np.arange(6) % 3}
    write(repository / "data" / "x-0.parquet", columns)
    assert sources.load(f"hf:{repository}").notes == ("left out: the splits extra",)


def test_columns_may_be_named(repository: Path) -> None:
    with pytest.raises(UserError, match="no column breed; its columns are img, label"):
        sources.load(f"hf:{repository}", Options(label_column="breed"))
    assert [p.name for p in cache_root().iterdir()] == []


@pytest.mark.parametrize("spec", ["hf:", "hf:a/b/c/d", "hf:a//b", "hf:a@b@c"])
def test_what_is_no_name(spec: str) -> None:
    with pytest.raises(UserError, match="wanted is hf:OWNER/NAME, with /CONFIG or @REVISION"):
        sources.load(spec)


@pytest.mark.parametrize(
    ("spec", "name", "config", "revision"),
    [
        ("hf:uoft-cs/cifar10", "uoft-cs/cifar10", None, None),
        ("hf:mnist", "mnist", None, None),
        ("hf:a/b/plain_text", "a/b", "plain_text", None),
        ("hf:a/b@v1.0", "a/b", None, "v1.0"),
        ("hf:a/b/c@main", "a/b", "c", "main"),
    ],
)
def test_names(spec: str, name: str, config: str | None, revision: str | None) -> None:
    address = hub._parse(spec)
    assert (address.name, address.config, address.revision) == (name, config, revision)
    assert str(address) == spec


def test_an_absent_repository_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent: no such folder") as caught:
        sources.load(f"hf:{tmp_path / 'absent'}")
    assert "\n" not in str(caught.value)


def test_without_a_network_it_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Nobody listens at the address; half a minute of trying again would be the library's way."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9/")
    assert network.CONNECT_SECONDS <= 5
    words = ["search", "--data", "hf:uoft-cs/cifar10", "--device", "cpu"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "data hf:uoft-cs/cifar10: not in the cache" in line
    assert "not to be had from the network" in line


def test_without_the_library_it_is_one_line(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"takes its library datasets; pip install -e '.\[hub\]'"):
        sources.load(f"hf:{repository}")


def test_where_the_hub_fails_the_next_data_set_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A portal that answers every address with 403, and the authors' server that is away."""
    monkeypatch.setenv("SCALING_SEARCH_CACHE", str(tmp_path))
    monkeypatch.setattr(named, "_CIFAR_ON_HUB", f"hf:{tmp_path / 'absent'}")
    monkeypatch.setattr(named, "_CIFAR_URL", "http://127.0.0.1:9/")
    tmp_path.joinpath("absent").mkdir()
    assert sources.load("cifar10|shapes", AS_THEY_ARE).name == "shapes"


def test_cifar10_comes_from_the_hub_where_the_library_is(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(named, "_CIFAR_ON_HUB", f"hf:{repository}")
    data = sources.load("cifar10", AS_THEY_ARE)
    assert data.name == "cifar10"
    assert "Hugging Face" in data.origin
    assert len(data.train_labels) == 60
