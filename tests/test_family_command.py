"""`scaling-search family`: members along the winning direction, trained on request, error against
cost."""

import math
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import effnet
from effnet.budget import Budget
from effnet.families import baseline
from scaling_search.cli import main
from scaling_search.cli.family import fit_words, parse_phis
from scaling_search.data.dataset import Dataset
from scaling_search.study.context import ScalingContext
from scaling_search.study.directions import NAMED
from scaling_search.study.family import aim_of, dropout, fit, members
from tests.records import TODO
from tests.replays import OWN, RECORDED, replay, synthetic


def test_line_and_interval_are_the_textbooks() -> None:
    """Against the formulas for a new observation, by matrices."""
    rng = np.random.default_rng(0)
    costs = np.array([1e6, 2e6, 5e6, 9e6, 3e7])
    errors = 3 * costs**-0.2 * np.exp(rng.normal(0, 0.05, 5))
    line = fit(costs, errors)
    design, y = np.stack([np.ones(5), np.log(costs)], 1), np.log(errors)
    beta, residual, *_ = np.linalg.lstsq(design, y, rcond=None)
    at = np.array([1, math.log(1e8)])
    spread = math.sqrt(residual[0] / 3 * (1 + at @ np.linalg.inv(design.T @ design) @ at))
    half = stats.t.ppf(0.975, 3) * spread
    assert line.predict(1e8) == pytest.approx(tuple(np.exp(at @ beta + np.array([0, -half, half]))))
    for wrong in (([1, 2], [0.1, 0.2]), ([1, 1, 1], [0.1] * 3), ([1, 2, 3], [0.1, 0.0, 0.1])):
        with pytest.raises(ValueError, match="takes three networks"):
            fit(*wrong)


def test_interval_holds_the_largest_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    costs = 1e6 * 2.0 ** np.arange(6)
    inside = 0
    for _ in range(400):
        errors = 2 * costs**-0.15 * np.exp(rng.normal(0, 0.03, 6))
        _, low, high = fit(costs[:-1], errors[:-1]).predict(costs[-1])
        inside += low <= errors[-1] <= high
    assert 0.92 <= inside / 400 <= 0.98


def test_words_say_whether_the_largest_held() -> None:
    costs = [10**6 * 2**k for k in range(5)]
    straight = [0.5 * 0.9**k for k in range(5)]
    assert (
        "inside"
        in fit_words(costs, [e * (1 + 0.01 * (-1) ** k) for k, e in enumerate(straight)])[1]
    )
    assert "10.0% with each doubling" in fit_words(costs, straight)[0]
    bent = [e * (1 + 0.001 * (-1) ** k) for k, e in enumerate(straight)]
    bent[-1] = 0.5
    assert "outside" in fit_words(costs, bent)[1]
    assert "too few" in fit_words(costs[:3], straight[:3])[0]
    assert "without errors" in fit_words(costs, [*straight[:-1], 0.0])[0]


def test_dropout_follows_the_published_members() -> None:
    for k, published in enumerate((20, 20, 30, 30, 40, 40, 50, 50)):
        assert abs(dropout(20, 2.0**k) - published) <= 5
    assert dropout(20, 0.5) == 20
    assert dropout(0, 8) == 0
    assert dropout(20, 1e5) == 50


def test_members_meet_their_budgets_along_the_direction() -> None:
    base = replace(baseline("b0"), rounding="spread")  # as a search has it
    base_macs = effnet.cost(effnet.arch("b0")).macs
    targets = {f"phi {k}": Budget(2.0**k, True) for k in (3, 1, 2)}
    context = ScalingContext(base, classes=1000, max_side=math.inf, max_waste=0.08)
    family = members(context, NAMED["paper"], targets)
    assert [m.name for m in family] == ["phi 1", "phi 2", "phi 3"]
    for k, m in enumerate(family, 1):
        exact = effnet.cost(m.network.arch).macs
        assert abs(exact / base_macs / 2**k - 1) <= 0.02
        assert m.network.cost.macs == exact
        assert not m.notes
        assert m.network.shares is not None
        assert math.dist(m.network.shares, NAMED["paper"]) < 0.25
        assert m.network.arch.resolution == m.paper.arch.resolution  # the same direction here
    assert family[0].published is not None
    assert family[0].published.startswith("b1")
    small = replace(context, max_side=256)
    capped = members(small, (0.0, 0.0, 1.0), {"8x": Budget(8.0, True)})
    assert capped[0].network.arch.resolution <= 256
    assert "the images have 256" in capped[0].notes[0]


def test_direction_of_a_pick() -> None:
    c = TODO.candidates[0]
    aim = aim_of(c)
    assert sum(aim) == pytest.approx(1)
    assert min(aim) >= 0
    from scaling_search import UserError

    assert aim_of(replace(c, shares=(-0.01, 0.5, 0.51)))[0] == 0
    for shares in (None, (-0.3, 0.6, 0.7)):
        with pytest.raises(UserError, match="has no direction to follow"):
            aim_of(replace(c, shares=shares))


@pytest.mark.parametrize("text", ["a..b", "7..1", "0", "-1", "nan", "inf", "", "1,,2", "1e999"])
def test_wrong_phis(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["family", str(RECORDED), f"--phi={text}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "numbers above 0, such as" in error


def test_phis() -> None:
    assert parse_phis("1..3") == [1, 2, 3]
    assert parse_phis("2,0.5") == [0.5, 2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--phi 1..40",
            "past what any device can train (192 GiB, one image at a time); the largest is about",
        ),
        ("--phi 1e9", "past what any device can train"),
        ("--budgets 90000G", "past what any device can train"),
        ("--budgets '5M params'", "the study's budget is 2x: give a family of multiply-adds too"),
        ("--budgets many", "a budget is a ratio such as 2x"),
        ("", "one of the arguments --phi --budgets is required"),
        ("--phi 1 --budgets 2x", "not allowed with argument"),
        ("--phi 1 --workers 0", "--workers 0: at least 1"),
    ],
)
def test_refused(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["family", str(RECORDED), *shlex.split(words)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "Traceback" not in error
    assert message in error


def test_no_run_no_family(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["family", str(tmp_path), "--phi", "1"]) == 2
    assert "no study.db there" in capsys.readouterr().err


def test_family_of_the_recorded_study(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["family", str(RECORDED), "--phi", "0.5,1,2"]) == 0
    out = capsys.readouterr().out
    assert "direction depth 0% width 16% resolution 84%" in out
    assert "(3.99x)" in out
    assert "the paper's direction" in out
    assert "note      the direction is that of 2x" in out


def test_trained_and_fitted(
    data: Dataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from scaling_search import session
    from scaling_search.study.settings import check

    own = {**OWN, "rungs": [1], "seeds": 1, "extra": 0, "confirm": 0}
    synthetic(tmp_path / "t.parquet", own, range(4))
    replay(check(own, "test"), tmp_path / "t.parquet", tmp_path / "run")
    monkeypatch.setattr(session, "load_or_explain", lambda source, options: data)
    words = [
        "family",
        str(tmp_path / "run"),
        "--budgets",
        "1.5x,2x,3x",
        "--train",
        "--workers",
        "2",
    ]
    capsys.readouterr()
    assert main(words) == 0
    out = capsys.readouterr().out
    assert out.count("\ntrained ") == 4
    assert "with each doubling of multiply-adds" in out
    assert "held out" in out
    assert main(words) == 0
    assert "left to train" in capsys.readouterr().out  # a second time nothing is trained
    assert main([*words[:3], "4x", *words[4:]]) == 2
    assert "belongs to a different study" in capsys.readouterr().err
