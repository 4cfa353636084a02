"""What the dashboard says of a study: of made-up ones at chosen moments."""

import json
import socket
from dataclasses import replace
from datetime import UTC, datetime
from math import inf
from pathlib import Path

import pytest

from scaling_search.report import live, render
from scaling_search.report.dashboard import _State
from scaling_search.results.encoding import StoredRun
from scaling_search.results.locks import Owner
from scaling_search.results.reader import Glance, StoreReader
from scaling_search.results.record import Deaths, Record, Run
from scaling_search.results.step import Step
from scaling_search.results.store import Store
from scaling_search.study.candidate import Candidate
from scaling_search.training.trial import Epoch, Outcome
from tests.records import TODO

NOW = 1_800_000_000.0
BEGAN = NOW - 100
OWNER = Owner(12, socket.gethostname(), int(BEGAN) - 5, ahead=7200)
BASELINE, FIRST, SECOND, THIRD = TODO.baseline, *TODO.candidates[:3]
NETWORKS = (BASELINE, *TODO.candidates)
STEP = Step.of("seed 0, 4 epochs", [Run(c, 0, 4) for c in NETWORKS], inf)


def local(moment: float) -> datetime:
    """A moment as Optuna records it where clocks are two hours ahead of UTC."""
    return datetime.fromtimestamp(moment + OWNER.ahead, UTC).replace(tzinfo=None)


def run(
    candidate: Candidate,
    reported: tuple[float, ...] = (),
    outcome: Outcome | None = None,
    begun: float = BEGAN,
    **changes: object,
) -> StoredRun:
    number = NETWORKS.index(candidate)
    return StoredRun(
        record=replace(Record(number, candidate, 0, 4, outcome), **changes),
        network=candidate.key,
        running=outcome is None,
        reported={k + 1: accuracy for k, accuracy in enumerate(reported)},
        deaths=Deaths(),
        freed=False,
        begun=local(begun),
        ended=None if outcome is None else local(begun + 50),
        resumed=None,
    )


def done(*accuracies: float) -> Outcome:
    epochs = tuple(Epoch(k + 1, 1.0, 1.0, a, 0.1) for k, a in enumerate(accuracies))
    return Outcome("done", epochs, "ff")


def glance(*runs: StoredRun, alive: bool | None = True, **attributes: object) -> Glance:
    facts = {
        "state": "running",
        "planned": len(NETWORKS) + 3,
        "command": "python run_search.py --data x",
        "step": STEP.as_dict(),
    }
    return Glance({**facts, **attributes}, list(runs), OWNER, alive, NOW - 1)


RUNNING = (run(BASELINE, outcome=done(0.1, 0.2, 0.3, 0.4)), run(FIRST, (0.25, 0.5)), run(SECOND))


def test_what_runs_what_waits_and_the_baseline() -> None:
    now = live.describe(glance(*RUNNING), NOW)
    assert (now.kind, now.headline) == ("running", "running")
    assert now.parts[0] == f"1 of {len(NETWORKS) + 3} runs"
    assert now.baseline == f"{BASELINE.label}: 40.0% after 4 epochs"
    first, second = now.rows
    assert (first.network, first.epoch, first.accuracy) == (FIRST.label, "2 of 4", "50.0%")
    assert (second.epoch, second.accuracy, second.curve) == ("first of 4", "", None)
    assert first.curve is not None
    assert first.curve.words == "by epoch: 25.0%, 50.0%"
    assert now.next[0] == f"{THIRD.label}, seed 0, 4 epochs"
    assert len(now.next) + now.queued == len(NETWORKS) - 3
    assert now.later == 3
    assert now.command == "", "it goes on by itself"


def test_curves_share_one_scale() -> None:
    """The lowest accuracy of all lies at the bottom, the highest at the top, the last epoch at the
    right."""
    now = live.describe(glance(*RUNNING), NOW)
    curve = now.rows[0].curve
    assert curve is not None
    assert now.baseline_curve is not None
    own = [tuple(map(float, point.split(","))) for point in curve.line.split()]
    behind = [tuple(map(float, point.split(","))) for point in now.baseline_curve.line.split()]
    assert max(y for _, y in behind) > max(y for _, y in own), "0.1 is the lowest"
    assert min(y for _, y in own) < min(y for _, y in behind), "0.5 is the highest"
    assert own[1][0] == behind[1][0] < behind[3][0]


def test_the_time_left_goes_by_epochs_and_their_cost() -> None:
    """In 100 s: a baseline of 4 epochs, and 2 epochs of one of twice its cost."""
    (words,) = [p for p in live.describe(glance(*RUNNING), NOW).parts if p.endswith("left")]
    left = sum(c.ratio * 4 for c in NETWORKS[2:]) + FIRST.ratio * 2
    left += 3 * 4 * (1 + FIRST.ratio + SECOND.ratio) / 3
    seconds = 100 * left / (4 + 2 * FIRST.ratio)
    minutes, rest = words.removeprefix("about ").removesuffix(" left").split(":")
    assert abs(60 * int(minutes) + int(rest) - seconds) <= 1


def test_a_given_time_bounds_the_time_left() -> None:
    step = replace(STEP, until=NOW + 65)
    now = live.describe(glance(*RUNNING, step=step.as_dict()), NOW)
    assert "at most 1:05 left" in now.parts


def test_a_run_that_goes_on_from_a_shorter_one_costs_the_rest() -> None:
    shorter = replace(RUNNING[0], record=replace(RUNNING[0].record, number=9, epochs=2))
    longer = live.describe(glance(shorter, run(BASELINE, (0.1, 0.2, 0.3)), planned=2), NOW)
    alone = live.describe(glance(run(BASELINE, (0.1, 0.2, 0.3)), planned=1), NOW)
    assert longer.parts[1] != alone.parts[1]


def test_a_longer_run_that_waits_for_a_shorter_one_costs_the_rest() -> None:
    """Of four epochs either way: in one piece, or one and then three more."""

    def left(*epochs: int) -> str:
        step = Step.of("", [Run(FIRST, 0, length) for length in epochs], inf)
        planned = 1 + len(epochs)
        now = live.describe(glance(RUNNING[0], planned=planned, step=step.as_dict()), NOW)
        assert now.queued + len(now.next) == len(epochs)
        return now.parts[1]

    assert left(4) == left(1, 4)
    assert left(4) != left(1)


def test_a_driver_that_was_killed() -> None:
    now = live.describe(glance(*RUNNING, alive=False), NOW)
    assert (now.kind, now.headline) == ("stopped", "stopped")
    assert any("ended without a word; its last sign was at" in part for part in now.parts)
    assert f"process 12 on {socket.gethostname()}" in " ".join(now.parts)
    assert "2 runs go on from their last epoch" in now.parts
    assert now.command == "python run_search.py --data x"
    assert [row.network for row in now.rows] == [FIRST.label, SECOND.label]
    assert now.next[0] == f"{THIRD.label}, seed 0, 4 epochs"
    assert not any(part.endswith("left") for part in now.parts)


@pytest.mark.parametrize(
    ("state", "headline", "advice"),
    [
        ("stopped", "stopped", "This goes on from here:"),
        ("out of time", "out of time", "This goes on from here, given more --time:"),
    ],
)
def test_a_driver_that_said_why_it_ended(state: str, headline: str, advice: str) -> None:
    now = live.describe(glance(*RUNNING, alive=False, state=state), NOW)
    assert (now.headline, now.advice) == (headline, advice)
    assert "without a word" not in " ".join(now.parts)


def test_a_driver_that_failed_before_its_first_run() -> None:
    now = live.describe(glance(alive=False, state="starting"), NOW)
    assert "ended before its first run" in " ".join(now.parts)


def test_runs_of_an_earlier_driver_wait_until_they_are_handed_out() -> None:
    earlier = run(FIRST, (0.25,), begun=BEGAN - 1000)
    now = live.describe(glance(RUNNING[0], earlier), NOW)
    assert now.rows == ()
    assert now.next[0] == f"{FIRST.label}, seed 0, 4 epochs"
    assert now.now == "Waiting for a worker that is free."
    again = replace(
        earlier,
        resumed=BEGAN,
        record=replace(earlier.record, again=("after epoch 1: its driver ended",)),
    )
    (row,) = live.describe(glance(RUNNING[0], again), NOW).rows
    assert row.note == "started again after epoch 1: its driver ended"


def test_what_goes_on_between_trainings() -> None:
    ended = [run(c, outcome=done(0.1, 0.2, 0.3, 0.4)) for c in NETWORKS]
    assert "Choosing the next runs" in live.describe(glance(*ended), NOW).now
    testing = replace(STEP, testing=True, runs=STEP.runs[:2])
    ended[0] = replace(ended[0], record=replace(ended[0].record, test_acc=0.4))
    said = live.describe(glance(*ended, step=testing.as_dict()), NOW).now
    assert said == "Measuring the answer on the test split: 1 of 2 runs."
    assert "prepares its workers" in live.describe(glance(state="starting"), NOW).now


def test_finished() -> None:
    ended = [run(c, outcome=done(0.1, 0.2, 0.3, 0.4)) for c in NETWORKS]
    ended[1] = run(FIRST, outcome=Outcome("crashed", note="a\nb" + "x" * 500))
    now = live.describe(glance(*ended, alive=False, state="finished", spent=4000.0), NOW)
    assert now.parts[:3] == (f"{len(NETWORKS)} runs", "1 of them failed", "took 1 h 06 min")
    assert now.command == ""
    assert now.rows == now.next == ()
    (failure,) = now.failed
    assert failure.startswith(f"{FIRST.label}, seed 0: crashed (a b")
    assert len(failure) < 300


def test_another_host_is_not_taken_for_dead() -> None:
    """Its lock on the folder may not be seen from here."""
    far = replace(glance(*RUNNING, alive=None), last_sign=NOW - 600)
    old = replace(far, runs=[run(FIRST, (0.5,), begun=NOW - 700)])
    now = live.describe(replace(old, owner=replace(OWNER, host="far", since=int(NOW) - 800)), NOW)
    said = " ".join(now.parts)
    assert now.kind == "unknown"
    assert "process 12 on far: whether it runs cannot be seen from here" in said
    assert "no sign for 10 minutes, the last at" in said
    assert now.command


def test_a_folder_of_another_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store.create(tmp_path, {"a": 1}, {"settings": {}}).close()
    with StoreReader.open(tmp_path) as reader:
        assert reader.glance().alive is False
        monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
        assert reader.glance().alive is None


def test_the_command_of_a_renamed_folder(tmp_path: Path) -> None:
    """It goes on with this folder, and begins none anew under the old name."""
    begun, renamed = tmp_path / "begun", tmp_path / "renamed"
    facts = {"settings": {}, "command": f"python run_search.py --out {begun}", "state": "stopped"}
    Store.create(begun, {"a": 1}, facts).close()
    begun.rename(renamed)
    shown = json.loads(_State(renamed, None).read())
    assert f"python run_search.py --out {renamed}" in shown["html"]


def test_a_store_of_an_older_release() -> None:
    """Without `step`, and with a driver that said less of itself."""
    older = glance(*RUNNING)
    del older.attributes["step"]
    now = live.describe(replace(older, owner=None), NOW)
    assert now.kind == "running"
    assert now.next == ()
    recorded = Owner.read('{"pid": 1, "host": "h", "since": 1000}')
    assert recorded is not None
    assert recorded.since == 1000
    assert Owner.read("") is Owner.read("[]") is Owner.read("{}") is None


def test_everything_is_escaped() -> None:
    evil = "<img src=x onerror=alert(1)>"
    crashed = run(FIRST, outcome=Outcome("crashed", note=evil))
    again = run(SECOND, (0.5,), again=(evil,))
    seen = replace(
        glance(crashed, again, alive=False, command=evil), owner=replace(OWNER, host=evil)
    )
    html = render.live_state(live.describe(seen, NOW))
    assert html.count("&lt;img") >= 4
    assert "<img" not in html
    assert "<img" not in render.live_state(live.unreadable(evil))
