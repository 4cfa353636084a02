"""What a search leaves in its folder for those who go on with its answer."""

import json
import shlex
from pathlib import Path

import pytest
from rich.console import Console

import effnet
from scaling_search.cli import main
from scaling_search.report import answer
from scaling_search.results.reading import open_results
from scaling_search.study.settings import check
from tests.replays import OWN, replay, synthetic


@pytest.fixture(scope="module")
def of_two_budgets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a study of two budgets, replayed from a table."""
    home = tmp_path_factory.mktemp("budgets")
    own = {**OWN, "rungs": [1], "seeds": 1, "extra": 0, "confirm": 0, "budgets": ["2x", "3x"]}
    synthetic(home / "t.parquet", own, range(4))
    replay(check(own, "test"), home / "t.parquet", home / "run")
    return home / "run"


def test_each_budget_has_its_pick(of_two_budgets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = of_two_budgets
    configs = [run / "config-2x.json", run / "config-3x.json"]
    for config, ratio in zip(configs, (2, 3), strict=True):
        stated = json.loads(config.read_text())
        pick, by = effnet.arch(str(config)), stated["coefficients"]
        base = effnet.baseline(str(config))
        dials = {"depth": by["alpha"], "width": by["beta"], "resolution": pick.resolution}
        for start in (base, str(run / "baseline.toml")):
            assert effnet.arch(start, **dials, num_classes=10) == pick
        cost = effnet.cost(effnet.arch(base, num_classes=10)).macs
        assert effnet.cost(pick).macs / cost == pytest.approx(ratio, rel=0.021)
    assert main(["cost", str(run)]) == 2
    error = capsys.readouterr().err
    assert f"a pick for each of 2 budgets; give {configs[0]}, {configs[1]}" in error
    assert main(["cost", str(configs[1])]) == 0
    for config, budget in zip(configs, ("2x", "3x"), strict=True):
        assert main(["family", str(config), "--budgets", "2x"]) in (0, 2)
        said = capsys.readouterr()
        assert f"picked at {budget}" in said.out or "no direction to follow" in said.err


def test_a_use_for_each_budget_and_a_users_own_file_stays(
    of_two_budgets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = of_two_budgets
    (run / "baseline.toml").write_text("# precious\n")
    with open_results(run) as results:
        assert answer.finish(results, run, Console())
    said = capsys.readouterr().out.splitlines()
    commands = [shlex.split(line, comments=True)[1:] for line in said if line.startswith("use ")]
    assert [command[2] for command in commands] == [
        str(run / "config-2x.json"),
        str(run / "config-3x.json"),
    ]
    assert commands[0][-4:] == ["--epochs", "10", "--to", str(run / "trained-2x")]
    assert said[-1].startswith("report ")
    assert (run / "baseline.toml").read_text() == "# precious\n"
