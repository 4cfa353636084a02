"""What a command is: its name, its arguments, what it does.

Commands are data. argparse's parsers are built from them here, and docs/cli.md by docs/generate.py,
so that neither has to look into the other.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

from scaling_search import UserError
from scaling_search.study.flags import GROUPS, OUTPUT
from scaling_search.study.reference import Setting, common_to_presets, with_flag


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a command: an option where `name` begins with --, else a positional one.

    `sentence` says what it is for and `default` how it reads when it is not given; `options` are
    the keywords of argparse's add_argument."""

    name: str
    sentence: str
    default: str = ""
    group: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_option(self) -> bool:
        return self.name.startswith("--")

    @property
    def is_switch(self) -> bool:
        return str(self.options.get("action", "")).startswith("store_")

    @property
    def required(self) -> bool:
        return not self.is_option or bool(self.options.get("required"))

    @property
    def value(self) -> str:
        """What it takes, as help and reference show it."""
        if self.is_switch:
            return ""
        choices = "|".join(self.options.get("choices", ()))
        return self.options.get("metavar") or choices or self.name.removeprefix("--").upper()

    @property
    def usage(self) -> str:
        """How it is typed."""
        if self.is_option:
            return f"{self.name} {self.value}".strip()
        return f"{self.value} ..." if self.options.get("nargs") == "+" else self.value

    @property
    def help(self) -> str:
        """The sentence with the default put into it."""
        if not self.default:
            return self.sentence
        return f"{self.sentence.removesuffix('.')} (default: {self.default})."


@dataclass(frozen=True, slots=True)
class OneOf:
    """Arguments of which one at most may be given, or exactly one where `required`."""

    arguments: tuple[Argument, ...]
    required: bool = False


@dataclass(frozen=True, slots=True)
class Command:
    """A sub-command. `summary` is a sentence without its capital and its full stop; `run` takes the
    parsed arguments and the words they were parsed from, and returns the exit status."""

    name: str
    summary: str
    arguments: tuple[Argument | OneOf, ...]
    run: Callable[[argparse.Namespace, list[str]], int]

    @property
    def sentence(self) -> str:
        """The summary as a sentence of its own."""
        end = "" if self.summary.endswith("?") else "."
        return f"{self.summary[:1].upper()}{self.summary[1:]}{end}"

    def each_argument(self) -> Iterator[Argument]:
        """The arguments, those of alternatives too."""
        for item in self.arguments:
            if isinstance(item, OneOf):
                yield from item.arguments
            else:
                yield item


# Before or after the command's name.
EVERYWHERE = (
    Argument(
        "--verbose",
        "Write the log to stderr too; a study's is in log.txt in its run folder.",
        group=OUTPUT,
        options={"action": "store_true"},
    ),
    Argument(
        "--debug",
        "Log more, to stderr too, and show the traceback of an unexpected error, or of what caused "
        "an expected one.",
        group=OUTPUT,
        options={"action": "store_true"},
    ),
)


def of_settings(command: str) -> tuple[Argument, ...]:
    """The arguments of all settings that `command` has a flag for. Only `search` reads presets."""
    arguments = []
    common = {}
    if command == "search":
        # A preset that cannot be read is reported by the command that wants it; this runs on
        # import, for every command's sake.
        with suppress(UserError):
            common = common_to_presets()
    for setting in with_flag(command):
        if command != "search":
            default = _typed(setting, setting.default)
        elif setting.name in common:
            default = _typed(setting, common[setting.name])
        else:
            default = "the preset's"
        arguments.append(_of_setting(setting, default))
    return tuple(arguments)


def given_settings(args: argparse.Namespace, command: str) -> dict[str, Any]:
    """The settings whose flags are given, as they were parsed: {"recipe.lr": 0.01, ...}."""
    given = {}
    for setting in with_flag(command):
        value = getattr(args, setting.sets)
        if value is not None:
            given[setting.sets] = value
    return given


def _of_setting(setting: Setting, default: str) -> Argument:
    """The argument for a setting's flag. It is None where it is not given."""
    if setting.flag is None:
        raise ValueError(f"{setting.name} has no flag")
    options: dict[str, Any] = {"dest": setting.sets}
    if setting.kind == "true or false":
        options |= {"action": "store_const", "const": True}
        default = ""
    elif setting.kind in ("int", "float") and not setting.flag.is_text:
        options["type"] = int if setting.kind == "int" else float
    return Argument(setting.flag.name, setting.description, default, setting.flag.group, options)


def _typed(setting: Setting, value: Any) -> str:
    """A setting's value as it would be typed; None as its flag words it."""
    if value is None:
        return setting.flag.unset if setting.flag else ""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


class Parser(argparse.ArgumentParser):
    """argparse's, with wrong arguments raised as UserError. Each is written out: a part of a name
    could be taken for another setting than was meant."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def add_to(commands: Any, command: Command) -> None:
    """Adds a command's parser to argparse's sub-parsers."""
    parser = commands.add_parser(command.name, help=command.summary, description=command.sentence)
    titles = {argument.group for argument in (*command.each_argument(), *EVERYWHERE)}
    # in the order of GROUPS, whatever order the arguments are written in
    groups = {title: parser.add_argument_group(title) for title in GROUPS if title in titles}
    for item in command.arguments:
        if isinstance(item, OneOf):
            exclusive = parser.add_mutually_exclusive_group(required=item.required)
            for argument in item.arguments:
                add_argument(exclusive, argument)
        else:
            add_argument(groups.get(item.group, parser), item)
    for argument in EVERYWHERE:
        # without a default: it would overwrite what stood before the command's name
        add_argument(groups[OUTPUT], argument, default=argparse.SUPPRESS)
    parser.set_defaults(command=command.run)


def add_argument(parser: Any, argument: Argument, **more: Any) -> None:
    """Adds an argument to one of argparse's parsers or groups."""
    options = {**argument.options, **more}
    if not argument.is_switch:
        options["metavar"] = argument.value
    # argparse formats help texts with %
    parser.add_argument(argument.name, help=argument.help.replace("%", "%%"), **options)
