"""A data set that is known and not yet read, and what its reader may be told."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from scaling_search import UserError
from scaling_search.data.dataset import CacheWriter, Dataset

# Raised when the same files come to be read otherwise: what was cached before is then read anew.
_READING = 3


@dataclass(frozen=True, slots=True)
class Options:
    """How images are to be read, where their owner says it: the columns of parquet files, and the
    number of channels (1 or 3). None is what the files themselves say. `proportion` is that of the
    rows to the columns that images are cut to, in smallest terms; None for squares."""

    image_column: str | None = None
    label_column: str | None = None
    channels: int | None = None
    proportion: tuple[int, int] | None = field(default=None, repr=False)

    def cut_to(self, rows: int, columns: int) -> Options:
        """The same, cut to the proportion of so many rows and columns; 0 columns are a square."""
        if columns in (0, rows):
            return self
        divisor = math.gcd(rows, columns)
        return replace(self, proportion=(rows // divisor, columns // divisor))


AS_THEY_ARE = Options()


def refuse_columns(what: str, options: Options) -> None:
    """Raise UserError where columns are named of `what`, which has none."""
    for flag, column in (("image", options.image_column), ("label", options.label_column)):
        if column is not None:
            raise UserError(f"{what} has no columns; leave out --{flag}-column")


@dataclass(frozen=True, slots=True)
class Source:
    """`fingerprint` changes when the files do; `read` decodes them into the cache, with `channels`
    where that many are wanted in place of the images' own, cut to `proportion`."""

    name: str
    origin: str  # for people
    fingerprint: str
    read: Callable[[CacheWriter, Source], Dataset]
    channels: int | None = None
    proportion: tuple[int, int] = (1, 1)

    def key(self, options: Options) -> str:
        """What the folder in the cache depends on."""
        key = f"{_READING}\n{replace(options, channels=self.channels)}\n{self.fingerprint}"
        return key if self.proportion == (1, 1) else f"{key}\n{self.proportion}"


@dataclass(frozen=True, slots=True)
class Encoded:
    """One image that is not yet decoded: where it is (for messages), how to get its bytes, and how
    many of them are in memory already."""

    where: str
    read: Callable[[], bytes]
    held: int = 0


@dataclass(frozen=True, slots=True)
class Split:
    """Images and their classes. `items` yields the images in the order of `labels`, each time it is
    called: neither all bytes nor all pixels need fit in memory."""

    labels: Sequence[int]
    items: Callable[[], Iterator[Encoded]]

    def __add__(self, other: Split) -> Split:
        def items() -> Iterator[Encoded]:
            yield from self.items()
            yield from other.items()

        return Split([*self.labels, *other.labels], items)


# ---- the names of splits

# As people name them: train2017, test_images, Validation-set.
_SPLIT = re.compile(
    r"""(?<![a-z])
    (?:(?:images?|imgs?|data)[ _-])?
    (?:(?P<train>train|training)|(?P<val>val|valid|validation|dev)
    |(?P<test>test|testing|eval|evaluation))
    (?:[ _-]?(?:images?|imgs?|set|split|data))?
    (?![a-z])""",
    re.VERBOSE,
)


def split_kind(name: str, whole: bool = True) -> str:
    """Return train, val or test where `name` is that of a split, else "". `whole`: nothing but a
    number may stand beside it."""
    name = name.lower()
    without_number = re.sub(r"[ _-]?\d+$", "", name)
    match = _SPLIT.fullmatch(without_number) if whole else _SPLIT.search(name)
    return (match.lastgroup or "") if match else ""


# ---- names that are safe to show and to store


def shown(path: Path | str) -> str:
    """Return the name as text that any terminal and file can hold: bytes that are no UTF-8 become
    replacement characters, control characters blanks."""
    text = os.fsencode(path).decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else " " for letter in text)


def counted(count: int, one: str, more: str = "") -> str:
    """Return "1 image", "2,000 images"."""
    return f"{count:,} {one if count == 1 else more or one + 's'}"


def safe_name(path: Path) -> str:
    """Return the path's last part as a name that is safe in a path of the cache."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.resolve().stem).strip("-.") or "data"


def is_hidden(name: str) -> bool:
    """Whether it is of a file manager, a notebook or an archiver, and nobody's data."""
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield each folder below `root`, itself first, with the names of its files; links are
    followed, hidden folders and files left out. Raises OSError for a folder that cannot be read."""

    def refuse(error: OSError) -> None:
        raise error

    # what lies above is not below, whatever a link says
    seen = set(root.resolve().parents)
    for at, folders, files in os.walk(root, followlinks=True, onerror=refuse):
        folder = Path(at)
        real = folder.resolve()
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not is_hidden(name)]
        yield folder, [name for name in files if not is_hidden(name)]


def fingerprint(files: Sequence[tuple[str, Path]]) -> str:
    """Return place, class, size and time of change of each (class, file): content would take too
    long to read. A link counts by what it is named and by what it leads to."""
    parts = []
    for name, file in files:
        stat = file.stat()
        parts.append(f"{name}|{file}|{stat.st_size}|{stat.st_mtime_ns}")
        if file.is_symlink():
            parts.append(f"{file.readlink()}|{file.lstat().st_mtime_ns}")
    return "\n".join(parts)
