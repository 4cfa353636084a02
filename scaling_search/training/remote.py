"""Files in object stores, by address: s3://bucket/path, gs://, abfs:// as pyarrow knows them. A
file is there once it is closed, whole: what a folder on a network file system needs a rename for.

pyarrow is imported when the first address is met: a machine that trains into a folder has no need
of it.
"""

from __future__ import annotations

from scaling_search import UserError, without_secrets

SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss")


def check(address: str) -> None:
    """Raises UserError for an address that leads nowhere."""
    from pyarrow import ArrowException
    from pyarrow.fs import FileSystem

    reason = f"known are {', '.join(SCHEMES)}"
    try:
        if address.partition("://")[0] in SCHEMES:
            FileSystem.from_uri(address)
            return
    except (ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0].replace(address, without_secrets(address))
    raise UserError(
        f"--storage {without_secrets(address)}: {reason}; wanted is a folder or an address such as s3://bucket/path"
    )


def write(address: str, content: bytes) -> None:
    """Raises OSError."""
    from pyarrow import ArrowException
    from pyarrow.fs import FileSystem

    try:
        system, path = FileSystem.from_uri(address)
        with system.open_output_stream(path) as file:
            file.write(content)
    except ArrowException as error:
        raise OSError(f"{without_secrets(address)}: {error}") from None


def read(address: str) -> bytes:
    """Raises FileNotFoundError, OSError."""
    from pyarrow import ArrowException
    from pyarrow.fs import FileSystem

    try:
        system, path = FileSystem.from_uri(address)
        with system.open_input_stream(path) as file:
            content: bytes = file.read()
    except ArrowException as error:
        raise OSError(f"{without_secrets(address)}: {error}") from None
    return content
