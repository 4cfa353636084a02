"""Parquet files of random images."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def cells(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Random images of 32 px as Hugging Face writes them."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": None})
    return images


def write(path: Path, columns: dict[str, Any], features: dict[str, Any] | None = None) -> str:
    """A file with these columns, and with the metadata of Hugging Face where `features` are
    given."""
    table = pa.table(columns)
    if features is not None:
        metadata = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": metadata})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return str(path)
