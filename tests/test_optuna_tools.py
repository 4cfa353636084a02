"""Optuna's own figures of a study's database, by the installed release; its dashboard is tested in
test_browser.py."""

from __future__ import annotations

import optuna
import pytest
from optuna.trial import TrialState

from scaling_search.results import curves
from scaling_search.results.store import Store
from scaling_search.training.trial import Outcome
from tests.replays import RECORDED

PARAMETERS = {"alpha", "beta", "gamma"}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> optuna.Study:
    """The runs of one seed of a recorded study, one that failed and one in progress."""
    folder = tmp_path_factory.mktemp("run")
    table = curves.read(RECORDED / "curves.parquet")
    records = [record for record in table.records() if record.seed == 0]
    with Store.create(folder, {}, table.facts()) as store:
        for record in records:
            assert record.outcome is not None
            number = store.start(record.candidate, record.seed, record.epochs)
            for epoch in record.outcome.epochs:
                store.epoch(number, epoch)
            store.finish(number, record.outcome)
        failed = store.start(records[0].candidate, 1, 1)
        store.finish(failed, Outcome("diverged"))
        store.start(records[0].candidate, 2, 1)
    return optuna.load_study(study_name="scaling-search", storage=f"sqlite:///{folder}/study.db")


def of_state(study: optuna.Study, state: TrialState) -> int:
    return len(study.get_trials(states=(state,)))


def test_the_history_has_each_run_that_is_done(recorded: optuna.Study) -> None:
    figure = optuna.visualization.plot_optimization_history(recorded)
    assert len(figure.data[0].y) == of_state(recorded, TrialState.COMPLETE) > 40
    assert figure.data[1].y[-1] == recorded.best_value


def test_parameters_are_the_coefficients(recorded: optuna.Study) -> None:
    parallel = optuna.visualization.plot_parallel_coordinate(recorded).to_json()
    assert all(f'"{name}"' in parallel for name in PARAMETERS)
    slices = optuna.visualization.plot_slice(recorded)
    assert len(slices.data) == len(PARAMETERS)
    assert len(slices.data[0].y) == of_state(recorded, TrialState.COMPLETE)
    assert optuna.visualization.plot_contour(recorded, params=["alpha", "gamma"]).data


def test_importances(recorded: optuna.Study) -> None:
    try:
        figure = optuna.visualization.plot_param_importances(recorded)
    except ImportError as error:
        pytest.skip(f"optuna's importances want a library that is not here: {error}")
    assert set(figure.data[0].y) == PARAMETERS


def test_intermediate_values_are_accuracies_by_epoch(recorded: optuna.Study) -> None:
    figure = optuna.visualization.plot_intermediate_values(recorded)
    two = [trace for trace in figure.data if list(trace.x) == [1, 2]]
    assert two
    trial = recorded.trials[int(two[0].name.removeprefix("Trial"))]
    assert list(two[0].y) == list(trial.intermediate_values.values())
    assert two[0].y[-1] == trial.value


def test_the_timeline_has_every_state(recorded: optuna.Study) -> None:
    timeline = optuna.visualization.plot_timeline(recorded)
    assert {"COMPLETE", "FAIL", "RUNNING"} <= {trace.name for trace in timeline.data}


def test_there_is_one_objective(recorded: optuna.Study) -> None:
    """So Optuna has no front to draw: it says so, and the study's own is another tool's."""
    assert recorded.direction == optuna.study.StudyDirection.MAXIMIZE
    with pytest.raises(ValueError, match="2 or 3 objective"):
        optuna.visualization.plot_pareto_front(recorded)
