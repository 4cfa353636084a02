"""How should a ConvNet's depth, width and resolution be scaled, for this data, device and
budget?"""

__version__ = "0.1.0"


def without_secrets(text: str) -> str:
    """An address as it may be shown or written into results: no password, no query. Anything else
    as it is."""
    head, mark, rest = text.partition("://")
    if not mark:
        return text
    who, at, place = rest.rpartition("@")
    place, query, _ = place.partition("?")
    return f"{head}://{who.partition(':')[0]}{':***' if ':' in who else ''}{at}{place}{'?***' if query else ''}"


class UserError(ValueError):
    """Something the user gave cannot be used. The message is one line: what is wrong, where, and
    what would be right. The command line prints it and exits with status 2."""
