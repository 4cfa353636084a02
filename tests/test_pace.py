"""What fits into the time that the user gives."""

from __future__ import annotations

import math
from contextlib import closing
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from scaling_search import session
from scaling_search.cli.search import parse_seconds
from scaling_search.data.dataset import Dataset
from scaling_search.driver.executors.local import LocalExecutor
from scaling_search.driver.pace import (
    Forecast,
    Pace,
    forecast,
    pace_of_rates,
    pace_of_records,
    rounded_up,
)
from scaling_search.driver.search import Limits, planned_runs, runs_needed
from scaling_search.results.record import Record
from scaling_search.results.store import Store
from scaling_search.session import Clock, _shrunk_words
from scaling_search.study.plan import Plan, plan
from scaling_search.study.settings import Study, check, preset_path, read
from scaling_search.training.trial import Outcome
from scaling_search.verdict.verdict import FRESH
from tests.records import done
from tests.replays import OWN, synthetic


@pytest.fixture
def todo(study: Study) -> Plan:
    return plan(study, 10, 64)


def test_a_pace_has_a_constant_part_where_two_costs_are_known(todo: Plan) -> None:
    baseline, network = todo.baseline, todo.candidates[0]
    one, two = float(baseline.cost.macs), float(network.cost.macs)
    both = Pace(((one, 3.0), (two, 4.0)), "")
    assert both.seconds(baseline) == pytest.approx(3)
    assert both.seconds(network) == pytest.approx(4)
    assert Pace(((one, 3.0),), "").seconds(network) == pytest.approx(3 * two / one)
    # noise in the times of one cost is no slope
    alike = Pace(((two, 3.0), (1.01 * two, 5.0)), "")
    assert alike.seconds(baseline) == pytest.approx(4 * one / two, rel=0.01)


def test_a_pace_of_what_is_on_record(todo: Plan) -> None:
    assert pace_of_records([Record(0, todo.baseline, 0, 1, Outcome("diverged"))]) is None
    run = Outcome("done", done(0.5).epochs, seconds=6.0)
    pace = pace_of_records([Record(0, todo.baseline, 0, 2, run)])
    assert pace == Pace(((todo.baseline.cost.macs, 3.0),), "by the first run")
    timed = pace_of_rates([(todo.baseline, 50.0), (todo.candidates[0], 0.0)], 100, 150, "by steps")
    assert timed == Pace(((todo.baseline.cost.macs, 3.0),), "by steps")
    assert pace_of_rates([(todo.baseline, 0.0)], 100, 150, "by steps") is None


def test_a_forecast_of_a_whole_study(study: Study, todo: Plan) -> None:
    """Runs of 1 s at 1x: an answer takes the baseline and every candidate once."""
    pace = Pace(((todo.baseline.cost.macs, 1.0),), "by steps")
    coming = forecast(study, todo, [], pace, 1)
    assert len(coming.ends) == runs_needed(study, todo)
    assert coming.answer == 1 + len(todo.candidates)
    assert coming.answer_ends == pytest.approx(1 + sum(c.ratio for c in todo.candidates))
    assert coming.fitting(2.9) == 1
    assert coming.fitting(1e9) == len(coming.ends)
    half = forecast(study, todo, [], pace, 2)
    assert half.all_end == pytest.approx(coming.all_end / 2, rel=0.2)
    # candidates before references, which come last
    order = [run.candidate.role for run in planned_runs(study, todo)]
    assert order[-len(todo.references) :] == ["reference"] * len(todo.references)


def test_a_forecast_of_the_rest_of_a_study(study: Study, todo: Plan) -> None:
    pace = Pace(((todo.baseline.cost.macs, 1.0),), "by the runs so far")
    records = [Record(i, c, 0, 1, done(0.5)) for i, c in enumerate((todo.baseline,))]
    coming = forecast(study, todo, records, pace, 1)
    assert coming.answer == len(todo.candidates)
    records += [Record(i + 1, c, 0, 1, done(0.5)) for i, c in enumerate(todo.candidates)]
    records += [Record(99, todo.candidates[0], 1, 1, done(0.5))]  # one of the extra runs
    coming = forecast(study, todo, records, pace, 1)
    assert coming.answer == 0
    assert len(coming.ends) == runs_needed(study, todo) - len(records)


@pytest.mark.parametrize("preset", ["quick", "standard", "paper"])
def test_a_forecast_of_nothing_once_every_planned_run_is_there(preset: str) -> None:
    study = read(preset_path(preset), {"data.source": "shapes", "space.upscale": True})
    todo = plan(study, 10, 256)
    records = []
    for i, run in enumerate(planned_runs(study, todo)):
        seed = study.seed + FRESH + i if run.seed is None else run.seed
        records.append(Record(i, run.candidate, seed, run.epochs, done(0.5)))
    assert len(records) == runs_needed(study, todo)
    pace = Pace(((1e6, 1.0),), "")
    assert forecast(study, todo, records, pace, 1).ends == ()
    assert forecast(study, todo, records[:-2], pace, 1).ends != ()


def test_going_on_to_a_further_rung_trains_the_epochs_between(study: Study) -> None:
    rungs = study.model_copy(update={"rungs": (2, 8), "allocation": "rungs"})
    todo = plan(rungs, 10, 64)
    runs = [run for run in planned_runs(rungs, todo) if run.seed == rungs.seed]
    assert {(run.epochs, run.added) for run in runs} == {(2, 2), (8, 6)}


def test_what_is_said() -> None:
    coming = Forecast((30.0, 60.0, 400.0, 500.0), 3, "by the 2 runs so far")

    def limit_for(seconds: float) -> float:
        return seconds + 70

    assert coming.words(90, 70, limit_for) == (
        "1m30s: about 2 of the 4 runs to come fit, no answer; every network once takes --time 8m "
        "or more, all runs take about --time 9m30s (by the 2 runs so far)"
    )
    assert coming.words(60, 20, limit_for).startswith("1m: none of the 4 runs to come fits, no ans")
    assert coming.words(500, 450, limit_for) == (
        "8m20s: about 3 of the 4 runs to come fit, enough for an answer; all runs take about "
        "--time 9m30s (by the 2 runs so far)"
    )
    assert coming.words(3600, 3000, limit_for) == (
        "1h: the 4 runs to come take about 8m30s; more are made while it lasts (by the 2 runs so "
        "far)"
    )
    assert Forecast((), 0, "").words(60, 30, limit_for) == (
        "1m: every planned run is recorded; more are made while it lasts"
    )


def test_before_the_first_run_a_few_steps_are_timed(
    study: Study, todo: Plan, data: Dataset, tmp_path: Path
) -> None:
    facts = data.facts()
    place, console = session.Place(workers=2), Console(quiet=True)
    whole = session._Session(
        study, todo, facts, tmp_path, str(tmp_path / "c"), place, Clock(), console
    )
    executor = LocalExecutor(2)
    with closing(executor), Store.in_memory({}) as store:
        pace = session._find_pace(whole, store, executor, "", 2, Limits(until=math.inf))
        assert pace is not None
        costs = [macs for macs, _ in pace.epochs]
        assert costs == [todo.baseline.cost.macs, max(c.cost.macs for c in todo.candidates)]
        assert all(seconds > 0 for _, seconds in pace.epochs)
        assert executor._workers, "they stay for the runs"
        store.finish(
            store.start(todo.baseline, 0, 1), Outcome("done", done(0.5).epochs, seconds=6.0)
        )
        recorded = session._find_pace(whole, store, executor, "", 2, Limits())
        assert recorded == Pace(((todo.baseline.cost.macs, 6.0),), "by the first run")


@pytest.mark.parametrize("seconds", [60, 61, 90, 149, 151, 470, 601, 3599, 3601, 86400])
def test_a_duration_can_be_typed(seconds: float) -> None:
    assert seconds <= parse_seconds(rounded_up(seconds)) <= 1.25 * seconds


def test_a_limit_leaves_the_time_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scaling_search.session.time.monotonic", lambda: 130.0)
    for wanted in (50.0, 1000.0, 10000.0):
        limit = Clock(60.0, began=100.0).limit_for(wanted, spent=20.0)
        until, _ = Clock(limit, began=100.0).ends(spent=20.0)
        assert until - 130.0 == pytest.approx(wanted)


def test_it_is_said_that_images_are_shrunk(todo: Plan) -> None:
    sides = [c.arch.resolution for c in todo.everything]
    assert _shrunk_words(todo, 64) == (
        f"64 px originals, trained at {min(sides)} to {max(sides)} px (shrunk for each network)"
    )
    assert _shrunk_words(todo, min(sides)) == ""


def test_limited_time_goes_to_candidates_before_references(tmp_path: Path) -> None:
    """And without a limit nothing is trained in another order than ever."""
    settings = {**OWN, "references": [0.5, 1.5]}
    synthetic(tmp_path / "world.parquet", settings, range(12))
    study = check({**settings, "device": "cpu"}, "test")
    todo = plan(study, 10, 64)
    candidates = {c.key for c in todo.candidates}
    references = {c.key for c in todo.references}
    tables = {}
    for limit in (3600.0, float("inf")):
        out = tmp_path / str(limit)
        status = session.search(
            study,
            label="",
            out=out,
            place=session.Place(),
            clock=session.Clock(limit),
            command="test",
            console=Console(quiet=True),
            replay=tmp_path / "world.parquet",
        )
        assert status == 0
        tables[limit] = pd.read_csv(out / "results.csv")
    for limit, table in tables.items():
        planned = table[table["seed"].isin([0, 1])]
        of_reference = planned.index[planned["network"].isin(references)]
        grid = planned[planned["network"].isin(candidates) & (planned["epochs"] == 1)].index
        assert (of_reference.min() > grid.max()) == (limit == 3600.0)
    fresh = tables[3600.0].index[tables[3600.0]["seed"] >= FRESH]
    first = tables[3600.0].index[tables[3600.0]["network"].isin(references)].min()
    assert fresh.max() < first, "they come last"
    same = tables[float("inf")].merge(tables[3600.0], on=["network", "seed", "epochs"])
    assert (same["val_acc_x"] == same["val_acc_y"]).all()
