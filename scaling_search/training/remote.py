"""Files in object stores, by address: s3://bucket/path, gs://, abfs:// as pyarrow knows them.

An object appears when it is closed, whole: what a folder on a file system needs a rename for.
pyarrow is imported when the first address is met: a machine that trains into a folder has no need
of it.
"""

from __future__ import annotations

from effnet.messages import first_line
from scaling_search import UserError, without_secrets

SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss")


def check(address: str) -> None:
    """Raise UserError for an address that leads nowhere."""
    from pyarrow import ArrowException
    from pyarrow.fs import FileSystem

    scheme = address.partition("://")[0]
    if scheme not in SCHEMES:
        raise _unusable(address, f"known are {', '.join(SCHEMES)}")
    try:
        FileSystem.from_uri(address)
    except (ArrowException, OSError, ValueError) as error:
        # pyarrow quotes the address, whose query may hold a key
        reason = first_line(error).replace(address, without_secrets(address))
        raise _unusable(address, reason) from error


def _unusable(address: str, reason: str) -> UserError:
    return UserError(
        f"--storage {without_secrets(address)}: {reason}; "
        "wanted is a folder or an address such as s3://bucket/path"
    )


def write(address: str, content: bytes) -> None:
    """Write an object. Raises OSError."""
    from pyarrow import ArrowException
    from pyarrow.fs import FileSystem

    try:
        system, path = FileSystem.from_uri(address)
        with system.open_output_stream(path) as file:
            file.write(content)
    except ArrowException as error:
        raise OSError(f"{without_secrets(address)}: {error}") from error


def read(address: str) -> bytes:
    """Return an object's content. Raises FileNotFoundError where there is none, else OSError."""
    from pyarrow import ArrowException
    from pyarrow.fs import FileSystem

    try:
        system, path = FileSystem.from_uri(address)
        with system.open_input_stream(path) as file:
            content: bytes = file.read()
    except ArrowException as error:
        raise OSError(f"{without_secrets(address)}: {error}") from error
    return content
