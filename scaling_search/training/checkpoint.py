"""Checkpoints that are whole or absent: written beside, synced, renamed, a digest in front.

A path with `://` (s3://bucket/path) is remote.py's; there a file appears when it is whole.
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

# A file is these bytes, the SHA-256 of what follows, and what torch.save writes.
_MAGIC = b"scaling-search checkpoint 1\n"
_HEADER = len(_MAGIC) + hashlib.sha256().digest_size
_TOKEN = ".driver"  # a file of `leave_token`


class DamagedError(Exception):
    """The file is not a whole checkpoint."""


def save(path: str, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain data) so that `path` holds the old state or the new one,
    never a mixture.

    Raises OSError (a full disk, say); `path` then still holds the old one."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    _write(path, _MAGIC + hashlib.sha256(payload).digest() + payload)


def load(path: str) -> dict[str, Any] | None:
    """Return the state at `path`, its tensors on the CPU, or None where there is no file.

    Raises DamagedError where the file is truncated or altered."""
    content = _read(path)
    if content is None:
        return None
    header, payload = content[:_HEADER], content[_HEADER:]
    if header != _MAGIC + hashlib.sha256(payload).digest():
        raise DamagedError(f"{path}: truncated or altered")
    # weights_only: a digest can be forged, so no object but tensors and plain data is made
    state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    return state


def leave_token(folder: str) -> str:
    """Write a file by which other machines can tell that they see this folder, and return its
    content. Raises OSError."""
    token = os.urandom(8).hex()
    _write(inside(folder, _TOKEN), token.encode())
    return token


def has_token(folder: str, token: str) -> bool:
    """Whether this machine sees the folder in which `leave_token` left this token."""
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
