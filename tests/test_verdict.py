import numpy as np
import pytest
from scipy import stats

from scaling_search.space import Candidate, plan
from scaling_search.store import Record
from scaling_search.study import preset_path, read
from scaling_search.trial import Epoch, Outcome
from scaling_search.verdict import against, baseline_words, noise_words, points, tied_words, verdicts

TODO = plan(read(preset_path("quick")), 10, 28)


def record(c: Candidate, seed: int, accuracy: float | None, test: float | None = None) -> Record:
    if accuracy is None:
        return Record(0, c, seed, 1, Outcome("diverged"))
    return Record(0, c, seed, 1, Outcome("done", (Epoch(1, 1.0, 1.0, accuracy, 0.1),), "f" * 250), test)


def balanced(networks: int, seeds: int, rng: np.random.Generator) -> tuple[np.ndarray, list[Record]]:
    y = (
        0.7
        + rng.normal(0, 0.02, (networks, 1))
        + rng.normal(0, 0.05, (1, seeds))
        + rng.normal(0, 0.01, (networks, seeds))
    )
    return y, [record(TODO.candidates[k], s, y[k, s]) for k in range(networks) for s in range(seeds)]


def test_balanced_means_and_errors_are_the_textbooks() -> None:
    """Two-way analysis of variance, written out."""
    y, records = balanced(5, 4, np.random.default_rng(1))
    (v,) = verdicts(records, 1)
    residual = y - y.mean(1, keepdims=True) - y.mean(0, keepdims=True) + y.mean()
    noise = np.sqrt((residual**2).sum() / (4 * 3))
    assert v.noise == pytest.approx(noise) and v.repeats == 12
    best = int(y.mean(1).argmax())
    assert v.pick.candidate == TODO.candidates[best]
    for row in v.rows:
        k = TODO.candidates.index(row.candidate)
        assert row.mean == pytest.approx(y[k].mean()) and row.error == pytest.approx(noise / 2)
        if k != best:
            assert row.behind == pytest.approx(y[best].mean() - y[k].mean())
            assert row.behind_error == pytest.approx(noise * np.sqrt(2 / 4))
            # the paired t statistic of these two networks alone has another noise, but the same difference
            assert np.sign(stats.ttest_rel(y[best], y[k]).statistic) == np.sign(row.behind)


def test_seed_effect_is_not_mistaken_for_a_networks() -> None:
    """The second seed's fold is 10 points harder for everyone: finalists must not look worse for having met it."""
    accuracies = [0.80, 0.79, 0.70, 0.60]
    records = [record(c, 0, a) for c, a in zip(TODO.candidates, accuracies, strict=False)]
    records += [record(TODO.candidates[k], 1, accuracies[k] - 0.1) for k in (0, 1)]
    (v,) = verdicts(records, 1)
    assert [r.candidate for r in v.rows] == list(TODO.candidates[:4])
    gaps = [r.behind for r in v.rows]
    assert gaps == pytest.approx([0, 0.01, 0.10, 0.20])


def test_pick_is_among_those_measured_most() -> None:
    rng = np.random.default_rng(0)
    records = [record(c, 0, 0.7 + 0.01 * rng.random()) for c in TODO.candidates[:3]]
    records += [record(c, 1, 0.7 + 0.01 * rng.random()) for c in TODO.candidates[:2]]
    records += [record(TODO.candidates[4], 0, 0.9)]
    (v,) = verdicts(records, 1)
    assert v.pick.candidate in TODO.candidates[:2] and v.rows[0].candidate == TODO.candidates[4]


def test_tied_within_two_standard_errors() -> None:
    _, records = balanced(6, 3, np.random.default_rng(5))
    (v,) = verdicts(records, 1)
    for row in v.rows:
        assert row.tied == (row.behind <= 2 * row.behind_error)
        assert ("cannot be told apart" in against(row)) == (abs(row.behind) <= 2 * row.behind_error)
    assert v.pick in v.tied


def test_one_seed_only_uses_the_validation_images() -> None:
    records = [record(c, 0, a) for c, a in zip(TODO.candidates, (0.75, 0.74, 0.5), strict=False)]
    (v,) = verdicts(records, 1)
    assert v.repeats == 0 and "no run was repeated" in noise_words(v)
    p = np.mean([0.75, 0.74, 0.5])
    assert v.noise == pytest.approx(np.sqrt(p * (1 - p) / 1000))
    assert len(v.tied) == 2


def test_failed_networks_are_left_out_and_said() -> None:
    records = [record(TODO.candidates[0], 0, 0.7), record(TODO.candidates[1], 0, None)]
    (v,) = verdicts(records, 1)
    assert v.failed == (TODO.candidates[1],) and len(v.rows) == 1
    assert "only network of this cost that finished" in tied_words(v)
    assert v.failed[0].label not in [r.candidate.label for r in v.rows]
    assert verdicts([record(TODO.candidates[0], 0, None)], 1) == [] and verdicts([], 1) == []


def test_all_tied_is_said() -> None:
    records = [record(c, s, 0.7 + 0.02 * ((k + s) % 2)) for k, c in enumerate(TODO.candidates[:4]) for s in range(2)]
    (v,) = verdicts(records, 1)
    assert tied_words(v).startswith("All 4 networks of this cost are tied")


def test_references_are_on_the_same_scale() -> None:
    """A second seed ten points lower moves everyone alike, the networks that never met it too."""
    records = [record(c, 0, 0.8) for c in TODO.everything]
    records += [record(c, 1, 0.7) for c in (TODO.baseline, *TODO.candidates[:3])]
    (v,) = verdicts(records, 1)
    means = [r.mean for r in (*v.rows, *v.references)] + [v.baseline.mean if v.baseline else 0.0]
    assert means == pytest.approx([0.75] * len(means)) and len(v.references) == 2


def test_networks_left_behind_at_a_rung_are_said() -> None:
    low = [Record(0, c, 0, 1, Outcome("done", (Epoch(1, 1.0, 1.0, 0.5, 0.1),), "ff")) for c in TODO.candidates]
    high = [Record(0, c, 0, 2, Outcome("done", (Epoch(2, 1.0, 1.0, 0.6, 0.1),), "ff")) for c in TODO.candidates[:5]]
    (v,) = verdicts([*low, *high], 2)
    assert set(v.dropped) == set(TODO.candidates[5:]) and len(v.rows) == 5
    assert f"{len(TODO.candidates) - 5} more were left behind at fewer epochs" in tied_words(v)


def test_unequal_cost_is_said() -> None:
    todo = plan(read(preset_path("quick"), {"space.mode": "nominal"}), 10, 28)
    (v,) = verdicts([record(c, 0, 0.7) for c in todo.candidates], 1)
    assert not v.equal_cost and "that really cost" in tied_words(v) and "of this cost" not in tied_words(v)


def test_few_repeats_do_not_shrink_the_noise_to_nothing() -> None:
    records = [record(c, s, 0.7) for c in TODO.candidates[:2] for s in range(2)]  # one repeat, and it agrees exactly
    (v,) = verdicts(records, 1)
    assert v.repeats == 1 and v.noise == pytest.approx(np.sqrt(0.7 * 0.3 / 1000))


def test_baseline_that_the_extra_cost_does_not_beat_is_said() -> None:
    rng = np.random.default_rng(3)
    everyone = [TODO.baseline, *TODO.candidates[:4]]
    records = [record(c, s, 0.7 + rng.normal(0, 0.01)) for c in everyone for s in range(3)]
    (v,) = verdicts(records, 1)
    assert "The extra cost does not show" in (baseline_words(v) or "")
    records = [
        record(c, s, (0.5 if c is TODO.baseline else 0.7) + rng.normal(0, 0.01)) for c in everyone for s in range(3)
    ]
    (v,) = verdicts(records, 1)
    assert "does not show" not in (baseline_words(v) or "") and "below" in (baseline_words(v) or "")


def test_named_and_baseline() -> None:
    records = [record(c, 0, 0.7 + 0.001 * k, test=0.6) for k, c in enumerate(TODO.everything)]
    (v,) = verdicts(records, 1)
    assert v.baseline is not None and v.baseline.candidate == TODO.baseline
    for name in ("paper", "width only"):
        row = v.named(name)
        assert row is not None and any(name in d for d in row.candidate.directions)
    assert v.best_single is not None and v.best_single[1].mean == max(
        row.mean for row in v.rows if any("only" in d for d in row.candidate.directions)
    )
    assert v.pick.test == pytest.approx(0.6) and points(0.1234) == "12.3"
    assert v.beside(v.pick) == "it is the pick"


def test_coverage_of_two_standard_errors() -> None:
    """With enough repeats the stated errors hold: 95% of true differences within two of them."""
    rng = np.random.default_rng(0)
    inside = total = 0
    for _ in range(60):
        true = rng.normal(0, 0.02, 6)
        y = 0.7 + true[:, None] + rng.normal(0, 0.03, (1, 5)) + rng.normal(0, 0.01, (6, 5))
        (v,) = verdicts([record(TODO.candidates[k], s, y[k, s]) for k in range(6) for s in range(5)], 1)
        best = TODO.candidates.index(v.pick.candidate)
        for row in v.rows:
            k = TODO.candidates.index(row.candidate)
            if k != best:
                inside += abs(row.behind - (true[best] - true[k])) <= 2 * row.behind_error
                total += 1
    assert 0.88 <= inside / total <= 0.99
