"""Commands as data: what --help says of each argument, and what main does with an error."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from effnet import families
from scaling_search.cli import COMMANDS, STATUSES, UNEXPECTED_ERROR, main
from scaling_search.cli.command import EVERYWHERE, Argument, of_settings
from scaling_search.study.flags import GROUPS
from scaling_search.study.reference import settings, with_flag
from scaling_search.study.settings import PRESETS, preset_path, read

ROOT = Path(__file__).parent.parent
ARGUMENTS = [
    pytest.param(argument, id=f"{command.name} {argument.name}")
    for command in COMMANDS
    for argument in (*command.each_argument(), *EVERYWHERE)
]


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_an_argument_has_a_sentence_and_its_default(argument: Argument) -> None:
    assert argument.sentence.endswith((".", "..."))
    assert argument.sentence[0].isupper()
    if argument.is_option and not argument.required and argument.value != "":
        assert argument.default
        assert f"(default: {argument.default})." in argument.help


def test_a_setting_has_a_sentence() -> None:
    for setting in settings():
        assert setting.description.endswith("."), setting.name
        assert setting.description[0].isupper(), setting.name
        assert setting.kind


def test_help_is_grouped_and_says_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["search", "--help"])
    words = " ".join(capsys.readouterr().out.split())
    positions = [words.index(f" {group}: --") for group in GROUPS]
    assert positions == sorted(positions)
    assert "First random seed; seed + 1, ... follow." in words
    assert "CPU threads of one training; another number" in words
    assert "multiply-adds such as 2x or 0.5x, or a number such as 400M or 1.2G; or of" in words
    assert "several with commas (default: 2x)." in words
    assert "Images per step (default: the preset's)." in words


def test_a_preset_that_cannot_be_read_spoils_no_other_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "quick.toml"
    broken.write_text("rungs = [1")
    for module in ("reference", "settings"):
        monkeypatch.setattr(f"scaling_search.study.{module}.preset_path", lambda name: broken)
    assert len(of_settings("search")) > 20
    assert main(["search", "--preset", "quick"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(broken) in error


def test_a_default_of_search_is_that_of_every_preset() -> None:
    """Of a setting without "the preset's" beside its flag, no preset has a value of its own."""
    (search,) = (command for command in COMMANDS if command.name == "search")
    defaults = {argument.name: argument.default for argument in search.each_argument()}
    changed = [read(preset_path(preset)).changed() for preset in PRESETS]
    for setting in with_flag("search"):
        assert setting.flag is not None
        own = any(setting.name in preset for preset in changed)
        if own and setting.kind != "true or false":
            assert defaults[setting.flag.name] == "the preset's"


def test_train_shares_the_flags_of_search() -> None:
    names = {setting.name for setting in with_flag("search")}
    alone = {setting.name for setting in with_flag("train")} - names
    assert alone == {"compile"}


def test_a_part_of_a_flags_name_is_no_flag(capsys: pytest.CaptureFixture[str]) -> None:
    """--epoch 2 would be --epochs 2, whatever else was meant."""
    assert main(["search", "--epoch", "2"]) == 2
    assert "unrecognized arguments: --epoch 2" in capsys.readouterr().err


def test_every_status_is_documented() -> None:
    assert {0, 1, 2, UNEXPECTED_ERROR, 130, 141, 143} == set(STATUSES)


# ---- errors and logs


def test_a_terminal_that_knows_ascii_alone() -> None:
    script = "from scaling_search.cli import main; main(['cost', 'b0', '--blocks'])"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=True,
    )
    assert b"224 ? 112" in done.stdout


def break_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of the program's own in the command `list`."""

    def fail() -> None:
        raise RuntimeError("of a kind\nthat nobody expected")

    monkeypatch.setattr(families, "names", fail)


def test_an_unexpected_error_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    break_list(monkeypatch)
    assert main(["list"]) == UNEXPECTED_ERROR
    assert capsys.readouterr().err == (
        "scaling-search: unexpected RuntimeError: of a kind that nobody expected; run again with "
        "--debug for the traceback\n"
    )


@pytest.mark.parametrize("words", [["list", "--debug"], ["--debug", "list"]])
def test_debug_shows_the_traceback(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    break_list(monkeypatch)
    assert main(words) == UNEXPECTED_ERROR
    error = capsys.readouterr().err
    assert error.startswith("Traceback (most recent call last):")
    assert "RuntimeError: of a kind" in error


@pytest.mark.parametrize("words", [["--verbose", "search"], ["search", "--verbose"]])
def test_verbose_writes_the_log_to_stderr(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("scaling_search")
    before = logger.level, list(logger.handlers)
    assert main([*words, "--device", "cpu", "--alpha-max", "0.5"]) == 2
    *log, error = capsys.readouterr().err.splitlines()
    assert log[0].startswith("INFO scaling_search.study.settings: study read from ")
    assert error.startswith("scaling-search: command line: space.alpha_max: ")
    assert (logger.level, list(logger.handlers)) == before, "nothing is left behind"


def test_help_loads_none_of_the_slow_libraries() -> None:
    """torch alone takes seconds to import, which --help and wrong arguments need not spend."""
    code = (
        "import sys; from scaling_search.cli import build_parser; build_parser();"
        "sys.exit(bool({'torch', 'optuna', 'pandas', 'plotly', 'ray', 'scipy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
