"""Checkpoints that are whole or absent: written beside, synced, renamed; a digest in front of the payload."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from effnet import atomic

_MAGIC = b"scaling-search checkpoint 1\n"


class DamagedError(Exception):
    """The file is not a whole checkpoint."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain data) so that `path` holds the old or the new one, never a mixture.

    Raises OSError (a full disk, say); `path` then still holds the old one."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(path, _MAGIC + hashlib.sha256(payload).digest() + payload)


def load(path: Path) -> dict[str, Any] | None:
    """The state at `path`, on the CPU, or None where there is no file.

    Raises DamagedError when truncated or altered."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    head, digest, payload = raw[: len(_MAGIC)], raw[len(_MAGIC) : len(_MAGIC) + 32], raw[len(_MAGIC) + 32 :]
    if head != _MAGIC or hashlib.sha256(payload).digest() != digest:
        raise DamagedError(f"{path}: truncated or altered")
    state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    return state
