"""What `--data` names, and reading it into the cache."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from pathlib import Path

from scaling_search import UserError
from scaling_search.data.dataset import (
    CacheWriter,
    Dataset,
    cache_root,
    is_cached,
    remove_abandoned,
)
from scaling_search.data.folders import folder_source, has_class_folders
from scaling_search.data.hub import PREFIX, hub_source
from scaling_search.data.named import NAMED
from scaling_search.data.network import NoNetworkError
from scaling_search.data.parquet import SUFFIX, has_images, parquet_files, parquet_source
from scaling_search.data.source import AS_THEY_ARE, Options, Source, refuse_columns, shown

logger = logging.getLogger(__name__)

KNOWN = (
    "auto, fashion-mnist, cifar10, shapes, a folder of class folders, a parquet file or folder, or "
    "hf:OWNER/NAME of the Hugging Face Hub"
)
_AUTO = "fashion-mnist|shapes"  # the smallest download, and where there is no network none


def load(spec: str, options: Options = AS_THEY_ARE) -> Dataset:
    """Return the data set that `spec` names, from the cache or read into it.

    Raises UserError for anything unknown, unreadable, empty or of one class, NoNetworkError for a
    named set that is neither in the cache nor to be had from the network."""
    if is_choice(spec):
        return _load_first(_AUTO if spec == "auto" else spec, options)
    remove_abandoned(cache_root())
    if spec in NAMED:
        refuse_columns(f"data {spec}: a named set", options)
        if options.proportion:
            raise UserError(
                f"data {spec}: its images are square; a resolution of unequal sides is for images "
                "of your own"
            )
        folder = cache_root() / NAMED[spec].folder
        if is_cached(folder):
            return Dataset.open(folder)
        source = NAMED[spec].source()
    else:
        # three channels are made of one as images are trained on, and most sets have what is asked
        # for anyway: then the cache is that of the images as they are
        source = replace(_source(spec, options), proportion=options.proportion or (1, 1))
        folder = _own_folder(source, options)
        if is_cached(folder):
            data = Dataset.open(folder)
            if data.takes(options.channels):
                return data
        if options.channels not in (None, 3):
            source = replace(source, channels=options.channels)
            folder = _own_folder(source, options)
        if is_cached(folder):
            return Dataset.open(folder)
    logger.info("reading data set %s (%s)", source.name, source.origin)
    with CacheWriter(folder) as writer:
        return source.read(writer, source)


def _source(spec: str, options: Options) -> Source:
    if spec.startswith(PREFIX):
        return hub_source(spec, options)
    return _own_source(own_path(spec), spec, options)


def _own_folder(source: Source, options: Options) -> Path:
    """The place of a data set of one's own in the cache."""
    key = source.key(options).encode(errors="surrogateescape")
    return cache_root() / f"{source.name}-{hashlib.sha256(key).hexdigest()[:12]}"


def _load_first(choice: str, options: Options) -> Dataset:
    """Return the first data set of `a|b|c` that can be had."""
    *preferred, last = choice.split("|")
    for name in preferred:
        try:
            return load(name, options)
        except NoNetworkError as error:
            logger.info("data set %s cannot be fetched (%s): the next one is tried", name, error)
    return load(last, options)


def is_choice(spec: str) -> bool:
    """Whether `spec` names several sets, of which the first that can be had is meant: `auto`, or
    known names with | between them."""
    return spec == "auto" or ("|" in spec and set(spec.split("|")) <= NAMED.keys())


def load_or_explain(spec: str, options: Options = AS_THEY_ARE) -> Dataset:
    """Return the data set that `spec` names, its cache checked. Raises UserError where it cannot be
    had, a missing network included."""
    try:
        return load(spec, options).verified()
    except NoNetworkError as error:
        raise UserError(
            f"data {spec}: not in the cache {cache_root()} and not to be had from the network "
            f"({error}); use --data shapes, or give a folder or parquet file of your own"
        ) from error


# ---- files of one's own


def own_path(spec: str) -> Path:
    """Return the folder or file that a spec names. Raises UserError for none, and for a ~user that
    does not exist."""
    if not spec.strip():
        raise UserError(f"data is empty; known are {KNOWN}")
    try:
        return Path(spec).expanduser()
    except RuntimeError as error:
        raise UserError(f"data {spec}: {error}") from error


def _own_source(path: Path, spec: str, options: Options) -> Source:
    """Return the data set of a folder or file. Raises UserError where it is none, or may be more
    than one."""
    if not path.exists():
        raise UserError(
            f"unknown data {shown(spec)!r}: known are {KNOWN}; no such file or folder either"
        )
    try:
        if path.is_file():
            return _file_source(path, options)
        files = parquet_files(path)
        if not files:
            return folder_source(path, options)
        if not has_class_folders(path):
            return parquet_source(path, files, options)
        # a table of something else beside the images, say
        of_images = [file for file in files if has_images(file)]
        if not of_images:
            return folder_source(path, options)
        raise UserError(
            f"data {shown(path)}: holds class folders and parquet files with images; give "
            f"--data {shown(of_images[0])} for the file, or move it elsewhere for the folders"
        )
    except OSError as error:
        where = shown(error.filename) if error.filename else shown(path)
        raise UserError(f"data {where}: {error.strerror}") from error


def _file_source(path: Path, options: Options) -> Source:
    if path.suffix.lower() != SUFFIX:
        raise UserError(
            f"data {shown(path)}: a file must be .parquet (Hugging Face layout); else give a folder"
        )
    return parquet_source(path, [path], options)
