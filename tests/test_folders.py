"""Folders of class folders: splits, what is skipped, links, names."""

import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scaling_search import UserError
from scaling_search.data import sources
from scaling_search.data.dataset import Dataset
from scaling_search.data.source import Options, split_kind
from tests.conftest import write_images
from tests.users import as_another_user


def folders(root: Path, names: Iterable[str], count: int = 24) -> str:
    """Images of 24 px in each of these folders below `root`."""
    for i, name in enumerate(names):
        write_images(root / name, count, seed=i)
    return str(root)


def refusal(root: Path) -> str:
    """Why a folder is refused: one line."""
    with pytest.raises(UserError) as caught:
        sources.load(str(root))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def sizes(data: Dataset) -> tuple[int, int]:
    return len(data.train_labels), len(data.test_labels)


def test_folder_without_splits(tmp_path: Path) -> None:
    pets = folders(tmp_path / "pets", ("cat", "dog"), 40)
    loaded = sources.load(pets)
    assert loaded.classes == ("cat", "dog")
    assert loaded.native == 24
    assert sum(sizes(loaded)) == 80
    assert 1 <= len(loaded.test_labels) <= 20
    assert sources.load(pets).folder == loaded.folder
    # the pixels are the files': the middle square of one of them is there
    file = tmp_path / "pets" / "dog" / "3.png"
    square = np.asarray(Image.open(file))[:, 3:27]
    everything = np.concatenate([loaded.train_images, loaded.test_images])
    where = np.flatnonzero((everything == square).all((1, 2, 3)))
    labels = np.concatenate([loaded.train_labels, loaded.test_labels])
    assert len(where) == 1
    assert labels[where[0]] == 1


# ---- splits


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("train2017", "train"),
        ("train_images", "train"),
        ("images_train", "train"),
        ("trainset", "train"),
        ("val", "val"),
        ("valid", "val"),
        ("Validation", "val"),
        ("dev", "val"),
        ("TEST", "test"),
        ("testing", "test"),
        ("test set", "test"),
        ("eval", "test"),
        ("trains", ""),
        ("latest", ""),
        ("device", ""),
        ("images", ""),
    ],
)
def test_names_of_splits(name: str, kind: str) -> None:
    assert split_kind(name) == kind


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "val"),
        ("training", "testing"),
        ("train_images", "test_images"),
        ("train", "dev"),
        ("Train", "Eval"),
        ("train2017", "val2017"),
    ],
)
def test_splits_by_their_usual_names(train: str, test: str, tmp_path: Path) -> None:
    folders(tmp_path / train, ("cat", "dog"), 40)
    folders(tmp_path / test, ("cat", "dog"), 8)
    loaded = sources.load(str(tmp_path))
    assert sizes(loaded) == (80, 16)
    assert loaded.classes == ("cat", "dog")
    assert f"{test} as test" in loaded.describe()


def test_validation_images_train_where_there_is_a_test_split(tmp_path: Path) -> None:
    for name, count in (("train", 40), ("valid", 12), ("test", 8)):
        folders(tmp_path / name, ("cat", "dog"), count)
    assert sizes(sources.load(str(tmp_path))) == (104, 16)


def test_a_split_alone_is_trained_on(tmp_path: Path) -> None:
    folders(tmp_path / "train", ("cat", "dog"), 40)
    loaded = sources.load(str(tmp_path))
    assert loaded.classes == ("cat", "dog")
    assert "a tenth held out as test" in loaded.describe()


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    loaded = sources.load(folders(tmp_path, ("bus", "car", "train")))
    assert loaded.classes == ("bus", "car", "train")


def test_what_may_be_a_split_and_a_class_is_refused(tmp_path: Path) -> None:
    folders(tmp_path, ("bus", "car", "train/steam", "train/diesel"))
    said = refusal(tmp_path)
    assert "train has class folders, as a split has, and bus, car beside it may be classes" in said
    assert f"--data {tmp_path / 'train'} for the split" in said
    assert sources.load(str(tmp_path / "train")).classes == ("diesel", "steam")


def test_folders_within_classes_are_no_groups(tmp_path: Path) -> None:
    """Kinds of their own each, or one name that all have."""
    kinds = folders(tmp_path / "kinds", ("cat/tabby", "cat/tiger", "dog/boxer", "dog/tiger", "emu"))
    assert sources.load(kinds).classes == ("cat", "dog", "emu")
    alphabets = ("latin/a", "latin/b", "latin/c", "greek/a", "greek/b")
    assert sources.load(folders(tmp_path / "letters", alphabets)).classes == ("greek", "latin")
    photos = folders(tmp_path / "photos", ("cat/images", "dog/images"))
    assert sources.load(photos).classes == ("cat", "dog")
    trains = folders(tmp_path / "trains", ("car/bus", "rail/train", "rail/tram"))
    assert sources.load(trains).classes == ("car", "rail")


def test_test_images_that_are_trained_on_are_said(tmp_path: Path) -> None:
    for split in ("train", "test"):
        folders(tmp_path / split, ("cat", "dog"), 24)
    assert (
        "48 of the test images are among the training images too"
        in sources.load(str(tmp_path)).notes
    )


def test_folders_beside_the_splits_are_left_out(tmp_path: Path) -> None:
    """Splits that have classes in common are splits, whatever lies beside them. Test images whose
    classes nobody gave are no test split."""
    folders(tmp_path, ("train/cat", "train/dog", "val/cat", "val/dog", "figures", "test"))
    loaded = sources.load(str(tmp_path))
    assert sizes(loaded) == (48, 48)
    assert loaded.classes == ("cat", "dog")
    assert loaded.notes == ("left out: what lies beside the splits (figures, test)",)


def test_unlabelled_test_images(tmp_path: Path) -> None:
    folders(tmp_path, ("train/cat", "train/dog", "test"))
    loaded = sources.load(str(tmp_path))
    assert sum(sizes(loaded)) == 48
    assert loaded.notes == ("left out: what lies beside the splits (test)",)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("val/a", "val/b", "test/a", "test/b"), "holds val, test and no folder train"),
        (("train", "test"), "look like splits and not like classes, and hold no folders of"),
        (("train", "test", "extra"), "extra, test, train look like splits and not like classes"),
        (("seg_train/seg_train/a", "seg_test/seg_test/a"), "look like splits or groups"),
        (("x_train/a", "x_train/b", "x_test/a", "x_test/b"), "look like splits or groups"),
        (("fold1/a", "fold1/b", "fold2/a", "fold2/b"), "fold1, fold2 look like splits or groups"),
        (("fold1/a", "fold1/b", "fold1/c", "fold2/a", "fold2/b"), "fold1, fold2 look like splits"),
        (("images/a", "images/b", "masks/a"), "images, masks look like splits or groups"),
        (
            ("cat/train", "cat/val", "cat/test", "dog/train", "dog/test"),
            "cat: holds test, train, val, splits inside of a class; turn it around: train/cat",
        ),
        (
            ("trainval/a", "trainval/b", "test/a", "test/b"),
            "if the images of trainval are to be trained on, name it train",
        ),
        (
            ("train/a", "train/b", "training/a", "training/b"),
            "train, training are all names of a train split",
        ),
        (("pets/cat", "pets/dog"), "its only folder, pets, holds folders of its own: name that"),
        (("cat",), r"only one class folder (cat)"),
        ((), "no image in any class folder"),
        (("train/a", "train/b", "val/a", "val/c"), "class 'c' is not among the classes"),
    ],
)
def test_refused_folders(names: tuple[str, ...], message: str, tmp_path: Path) -> None:
    folders(tmp_path, names, 12)
    assert message in refusal(tmp_path)


# ---- what is skipped, and said


def test_odd_files_are_left_out_and_said(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    folders(root, ("cat", "dog", ".ipynb_checkpoints", "cat/.ipynb_checkpoints", "__MACOSX"), 24)
    (root / "cat" / "._0.png").write_bytes(b"resource fork")
    (root / "cat" / "notes.txt").write_text("x")
    (root / "dog" / "0.xmp").write_text("x")
    (root / "dog" / "1.xmp").write_text("x")
    (root / "birds").mkdir()
    (root / "dog" / "gone.png").symlink_to(root / "nowhere.png")
    write_images(root, 3)
    loaded = sources.load(str(root))
    assert sum(sizes(loaded)) == 48
    assert loaded.classes == ("cat", "dog")
    assert loaded.notes == (
        "left out: 3 files of other kinds (2 .xmp, 1 .txt)",
        "left out: 1 broken link",
        "left out: 3 images outside of class folders",
        "left out: folders without images (birds)",
    )


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".avif", ".webp", ".JPG"])
def test_suffixes_of_images(suffix: str, tmp_path: Path) -> None:
    folders(tmp_path, ("cat", "dog"))
    formats = {".avif": "AVIF", ".webp": "WEBP"}
    extra = Image.new("RGB", (30, 30), "red")
    extra.save(tmp_path / "cat" / f"x{suffix}", formats.get(suffix, "JPEG"))
    assert sum(sizes(sources.load(str(tmp_path)))) == 49


def test_links_are_followed(tmp_path: Path) -> None:
    store = tmp_path / "store"
    folders(store, ("all", "more"))
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
    for i in range(12):
        (tmp_path / "pets" / "cat" / f"{i}.png").symlink_to(store / "all" / f"{i}.png")
        (tmp_path / "pets" / "dog" / f"{i}.png").symlink_to(store / "all" / f"{i + 12}.png")
    (tmp_path / "pets" / "dog" / "linked").symlink_to(store / "more")
    (tmp_path / "pets" / "dog" / "circle").symlink_to(tmp_path / "pets")
    loaded = sources.load(str(tmp_path / "pets"))
    labels = np.concatenate([loaded.train_labels, loaded.test_labels])
    assert np.bincount(labels).tolist() == [12, 36], "nothing from above the class's folder"


def test_a_folder_that_may_not_be_read_is_refused(
    other_users_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its images would be missing."""
    monkeypatch.setenv("SCALING_SEARCH_CACHE", str(other_users_folder / "cache"))
    folders(other_users_folder / "pets", ("cat", "cat/more", "dog"))
    (other_users_folder / "pets" / "cat" / "more").chmod(0)
    said = as_another_user(other_users_folder, lambda: refusal(other_users_folder / "pets"))
    (other_users_folder / "pets" / "cat" / "more").chmod(0o755)
    assert "cat/more: Permission denied" in said


def test_columns_are_for_tables(tmp_path: Path) -> None:
    folders(tmp_path, ("cat", "dog"))
    with pytest.raises(UserError, match="has no columns; leave out --label-column"):
        sources.load(str(tmp_path), Options(label_column="label"))


# ---- the cache's key


def test_changed_files_are_seen(tmp_path: Path) -> None:
    folders(tmp_path, ("cat", "dog"), 40)
    before = sources.load(str(tmp_path))
    Image.new("RGB", (30, 30), "red").save(tmp_path / "cat" / "new.png")
    assert sources.load(str(tmp_path)).digest != before.digest


def test_relabelling_through_links_is_seen(tmp_path: Path) -> None:
    """The images stay where they are, and the links to them change their class."""
    folders(tmp_path / "store", ("all",), 60)
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
    for i in range(60):
        name = ("cat", "dog")[i % 2]
        (tmp_path / "pets" / name / f"{i}.png").symlink_to(tmp_path / "store" / "all" / f"{i}.png")
    before = sources.load(str(tmp_path / "pets"))
    for i in range(20):
        old, new = ("cat", "dog") if i % 2 == 0 else ("dog", "cat")
        link = tmp_path / "pets" / old / f"{i}.png"
        link.rename(tmp_path / "pets" / new / f"{i}.png")
    after = sources.load(str(tmp_path / "pets"))
    assert after.digest != before.digest
    order = np.argsort(before.train_hashes), np.argsort(after.train_hashes)
    assert (before.train_hashes[order[0]] == after.train_hashes[order[1]]).all()
    moved = before.train_labels[order[0]] != after.train_labels[order[1]]
    assert 10 <= moved.sum() <= 20


# ---- names


def test_a_name_is_one_however_its_accents_are_written(tmp_path: Path) -> None:
    """A Mac writes é as two letters."""
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    folders(tmp_path, (f"train/{composed}", "train/tea", f"val/{decomposed}", "val/tea"), 12)
    loaded = sources.load(str(tmp_path))
    assert loaded.classes == (composed, "tea")
    assert sizes(loaded) == (24, 24)


def test_names_that_are_no_text(tmp_path: Path) -> None:
    """Bytes that are no UTF-8, and control characters."""
    folders(tmp_path, ("cat", "dog"))
    odd = os.fsencode(tmp_path) + b"/caf\xe9 \x1b[31m"
    os.rename(tmp_path / "cat", odd)  # noqa: PTH104
    os.rename(odd + b"/0.png", odd + b"/\xff.png")  # noqa: PTH104
    loaded = sources.load(str(tmp_path))
    assert sum(sizes(loaded)) == 48
    assert loaded.classes == ("caf\ufffd  [31m", "dog")
    loaded.describe().encode()
    Path(os.fsdecode(odd + b"/\xff.png")).write_bytes(b"no image")
    refusal(tmp_path).encode()
