"""Checkpoints that are whole or absent: written beside, synced, renamed; a digest in front of the
payload.

A place with `://` (s3://bucket/path) is remote.py's; there a file appears when it is whole.
"""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import torch

from effnet import atomic
from scaling_search.training.trial import inside

_MAGIC = b"scaling-search checkpoint 1\n"
_TOKEN = ".driver"


class DamagedError(Exception):
    """The file is not a whole checkpoint."""


def save(path: str, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain data) so that `path` holds the old or the new one, never a
    mixture.

    Raises OSError (a full disk, say); `path` then still holds the old one."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    _write(path, _MAGIC + hashlib.sha256(payload).digest() + payload)


def load(path: str) -> dict[str, Any] | None:
    """The state at `path`, on the CPU, or None where there is no file.

    Raises DamagedError when truncated or altered."""
    raw = _read(path)
    if raw is None:
        return None
    head, digest, payload = (
        raw[: len(_MAGIC)],
        raw[len(_MAGIC) : len(_MAGIC) + 32],
        raw[len(_MAGIC) + 32 :],
    )
    if head != _MAGIC or hashlib.sha256(payload).digest() != digest:
        raise DamagedError(f"{path}: truncated or altered")
    state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    return state


def leave_token(folder: str) -> str:
    """Leave something in the folder by which other machines can tell that they see it. Raises
    OSError."""
    token = os.urandom(8).hex()
    _write(inside(folder, _TOKEN), token.encode())
    return token


def has_token(folder: str, token: str) -> bool:
    try:
        return _read(inside(folder, _TOKEN)) == token.encode()
    except OSError:
        return False


def _write(path: str, content: bytes) -> None:
    if "://" in path:
        from scaling_search.training import remote

        remote.write(path, content)
    else:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        atomic.write(Path(path), content)


def _read(path: str) -> bytes | None:
    try:
        if "://" in path:
            from scaling_search.training import remote

            return remote.read(path)
        return Path(path).read_bytes()
    except FileNotFoundError:
        return None
