"""A few of a data set's own images at the resolutions that are trained, for people to look at."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from scaling_search.data.dataset import Dataset
from scaling_search.data.images import resized

# Images, each of another class, and the most px that one is kept at: four at four sizes are some
# 20 KB of a study's facts at 32 px, and 150 KB at 224.
_IMAGES, _MOST = 4, 224
# From this side on an image is kept as JPEG, which is a fifth of its PNG.
_LARGE = 64


def samples(folder: Path, sides: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """Return images of a cached data set as it keeps them, then as they are trained at these sides
    (rows, columns): [{"label": class, "images": [{"px": "32 px", "uri": "data:image/..."}]}].

    None of images that are neither grey nor of three channels. Raises UserError."""
    data = Dataset.open(folder)
    if data.channels not in (1, 3):
        return []
    native = (data.train_images.shape[1], data.train_images.shape[2])
    wanted = [native, *sorted(set(sides) - {native}, reverse=True)]
    shown = []
    for label in range(min(_IMAGES, len(data.classes))):
        members = np.flatnonzero(data.train_labels == label)
        if not len(members):
            continue
        image = torch.from_numpy(np.array(data.train_images[members[0]]))[None]
        images = []
        for rows, columns in wanted:
            scale = min(1.0, _MOST / max(rows, columns))
            small = resized(image, max(1, round(rows * scale)), max(1, round(columns * scale)))
            name = f"{rows} px" if rows == columns else f"{rows} × {columns} px"
            images.append({"px": name, "uri": _uri(small[0])})
        shown.append({"label": data.classes[label], "images": images})
    return shown


def _uri(image: torch.Tensor) -> str:
    """Return uint8 [c, h, w] as an address that holds the image."""
    pixels = image.permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
    kind = "jpeg" if max(pixels.shape[:2]) >= _LARGE else "png"
    file = io.BytesIO()
    picture.save(file, kind, quality=90)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
