"""What fits into the time that the user gave, said before it is spent: from the pace of runs on
record, or else of a few training steps."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from scaling_search.driver.search import PlannedRun, planned_runs
from scaling_search.results.record import Record
from scaling_search.study.candidate import Candidate
from scaling_search.study.plan import Plan
from scaling_search.study.settings import Study

# A run evaluates its validation images once an epoch: a forward pass, a third of a training step.
_FORWARD = 1 / 3


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds that an epoch of a network takes, while as many runs as there may be train beside it.

    `epochs`: (multiply-adds of an image, seconds of an epoch) of networks that were timed, at least
    one; `source` says for people where they come from."""

    epochs: tuple[tuple[float, float], ...]
    source: str

    def seconds(self, candidate: Candidate) -> float:
        """Seconds of an epoch: a constant and a part that grows with the multiply-adds, as small
        networks are not as fast as they are cheap; in proportion where one cost is known."""
        macs, seconds = np.array(self.epochs).T
        cost = float(candidate.cost.macs)
        if np.ptp(macs) > 0.1 * macs.mean():
            slope, constant = np.polyfit(macs, seconds, 1)
            if slope >= 0 and constant >= 0:
                return float(constant + slope * cost)
        return cost * float(np.mean(seconds / macs))


def pace_of_records(records: Sequence[Record]) -> Pace | None:
    """The pace of the runs on record; None where none is done."""
    done = [record for record in records if record.done]
    epochs: list[tuple[float, float]] = []
    for record in done:
        if record.outcome and record.outcome.seconds > 0:
            macs = float(record.candidate.cost.macs)
            epochs.append((macs, record.outcome.seconds / record.epochs))
    if not epochs:
        return None
    count = len(epochs)
    return Pace(tuple(epochs), f"by the {count} runs so far" if count > 1 else "by the first run")


def pace_of_rates(
    rates: Sequence[tuple[Candidate, float]], train_images: int, val_images: int, source: str
) -> Pace | None:
    """The pace that follows from the images a second of trainings of some networks; `train_images`
    and `val_images` are those of an epoch. None where no rate is known."""
    images = train_images + _FORWARD * val_images
    epochs = [(float(c.cost.macs), images / rate) for c, rate in rates if rate > 0]
    return Pace(tuple(epochs), source) if epochs else None


@dataclass(frozen=True, slots=True)
class Forecast:
    """What becomes of the runs that a study lacks. `ends` are the seconds from now at which they
    end, in the order in which limited time goes to them; `answer` is how many of them it takes
    until every network of the budgets has its first seed behind it."""

    ends: tuple[float, ...]
    answer: int
    source: str

    def fitting(self, seconds: float) -> int:
        """How many runs end within so many seconds."""
        return sum(end <= seconds for end in self.ends)

    @property
    def answer_ends(self) -> float:
        """Seconds until there is an answer."""
        return max(self.ends[: self.answer], default=0.0)

    def is_answered(self, left: float) -> bool:
        """Whether there is an answer within so many seconds; `left` may be spent already, and the
        answer be there."""
        return self.answer == 0 or self.answer_ends <= left

    @property
    def all_end(self) -> float:
        """Seconds until the study is complete."""
        return max(self.ends, default=0.0)

    def words(self, given: float, left: float, limit_for: Callable[[float], float]) -> str:
        """One line for people: what fits into the time that was `given`, of which `left` seconds
        are for training. `limit_for` returns the time to give where so many are needed."""
        count = len(self.ends)
        if not count:
            return f"{typed(given)}: every planned run is recorded; more are made while it lasts"
        fits = self.fitting(left)
        runs = "run" if count == 1 else f"{count} runs"
        if fits == count:
            return (
                f"{typed(given)}: the {runs} to come take about {rounded_up(self.all_end)}; more "
                f"are made while it lasts ({self.source})"
            )
        fit = f"about {fits}" if fits else "none"
        answer = "enough for an answer" if self.is_answered(left) else "no answer"
        return (
            f"{typed(given)}: {fit} of the {runs} to come fit{'' if fits else 's'}, {answer}; "
            f"{self.wants(limit_for, left)} ({self.source})"
        )

    def wants(self, limit_for: Callable[[float], float], left: float = 0.0) -> str:
        """The --time that it takes beyond the `left` seconds: for an answer, and for all."""
        everything = f"all runs take about --time {rounded_up(limit_for(self.all_end))}"
        if self.is_answered(left):
            return everything
        needed = rounded_up(limit_for(self.answer_ends))
        return f"every network once takes --time {needed} or more, {everything}"


def forecast(
    study: Study, todo: Plan, records: Sequence[Record], pace: Pace, workers: int
) -> Forecast:
    """What the runs that `records` lack come to, so many of them at a time."""
    ends: list[float] = []
    answer = 0
    free = [0.0] * max(1, workers)  # when each worker is
    for run in _lacking(planned_runs(study, todo), records):
        end = heapq.heappop(free) + run.added * pace.seconds(run.candidate)
        heapq.heappush(free, end)
        ends.append(end)
        if run.seed == study.seed and run.candidate.role != "reference":
            answer = len(ends)
    return Forecast(tuple(ends), answer, pace.source)


def work_left(study: Study, todo: Plan, records: Sequence[Record]) -> float:
    """The work of the runs that `records` lack: of each its epochs times its multiply-adds."""
    lacking = _lacking(planned_runs(study, todo), records)
    return float(sum(run.added * run.candidate.cost.macs for run in lacking))


def _lacking(planned: Sequence[PlannedRun], records: Sequence[Record]) -> list[PlannedRun]:
    """The planned runs that are not on record. Which networks go on to a further rung, or have
    further runs, a plan cannot know: runs of one role, seed and length stand for one another."""
    recorded: Counter[tuple[str, int, int]] = Counter()
    for record in records:
        if record.outcome:
            recorded[record.candidate.role, record.seed, record.epochs] += 1
    lacking: list[PlannedRun] = []
    undecided: list[int] = []  # places of them in `lacking`
    for run in planned:
        if run.seed is not None:
            kind = run.candidate.role, run.seed, run.epochs
            if recorded[kind]:
                recorded[kind] -= 1
                continue
        else:
            undecided.append(len(lacking))
        lacking.append(run)
    made = set(undecided[: recorded.total()])
    return [run for i, run in enumerate(lacking) if i not in made]


def typed(seconds: float) -> str:
    """Whole seconds as --time takes them: 90 → '1m30s'."""
    whole = round(seconds)
    parts = (whole // 3600, "h"), (whole % 3600 // 60, "m"), (whole % 60, "s")
    return "".join(f"{number}{unit}" for number, unit in parts if number) or "0s"


def rounded_up(seconds: float) -> str:
    """The same, rounded up to what a reader can use: 83 → '1m30s', 470 → '8m', 4000 → '1h10m'."""
    step = 1
    for least, coarser in ((20, 10), (150, 30), (600, 60), (3600, 600)):
        if seconds > least:
            step = coarser
    return typed(step * math.ceil(round(seconds / step, 6)))
