"""An image file becomes a network's input exactly as validation images do."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import effnet
from scaling_search import UserError
from scaling_search.data.dataset import Dataset, content_hashes
from scaling_search.data.decoding import decode_file
from scaling_search.data.images import Images, Normalise
from scaling_search.data.preprocessing import Preprocessing
from scaling_search.data.sources import load

UPSIDE_DOWN = 3  # an EXIF orientation


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of images as people have them: of several sizes, one larger than is decoded
    whole, turned by EXIF, transparent, grey."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)

    def picture(height: int, width: int, bands: int) -> Image.Image:
        coarse = rng.integers(0, 256, (8, 8, bands), dtype=np.uint8)
        shape = coarse[..., 0] if bands == 1 else coarse
        return Image.fromarray(shape).resize((width, height), Image.Resampling.BICUBIC)

    exif = Image.Exif()
    exif[0x0112] = UPSIDE_DOWN
    for name in ("cat", "dog"):
        (root / name).mkdir()
        for i in range(24):
            picture(40 + i, 60, 3).save(root / name / f"{i}.jpg")
        picture(900, 700, 3).save(root / name / "large.jpg")
        picture(50, 70, 3).save(root / name / "turned.jpg", exif=exif)
        picture(45, 45, 4).save(root / name / "transparent.png")
        picture(60, 44, 1).save(root / name / "grey.png")
    return root


def test_a_file_is_prepared_as_the_validation_images_are(photos: Path) -> None:
    data = load(str(photos))
    net = effnet.arch("b0-s4", width=0.1, resolution=20, num_classes=2)
    prepare = Preprocessing.of(asdict(data.facts()), net)
    assert prepare is not None
    assert prepare.classes == ("cat", "dog")
    at = np.arange(len(data.train_labels))
    images = Images(data.train_images, at, 20, torch.device("cpu"))
    inputs = Normalise(data, torch.device("cpu"), 3)(images[torch.arange(len(images))])
    places = {int(key): i for i, key in enumerate(data.train_hashes)}
    held_out = {int(key) for key in content_hashes(data.test_images)}
    files = sorted(photos.rglob("*.*"))
    prepared = 0
    for file in files:
        pixels = decode_file(file, *prepare.decoded, prepare.channels, prepare.deepest)
        (key,) = content_hashes(pixels[None])
        if int(key) in held_out:
            continue
        assert torch.equal(prepare(file)[0], inputs[places[int(key)]]), file
        prepared += 1
    assert prepared == len(data.train_labels) > 40


def test_it_is_read_back_from_a_config(photos: Path, tmp_path: Path) -> None:
    data = load(str(photos))
    net = effnet.arch("b0-s4", width=0.1, resolution="20x24", num_classes=2)
    prepare = Preprocessing.of(asdict(data.facts()), net)
    assert prepare is not None
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"arch": net.as_dict(), **prepare.as_dict()}))
    assert Preprocessing.read(tmp_path) == Preprocessing.read(config) == prepare
    assert effnet.read_config(config) == net
    assert prepare(photos / "cat" / "0.jpg").shape == (1, 3, 20, 24)
    config.write_text(json.dumps({"arch": net.as_dict()}))
    with pytest.raises(UserError, match="does not say how images are prepared"):
        Preprocessing.read(config)
    with pytest.raises(UserError, match="no such run folder"):
        Preprocessing.read(tmp_path / "none")


def test_facts_of_an_earlier_release_say_nothing(data: Dataset) -> None:
    facts = asdict(data.facts())
    del facts["class_names"]
    assert Preprocessing.of(facts, effnet.arch("b0")) is None


def test_what_no_such_data_set_holds_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    deep = tmp_path / "deep.png"
    Image.fromarray(rng.integers(0, 4096, (30, 30), dtype=np.uint16)).save(deep)
    with pytest.raises(UserError, match=r"deep.png: has more than 8 bits a channel"):
        decode_file(deep, 20, 20, 1, 0)
    assert decode_file(deep, 20, 20, 1, 4095).max() > 100
    np.save(tmp_path / "bands.npy", rng.integers(0, 256, (30, 30, 5), dtype=np.uint8))
    with pytest.raises(UserError, match=r"bands.npy: 5 channels, 3 are wanted"):
        decode_file(tmp_path / "bands.npy", 20, 20, 3, 0)
    (tmp_path / "text.jpg").write_text("no image")
    for name in ("text.jpg", "absent.jpg"):
        with pytest.raises(UserError, match=f"{name}: not a readable image"):
            decode_file(tmp_path / name, 20, 20, 3, 0)
