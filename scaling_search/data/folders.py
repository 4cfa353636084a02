"""Folders of class folders, with splits or without."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scaling_search import UserError
from scaling_search.data.dataset import CacheWriter, Dataset
from scaling_search.data.decoding import decode
from scaling_search.data.source import (
    Encoded,
    Options,
    Source,
    Split,
    counted,
    fingerprint,
    is_hidden,
    refuse_columns,
    safe_name,
    shown,
    split_kind,
    walk,
)

_SUFFIXES = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".avif", ".jp2", ".tga",
    ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".npy",
}  # fmt: skip
_WANTED = "wanted is a folder for each class, at least 2, with images inside"


@dataclass
class _Skipped:
    """What lies in the folder and is not read, to be said."""

    kinds: Counter[str] = field(default_factory=Counter)  # of files that are not read
    links: int = 0  # that lead nowhere
    loose: int = 0  # images outside of class folders
    empty: list[str] = field(default_factory=list)  # folders without images
    beside: list[str] = field(default_factory=list)  # folders beside the splits

    def notes(self) -> list[str]:
        notes = []
        if self.kinds:
            kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.most_common(4))
            files = counted(self.kinds.total(), "file")
            notes.append(f"left out: {files} of other kinds ({kinds})")
        if self.links:
            notes.append(f"left out: {counted(self.links, 'broken link')}")
        if self.loose:
            notes.append(f"left out: {counted(self.loose, 'image')} outside of class folders")
        if self.empty:
            notes.append(f"left out: folders without images ({_listed(self.empty)})")
        if self.beside:
            notes.append(f"left out: what lies beside the splits ({_listed(self.beside)})")
        return notes


def _listed(names: Sequence[str]) -> str:
    """Return the first four names, with commas."""
    first = list(names[:4])
    if len(names) > len(first):
        first.append("…")
    return ", ".join(first)


@dataclass(frozen=True)
class _Splits:
    """Folders of class folders. `train` is the one that is trained on, `held_out` the others: the
    first is the test split, the images of the rest are for training."""

    train: Path
    held_out: list[Path]


def has_class_folders(root: Path) -> bool:
    """Whether a folder in `root` holds images, at any depth."""
    return any(_holds_images(folder) for folder in _folders(root))


def folder_source(root: Path, options: Options) -> Source:
    """Return the data set of a folder of class folders, or of folders train, val, test that hold
    such. Raises UserError where it is neither, or may be either."""
    refuse_columns(f"data {shown(root)}: a folder of images", options)
    skipped = _Skipped()
    splits = _splits(root, skipped)
    train = _class_files(splits.train, skipped)
    if len(train) < 2:
        raise UserError(f"data {shown(root)}: {_lacking(splits.train, train)}; {_WANTED}")
    classes = list(train)
    held_out = [_class_files(folder, skipped) for folder in splits.held_out]
    for folder, class_files in zip(splits.held_out, held_out, strict=True):
        unknown = sorted(class_files.keys() - train.keys())
        if unknown:
            raise UserError(
                f"data {shown(folder)}: class {shown(unknown[0])!r} is not among the classes of "
                f"{shown(splits.train)}"
            )
    pool = _split(train, classes)
    for class_files in held_out[1:]:
        pool += _split(class_files, classes)
    origin = f"folder {shown(root.name)}"
    test = None
    if held_out:
        test = _split(held_out[0], classes)
        origin += f", {shown(splits.held_out[0].name)} as test"
    every_file: list[tuple[str, Path]] = []
    for class_files in (train, *held_out):
        for name, files in class_files.items():
            every_file += [(name, file) for file in files]
    notes = skipped.notes()

    def read(writer: CacheWriter, source: Source) -> Dataset:
        names = tuple(shown(name) for name in classes)
        return decode(writer, source, names, pool, test, notes)

    return Source(safe_name(root), origin, fingerprint(every_file), read)


def _lacking(root: Path, train: dict[str, list[Path]]) -> str:
    """Return what is wrong with a folder of fewer than two classes."""
    if not train:
        return "no image in any class folder"
    only = next(iter(train))
    if has_class_folders(root / only):
        return f"its only folder, {shown(only)}, holds folders of its own: name that one"
    return f"only one class folder ({shown(only)})"


# ---- which folders are splits


def _splits(root: Path, skipped: _Skipped) -> _Splits:
    """Return the folders of class folders that `root` is or has.

    A folder is a split where it has the name of one and class folders of its own: a class may be
    called train. Raises UserError where the folders can be read in two ways."""
    splits: dict[str, list[Path]] = {"train": [], "val": [], "test": []}
    others: list[Path] = []
    for folder in _folders(root):
        kind = split_kind(folder.name)
        if kind and has_class_folders(folder):
            splits[kind].append(folder)
        elif _holds_images(folder):
            others.append(folder)
    named = [folder for group in splits.values() for folder in group]
    if not named:
        _check_no_splits(root, others)
        return _Splits(root, [])
    names = _listed([shown(folder.name) for folder in named])
    if not splits["train"]:
        alike = [folder for folder in others if _share_classes([folder, named[0]])]
        if alike:
            raise UserError(
                f"data {shown(root)}: holds {names} and no folder train; if the images of "
                f"{shown(alike[0].name)} are to be trained on, name it train"
            )
        if others and not _share_classes(named):
            raise _two_readings(root, named[0], others)
        raise UserError(
            f"data {shown(root)}: holds {names} and no folder train; name the images to train on "
            f"train, or give one of them: --data {shown(named[0])}"
        )
    for kind, group in splits.items():
        if len(group) > 1 and kind != "val":
            raise UserError(
                f"data {shown(root)}: {_listed([shown(folder.name) for folder in group])} are all "
                f"names of a {kind} split; keep one of them"
            )
    # without class folders of its own a folder test holds images whose classes nobody gave
    classes = [folder for folder in others if not split_kind(folder.name)]
    if classes and not _share_classes(named):
        raise _two_readings(root, named[0], classes)
    _count_loose(root, skipped)
    skipped.beside += [shown(folder.name) for folder in others]
    return _Splits(splits["train"][0], [*splits["test"], *splits["val"]])


def _check_no_splits(root: Path, folders: Sequence[Path]) -> None:
    """Raise UserError where folders that were taken for classes are splits under other names
    (seg_train, seg_test) or without classes (train, test), hold the splits of one class each
    (cat/train, cat/test), or are groups that hold much the same classes (fold1, fold2)."""
    if len(folders) < 2:
        return
    within = [{f.name for f in _folders(folder) if _holds_images(f)} for folder in folders]
    for folder, inner in zip(folders, within, strict=True):
        if _are_splits(inner):
            raise UserError(
                f"data {shown(folder)}: holds {_listed(sorted(map(shown, inner)))}, splits inside "
                f"of a class; turn it around: train/{shown(folder.name)}, and so on"
            )
    names = [folder.name for folder in folders]
    listed = _listed([shown(name) for name in names])
    look_like_splits = _are_splits(names) or all(split_kind(n, whole=False) for n in names)
    if look_like_splits and not any(within):
        raise UserError(
            f"data {shown(root)}: {listed} look like splits and not like classes, and hold no "
            "folders of classes; put the images into folders such as train/CLASS and test/CLASS"
        )
    if look_like_splits or _are_groups(names, within):
        raise UserError(
            f"data {shown(root)}: {listed} look like splits or groups and not like classes; name "
            "folders of class folders train, val and test, or give one of them: "
            f"--data {shown(folders[0])}; for classes, move the images of each up into it"
        )


def _are_splits(names: Collection[str]) -> bool:
    """Whether a training split and one more are among these names: one alone may be a class."""
    kinds = {split_kind(name) for name in names} - {""}
    return "train" in kinds and len(kinds) > 1


# Names of folders that hold the same classes each, and are none themselves.
_GROUP = re.compile(r"(k?fold|part|group|split|set|batch)[ _-]?\d+")
_KINDS = {"images", "image", "imgs", "img", "masks", "mask", "labels", "annotations"}


def _are_groups(names: Sequence[str], within: Sequence[set[str]]) -> bool:
    """Whether each folder holds the same folders, and more than one; or much the same, where they
    are called as groups are. Classes may have folders in common too: views, places, people."""
    if not all(within) or len(set.union(*within)) < 2:
        return False
    if all(inner == within[0] for inner in within):
        return True
    are_called_so = all(_GROUP.fullmatch(name.lower()) for name in names)
    if not are_called_so and not {name.lower() for name in names} <= _KINDS:
        return False
    for i, inner in enumerate(within):
        elsewhere = set.union(*within[:i], *within[i + 1 :])
        if len(inner & elsewhere) < len(inner) / 2:
            return False
    return True


def _two_readings(root: Path, split: Path, others: Sequence[Path]) -> UserError:
    beside = _listed([shown(folder.name) for folder in others])
    return UserError(
        f"data {shown(root)}: {shown(split.name)} has class folders, as a split has, and {beside} "
        f"beside it may be classes; give --data {shown(split)} for the split, or move its images "
        "up into it for a class"
    )


def _share_classes(splits: Sequence[Path]) -> bool:
    """Whether there are several, with a class in common, as splits of one data set have."""
    names = [{folder.name for folder in _folders(split)} for split in splits]
    return len(splits) > 1 and bool(set.intersection(*names))


# ---- files


def _folders(root: Path) -> list[Path]:
    """Return the folders in `root` that are nobody's but the user's, in alphabetical order."""
    return sorted(d for d in root.iterdir() if not is_hidden(d.name) and d.is_dir())


def _holds_images(folder: Path) -> bool:
    """Whether there is an image in the folder, at any depth."""
    return any(True for _ in _images(folder, _Skipped()))


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in _SUFFIXES and file.is_file()


def _class_files(root: Path, skipped: _Skipped) -> dict[str, list[Path]]:
    """Return the images of each class folder (searched to any depth), classes in alphabetical
    order, empty ones left out."""
    classes: dict[str, list[Path]] = {}
    _count_loose(root, skipped)
    for folder in _folders(root):
        files = sorted(_images(folder, skipped))
        if files:
            # a Mac writes é as two letters: one name, and one class, however it is written
            name = unicodedata.normalize("NFC", folder.name)
            classes[name] = sorted([*classes.get(name, []), *files])
        elif not split_kind(folder.name):
            skipped.empty.append(shown(folder.name))
    return classes


def _count_loose(root: Path, skipped: _Skipped) -> None:
    """Count the files beside the folders in `root`."""
    for file in root.iterdir():
        if is_hidden(file.name) or file.is_dir():
            continue
        if _is_image(file):
            skipped.loose += 1
        else:
            skipped.kinds[file.suffix.lower() or "without a suffix"] += 1


def _images(folder: Path, skipped: _Skipped) -> Iterator[Path]:
    """Yield the images in a folder, to any depth, links followed."""
    for at, names in walk(folder):
        for name in names:
            file = at / name
            if _is_image(file):
                yield file
            elif file.is_symlink() and not file.exists():
                skipped.links += 1
            else:
                skipped.kinds[file.suffix.lower() or "without a suffix"] += 1


def _split(class_files: dict[str, list[Path]], classes: Sequence[str]) -> Split:
    labels: list[int] = []
    files: list[Path] = []
    for name, own in class_files.items():
        labels += [classes.index(name)] * len(own)
        files += own

    def items() -> Iterator[Encoded]:
        for file in files:
            yield Encoded(shown(file), file.read_bytes)

    return Split(labels, items)
