"""Any torch module as a baseline: a function of depth, width and resolution.

def build(depth: float, width: float, resolution: int, num_classes: int, in_channels: int):
    return torch.nn.Sequential(...)

Depth and width are multipliers, of what is the function's own affair. What a network of it costs is
counted by torch on the meta device (counting.py). No torch is imported here.

Code is only run from the place that the user named. What was recorded of a function, its digest,
its networks and their costs, is read without it, and no source is taken from a record.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import logging
import sys
import traceback
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effnet.messages import first_line

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)

Build = Callable[..., "nn.Module"]
ARGUMENTS = ("depth", "width", "resolution", "num_classes", "in_channels")
_WANTED = f"build({', '.join(ARGUMENTS)}) that returns a torch.nn.Module"


class FunctionError(ValueError):
    """A function that cannot be a baseline, or what it raised, and where."""


@dataclass(frozen=True, slots=True)
class Function:
    """A baseline that is a function.

    `place` is where it is: path/to/file.py:build or package.module:build. `digest` is of the source
    of that file and the function's name: two functions of one digest are the same. `source` is that
    text, which travels to the processes that train; "" where only what was recorded is there.
    `depth` and `width` are the baseline's own multipliers, `resolution` [px] its side."""

    place: str = field(compare=False)
    digest: str
    resolution: int
    width: float = 1.0
    in_channels: int = 3
    source: str = field(default="", compare=False, repr=False)

    total_stride = 1  # it may be built for any side; what it refuses, it says itself

    @property
    def name(self) -> str:
        """The file's or module's name with the function's, without folders."""
        where, attribute = split_place(self.place)
        return f"{Path(where).name}:{attribute}"

    def multipliers(self, depth: float, width: float) -> tuple[float, float]:
        """What the function is given for these multipliers of the baseline: to nine digits, since
        3 / 2 * 2 and 3 are one number to a function."""
        return float(f"{depth:.9g}"), float(f"{width * self.width:.9g}")


@dataclass(frozen=True, slots=True)
class Counts:
    """What torch counts of one network: per image and forward, multiply-adds and the elements that
    convolutions and matrix products put out; trainable parameters; and `structure`, a hash of the
    names and shapes of its parameters and buffers."""

    macs: int
    params: int
    acts: int
    structure: str


@dataclass(frozen=True, slots=True)
class CustomArch:
    """A network of a function: the counterpart of an Arch. Two are the same where torch's counts
    and the shapes of their weights are, whatever multipliers built them."""

    function: Function
    depth: float = field(compare=False)
    width: float = field(compare=False)
    resolution: int
    num_classes: int
    counts: Counts

    @property
    def sides(self) -> tuple[int, int]:
        """Rows and columns of the input [px]."""
        return self.resolution, self.resolution

    @property
    def px(self) -> str:
        """The input's size in words."""
        return f"{self.resolution} px"

    blocks = None  # what a block is, is the function's affair
    dropout_percent = 0

    @property
    def name(self) -> str:
        return self.function.name

    @property
    def in_channels(self) -> int:
        return self.function.in_channels

    @property
    def key(self) -> str:
        """12 hexadecimal digits, as an Arch's."""
        counts = self.counts
        text = (
            f"{self.function.digest}|{self.in_channels}|{self.resolution}|{self.num_classes}"
            f"|{counts.macs}|{counts.params}|{counts.acts}|{counts.structure}"
        )
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON, without the function's source and the folders of this machine;
        `from_dict` is its inverse."""
        function, counts = self.function, self.counts
        return {
            "function": function.name,
            "digest": function.digest,
            "base_resolution": function.resolution,
            "base_width": function.width,
            "in_channels": function.in_channels,
            "depth": self.depth,
            "width": self.width,
            "resolution": self.resolution,
            "num_classes": self.num_classes,
            "macs": counts.macs,
            "params": counts.params,
            "acts": counts.acts,
            "structure": counts.structure,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CustomArch:
        """The network that `as_dict` described, whose function cannot be run: a record may be
        somebody else's. Raises ValueError naming what is missing or wrong."""
        try:
            _check_record(data)
            function = Function(
                place=data["function"],
                digest=data["digest"],
                resolution=data["base_resolution"],
                width=data["base_width"],
                in_channels=data["in_channels"],
            )
            counts = Counts(data["macs"], data["params"], data["acts"], data["structure"])
            return cls(
                function=function,
                depth=data["depth"],
                width=data["width"],
                resolution=data["resolution"],
                num_classes=data["num_classes"],
                counts=counts,
            )
        except (TypeError, KeyError) as error:
            raise ValueError(f"network: not a description of one: {error}") from error


_RECORDED: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("function", "digest", "structure"), str),
    **dict.fromkeys(("base_width", "depth", "width"), (int, float)),
    **dict.fromkeys(("base_resolution", "in_channels", "resolution", "num_classes"), int),
    **dict.fromkeys(("macs", "params", "acts"), int),
}


def _check_record(data: Mapping[str, Any]) -> None:
    """Check the types of a recorded network. Raises ValueError, KeyError for what is missing."""
    for name, kind in _RECORDED.items():
        value = data[name]
        if isinstance(value, bool) or not isinstance(value, kind):
            raise ValueError(f"network: {name} = {value!r}: not what is recorded of a function's")


# ---- finding the function


def is_place(text: str) -> bool:
    """Whether a text names a function, as file.py:build or package.module:build, and not a network
    or a TOML file."""
    where, attribute = split_place(text)
    return bool(where) and attribute.isidentifier()


def split_place(place: str) -> tuple[str, str]:
    """path/to/file.py:build → (path/to/file.py, build). Windows' drives keep their colon."""
    where, _, attribute = place.rpartition(":")
    return where, attribute


def read(place: str) -> Function:
    """The function at a place, its file read and not run (of a module in a package, whose parents
    are run as it is looked for); its resolution is 0. Raises FunctionError where there is none."""
    where, attribute = split_place(place)
    if not is_place(place):
        raise FunctionError(
            f"{place}: wanted is path/to/file.py:build or package.module:build, with {_WANTED}"
        )
    path = _source_path(where, place)
    try:
        source = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text in UTF-8"
        raise FunctionError(f"{place}: {path}: {reason}") from error
    if where.endswith(".py"):
        place = f"{path.resolve()}:{attribute}"
    return Function(place, _digest(source, attribute), 0, source=source)


def find(place: str) -> Function:
    """Read the function at a place, run its file, and check what it takes; its resolution is the
    default of that argument, or 0 where it has none.

    Raises FunctionError where there is no such function, its file cannot be run, or it takes other
    arguments."""
    function = read(place)
    parameters = _signature(load(function), function)
    default = parameters["resolution"].default if "resolution" in parameters else None
    _by_digest[function.digest] = function
    side = default if isinstance(default, int) and not isinstance(default, bool) else 0
    return replace(function, resolution=side)


def supplied(net: CustomArch, place: str) -> CustomArch:
    """A recorded network with its function, which is where the user says that it is. Raises
    FunctionError where another one is there."""
    function = find(place)
    if function.digest != net.function.digest:
        raise FunctionError(
            f"{place}: not the function that built this network, {net.name} of digest "
            f"{net.function.digest}, but of {function.digest}; a copy of its file is in the run "
            "folder of the search, as baseline.py"
        )
    own = replace(net.function, place=function.place, source=function.source)
    return replace(net, function=own)


def recorded(
    place: str, digest: str, resolution: int, *, width: float, in_channels: int
) -> Function:
    """A function as it was recorded. Where it was found in this process, its place and source are
    those that were found: the user named these, a record may name anything."""
    source = ""
    if digest in _by_digest:
        place, source = _by_digest[digest].place, _by_digest[digest].source
    return Function(place, digest, resolution, width, in_channels, source)


_by_digest: dict[str, Function] = {}  # those that were found in this process


def _digest(source: str, attribute: str) -> str:
    return hashlib.sha256(f"{attribute}\n{source}".encode()).hexdigest()[:16]


def _source_path(where: str, place: str) -> Path:
    """The file of a path or of a module. Raises FunctionError."""
    if where.endswith(".py"):
        path = Path(where)
        if not path.is_file():
            raise FunctionError(f"{place}: there is no file {path}")
        return path
    if any(not part.isidentifier() for part in where.split(".")):
        raise FunctionError(
            f"{place}: {where} is neither a .py file nor the name of a module, such as "
            "package.module:build"
        )
    _import_from_here()
    try:
        spec = importlib.util.find_spec(where)
    except ImportError as error:
        raise FunctionError(f"{place}: {first_line(error)}") from error
    except (Exception, SystemExit) as error:  # a parent package is run, and may raise anything
        raise FunctionError(f"{place}: importing {where} raised {_last_frame(error)}") from error
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        raise FunctionError(
            f"{place}: no module named {where} here; give the path of its file, or install it"
        )
    return Path(spec.origin)


def _import_from_here() -> None:
    """From now on modules of the working folder can be imported, as `python -m` finds them; what is
    installed goes first."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)


@functools.lru_cache(maxsize=8)
def _run_source(where: str, digest: str, source: str) -> types.ModuleType:
    """The module that a file's text makes. Its own folder can be imported from, as a script's can;
    what is installed goes first."""
    module = types.ModuleType(f"baseline_{digest}")
    module.__file__ = where
    folder = str(Path(where).parent)
    if folder not in sys.path:
        sys.path.append(folder)
    sys.modules[module.__name__] = module  # dataclasses and pickles look their module up
    # without this file's own `from __future__ import annotations`
    exec(compile(source, where, "exec", dont_inherit=True), module.__dict__)
    return module


def load(function: Function) -> Build:
    """The callable itself.

    Raises FunctionError where its source is not at hand, is another one than its digest says,
    cannot be run, or has no such function."""
    where, attribute = split_place(function.place)
    if not function.source:
        raise FunctionError(
            f"{function.place}: only what was recorded of this function is here; give the function "
            "itself with --baseline FILE.py:FUNCTION"
        )
    if _digest(function.source, attribute) != function.digest:
        raise FunctionError(f"{function.place}: its source is not the one of its digest")
    try:
        if where.endswith(".py"):
            module = _run_source(where, function.digest, function.source)
        else:
            _import_from_here()
            module = importlib.import_module(where)
            here = Path(str(module.__file__)).read_text("utf-8-sig")
            if _digest(here, attribute) != function.digest:
                raise FunctionError(
                    f"{function.place}: {module.__file__} is another one here than where the study "
                    "began; install the same on every machine"
                )
    except FunctionError:
        raise
    except (Exception, SystemExit) as error:
        raise FunctionError(f"{function.place}: running {_last_frame(error, where)}") from error
    build = getattr(module, attribute, None)
    if build is None:
        raise FunctionError(f"{function.place}: {where} has no function {attribute}")
    if not callable(build):
        raise FunctionError(f"{function.place}: {attribute} is no function: {_WANTED}")
    return build  # type: ignore[no-any-return]


def _signature(build: Build, function: Function) -> Mapping[str, inspect.Parameter]:
    """The parameters of a function. Raises FunctionError where it cannot be called with the five
    arguments, by name."""
    try:
        signature = inspect.signature(build)
    except (TypeError, ValueError):
        return {}  # of a builtin, whose call will tell
    try:
        signature.bind(**dict.fromkeys(ARGUMENTS, 1))
    except TypeError as error:
        raise FunctionError(
            f"{function.place} takes {signature}: {error}; wanted is {_WANTED}"
        ) from error
    return signature.parameters


def _last_frame(error: BaseException, where: str = "") -> str:
    """The file's last line before an error, and the error: `vit.py, line 7: ValueError: ...`."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not where or frame.filename == where]
    line = ""
    if own:
        line = f"{Path(own[-1].filename).name}, line {own[-1].lineno}: "
    elif isinstance(error, SyntaxError) and error.filename:
        line = f"{Path(error.filename).name}, line {error.lineno}: "
    return f"{line}{first_line(error, named=True)}"


def explain(function: Function, call: str, error: BaseException) -> FunctionError:
    """What a function raised in a call, as one line."""
    where, _ = split_place(function.place)
    return FunctionError(f"{function.place} at {call}: {_last_frame(error, where)}")
