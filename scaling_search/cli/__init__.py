"""The command line: its parser, its exit statuses, and what it says of an error.

Each group of commands is a file beside this one. None of them imports torch, optuna or pandas
before a command runs, since each takes seconds: wrong arguments and --help are answered at once.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import io
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from effnet.custom import FunctionError
from scaling_search import UserError, __version__
from scaling_search.cli.check import CHECK
from scaling_search.cli.command import EVERYWHERE, Parser, add_argument, add_to
from scaling_search.cli.export import EXPORT
from scaling_search.cli.family import FAMILY
from scaling_search.cli.figure import FIGURE
from scaling_search.cli.networks import COST, LIST, SOLVE
from scaling_search.cli.report import DASHBOARD, REPORT
from scaling_search.cli.search import SEARCH
from scaling_search.cli.train import TRAIN

COMMANDS = (SEARCH, REPORT, DASHBOARD, FIGURE, FAMILY, CHECK, TRAIN, LIST, COST, SOLVE, EXPORT)

USER_ERROR = 2
UNEXPECTED_ERROR = 70  # EX_SOFTWARE of sysexits.h: no command answers with it
INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
BROKEN_PIPE = 141  # 128 + SIGPIPE
STATUSES = {
    0: "Done.",
    1: "The command ran and its answer is no: no network of the budget finished, a run failed, a "
    "budget is missed, a comparison is unequal.",
    USER_ERROR: "What was given is wrong, or the machine fails; one line on stderr says what would "
    "be right.",
    UNEXPECTED_ERROR: "An unexpected error, a fault of this program; one line on stderr, and with "
    "`--debug` the traceback.",
    INTERRUPTED: "Stopped by Ctrl-C; the same command goes on.",
    BROKEN_PIPE: "Whoever read the output stopped reading.",
    143: "Stopped by SIGTERM; the same command goes on.",
}


def stop_writing() -> int:
    """Return the exit status once whoever read our output is gone; Python would complain once more
    when it closes stdout."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return BROKEN_PIPE


def main(argv: Sequence[str] | None = None, prog: str = "scaling-search") -> int:
    """Run one command; its exit status. Whatever the user can cause is one line on stderr and
    status 2."""
    # Python collects garbage as it ends; of torch's million objects that takes a second
    atexit.register(gc.freeze)
    # a terminal that knows ASCII alone shows a question mark for the rest
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    arguments = list(sys.argv[1:] if argv is None else argv)
    # known before the arguments are parsed, so that an error in parsing them is shown too
    debug = "--debug" in arguments
    try:
        parsed = build_parser(prog).parse_args(_join_budget(arguments))
        with _logging(parsed.verbose, parsed.debug):
            status: int = parsed.command(parsed, arguments)
        return status
    except BrokenPipeError:
        return stop_writing()
    except (UserError, FunctionError, OSError) as error:  # OSError: a full disk, say
        cause = error if isinstance(error, OSError) else error.__cause__
        if debug and cause is not None:
            traceback.print_exception(cause)
        print(f"{prog}: {_one_line(error)}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:  # before any training: nothing to keep
        print(f"{prog}: stopped before anything was recorded", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exc()
        else:
            print(
                f"{prog}: unexpected {type(error).__name__}: {_one_line(error)}; run again with "
                "--debug for the traceback",
                file=sys.stderr,
            )
        return UNEXPECTED_ERROR


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


@contextmanager
def _logging(verbose: bool, debug: bool) -> Iterator[None]:
    """Within this block the packages' loggers write to stderr where that is asked for. A study's
    log file is another matter: it is written anyway, and holds DEBUG where --debug is given."""
    loggers = [logging.getLogger(name) for name in ("scaling_search", "effnet")]
    levels = [logger.level for logger in loggers]
    handler: logging.Handler = logging.NullHandler()  # or Python would print warnings itself
    if verbose or debug:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    level = logging.DEBUG if debug else logging.INFO
    for logger in loggers:
        logger.addHandler(handler)
        if verbose or debug:
            logger.setLevel(level)
    try:
        yield
    finally:
        for logger, before in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(before)


def _join_budget(argv: list[str]) -> list[str]:
    """`--budget -2x` is a wrong budget, not an unknown option."""
    joined: list[str] = []
    for word in argv:
        if joined and joined[-1] == "--budget":
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def build_parser(prog: str = "scaling-search") -> argparse.ArgumentParser:
    """The parser of COMMANDS; parsed arguments have `command`, what is to be called."""
    parser = Parser(prog=prog, description="How should depth, width and resolution be scaled?")
    parser.add_argument("--version", action="version", version=f"scaling-search {__version__}")
    for argument in EVERYWHERE:
        add_argument(parser, argument)
    names = " | ".join(command.name for command in COMMANDS)
    commands = parser.add_subparsers(required=True, metavar=names, parser_class=Parser)
    for command in COMMANDS:
        add_to(commands, command)
    return parser
