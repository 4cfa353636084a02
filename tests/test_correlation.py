import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from effnet.budget import Budget
from scaling_search.study.plan import plan
from scaling_search.study.settings import preset_path, read
from scaling_search.verdict.correlation import Agreement, agreements, network_means, rank
from scaling_search.verdict.narration import agreement_words
from scaling_search.verdict.verdict import FRESH
from tests.records import STUDY, TODO, TWO, record


def words(compared: list[Agreement]) -> list[str]:
    return [agreement_words(agreement) for agreement in compared]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=9))
def test_rank_is_kendalls_tau_b(pairs: list[tuple[int, int]]) -> None:
    """Counted pair by pair."""
    signs = [
        (np.sign(a[0] - b[0]), np.sign(a[1] - b[1])) for a, b in itertools.combinations(pairs, 2)
    ]
    moved = [sum(s[i] != 0 for s in signs) for i in (0, 1)]
    expected = sum(x * y for x, y in signs) / math.sqrt(moved[0] * moved[1]) if all(moved) else 0.0
    order = rank(*zip(*pairs, strict=True))
    assert order.tau == pytest.approx(expected)
    assert order.low <= order.tau <= order.high


def test_rank_interval_holds() -> None:
    """Tau of normal pairs is 2/pi arcsin(rho)."""
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(300):
        x = rng.standard_normal(24)
        y = 0.6 * x + 0.8 * rng.standard_normal(24)
        order = rank(x.tolist(), y.tolist())
        inside += order.low <= 2 / math.pi * math.asin(0.6) <= order.high
    assert 0.91 <= inside / 300 <= 0.99
    with pytest.raises(ValueError, match="at least two"):
        rank([1.0], [1.0])


def test_agreements_of_one_study_in_words() -> None:
    rng = np.random.default_rng(1)
    truth = rng.normal(0, 0.05, len(TODO.candidates))
    records = []
    for k, c in enumerate(TODO.candidates):
        for s in range(2):
            records.append(record(c, s, 0.5 + truth[k] + rng.normal(0, 0.002), epochs=1))
            records.append(record(c, s, 0.6 + truth[k] + rng.normal(0, 0.002), epochs=2))
        if k < 6:
            records.append(record(c, FRESH, 0.6 + truth[k], test=0.55 + truth[k], epochs=2))
    short, test = words(agreements(records, TWO, Budget.parse("2x")))
    assert short.startswith("1 against 2 epochs, different seeds: Kendall's tau 0.")
    assert short.endswith("they agree")
    assert test.startswith("validation against test: Kendall's tau 1.00")
    assert "6 networks" in test
    first_seed = [r for r in records if r.seed == 0]
    (same,) = words(agreements(first_seed, TWO, Budget.parse("2x")))
    assert "the same seed, so they share its luck" in same
    one_rung = [record(c, 0, 0.5) for c in TODO.candidates]
    assert agreements(one_rung, STUDY, Budget.parse("2x")) == []


def test_small_against_large_budgets() -> None:
    study = read(preset_path("quick-b0-s4"), {"budgets": ["2x", "4x"], "rungs": [1]})
    todo = plan(study, 10, 64)
    records = [record(c, 0, 0.5 + 0.1 * (c.shares or (0, 0, 0))[2]) for c in todo.candidates]
    (line,) = words(agreements(records, study, Budget.parse("2x")))
    assert line.startswith("2x against 4x, nearest shares: Kendall's tau 0.")
    assert "networks): they" in line


def test_more_seeds_for_the_leaders_do_not_tilt_theirnetwork_means() -> None:
    """Seeds that only some networks have: without noise, the order is the truth's."""
    truth = dict(zip(TODO.candidates[:4], (0.60, 0.58, 0.57, 0.50), strict=True))
    records = [
        record(c, s, v + 0.01 * s)
        for c, v in truth.items()
        for s in range(4)
        if s == 0 or v >= 0.58
    ]
    means = network_means(records, lambda r: r.val_acc)
    values = [means[c.key] for c in truth]
    assert np.diff(values) == pytest.approx([-0.02, -0.01, -0.07])
