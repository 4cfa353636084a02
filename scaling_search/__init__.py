"""How should a ConvNet's depth, width and resolution be scaled, for this data, device and budget?"""

__version__ = "0.1.0"


class UserError(ValueError):
    """Something the user gave cannot be used. The message is one line: what is wrong, where, and what
    would be right. The command line prints it and exits with status 2."""
