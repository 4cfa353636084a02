"""What a running study shows: two live lines on a terminal, a line per finished run everywhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from rich import live
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from effnet.budget import Budget
from scaling_search.driver.console import clock, say
from scaling_search.driver.executors.protocol import Job
from scaling_search.results.record import Record
from scaling_search.study.candidate import Candidate
from scaling_search.study.wording import points
from scaling_search.training.trial import Epoch, Outcome

_LEAST_BAR, _MOST_BAR = 10, 24  # columns


@dataclass
class _Running:
    """A run in progress. `first` is the number of epochs that it went on from; None until it has
    reported one."""

    candidate: Candidate
    epochs: int
    began: float  # time.monotonic() when it was handed out
    reported: float = 0.0  # time.monotonic() at which its last epoch was
    epochs_done: int = 0
    first: int | None = None

    @property
    def to_train(self) -> int:
        """The epochs of it that are its own; all, until it is known that it went on."""
        return self.epochs - (self.first or 0)

    @property
    def part(self) -> float:
        """How much of what it has to train is done, from 0 to 1."""
        if self.first is None:
            return 0.0
        return (self.epochs_done - self.first) / max(1, self.to_train)

    @property
    def words(self) -> str:
        if self.epochs == 1:
            return self.candidate.label
        return f"{self.candidate.label} (epoch {self.epochs_done} of {self.epochs})"

    @property
    def short_words(self) -> str:
        candidate, arch = self.candidate, self.candidate.arch
        size = f"d{candidate.alpha:g}" if arch.blocks is None else f"{arch.blocks}b"
        name = f"{size} w{candidate.beta:g} {arch.px.replace(' ', '')}"
        return name if self.epochs == 1 else f"{name} ({self.epochs_done}/{self.epochs})"


class Live:
    """A Watcher. `planned` is how many runs the study needs in all from now, `earlier` are those
    that it has, of `budgets` budgets. `work` are the epochs times multiply-adds of those to come;
    without it one run counts as much as another for the time that is left. `began` and `end` are
    the study's, in time.monotonic(); an `end` bounds the time that is said to be left. `on_first`
    is called when the first candidate has finished."""

    def __init__(
        self,
        console: Console,
        planned: int,
        *,
        work: float | None = None,
        budgets: int = 1,
        earlier: Iterable[Record] = (),
        began: float | None = None,
        end: float = math.inf,
        on_first: Callable[[], None] | None = None,
    ) -> None:
        self._console, self._planned = console, planned
        # the work of a planned run on average; None: each counts as one
        self._mean_work = None if work is None else work / max(1, planned)
        self._began = time.monotonic() if began is None else began
        self._end, self._on_first = end, on_first
        self._phase = "starting workers"
        self._finished = 0
        self._tests, self._tested = 0, 0  # how many there are and have ended, in the last phase
        self._busy = 0.0  # s that the finished runs took, all together
        self._worked = 0.0  # of these, as `work` counts
        self._at_once = 1  # the most runs that were in progress
        self._last_event = self._began
        self._budgets = budgets
        self._best: dict[Budget, tuple[int, float]] = {}  # epochs, accuracy
        for record in earlier:
            if record.done and record.candidate.role == "candidate":
                self._remember(record.candidate, record.epochs, record.val_acc)
        self._running: dict[int, _Running] = {}
        self._display = live.Live(
            get_renderable=self._render,
            console=console,
            refresh_per_second=4,
            transient=True,  # it leaves no trace between the lines that stay
        )

    def __enter__(self) -> Live:
        if self._console.is_terminal:
            self._display.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._display.stop()

    # ---- a Watcher

    def phase(self, name: str, jobs: int, testing: bool = False) -> None:
        self._phase = name
        self._tests, self._tested = (jobs, 0) if testing else (0, 0)
        if not testing:
            # what was planned is at most exact: the baseline may need runs of its own
            self._planned = max(self._planned, self._finished + jobs)

    def started(self, job: Job, candidate: Candidate) -> None:
        self._running[job.number] = _Running(candidate, job.trial.epochs, time.monotonic())
        self._at_once = max(self._at_once, len(self._running))

    def epoch(self, job: Job, epoch: Epoch) -> None:
        run = self._running[job.number]
        if run.first is None:  # it may go on from a checkpoint
            run.first = epoch.epoch - 1
        run.epochs_done = epoch.epoch
        run.reported = self._last_event = time.monotonic()

    def again(self, job: Job, candidate: Candidate, why: str) -> None:
        self._running.pop(job.number, None)
        say(self._console, "again", f"{candidate.label}  seed {job.trial.seed}  {why}")

    def finished(self, job: Job, candidate: Candidate, outcome: Outcome) -> None:
        run = self._running.pop(job.number, None)
        # a test trains nothing, and counts as no run
        if self._tests:
            self._tested += 1
            if outcome.status != "done":
                reason = f"{outcome.status}: {outcome.note}"
                say(self._console, "test", f"{candidate.label}: not measured, {reason}")
            return
        self._finished += 1
        self._last_event = time.monotonic()
        if run is not None:
            self._busy += self._last_event - run.began
        self._worked += self._weight(candidate, job.trial.epochs if run is None else run.to_train)
        if outcome.status == "done" and candidate.role == "candidate":
            self._remember(candidate, job.trial.epochs, outcome.epochs[-1].val_acc)
        self._say_run(job, candidate, outcome)
        if self._on_first is not None and candidate.role == "candidate":
            self._on_first()
            self._on_first = None

    def _remember(self, candidate: Candidate, epochs: int, accuracy: float) -> None:
        """Of runs of unequal length the longest are compared."""
        best = self._best.get(candidate.budget, (0, 0.0))
        self._best[candidate.budget] = max(best, (epochs, accuracy))

    def _say_run(self, job: Job, candidate: Candidate, outcome: Outcome) -> None:
        of_macs = "" if candidate.budget.of == "macs" else " FLOPs"
        result = f"{outcome.status}: {outcome.note}"
        if outcome.status == "done":
            result = f"val {points(outcome.epochs[-1].val_acc)}"
        line = (
            f"{self._finished}/{self._planned}  {candidate.name}  {candidate.ratio:.2f}x{of_macs}  "
            f"seed {job.trial.seed}  {result}  {outcome.seconds:.0f} s"
        )
        left = self._time_left()
        if left is not None and not self._console.is_terminal:  # where it stands below
            line = f"{line} · {clock(left)} left"
        say(self._console, "run", line)

    # ---- what is left

    def _time_left(self) -> float | None:
        """Seconds until the time given is spent; without such a time, until the planned runs have
        ended, if their work takes as long as that so far. None where nothing is known yet."""
        now = time.monotonic()
        if self._end < math.inf:
            return max(0.0, self._end - now)
        done, busy = self._worked, self._busy
        for run in list(self._running.values()):  # a copy: the display has a thread of its own
            if run.part:
                done += run.part * self._weight(run.candidate, run.to_train)
                busy += run.reported - run.began
        if not done:
            return None
        planned = self._planned * (1.0 if self._mean_work is None else self._mean_work)
        remaining = max(0.0, planned - done) * busy / done / self._at_once
        return max(0.0, remaining - (now - self._last_event))

    def _weight(self, candidate: Candidate, epochs: int) -> float:
        """How much of the planned work a run is that trains so many epochs."""
        return 1.0 if self._mean_work is None else float(epochs * candidate.cost.macs)

    # ---- the two lines

    def _render(self) -> RenderableType:
        """A bar with what is left, and below it what runs: each as wide as the terminal at most."""
        width = self._console.width - 1  # some terminals wrap after their last column
        total, completed, counts = self._progress()
        times = self._times()
        full = "  ".join(part for part in (counts, " · ".join((*times, *self._bests()))) if part)
        brief = "  ".join(part for part in (counts, " · ".join(times)) if part)
        words = _fitting(
            [full, full.replace("elapsed ", ""), brief, counts], width - _LEAST_BAR - 1
        )
        bar = ProgressBar(
            total=max(total, 1),
            completed=completed,
            width=min(_MOST_BAR, max(1, width - cell_len(words) - 1)),
        )
        first = Table.grid(padding=(0, 1, 0, 0), pad_edge=False)
        first.add_row(bar, Text(words, no_wrap=True, overflow="crop"))
        return Group(first, Text(_fitting(self._doing(), width), no_wrap=True, overflow="crop"))

    def _progress(self) -> tuple[float, float, str]:
        """What the bar stands for, how much of it is done, and that in words."""
        running = list(self._running.values())
        if self._tests:
            return self._tests, self._tested, ""
        done = self._finished + sum(run.part for run in running)
        return self._planned, done, f"{self._finished}/{self._planned} runs"

    def _times(self) -> list[str]:
        times = [f"elapsed {clock(time.monotonic() - self._began)}"]
        left = self._time_left()
        if left is not None and not self._tests:
            times.append(f"left {clock(left)}")
        return times

    def _bests(self) -> list[str]:
        """The best accuracy so far, for each budget where there are several."""
        best = list(self._best.items())
        if not best:
            return []
        if self._budgets == 1:
            return [f"best so far {points(best[0][1][1])}"]
        each = [f"{points(accuracy)} at {budget}" for budget, (_, accuracy) in best]
        return [f"best {', '.join(each)}"]

    def _doing(self) -> list[str]:
        """The phase with the runs in progress, as full as it goes first; each next one is
        shorter."""
        running = list(self._running.values())
        if self._tests or not running:
            return [self._phase]
        short = [run.short_words for run in running]
        options = [[run.words for run in running], short]
        for shown in range(len(short) - 1, 0, -1):
            options.append([*short[:shown], f"{len(short) - shown} more"])
        lines = [" · ".join((self._phase, *names)) for names in options]
        return [*lines, f"{self._phase} · {len(short)} in progress", short[0]]


def _fitting(options: list[str], width: int) -> str:
    """The first that `width` columns hold; the last one, shortened, where none does."""
    for words in options:
        if cell_len(words) <= width:
            return words
    shortened = Text(options[-1])
    shortened.truncate(max(width, 1), overflow="ellipsis")
    return shortened.plain
