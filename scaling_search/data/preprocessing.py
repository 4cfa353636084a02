"""Prepares an image of one's own for a trained network, exactly as validation images were."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effnet.arch import Network
from effnet.definition import find_config
from scaling_search import UserError

if TYPE_CHECKING:
    from torch import Tensor

_HOW = (
    "turned as EXIF says; shorter side to `decoded` and its middle cut out (Pillow's ImageOps.fit, "
    "bilinear); to `resized` (torch's interpolate, bilinear, antialias), rounded to 0..255; then "
    "(pixel / 255 - mean) / std, channel by channel"
)


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How images become a network's input, and what its outputs are called.

    `decoded` and `resized` are rows and columns [px]: of the squares that every image of the data
    set was cut to, and of the network's input. `channels` are those that images are decoded to,
    `input_channels` the network's: grey becomes so many equal ones. `deepest` is the highest value
    of the data set's images of more than 8 bits, 0 where it had none. `mean` and `std` are of
    pixels in 0..1."""

    classes: tuple[str, ...]
    decoded: tuple[int, int]
    resized: tuple[int, int]
    channels: int
    input_channels: int
    deepest: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, facts: Mapping[str, Any], net: Network) -> Preprocessing | None:
        """Return that of a network for a data set whose recorded facts these are; None where an
        earlier release recorded them."""
        if not facts.get("class_names"):
            return None
        return cls(
            classes=tuple(facts["class_names"]),
            decoded=(facts["native"], facts["columns"]),
            resized=net.sides,
            channels=facts["channels"],
            input_channels=net.in_channels,
            deepest=facts["deepest"],
            mean=tuple(facts["mean"]),
            std=tuple(facts["std"]),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return what a config.json says of it."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return {"classes": fields.pop("classes"), "preprocessing": {**fields, "how": _HOW}}

    @classmethod
    def read(cls, path: str | Path) -> Preprocessing:
        """Return that of a config.json, or of the one in a folder. Raises UserError where there is
        none, or it says nothing of images."""
        try:
            file = find_config(path)
            config = json.loads(file.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(str(error)) from error
        try:
            stated = {**config["preprocessing"], "classes": config["classes"]}
            del stated["how"]
            for name in ("classes", "decoded", "resized", "mean", "std"):
                stated[name] = tuple(stated[name])
            return cls(**stated)
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{file}: does not say how images are prepared; `scaling-search train RUN --to "
                "FOLDER` writes a config.json that does"
            ) from error

    def __call__(self, image: str | Path) -> Tensor:
        """Return an image file as a network's input, float32 [1, channels, rows, columns]. Raises
        UserError for one that cannot be read, or is not of the kind that the network knows."""
        import torch

        from scaling_search.data.decoding import decode_file
        from scaling_search.data.images import Normalise, resized

        rows, columns = self.decoded
        pixels = decode_file(Path(image), rows, columns, self.channels, self.deepest)
        normalise = Normalise(self, torch.device("cpu"), self.input_channels)
        return normalise(resized(torch.from_numpy(pixels)[None], *self.resized))
