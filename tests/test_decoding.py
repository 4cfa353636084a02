"""Images of every kind that people have, as the cache holds them."""

import io
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from scaling_search import UserError
from scaling_search.data import decoding, sources
from scaling_search.data.dataset import Dataset
from scaling_search.data.source import AS_THEY_ARE, Options
from tests.conftest import write_images

SIDE = 24


def load(root: Path, write: Callable[[Path, np.ndarray], object], count: int = 24) -> Dataset:
    """A data set of two classes, whose files `write` makes from random numbers [24, 24]."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            write(root / name / f"{i:02}", rng.random((SIDE, SIDE)))
    return sources.load(str(root))


def pixels(data: Dataset) -> np.ndarray:
    """All images, those of the test split last."""
    return np.concatenate([data.train_images, data.test_images])


def holds(data: Dataset, image: np.ndarray) -> bool:
    """Whether the data set has just these pixels, give or take a level."""
    wanted = image.reshape(SIDE, SIDE, -1).astype(int)
    return bool((np.abs(pixels(data).astype(int) - wanted) <= 1).all((1, 2, 3)).any())


def refusal(root: Path, options: Options = AS_THEY_ARE) -> str:
    with pytest.raises(UserError) as caught:
        sources.load(str(root), options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- channels


def test_grey_images_stay_one_channel(tmp_path: Path) -> None:
    def write(path: Path, values: np.ndarray) -> None:
        Image.fromarray((255 * values).astype(np.uint8)).save(path.with_suffix(".png"))

    loaded = load(tmp_path, write)
    assert loaded.channels == 1
    assert loaded.kind == "grey, 24 × 24 px"
    assert loaded.input_channels(None) == 1
    assert loaded.input_channels(3) == 3
    # one cache, whatever is asked that it can give
    for channels in (1, 3):
        assert sources.load(str(tmp_path), Options(channels=channels)).folder == loaded.folder
    Image.new("RGB", (30, 40), "red").save(tmp_path / "cat" / "x.png")
    mixed = sources.load(str(tmp_path))
    assert mixed.channels == 3
    assert mixed.kind == "48 grey and 1 RGB, 24 × 24 to 30 × 40 px"
    assert sources.load(str(tmp_path), Options(channels=1)).channels == 1


@pytest.mark.parametrize("channels", [4, 6, 16])
@pytest.mark.parametrize("kind", ["tiff", "planar tiff", "npy", "npy, channels first"])
def test_images_of_several_bands(kind: str, channels: int, tmp_path: Path) -> None:
    first: list[np.ndarray] = []

    def write(path: Path, values: np.ndarray) -> None:
        bands = np.stack([values * 255 / (i + 1) for i in range(channels)], -1).astype(np.uint8)
        first.append(bands)
        if kind == "tiff":
            tifffile.imwrite(f"{path}.tif", bands, photometric="minisblack", planarconfig="contig")
        elif kind == "planar tiff":
            planes = np.moveaxis(bands, 2, 0)
            tifffile.imwrite(
                f"{path}.tif", planes, photometric="minisblack", planarconfig="separate"
            )
        else:
            np.save(path, np.moveaxis(bands, 2, 0) if "first" in kind else bands)

    loaded = load(tmp_path, write)
    assert loaded.channels == channels == len(loaded.mean)
    assert loaded.kind == f"{channels} channels, 24 × 24 px"
    assert holds(loaded, first[5])
    assert sources.load(str(tmp_path), Options(channels=channels)).folder == loaded.folder
    with pytest.raises(UserError, match="leave out --channels 3"):
        loaded.input_channels(3)


def test_four_bands_that_are_written_as_colours_and_alpha(tmp_path: Path) -> None:
    """As tifffile writes them where nothing is said: --channels 4 takes the last as a band."""
    first: list[np.ndarray] = []

    def write(path: Path, values: np.ndarray) -> None:
        bands = np.stack([values * 255 / (i + 1) for i in range(4)], -1).astype(np.uint8)
        first.append(bands)
        tifffile.imwrite(f"{path}.tif", bands)

    assert load(tmp_path, write).notes == ("48 images are transparent: composed on white",)
    bands = sources.load(str(tmp_path), Options(channels=4))
    assert bands.channels == 4
    assert bands.notes == ()
    assert holds(bands, first[9])


def test_four_inks_are_no_colours_and_alpha(tmp_path: Path) -> None:
    for i, name in enumerate(("cat", "dog")):
        write_images(tmp_path / name, 24, seed=i)
        for file in (tmp_path / name).iterdir():
            Image.open(file).convert("RGBA").save(file)
    Image.new("CMYK", (30, 24), (0, 80, 160, 40)).save(tmp_path / "cat" / "x.jpg")
    said = refusal(tmp_path, Options(channels=4))
    assert "x.jpg: 3 channels, 4 are wanted" in said


@pytest.mark.parametrize("channels", [2, 4, 9])
def test_channels_that_the_images_do_not_have(channels: int, tmp_path: Path) -> None:
    write_images(tmp_path / "cat", 20)
    write_images(tmp_path / "dog", 20)
    said = refusal(tmp_path, Options(channels=channels))
    assert f"3 channels, {channels} are wanted" in said


def test_a_fourth_band_of_a_colour_tiff_that_is_no_alpha(tmp_path: Path) -> None:
    def write(path: Path, values: np.ndarray) -> None:
        bands = np.stack([values * 255] * 3 + [values * 100], -1).astype(np.uint8)
        tifffile.imwrite(f"{path}.tif", bands, photometric="rgb", extrasamples=["unspecified"])

    assert load(tmp_path, write).channels == 4


def test_of_several_pages_the_first_is_read_and_said(tmp_path: Path) -> None:
    def write(path: Path, values: np.ndarray) -> None:
        pages = np.stack([values * 255, values * 0]).astype(np.uint8)
        tifffile.imwrite(f"{path}.tif", pages, photometric="minisblack")

    loaded = load(tmp_path, write)
    assert loaded.notes == ("48 files hold several pictures: the first of each is read",)
    assert (pixels(loaded) > 0).any((1, 2, 3)).all()


def test_images_of_unlike_bands_are_refused(tmp_path: Path) -> None:
    def write(path: Path, values: np.ndarray) -> None:
        np.save(path, np.stack([values * 255] * (5 if path.name == "07" else 4), -1).astype("u1"))

    with pytest.raises(UserError, match=r"07\.npy: 5 channels, 4 are wanted"):
        load(tmp_path, write)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((24, 24), np.float32), "its values are float32; convert it to 8 or 16 bits"),
        (np.zeros((24, 24, 17), np.uint8), r"an array of shape \(24, 24, 17\)"),
        (np.zeros((4, 12, 16), np.uint8), "may have its channels first or last"),
        (np.zeros(24, np.uint8), r"an array of shape \(24,\)"),
        (np.array([{}]), "not a readable image"),
    ],
)
def test_refused_arrays(array: np.ndarray, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        load(tmp_path, lambda path, values: np.save(path, array))


# ---- depth


@pytest.mark.parametrize("suffix", ["png", "tif", "npy"])
@pytest.mark.parametrize("bits", [16, 12, 10])
def test_deep_greys_are_scaled_by_the_bits_in_use(suffix: str, bits: int, tmp_path: Path) -> None:
    """12 bits, as of many cameras and scanners, in files of 16."""
    values_of_first: list[np.ndarray] = []

    def write(path: Path, values: np.ndarray) -> None:
        values_of_first.append(values)
        deep = (values * (2**bits - 1)).astype(np.uint16)
        if suffix == "npy":
            np.save(path, deep)
        elif suffix == "tif":
            tifffile.imwrite(f"{path}.tif", deep)
        else:
            Image.fromarray(deep).save(f"{path}.png")

    loaded = load(tmp_path, write)
    assert loaded.channels == 1
    assert holds(loaded, values_of_first[3] * 255)
    assert loaded.notes == (
        f"48 images have more than 8 bits: their {bits} bits in use are scaled to 8",
    )


def test_deep_images_of_several_bands(tmp_path: Path) -> None:
    first: list[np.ndarray] = []

    def write(path: Path, values: np.ndarray) -> None:
        bands = np.stack([values, values / 2, values / 3, values / 4, values / 5], -1)
        first.append(bands)
        deep = (bands * 65535).astype(np.uint16)
        tifffile.imwrite(f"{path}.tif", deep, photometric="minisblack", planarconfig="contig")

    loaded = load(tmp_path, write)
    assert loaded.channels == 5
    assert holds(loaded, first[0] * 255)


@pytest.mark.parametrize("planes", ["contig", "separate"])
def test_deep_colours(planes: str, tmp_path: Path) -> None:
    """12 bits of each colour, in TIFFs of 16."""
    first: list[np.ndarray] = []

    def write(path: Path, values: np.ndarray) -> None:
        colours = np.stack([values, values / 2, values / 3], -1)
        first.append(colours)
        deep = (colours * 4095).astype(np.uint16)
        if planes == "separate":
            deep = np.moveaxis(deep, 2, 0)
        tifffile.imwrite(f"{path}.tif", deep, photometric="rgb", planarconfig=planes)

    loaded = load(tmp_path, write)
    assert loaded.channels == 3
    assert holds(loaded, first[7] * 255)
    assert "their 12 bits in use are scaled to 8" in loaded.notes[0]


def test_arrays_of_the_other_byte_order(tmp_path: Path) -> None:
    first: list[np.ndarray] = []

    def write(path: Path, values: np.ndarray) -> None:
        first.append(values)
        np.save(path, (values * 65535).astype(">u2"))

    assert holds(load(tmp_path, write), first[3] * 255)


def test_colours_of_16_bits_in_a_png_are_said(tmp_path: Path) -> None:
    """Pillow reads their upper 8 bits."""

    def write(path: Path, values: np.ndarray) -> None:
        rows = (np.stack([values] * 3, -1) * 65535).astype(">u2")
        raw = b"".join(b"\0" + row.tobytes() for row in rows)
        parts = (
            (b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 16, 2, 0, 0, 0)),
            (b"IDAT", zlib.compress(raw)),
            (b"IEND", b""),
        )
        content = b"\x89PNG\r\n\x1a\n"
        for kind, data in parts:
            crc = zlib.crc32(kind + data)
            content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)
        path.with_suffix(".png").write_bytes(content)

    loaded = load(tmp_path, write)
    assert loaded.channels == 3
    assert loaded.notes == ("48 PNGs have colours of 16 bits: their upper 8 are read",)


def test_deep_images_among_others(tmp_path: Path) -> None:
    """Those of 8 bits are not scaled with them."""
    kept: list[np.ndarray] = []

    def write(path: Path, values: np.ndarray) -> None:
        kept.append(values)
        if path.parent.name == "cat":
            Image.fromarray((values * 65535).astype(np.uint16)).save(f"{path}.png")
        else:
            Image.fromarray((values * 255).astype(np.uint8)).save(f"{path}.png")

    loaded = load(tmp_path, write)
    assert holds(loaded, kept[0] * 255)
    assert holds(loaded, kept[-1] * 255)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((24, 24), 0.5, np.float32), "its pixels are floating-point numbers"),
        (np.full((24, 24), -5, np.int32), r"has values below 0 \(-5\)"),
    ],
)
def test_numbers_that_are_no_levels_are_refused(
    array: np.ndarray, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        load(tmp_path, lambda path, values: Image.fromarray(array).save(f"{path}.tif"))


# ---- transparency


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_images_lie_on_white(mode: str, tmp_path: Path) -> None:
    """Under the transparent left half hides a colour."""

    def write(path: Path, values: np.ndarray) -> None:
        levels = (255 * values).astype(np.uint8)
        alpha = np.full((SIDE, SIDE), 255, np.uint8)
        alpha[:, : SIDE // 2] = 0
        if mode == "RGBA":
            image = Image.fromarray(np.stack([levels, levels, levels, alpha], -1))
        elif mode == "LA":
            image = Image.fromarray(np.stack([levels, alpha], -1), "LA")
        else:
            image = Image.fromarray(levels // 2)
            image = image.convert("P")
            image.putpalette([i // 3 for i in range(768)])
            image.paste(200, (0, 0, SIDE // 2, SIDE))
            image.info["transparency"] = 200
        image.save(f"{path}.png")

    loaded = load(tmp_path, write)
    assert loaded.channels == (1 if mode == "LA" else 3)
    assert (pixels(loaded)[:, :, : SIDE // 2] == 255).all()
    assert (pixels(loaded)[:, :, SIDE // 2 :] < 255).any((1, 2, 3)).all()
    assert loaded.notes == ("48 images are transparent: composed on white",)


def test_an_alpha_channel_that_hides_nothing_is_not_said(tmp_path: Path) -> None:
    def write(path: Path, values: np.ndarray) -> None:
        levels = (255 * values).astype(np.uint8)
        Image.fromarray(levels).convert("RGBA").save(f"{path}.png")

    assert load(tmp_path, write).notes == ()


# ---- EXIF, size, damage


def turned(path: Path, orientation: int, values: np.ndarray) -> np.ndarray:
    """A JPEG that is bright above, to be seen turned."""
    levels = np.zeros((SIDE, SIDE), np.uint8)
    levels[: SIDE // 4] = 255
    levels[-1] = (values[0] * 100).astype(np.uint8)  # no two images are the same
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(levels).save(f"{path}.jpg", quality=100, exif=exif)
    return levels


@pytest.mark.parametrize(
    ("orientation", "turns"),
    [(1, 0), (3, 2), (6, -1), (8, 1)],  # counter-clockwise quarters
)
def test_orientation(orientation: int, turns: int, tmp_path: Path) -> None:
    written: list[np.ndarray] = []
    loaded = load(tmp_path, lambda path, values: written.append(turned(path, orientation, values)))
    upright = np.rot90(pixels(loaded)[..., 0], -turns, (1, 2))
    assert (upright[:, : SIDE // 4 - 1] > 200).all()
    assert (upright[:, SIDE // 2 : -2] < 50).all()


@pytest.mark.parametrize("orientation", [3, 6, 8])
@pytest.mark.parametrize("bands", [1, 3, 5])
def test_orientation_of_tiffs(orientation: int, bands: int, tmp_path: Path) -> None:
    """Turned once: Pillow turns a TIFF itself, tifffile does not."""
    levels = np.zeros((SIDE, SIDE), np.uint8)
    levels[: SIDE // 4] = 255
    numbers = iter(range(100))

    def write(path: Path, values: np.ndarray) -> None:
        image = np.stack([levels] * bands, -1).squeeze()
        image[-1] = next(numbers)  # no two images are the same
        tifffile.imwrite(
            f"{path}.tif",
            image,
            photometric="rgb" if bands == 3 else "minisblack",
            planarconfig="contig",
            extratags=[(274, "H", 1, orientation, True)],
        )

    loaded = load(tmp_path, write)
    turns = {3: 2, 6: -1, 8: 1}[orientation]
    upright = np.rot90(pixels(loaded)[..., 0], -turns, (1, 2))
    assert (upright[:, : SIDE // 4 - 1] > 200).all()
    assert (upright[:, SIDE // 2 : -2] < 50).all()


@pytest.mark.parametrize("kind", ["tif", "jpg"])
def test_sides_of_images_that_are_turned(kind: str, tmp_path: Path) -> None:
    """Whoever reads a file's header may find its sides turned already."""
    random = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(24):
            image = Image.fromarray(random.integers(0, 256, (40, 80, 3), dtype=np.uint8))
            image.save(tmp_path / name / f"{i}.{kind}", exif=exif)
    upright = sources.load(str(tmp_path), AS_THEY_ARE.cut_to(96, 48))
    assert upright.kind == "RGB, 40 × 80 px"
    assert upright.train_images.shape[1:] == (80, 40, 3)
    assert upright.notes == ()


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("orientation", [1, 6])
def test_tiffs_whose_lowest_value_is_white(
    kind: type[np.unsignedinteger[Any]], orientation: int, tmp_path: Path
) -> None:
    first: list[np.ndarray] = []
    highest = np.iinfo(kind).max

    def write(path: Path, values: np.ndarray) -> None:
        levels = (values * highest).astype(kind)
        levels[0, 0] = 0  # white: all 16 bits are in use
        turns = {1: 0, 6: -1}[orientation]
        first.append(np.rot90((highest - levels) / highest * 255, turns))
        tag = (274, "H", 1, orientation, True)
        tifffile.imwrite(f"{path}.tif", levels, photometric="miniswhite", extratags=[tag])

    assert holds(load(tmp_path, write), first[5])


def test_odd_exif_turns_nothing(tmp_path: Path) -> None:
    """Entries that no reader of EXIF can write again, as cameras and editors leave them."""
    entries = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack("<HHII", 0x9286, 99, 1, 7)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + b"\0" * 4
    junk = b"Exif\0\0II*\0\xff\xff\xff\xff\xff"

    def write(path: Path, values: np.ndarray) -> None:
        image = Image.fromarray((255 * values).astype(np.uint8))
        image.save(f"{path}.jpg", exif=exif if path.parent.name == "cat" else junk)

    assert len(pixels(load(tmp_path, write))) == 48


def test_a_photograph_of_many_megapixels_keeps_its_looks(tmp_path: Path) -> None:
    """It is decoded at a part of its size: the same picture as when decoded whole."""
    y, x = np.mgrid[0:1500, 0:2000] / 200
    picture = (127 + 60 * np.sin(x) + 60 * np.cos(y)).astype(np.uint8)

    def write(path: Path, values: np.ndarray) -> None:
        shifted = np.roll(picture, int(values[0, 0] * 1000), 1)
        Image.fromarray(shifted).convert("RGB").save(f"{path}.jpg", quality=90)

    loaded = load(tmp_path, write, 12)
    assert loaded.native == decoding.MAX_SIDE
    with Image.open(tmp_path / "cat" / "00.jpg") as image:
        whole = image.crop((250, 0, 1750, 1500)).resize((320, 320), Image.Resampling.BILINEAR)
    difference = np.abs(pixels(loaded).astype(int) - np.asarray(whole)).mean((1, 2, 3))
    assert difference.min() < 1.0


@pytest.mark.parametrize("content", ["half", "none", "words"])
def test_a_damaged_image_is_named(content: str, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write_images(tmp_path / name, 24)
    file = tmp_path / "dog" / "7.png"
    whole = file.read_bytes()
    file.write_bytes({"half": whole[: len(whole) // 2], "none": b"", "words": b"no image"}[content])
    said = refusal(tmp_path)
    assert "dog/7.png: not a readable image" in said
    assert "BytesIO" not in said


def test_whatever_a_decoder_raises_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cat", "dog"):
        write_images(tmp_path / name, 24)

    def fit(*args: Any) -> None:
        raise struct.error("unpack requires a buffer of 4 bytes")

    monkeypatch.setattr("PIL.ImageOps.fit", fit)
    assert "0.png: not a readable image (unpack requires a buffer" in refusal(tmp_path)


def test_the_bytes_of_an_image_do_not_decide_its_name(tmp_path: Path) -> None:
    """A JPEG called .png, as browsers save them."""

    def write(path: Path, values: np.ndarray) -> None:
        buffer = io.BytesIO()
        Image.fromarray((255 * values).astype(np.uint8)).save(buffer, "JPEG")
        path.with_suffix(".png").write_bytes(buffer.getvalue())

    assert load(tmp_path, write).channels == 1


def test_reading_takes_little_memory_beyond_the_cache(tmp_path: Path) -> None:
    """A copy of the images as doubles, for their mean, would be 740 MB here, and one of their
    bytes 90 MB."""

    def write(name: Path, number: int) -> None:
        levels = np.random.default_rng(number).integers(0, 256, (9, 9, 3), dtype=np.uint8)
        image = Image.fromarray(levels).resize((640, 640), Image.Resampling.BICUBIC)
        image.save(name / f"{number}.jpg", quality=50)

    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(150):
            write(tmp_path / "pets" / name, number + 1000 * (name == "dog"))
    script = (
        "import resource, sys\n"
        "from scaling_search.data import sources\n"
        "import PIL.Image, tifffile; PIL.Image.init()\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "before = peak()\n"
        "data = sources.load(sys.argv[1])\n"
        "print(peak() - before, (data.train_images.nbytes + data.test_images.nbytes) >> 20)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "pets")],
        env={**os.environ, "SCALING_SEARCH_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=True,
    )
    taken, cache = map(int, done.stdout.split())
    assert cache == 87
    assert taken < cache + 120
