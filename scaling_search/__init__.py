"""How should a ConvNet's depth, width and resolution be scaled, for this data, device and
budget?"""

__version__ = "0.1.0"


def without_secrets(text: str) -> str:
    """An address as it may be shown or written into results: no password, no query. Anything else
    as it is."""
    scheme, mark, address = text.partition("://")
    if not mark:
        return text
    login, at, location = address.rpartition("@")
    user, colon, _ = login.partition(":")
    location, question, _ = location.partition("?")
    password = ":***" if colon else ""
    query = "?***" if question else ""
    return f"{scheme}://{user}{password}{at}{location}{query}"


class UserError(ValueError):
    """Something the user gave cannot be used. The message is one line: what is wrong, where, and
    what would be right. The command line prints it and exits with status 2."""
