import math
import shlex
from dataclasses import replace

import numpy as np
import pytest

from scaling_search.results.record import Record
from scaling_search.study.candidate import Candidate
from scaling_search.study.directions import SINGLE, distance
from scaling_search.study.plan import plan
from scaling_search.study.settings import Study, preset_path, read
from scaling_search.study.wording import points
from scaling_search.verdict.chances import HALF_WIDTH, MARGIN
from scaling_search.verdict.foresight import Outlook
from scaling_search.verdict.narration import (
    StudyState,
    accuracy_and_interval,
    accuracy_words,
    against,
    balance_words,
    bound_words,
    certainty_card,
    cheaper_words,
    faster_words,
    next_card,
    next_words,
    noise_words,
    own_runs_words,
    pick_card,
    shares_words,
    surface_words,
    tied_words,
    worth_card,
)
from scaling_search.verdict.verdict import FRESH, Verdict, verdicts
from tests.records import STUDY, TODO, TWO, record


def world(
    deviation: float, noise: float, seeds: int, rng: np.random.Generator
) -> tuple[np.ndarray, list[Record]]:
    """A truth without a surface, every network with every seed."""
    truth = 0.7 + rng.normal(0, deviation, len(TODO.candidates))
    shared = rng.normal(0, 0.01, seeds)
    y = truth[:, None] + shared + rng.normal(0, noise, (len(truth), seeds))
    return truth, [
        record(c, s, y[k, s]) for k, c in enumerate(TODO.candidates) for s in range(seeds)
    ]


# The same with runs that are long enough to go by: 1,250 steps.
LONG = STUDY.model_copy(
    update={"data": STUDY.data.model_copy(update={"train_images": 1250 * STUDY.recipe.batch})}
)


def only(records: list[Record], study: Study = STUDY) -> Verdict:
    (v,) = verdicts(records, study)
    return v


def test_clear_differences_are_settled() -> None:
    rng = np.random.default_rng(0)
    truth, records = world(0.05, 0.001, 3, rng)
    v = only(records)
    best = TODO.candidates[int(truth.argmax())]
    assert v.pick.candidate == best
    assert v.tied == (v.pick,)
    assert v.pick.best > 0.95
    assert v.bound == 0
    assert v.settle == 0
    assert certainty_card(v, STUDY, StudyState()).headline == f"Settled: the best of {len(v.rows)}"
    state = StudyState(train={"2x": "scaling-search train runs/x"})
    assert next_card(v, LONG, state).command == "scaling-search train runs/x"
    # what is settled of runs too short is no reason to train the pick
    assert next_card(v, STUDY, state).headline == "Longer runs: 400 steps at least"
    true = {c.key: accuracy for c, accuracy in zip(TODO.candidates, truth, strict=True)}
    for row in v.rows:
        assert row.mean == pytest.approx(true[row.candidate.key], abs=0.015)
    in_order = [true[row.candidate.key] for row in v.rows]
    for i, accuracy in enumerate(in_order):
        assert accuracy > max(in_order[i:]) - 0.015
    assert sum(r.best for r in v.rows) == pytest.approx(1)
    assert "best of" in tied_words(v)


def test_noise_alone_is_tied_and_more_runs_are_asked_for() -> None:
    _, records = world(0.0, 0.02, 2, np.random.default_rng(1))
    v = only(records)
    assert len(v.tied) > len(v.rows) / 2
    assert v.pick.best < 0.5
    assert v.settle is None or v.settle > 10
    assert v.noise == pytest.approx(0.02, rel=0.4)
    assert f"± {points(HALF_WIDTH * v.noise)}" in noise_words(v)
    card = certainty_card(v, STUDY, StudyState())
    assert card.headline == f"Not settled: {len(v.tied)} of {len(v.rows)} could be best"
    assert f"at most {points(v.bound)} points (95%)" in card.text


def test_interval_and_bound_hold_where_the_truth_is_known() -> None:
    """The model's own statements over 20 studies it was not fitted to; benchmarks/calibration.py
    has the thousands."""
    rng = np.random.default_rng(7)
    inside = bounds = tied = total = 0
    for _ in range(20):
        truth, records = world(0.01, 0.012, 2, rng)
        v = only(records)
        value = dict(zip([c.key for c in TODO.candidates], truth, strict=True))
        pick = value[v.pick.candidate.key]
        bounds += truth.max() - pick <= v.bound + 1e-12
        tied += any(value[r.candidate.key] == truth.max() for r in v.tied)
        for r in v.rows:
            if r is not v.pick:
                inside += r.low <= pick - value[r.candidate.key] <= r.high
                total += 1
    assert inside / total >= 0.9
    assert bounds >= 16
    assert tied >= 17


def test_order_of_records_changes_nothing() -> None:
    _, records = world(0.01, 0.01, 2, np.random.default_rng(2))
    shuffled = list(np.random.default_rng(0).permutation(np.array(records, dtype=object)))
    assert only(records) == only(shuffled)


def test_what_the_model_saw_of_a_run_is_said() -> None:
    _, records = world(0.02, 0.01, 2, np.random.default_rng(3))
    blind = only(records)  # every made-up loss is 1
    assert blind.losses == ()
    assert "sees accuracies alone, since no losses are on record" in accuracy_words(blind, STUDY)
    seeing = []
    for r in records:
        assert r.outcome is not None
        assert r.val_acc is not None
        epoch = replace(r.outcome.epochs[-1], val_loss=2 - r.val_acc, train_loss=2.1 - r.val_acc)
        seeing.append(replace(r, outcome=replace(r.outcome, epochs=(epoch,))))
    told = only(seeing)
    assert told.losses == ("validation loss", "training loss")
    assert (
        "sees accuracies and, of runs of full length, validation loss and training loss"
        in accuracy_words(told, STUDY)
    )


def test_seed_effect_is_not_mistaken_for_a_networks() -> None:
    """The second seed's fold is 10 points harder for everyone: those that met it must not look
    worse."""
    accuracies = [0.80, 0.79, 0.70, 0.60]
    records = [record(c, 0, a) for c, a in zip(TODO.candidates, accuracies, strict=False)]
    records += [record(TODO.candidates[k], 1, accuracies[k] - 0.1) for k in (0, 1)]
    v = only(records)
    assert [r.candidate for r in v.rows] == list(TODO.candidates[:4])
    assert v.rows[2].behind > 0.03
    assert v.rows[2].low < 0.1 < v.rows[2].high


def test_two_networks_never_run_at_the_last_rung() -> None:
    """They are judged through their short runs, with more doubt than those that ran."""
    rng = np.random.default_rng(3)
    truth = 0.7 + rng.normal(0, 0.02, len(TODO.candidates))
    records = [record(c, 0, t - 0.1, epochs=1) for c, t in zip(TODO.candidates, truth, strict=True)]
    records += [
        record(c, 0, t, epochs=2) for c, t in zip(TODO.candidates[:-2], truth[:-2], strict=True)
    ]
    v = only(records, TWO)
    assert len(v.rows) == len(TODO.candidates)
    short = [r for r in v.rows if r.seeds == 0]
    assert {r.candidate for r in short} == set(TODO.candidates[-2:])
    assert min(r.error for r in short) > np.median([r.error for r in v.rows])


def test_only_short_runs_still_give_an_answer() -> None:
    records = [record(c, 0, 0.6 + 0.01 * k, epochs=1) for k, c in enumerate(TODO.candidates)]
    v = only(records, TWO)
    assert len(v.rows) == len(records)
    assert v.pick.seeds == 0
    assert v.bound > 0


def test_one_network_and_none() -> None:
    v = only([record(TODO.candidates[0], 0, 0.7)])
    assert (v.pick.best, v.bound, v.settle, v.tied) == (1.0, 0.0, 0, (v.pick,))
    assert "only network" in bound_words(v)
    assert "one network" in next_words(v)
    assert v.surface is None
    assert verdicts([], STUDY) == []
    assert verdicts([record(TODO.baseline, 0, 0.5)], STUDY) == []


def test_all_accuracies_equal() -> None:
    v = only([record(c, s, 0.7) for c in TODO.candidates for s in range(2)])
    assert len(v.tied) > 6
    assert 0 < v.bound < 0.05
    assert math.isfinite(v.noise)


def test_failed_networks_are_left_out_and_said() -> None:
    records = [record(c, 0, 0.7) for c in TODO.candidates[:3]] + [
        record(TODO.candidates[3], 0, None)
    ]
    v = only(records)
    assert v.failed == (TODO.candidates[3],)
    assert len(v.rows) == 3
    # failed at the last rung after a good short run: out as well; failed once among good runs: in,
    # and said
    late = [record(c, 0, 0.6, epochs=1) for c in TODO.candidates[:4]]
    late += [record(c, 0, 0.7, epochs=2) for c in TODO.candidates[:3]] + [
        record(TODO.candidates[3], 0, None, epochs=2)
    ]
    late += [record(TODO.candidates[0], 1, None, epochs=2)]
    v = only(late, TWO)
    assert v.failed == (TODO.candidates[3],)
    assert len(v.rows) == 3
    assert v.left_out == 1
    assert "1 failed run is left out" in noise_words(v)
    assert verdicts([record(TODO.candidates[0], 0, None)], STUDY) == []


def test_fresh_seeds_are_no_part_of_it() -> None:
    _, records = world(0.02, 0.01, 2, np.random.default_rng(5))
    fresh = [record(c, FRESH, 0.1 + 0.05 * k, test=0.5) for k, c in enumerate(TODO.candidates)]
    a, b = only(records), only([*records, *fresh])
    assert [(r.candidate, r.mean, r.best) for r in a.rows] == [
        (r.candidate, r.mean, r.best) for r in b.rows
    ]
    assert b.pick.test == pytest.approx(0.5)


def test_baseline_and_references_are_on_the_same_scale() -> None:
    """A second seed ten points lower moves everyone alike, the networks that never met it too."""
    records = [record(c, 0, 0.8) for c in TODO.everything]
    records += [record(c, 1, 0.7) for c in (TODO.baseline, *TODO.candidates[:3])]
    v = only(records)
    assert v.baseline is not None
    assert len(v.references) == 2
    means = [r.mean for r in (*v.rows, *v.references, v.baseline)]
    assert max(means) - min(means) < 0.01


def test_baseline_that_the_extra_cost_does_not_beat_is_said() -> None:
    rng = np.random.default_rng(3)
    for gain, says in ((0.0, "Not shown: "), (0.2, "Yes: +")):
        records = [
            record(c, s, (0.7 - gain * (c is TODO.baseline)) + rng.normal(0, 0.01))
            for c in (TODO.baseline, *TODO.candidates[:4])
            for s in range(3)
        ]
        card = worth_card(only(records))
        assert card is not None
        assert card.headline.startswith(says)
        assert ("Train longer" in card.text) == (gain == 0)


def test_a_cheaper_network_above_the_pick_is_said() -> None:
    records = [record(c, s, 0.7) for c in TODO.candidates[:4] for s in range(2)]
    assert cheaper_words(only(records)) is None
    better = [record(TODO.baseline, s, 0.8) for s in range(2)]
    assert "costs less than the pick and is expected above it: +" in (
        cheaper_words(only([*records, *better])) or ""
    )


def test_no_interval_of_an_accuracy_leaves_0_to_100() -> None:
    v = only([record(c, 0, 0.99 + 0.001 * (k % 9)) for k, c in enumerate(TODO.candidates)])
    row = replace(v.pick, mean=0.99, error=0.02)
    assert row.interval == (pytest.approx(0.99 - HALF_WIDTH * 0.02), 1.0)
    assert accuracy_and_interval(row) == "99.0 (95.1 to 100.0)"
    assert accuracy_and_interval(replace(row, mean=0.5)) == "50.0 ± 3.9"


def test_no_accuracy_leaves_0_to_100() -> None:
    """Not even that of a network between others that are perfect."""
    rng = np.random.default_rng(0)
    records = [
        record(c, s, min(1.0, 0.995 + rng.normal(0, 0.004)))
        for c in TODO.everything
        for s in range(2)
    ]
    v = only(records)
    rows = [*v.rows, *v.references, v.baseline]
    assert all(row is not None and row.mean <= 1 for row in rows)
    assert v.rows[0] == v.pick


def test_where_an_accuracy_comes_from_in_words() -> None:
    records = [record(c, s, 0.7) for c in TODO.candidates[:4] for s in range(2)]
    row = only(records).rows[0]
    own = replace(row, own=(0.352, 0.399), mean=0.36)
    assert own_runs_words(own) == "two runs, 35.2 and 39.9, and what its neighbours say: 36.0"
    assert own_runs_words(replace(own, own=(0.4,))).startswith("one run, 40.0, and")
    assert own_runs_words(replace(own, own=())).startswith("no run of full length")
    assert own_runs_words(replace(own, own=(0.3,) * 5)).startswith("5 runs, 30.0 to 30.0")


def test_a_leading_network_is_not_chosen_while_the_study_runs() -> None:
    v = only([record(c, 0, 0.7) for c in TODO.candidates[:4]])
    assert pick_card(v, STUDY, StudyState()).label == "choose"
    part = StudyState(unfinished="4 of 19 runs", command="python run_search.py")
    assert pick_card(v, STUDY, part).label == "leading"
    card = next_card(v, STUDY, part)
    assert card.headline == "Let the study end: 4 of 19 runs so far"
    assert card.command == "python run_search.py"


def test_standing_by_the_margin() -> None:
    rng = np.random.default_rng(8)
    values = {0: 0.8, 1: 0.7995, 2: 0.70}
    noise = 0.0005
    records = [
        record(TODO.candidates[k], s, a + rng.normal(0, noise))
        for k, a in values.items()
        for s in range(8)
    ]
    rows = {r.candidate: r for r in only(records).rows}
    assert rows[TODO.candidates[1]].standing == "as good"
    assert rows[TODO.candidates[2]].standing == "worse"
    assert against(rows[TODO.candidates[2]]).endswith("): worse")
    assert against(rows[TODO.candidates[2]]).startswith("−9.")
    # one rule: what could be the best is not called worse
    assert replace(rows[TODO.candidates[2]], tied=True).standing == "cannot tell"
    _, vague = world(0.0, 0.02, 2, rng)
    v = only(vague)
    assert v.rows[1].standing == "cannot tell"
    assert v.rows[1].high > MARGIN


def of_unequal_speed() -> list[Record]:
    """Two seeds of every network, the later in the list the faster; noise and no truth."""
    rng = np.random.default_rng(1)
    return [
        record(c, s, 0.7 + rng.normal(0, 0.01), speed=100.0 + 10 * k)
        for k, c in enumerate(TODO.candidates)
        for s in range(2)
    ]


def test_the_front_of_speed_and_accuracy() -> None:
    """Of those that could be the best, faster than the pick and the best of all as fast."""
    v = only(of_unequal_speed())
    pick_speed = 50.0
    slow = replace(v.pick, speed=pick_speed)
    v = replace(v, pick=slow, rows=(slow, *(row for row in v.rows if row != v.pick)))
    expected = []
    for row in v.tied:
        rivals = [other for other in v.tied if (other.speed or 0) >= (row.speed or 0)]
        if (row.speed or 0) > pick_speed and row.mean == max(other.mean for other in rivals):
            expected.append(row.candidate)
    assert expected
    assert {row.candidate for row in v.faster} == set(expected)
    speeds = [row.speed or 0.0 for row in v.faster]
    assert speeds == sorted(speeds, reverse=True)
    assert "times the pick's images/s" in (faster_words(v) or "")


def test_too_few_draws_are_said() -> None:
    v = only([record(c, 0, 0.7, speed=100.0) for c in TODO.candidates])
    assert "effective draws" not in noise_words(v)
    some = replace(v, effective_draws=12)
    assert "rests on 12 effective draws of its hyper-parameters, 150 were" in noise_words(some)


def without_speed(records: list[Record], candidates: list[Candidate]) -> list[Record]:
    """As where the runs of these shared their GPU."""
    return [
        record(r.candidate, r.seed, r.val_acc, speed=0.0) if r.candidate in candidates else r
        for r in records
    ]


def test_no_faster_where_one_that_could_be_the_best_has_no_speed() -> None:
    records = of_unequal_speed()
    v = only(records)
    tied = [row.candidate for row in v.tied]
    assert 2 < len(tied) < len(v.rows)
    for shared in (tied[0], tied[-1]):
        some = only(without_speed(records, [shared]))
        assert some.faster == ()
        assert faster_words(some) is None
    others = [row.candidate for row in v.rows if not row.tied]
    some = only(without_speed(records, others))
    assert [r.candidate for r in some.faster] == [r.candidate for r in v.faster]


def test_what_would_help_in_words() -> None:
    """As many runs again as there are, and what the margin takes, or that more runs will not do."""
    _, records = world(0.004, 0.008, 2, np.random.default_rng(1))
    v = only(records)
    step = next(s for s in v.outlook if s.runs > v.runs / 2)
    slow_runs = replace(v, seconds=30.0)
    state = StudyState(command="python run_search.py --extra 3 --data x", folder="runs/x")
    card = next_card(slow_runs, STUDY, state)
    minutes = f"about {step.runs // 2} minutes one at a time"
    assert card.headline == f"{step.runs} more runs, {minutes}"
    # the second seeds are more than the study asks for: its --extra counts them
    assert v.extra == len(v.rows) > STUDY.extra
    assert card.command == f"python run_search.py --data x --extra {v.extra + step.runs}"
    assert f"from {points(v.bound)} to about {points(step.bound)} points" in card.text
    assert next_card(v, STUDY, StudyState()).command == "", "a replay cannot be added to"
    far = replace(v, outlook=(Outlook(8, 0.009), Outlook(100_000, 0.0049)))
    assert "longer ones may tell more" in next_words(far)
    no_help = replace(v, bound=0.009, outlook=(Outlook(8, 0.0089), Outlook(100_000, 0.0049)))
    assert "would hardly narrow the 0.9 points" in next_words(no_help)
    longer = next_card(replace(no_help, seconds=30.0), STUDY, state)
    assert longer.headline.startswith("Longer runs, about")
    assert "--out runs/x-longer" in longer.command
    slow = replace(v, bound=0.009, outlook=(Outlook(8, 0.0088), Outlook(64, 0.0078)))
    assert next_card(slow, STUDY, state).headline.startswith("64 more runs")
    near = replace(v, bound=0.011, outlook=(Outlook(20, 0.009), Outlook(40, 0.0049)))
    assert next_card(near, STUDY, state).headline.startswith("40 more runs"), "they settle it"
    costly = replace(v, bound=0.011, outlook=(Outlook(20, 0.009), Outlook(150, 0.0049)))
    assert "0.5 would take 150 runs" in next_words(costly)


def test_what_is_proposed_can_be_run() -> None:
    """The time of a study that has ended is spent: a command that repeats it would do nothing."""
    _, records = world(0.004, 0.008, 2, np.random.default_rng(1))
    v = only(records)
    command = "scaling-search search --time 1m20s --data x --out runs/x"
    state = StudyState(command=command, folder="runs/x")
    more = next_card(v, STUDY, state).command
    assert "--time" not in more
    assert "--extra" in more
    longer = next_card(replace(v, outlook=(Outlook(8, v.bound),)), STUDY, state).command
    assert longer.count("--out") == 1
    assert longer.endswith("--out runs/x-longer")
    up = StudyState("4 of 19 runs, the time was up", command, "runs/x", out_of_time=True)
    card = next_card(v, STUDY, up)
    assert card.headline == "More time: 4 of 19 runs, the time was up"
    assert card.command == "scaling-search search --data x --out runs/x"
    # the time was up when all was done that had been asked for
    whole = StudyState("", command, "runs/x", out_of_time=True)
    assert next_card(v, STUDY, whole).headline.endswith("more runs")
    # what is proposed stands in place of what was said, however it was quoted or set
    odd = "scaling-search search --set extra=8 --epochs 1 --out 'my runs/a b'"
    state = StudyState(command=odd, folder="my runs/a b")
    more = shlex.split(next_card(v, STUDY, state).command)
    assert "extra=8" not in more
    assert "my runs/a b" in more
    longer = next_card(replace(v, outlook=(Outlook(8, v.bound),)), STUDY, state).command
    assert shlex.split(longer)[-2:] == ["--out", "my runs/a b-longer"]
    assert longer.count("--epochs") == 1
    # where the length is set in images, what was said of epochs stays
    images = STUDY.model_copy(
        update={"data": STUDY.data.model_copy(update={"epoch_images": 25_600})}
    )
    state = replace(state, command="scaling-search search --epochs 1,2 --set=extra=8")
    longer = next_card(replace(v, outlook=(Outlook(8, v.bound),)), images, state).command
    assert "--epochs 1,2" in longer
    assert "--epoch-images 102400" in longer
    assert "extra=8" not in next_card(v, images, state).command


def test_a_test_accuracy_is_of_fresh_seeds_where_there_are_any() -> None:
    """Those that chose the pick flatter it."""
    _, records = world(0.004, 0.008, 2, np.random.default_rng(1))
    v = only(records)
    (first, *_) = (r for r in records if r.candidate.key == v.pick.candidate.key)
    flattered = [replace(r, test_acc=0.9) if r is first else r for r in records]
    assert only(flattered).pick.test == pytest.approx(0.9)
    fresh = replace(first, seed=STUDY.seed + FRESH, test_acc=0.7)
    assert only([*flattered, fresh]).pick.test == pytest.approx(0.7)


def test_one_rule_for_what_could_be_the_best() -> None:
    """Too close to call is what could be the best; of a network alone, half a point is nothing."""
    _, records = world(0.01, 0.012, 2, np.random.default_rng(7))
    for c in (TODO.baseline,):
        records += [record(c, s, 0.7) for s in range(2)]
    v = only(records)
    for row in v.rows[1:]:
        assert ("too close to call" in against(row)) == (row.tied and row.standing == "cannot tell")
    assert v.baseline is not None
    little = replace(v.baseline, behind=0.002, low=0.001, high=0.004)
    card = worth_card(replace(v, baseline=little))
    assert card is not None
    assert card.headline == "Hardly, within half a point: +0.2 (+0.1 to +0.4)"


def test_without_a_second_run_of_any_network_it_only_looks_settled() -> None:
    """What runs vary by is then a guess: two such studies may settle on two networks."""
    once = [record(c, 0, 0.5 + 0.1 * (k == 3)) for k, c in enumerate(TODO.candidates)]
    v = replace(only(once), outlook=(), bound=0.0)
    card = certainty_card(v, STUDY, StudyState())
    assert card.headline.startswith("Looks settled")
    assert "No network was run twice" in card.text
    twice = replace(v, rows=(replace(v.rows[0], seeds=2), *v.rows[1:]))
    assert certainty_card(twice, STUDY, StudyState()).headline.startswith("Settled")


def test_a_bound_that_reads_as_the_margin_settles() -> None:
    _, records = world(0.004, 0.008, 2, np.random.default_rng(1))
    v = replace(only(records), bound=0.0051)
    assert v.outlook
    assert certainty_card(v, STUDY, StudyState()).headline.startswith("Settled")
    assert next_card(v, LONG, StudyState()).headline == "Train the pick in full"
    part = certainty_card(v, STUDY, StudyState("4 of 19 runs"))
    assert "More runs are to come." in part.text


def test_runs_too_short_for_a_direction_are_said_to_be() -> None:
    _, records = world(0.05, 0.001, 3, np.random.default_rng(0))
    v = only(records)

    def text(images: int | None, epochs: int) -> str:
        data = STUDY.data.model_copy(update={"train_images": None, "epoch_images": images})
        study = STUDY.model_copy(update={"data": data, "rungs": (epochs,)})
        return certainty_card(v, study, StudyState()).text

    batch = STUDY.recipe.batch

    def next_text(epochs: int, seeds: int) -> str:
        data = STUDY.data.model_copy(update={"train_images": None, "epoch_images": 400 * batch})
        study = STUDY.model_copy(update={"data": data, "rungs": (epochs,), "seeds": seeds})
        return next_card(v, study, StudyState()).text

    assert "after runs of this length" in next_text(1, 3)
    longer = f"--epoch-images {1600 * batch}"
    assert "five of seven answers of 400 steps lost 0.7 points" in next_text(1, 3)
    assert f"A second study with {longer} says more" in next_text(1, 3)
    assert f"A second study with {longer} --seeds 3 says more" in next_text(1, 2)
    assert "four of six answers of 1,600 steps" in next_text(4, 2)
    assert "A second study with --seeds 3 says more" in next_text(4, 2)
    assert "Longer runs" not in next_text(4, 3)
    assert "Longer runs" not in next_text(16, 2)

    assert "Runs of 100 steps are too short" in text(100 * batch, 1)
    assert "too short" not in text(100 * batch, 4)
    assert "too short" not in text(None, 1)  # whatever the data set has


def test_surface_and_its_drift_in_words() -> None:
    """At one epoch resolution wins, at two depth does: the optimum's move is seen."""
    rng = np.random.default_rng(2)
    records = []
    for c in TODO.candidates:
        depth, _, resolution = c.shares or (0, 0, 0)
        for s in range(3):
            records.append(record(c, s, 0.5 + 0.05 * resolution + rng.normal(0, 0.003), epochs=1))
            records.append(record(c, s, 0.6 + 0.05 * depth + rng.normal(0, 0.003), epochs=2))
    v = only(records, TWO)
    assert v.surface is not None
    first, last = v.surface.optimum
    assert last[0] > first[0] + 0.3
    assert first[2] > last[2] + 0.3
    assert max(v.surface.height) == 0
    assert set(v.surface.region) <= set(v.surface.points)
    assert "From 1 to 2 epochs the optimum moved there from" in (surface_words(v, TWO.rungs) or "")
    # at the edge of the map, an answer is of the baseline too
    short = balance_words(v, TWO) or ""
    assert short.startswith("the baseline is short of blocks: ")
    assert f"--blocks {v.pick.candidate.arch.blocks}," in short
    # below the baseline's cost there is nothing that it is short of
    pick = v.pick.candidate
    saving = replace(v, pick=replace(v.pick, candidate=replace(pick, ratio=0.5)))
    assert balance_words(saving, TWO) is None
    assert shares_words(saving).startswith("what the pick saves was taken from depth ")
    assert shares_words(v).startswith("the pick's extra cost went to depth ")


def test_a_baseline_is_short_of_nothing_where_the_best_is_in_the_middle() -> None:
    rng = np.random.default_rng(3)
    records = []
    for c in TODO.candidates:
        away = distance(c.shares, (0.34, 0.33, 0.33))
        for s in range(3):
            records.append(record(c, s, 0.6 - 0.1 * away + rng.normal(0, 0.002)))
    v = only(records)
    assert v.surface is not None
    assert balance_words(v, STUDY) is None


def test_unequal_cost_is_said() -> None:
    nominal = read(preset_path("quick-b0-s4"), {"space.mode": "nominal", "rungs": [1]})
    todo = plan(nominal, 10, 28)
    v = only([record(c, 0, 0.7) for c in todo.candidates], nominal)
    assert not v.equal_cost
    assert "that really cost" in tied_words(v)
    assert "of this cost" not in tied_words(v)


def test_named_and_what_is_confirmed() -> None:
    v = only([record(c, 0, 0.7 + 0.01 * k, test=0.6) for k, c in enumerate(TODO.everything)])
    for name in ("paper", "width only"):
        row = v.named(name)
        assert row is not None
        assert row.candidate.direction(name) is not None
    assert v.best_single is not None
    assert v.best_single[1].mean == max(
        row.mean for row in v.rows if any(map(row.candidate.direction, SINGLE))
    )
    keys = [r.candidate.key for r in v.finalists]
    assert v.pick.candidate.key in keys
    assert TODO.baseline.key in keys
    assert len(set(keys)) == len(keys) <= 4
    assert v.pick.test == pytest.approx(0.6)
    assert points(0.1234) == "12.3"
