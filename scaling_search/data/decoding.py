"""From encoded images to squares of one size in the cache.

An image is read as its owner sees it: turned as its EXIF says, transparent ones on white, deep ones
scaled by the depth that they use. What was changed on the way is said.
"""

from __future__ import annotations

import io
import logging
import os
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from effnet.rounding import round_half_up
from scaling_search import UserError
from scaling_search.data.dataset import CacheWriter, Dataset, channels_in_words
from scaling_search.data.source import Encoded, Source, Split, counted, shown

# px: larger originals are reduced when they are decoded, a search has no use for more
MAX_SIDE = 320
MAX_CHANNELS = 16
# Images that are worked on at a time, and bytes of them that are held meanwhile.
_AHEAD = 256
_HELD = 2**26
# px: of larger images one is decoded at a time, since it takes some 10 bytes a pixel
_LARGE = 2**24
_THREADS = 8  # at most: each holds a decoded image
_ORIENTATION = 0x0112  # the EXIF tag
# EXIF orientation → what turns the image upright (EXIF 2.3, table 4; 1 is upright)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# The same for arrays [h, w, channels].
_TURNED: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    2: np.fliplr,
    3: lambda bands: np.rot90(bands, 2),
    4: np.flipud,
    5: lambda bands: bands.swapaxes(0, 1),
    6: lambda bands: np.rot90(bands, -1),
    7: lambda bands: np.rot90(bands.swapaxes(0, 1), 2),
    8: np.rot90,
}
_GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N")
_DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")
# TIFF tags
_WIDTH = 256
_LENGTH = 257
_BITS_PER_SAMPLE = 258
_COMPRESSION = 259
_PHOTOMETRIC = 262
_SAMPLES_PER_PIXEL = 277
_WHITE_IS_ZERO = 0  # of _PHOTOMETRIC
_ON_THEIR_SIDE = (5, 6, 7, 8)  # EXIF orientations
_MUCH_CUT = 0.35  # of an image's area; of 3 to 2, as cameras have it, a square leaves a third out
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_NPY = b"\x93NUMPY"

# Grey of one band, and of three (ITU-R 601, as Pillow converts).
_LUMINANCE = {1: np.ones((1, 1)), 3: np.array([[0.299], [0.587], [0.114]])}

_one_at_a_time = threading.Lock()

_T = TypeVar("_T")

# Bands [h, w, channels] of 8 or 16 bits, of what Pillow does not read.
_Bands = NDArray[Any]


@dataclass(frozen=True, slots=True)
class _Header:
    """What an image is before its pixels are decoded, its sides as it is to be seen. `is_cut` where
    Pillow keeps but the upper 8 of its bits."""

    width: int  # px
    height: int
    channels: int
    is_deep: bool  # more than 8 bits a channel
    has_more: bool  # pictures after the first, in the same file
    is_cut: bool
    where: str


@dataclass(frozen=True, slots=True)
class _Form:
    """What every image of the set becomes: rectangles of so many rows and columns [px]."""

    rows: int
    columns: int
    channels: int
    deepest: int  # the highest value of the images with more than 8 bits


@dataclass(frozen=True, slots=True)
class _Cut:
    """A decoded image, uint8 [rows, columns, channels], and whether it lay on white."""

    pixels: NDArray[np.uint8]
    was_transparent: bool


def decode(
    writer: CacheWriter,
    source: Source,
    classes: tuple[str, ...],
    train: Split,
    test: Split | None,
    notes: Sequence[str] = (),
) -> Dataset:
    """Decode every image: shorter side to the native side, antialiased, and the middle square of
    it; or the middle rectangle of `source.proportion`, whose rows are the native side.

    The native side is the one that three quarters of the training images reach, at most MAX_SIDE,
    as are the columns. Without `source.channels` there is one where all training images are grey.
    Raises UserError, which names the image, for one that cannot be read or does not go with the
    others."""
    # Pillow warns of damaged EXIF and of large images, line by line and without their names
    warnings.filterwarnings("ignore", module="PIL")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    splits = [train] if test is None else [train, test]
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        headers: list[_Header] = []
        for split in splits:
            headers += _mapped(pool, partial(_header, channels=source.channels), split.items())
        of_train = headers[: len(train.labels)]
        count = _channels(headers, of_train, source.channels)
        deepest = 0
        if any(header.is_deep for header in headers):
            for split in splits:
                highest = _mapped(pool, partial(_highest, channels=count), split.items())
                deepest = max(deepest, *highest)
        rows, columns = source.proportion
        sides = [min(header.height, header.width * rows // columns) for header in of_train]
        most = MAX_SIDE * rows // max(rows, columns)
        native = max(1, min(most, int(np.quantile(sides, 0.25, method="lower"))))
        form = _Form(native, max(1, round_half_up(native * columns / rows)), count, deepest)
        arrays = []
        transparent = 0
        for name, split in zip(("train_images", "test_images"), splits, strict=False):
            images = writer.array(name, len(split.labels), (form.rows, form.columns), form.channels)
            cuts = _mapped(pool, partial(_cut, form=form), split.items())
            for i, cut in enumerate(cuts):
                images[i] = cut.pixels
                transparent += cut.was_transparent
            arrays.append((images, np.asarray(split.labels, dtype=np.int64)))
    (images, labels), *held_out = arrays
    return writer.commit(
        source.name,
        source.origin,
        classes,
        images,
        labels,
        held_out[0] if held_out else None,
        _kind(of_train),
        [*notes, *_changes(headers, transparent, form), *_cut_away(of_train, form)],
        deepest,
    )


def decode_file(
    path: Path, rows: int, columns: int, channels: int, deepest: int
) -> NDArray[np.uint8]:
    """Return one image as `decode` reads those of a data set: uint8 [rows, columns, channels].
    `deepest` is the highest value of the data set's images of more than 8 bits.

    Raises UserError for an image that cannot be read, or that no such data set holds."""
    item = Encoded(shown(path), path.read_bytes)
    header = _header(item, channels)
    alike = header.channels in (1, 3) and channels in (1, 3)
    if header.channels != channels and not alike:
        raise UserError(
            f"data {item.where}: {header.channels} channels, {channels} are wanted, as the network "
            "was trained with"
        )
    if header.is_deep and not deepest:
        raise UserError(
            f"data {item.where}: has more than 8 bits a channel, and the network was trained on "
            "images of 8; convert it"
        )
    return _cut(item, _Form(rows, columns, channels, deepest)).pixels.copy()


def _changes(headers: Sequence[_Header], transparent: int, form: _Form) -> list[str]:
    """Return what the images are not as they were, for people."""
    changes = []
    more = sum(header.has_more for header in headers)
    if more:
        files = counted(more, "file holds", "files hold")
        changes.append(f"{files} several pictures: the first of each is read")
    if transparent:
        images = counted(transparent, "image is", "images are")
        changes.append(f"{images} transparent: composed on white")
    deep = sum(header.is_deep for header in headers)
    if deep:
        images = counted(deep, "image has", "images have")
        bits = f"their {_bits(form.deepest)} bits in use are scaled to 8"
        changes.append(f"{images} more than 8 bits: {bits}")
    cut = sum(header.is_cut for header in headers)
    if cut:
        files = counted(cut, "PNG has", "PNGs have")
        changes.append(f"{files} colours of 16 bits: their upper 8 are read")
    return changes


def _cut_away(headers: Sequence[_Header], form: _Form) -> list[str]:
    """Return what is lost of the images, where that is much of the usual one, for people."""
    kept = []
    for header in headers:
        across = min(header.width, header.height * form.columns / form.rows)
        kept.append(across * (across * form.rows / form.columns) / (header.width * header.height))
    usual = float(np.median(kept))
    if usual >= 1 - _MUCH_CUT:
        return []
    header = min(zip(kept, headers, strict=True), key=lambda pair: abs(pair[0] - usual))[1]
    return [
        f"{1 - usual:.0%} of the usual image is cut away: the middle {form.rows} × {form.columns} "
        f"(rows × columns) is kept; --resolution with rows and columns in proportion, such as "
        f"{header.height}x{header.width}, keeps more"
    ]


def _mapped(
    pool: ThreadPoolExecutor, function: Callable[[Encoded], _T], items: Iterator[Encoded]
) -> Iterator[_T]:
    """Yield the function's results in order, few images at a time: the pool would read as far ahead
    as it is given work."""
    part: list[Encoded] = []
    held = 0
    for item in items:
        part.append(item)
        held += item.held
        if len(part) == _AHEAD or held > _HELD:
            yield from pool.map(function, part)
            part, held = [], 0
    yield from pool.map(function, part)


# ---- what the images are


def _header(item: Encoded, channels: int | None) -> _Header:
    image = _opened(item, channels)
    if isinstance(image, np.ndarray):
        height, width, channels = image.shape
        is_deep = image.dtype.itemsize > 1
        return _Header(width, height, channels, is_deep, False, False, item.where)
    channels = 1 if image.mode in _GREY_MODES else 3
    is_deep = image.mode in _DEEP_MODES
    try:
        has_more = getattr(image, "n_frames", 1) > 1
    except Exception as error:  # as in _cut
        raise _unreadable(item, error) from error
    is_cut = not is_deep and _png_depth(image) > 8
    width, height = _stored_sides(image)
    if _orientation(image) in _ON_THEIR_SIDE:
        width, height = height, width
    return _Header(width, height, channels, is_deep, has_more, is_cut, item.where)


def _stored_sides(image: Image.Image) -> tuple[int, int]:
    """Return width and height [px] as they are in the file: of a TIFF that is to be turned, newer
    releases of Pillow say them turned already."""
    if isinstance(image, TiffImageFile):
        return int(image.tag_v2[_WIDTH]), int(image.tag_v2[_LENGTH])
    return image.size


def _png_depth(image: Image.Image) -> int:
    """Return the bits that a channel of a PNG has in its file; 0 of other images."""
    if not isinstance(image, PngImageFile) or image.tile == []:
        return 0
    rawmode = image.tile[0][3]
    return 16 if isinstance(rawmode, str) and ";16" in rawmode else 8


def _is_misread(image: TiffImageFile) -> bool:
    """Whether Pillow would read other pixels than a TIFF holds."""
    bands = len(image.getbands())
    # it drops a band that is neither a colour nor said to be an alpha
    if image.tag_v2.get(_SAMPLES_PER_PIXEL, 1) > bands:
        return True
    # of several deep bands it keeps but the upper 8 bits, and mixes up planes
    if bands > 1:
        return _tiff_depth(image) > 8
    # it inverts greys of 8 bits whose lowest value is white, and no others
    if image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO and _tiff_depth(image) > 8:
        return True
    # one band that is not compressed it maps from the file, and turns without moving its pixels
    return _is_turned(image)


def _is_turned(image: TiffImageFile) -> bool:
    """Whether an uncompressed TIFF of grey levels is to be seen otherwise than it is stored."""
    is_raw = image.tag_v2.get(_COMPRESSION, 1) == 1
    is_grey = image.mode in ("L", *_DEEP_MODES)
    return is_raw and is_grey and image.tag_v2.get(_ORIENTATION, 1) != 1


def _tiff_depth(image: TiffImageFile) -> int:
    """Return the bits that a channel of a TIFF has in its file."""
    bits = image.tag_v2.get(_BITS_PER_SAMPLE, 8)
    return max(bits) if isinstance(bits, tuple) else int(bits)


def _channels(every: Sequence[_Header], train: Sequence[_Header], wanted: int | None) -> int:
    """Return the channels that all images are read with: 1 where the training images are grey,
    3 where they are not, or the bands that all of them have. Raises UserError where some have other
    bands."""
    if wanted in (None, 1, 3) and all(header.channels in (1, 3) for header in every):
        return wanted or (1 if all(header.channels == 1 for header in train) else 3)
    (usual, _), *_ = Counter(header.channels for header in every).most_common()
    for header in every:
        if header.channels != (wanted or usual):
            raise UserError(
                f"data {header.where}: {header.channels} channels, {wanted or usual} are wanted; "
                "all images need the same ones, unless they are grey and RGB"
            )
    return usual


def _kind(headers: Sequence[_Header]) -> str:
    """Return channels and sizes of the images, for people."""
    channels = Counter(header.channels for header in headers)
    words = []
    for count, images in channels.most_common():
        name = channels_in_words(count)
        words.append(name if len(channels) == 1 else f"{images:,} {name}")
    by_area = sorted({(h.width * h.height, h.width, h.height) for h in headers})
    (_, *least), (_, *most) = by_area[0], by_area[-1]
    sizes = f"{least[0]} × {least[1]}"
    if least != most:
        sizes += f" to {most[0]} × {most[1]}"
    return f"{' and '.join(words)}, {sizes} px"


def _bits(value: int) -> int:
    """Return the bits that values up to this one use, at least 8."""
    return max(8, value.bit_length())


def _highest(item: Encoded, channels: int) -> int:
    """Return the highest value of an image of more than 8 bits, 0 for others. Raises UserError for
    values below 0."""
    image = _opened(item, channels)
    if isinstance(image, Image.Image):
        if image.mode not in _DEEP_MODES:
            return 0
        try:
            values = np.asarray(image)
        except Exception as error:  # as in _cut
            raise _unreadable(item, error) from error
        if values.min() < 0:
            raise UserError(
                f"data {item.where}: has values below 0 ({values.min()}); convert it to 8 or 16 "
                "bits"
            )
        return int(values.max())
    return int(image.max()) if image.dtype.itemsize > 1 else 0


# ---- one image


def _opened(item: Encoded, channels: int | None) -> Image.Image | _Bands:
    """Return the image, its pixels not decoded; or its bands where Pillow does not know such, and
    where so many `channels` are wanted that an alpha is one. Raises UserError where it is
    neither."""
    try:
        content = item.read()
    except OSError as error:
        raise _unreadable(item, error) from error
    if content.startswith(_NPY):
        return _array(item, content)
    try:
        image = Image.open(io.BytesIO(content))
    except Exception as error:  # as in _cut
        if content.startswith(_TIFF):
            return _tiff(item, content)
        raise _unreadable(item, error) from error
    if isinstance(image, TiffImageFile) and _is_misread(image):
        return _tiff(item, content)
    # four bands of another mode are inks (CMYK), which are no colours with an alpha
    if channels == 4 and image.mode == "RGBA":
        return _checked(item, np.asarray(_upright(image)))
    if image.mode == "F":
        raise UserError(
            f"data {item.where}: its pixels are floating-point numbers, whose range nobody says; "
            "convert it to 8 or 16 bits"
        )
    return image


def _cut(item: Encoded, form: _Form) -> _Cut:
    """Decode one image. Raises UserError where it is damaged."""
    image = _opened(item, form.channels)
    try:
        if isinstance(image, np.ndarray):
            return _Cut(_scaled(image, image.dtype.itemsize > 1, form), False)
        # a JPEG of many megapixels is decoded at a half, a quarter or an eighth of its sides
        most = 2 * max(form.rows, form.columns)  # it may yet be turned
        image.draft(None, (most, most))
        with _one_at_a_time if image.width * image.height > _LARGE else nullcontext():
            return _shrunk(image, form)
    # Decoders raise whatever they meet (struct.error, KeyError, zlib.error, ...), and whoever has a
    # million files needs the name of this one.
    except Exception as error:
        raise _unreadable(item, error) from error


def _shrunk(image: Image.Image, form: _Form) -> _Cut:
    image = _upright(image)
    if image.mode in _DEEP_MODES:
        # Pillow clips values above 255 where it converts to 8 bits
        return _Cut(_scaled(np.asarray(image)[..., None], True, form), False)
    size = (form.columns, form.rows)  # as Pillow has them
    shape = (form.rows, form.columns, -1)
    mode = "L" if form.channels == 1 else "RGB"
    if image.has_transparency_data:
        with_alpha = image.convert("RGBA")
        if np.asarray(with_alpha.getchannel("A")).min() < 255:
            # Pillow weighs colours by their alpha as it shrinks: those that are hidden stay so
            square = ImageOps.fit(with_alpha, size, Image.Resampling.BILINEAR)
            square = Image.alpha_composite(Image.new("RGBA", size, "white"), square)
            return _Cut(np.asarray(square.convert(mode)).reshape(shape), True)
    square = ImageOps.fit(image.convert(mode), size, Image.Resampling.BILINEAR)
    return _Cut(np.asarray(square).reshape(shape), False)


def _upright(image: Image.Image) -> Image.Image:
    """Return the image as it is to be seen. Of its EXIF nothing but the orientation is needed, and
    EXIF that cannot be read turns nothing."""
    image.load()  # Pillow turns a TIFF itself, as it is loaded
    turn = _UPRIGHT.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 where none can be read."""
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # any of struct.error, SyntaxError, ValueError, ...
        return 1
    return orientation if isinstance(orientation, int) else 1


def _scaled(bands: NDArray[Any], is_deep: bool, form: _Form) -> NDArray[np.uint8]:
    """Return bands [h, w, bands] in 8 bits, as [rows, columns, channels]."""
    size = (form.columns, form.rows)  # as Pillow has them
    squares = []
    for band in np.moveaxis(bands.astype(np.float32), 2, 0):
        square = ImageOps.fit(Image.fromarray(band), size, Image.Resampling.BILINEAR)
        squares.append(np.asarray(square))
    values = np.stack(squares, axis=-1)
    if is_deep:
        values = values * (255 / (2 ** _bits(form.deepest) - 1))
    if form.channels == 1:
        values = values @ _LUMINANCE[len(squares)]
    values = np.rint(values).clip(0, 255).astype(np.uint8)
    return np.broadcast_to(values, (form.rows, form.columns, form.channels))


def _tiff(item: Encoded, content: bytes) -> _Bands:
    """Return the bands of a TIFF that Pillow does not read. Raises UserError."""
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            page = file.pages.first
            bands = page.asarray()
            is_planar = bands.ndim == 3 and page.axes.startswith("S")
            orientation = page.tags.valueof(_ORIENTATION, 1)
            is_inverted = page.photometric == _WHITE_IS_ZERO
            white = 2**page.bitspersample - 1
    except Exception as error:  # as in _cut
        raise _unreadable(item, error) from error
    bands = _checked(item, np.moveaxis(bands, 0, 2) if is_planar else bands)
    if is_inverted:
        bands = white - bands
    return _TURNED.get(orientation, np.asarray)(bands)


def _array(item: Encoded, content: bytes) -> _Bands:
    """Return the bands of a NumPy file, [h, w], [h, w, channels] or [channels, h, w]. Raises
    UserError."""
    try:
        bands = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # as in _cut
        raise _unreadable(item, error) from error
    is_first = is_last = False
    if bands.ndim == 3:
        first, middle, last = bands.shape
        is_first, is_last = first <= MAX_CHANNELS, last <= MAX_CHANNELS
        if is_first and is_last:  # a small image: its sides are the two that are equal
            is_first, is_last = middle == last, first == middle
            if is_first == is_last:
                raise UserError(
                    f"data {item.where}: an array of shape {bands.shape} may have its channels "
                    "first or last; make it square, or of more than 16 px"
                )
    return _checked(item, np.moveaxis(bands, 0, 2) if is_first else bands)


def _checked(item: Encoded, bands: NDArray[Any]) -> _Bands:
    """Return bands [h, w, channels] of 8 or 16 bits. Raises UserError for anything else."""
    if bands.ndim == 2:
        bands = bands[..., None]
    if bands.ndim != 3 or not 1 <= bands.shape[2] <= MAX_CHANNELS or 0 in bands.shape:
        raise UserError(
            f"data {item.where}: an array of shape {bands.shape}; wanted are height, width and 1 "
            f"to {MAX_CHANNELS} channels"
        )
    if bands.dtype.kind != "u" or bands.dtype.itemsize > 2:
        raise UserError(
            f"data {item.where}: its values are {bands.dtype}; convert it to 8 or 16 bits (uint8, "
            "uint16)"
        )
    return bands.astype(bands.dtype.newbyteorder("="))


def _unreadable(item: Encoded, error: Exception) -> UserError:
    # Pillow's own words name the buffer it was given, which tells nobody anything
    reason = str(error).split(" <_io.BytesIO")[0] or type(error).__name__
    return UserError(f"data {item.where}: not a readable image ({reason}); repair or remove it")
