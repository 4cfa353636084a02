"""Files on other machines, by address: s3://bucket/path, gs://, abfs://, hdfs:// as pyarrow knows them."""

from __future__ import annotations

from pyarrow import ArrowException
from pyarrow.fs import FileSystem

from scaling_search import UserError


def check(address: str) -> None:
    """Raises UserError for an address that leads nowhere."""
    try:
        FileSystem.from_uri(address)
    except (ArrowException, OSError) as error:
        raise UserError(
            f"--storage {address}: {str(error).splitlines()[0]}; wanted is a folder or an address such as s3://bucket/path"
        ) from None


def write(address: str, content: bytes) -> None:
    """The file is there whole or not at all: an object store shows it once it is closed. Raises OSError."""
    system, path = FileSystem.from_uri(address)
    with system.open_output_stream(path) as file:
        file.write(content)


def read(address: str) -> bytes:
    """Raises FileNotFoundError, OSError."""
    system, path = FileSystem.from_uri(address)
    with system.open_input_stream(path) as file:
        content: bytes = file.read()
    return content
