"""A training step on CUDA in few launches: flat parameters, a forward pass, Triton's kernels for
it."""

from __future__ import annotations

import functools
from importlib import metadata

from effnet.messages import first_line
from effnet.nn.cuda.capture import capture, process_is_spoiled
from effnet.nn.cuda.flat import FlatParameters
from effnet.nn.cuda.forward import TrainingForward

__all__ = [
    "FlatParameters",
    "TrainingForward",
    "capture",
    "process_is_spoiled",
    "triton_version",
    "why_no_triton",
]


@functools.cache
def why_no_triton() -> str:
    """The error with which Triton's kernels fail to load here; "" where they do not."""
    try:
        from effnet.nn.cuda import kernels  # noqa: F401
    except ImportError as error:
        return first_line(error, named=True)
    return ""


def triton_version() -> str:
    """The version of the installed Triton package; "" where none is."""
    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError:
        return ""
