"""What a running study shows: a live bar on a terminal, a line per finished run everywhere."""

from __future__ import annotations

import time
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from scaling_search.driver.console import say
from scaling_search.driver.executors.protocol import Job
from scaling_search.study.candidate import Candidate
from scaling_search.study.wording import points
from scaling_search.training.trial import Epoch, Outcome


@dataclass
class _Running:
    """A run in progress, as the bar shows it."""

    candidate: Candidate
    epochs: int
    epochs_done: int = 0

    @property
    def words(self) -> str:
        candidate, arch = self.candidate, self.candidate.arch
        size = f"d{candidate.alpha:g}" if arch.blocks is None else f"{arch.blocks}b"
        name = f"{size} w{candidate.beta:g} {arch.px.replace(' ', '')}"
        return f"{name} ({self.epochs_done}/{self.epochs})"


class Live:
    """A Watcher. `planned` is how many runs the study needs in all from now."""

    def __init__(self, console: Console, planned: int) -> None:
        self._console, self._planned = console, planned
        self._begun = time.monotonic()
        self._finished = 0
        self._best: float | None = None
        self._running: dict[int, _Running] = {}
        self._testing = False
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:g}/{task.total:g} runs", markup=False),
            TimeElapsedColumn(),
            TextColumn("{task.fields[now]}", markup=False),
            console=console,
            transient=True,  # it leaves no trace between the lines that stay
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("starting workers", total=planned, now="")

    def __enter__(self) -> Live:
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def phase(self, name: str, jobs: int, testing: bool = False) -> None:
        self._testing = testing
        if not testing:
            # what was planned is at most exact: the baseline may need runs of its own
            self._planned = max(self._planned, self._finished + jobs)
        self._bar.update(self._task, description=name, total=self._planned)

    def started(self, job: Job, candidate: Candidate) -> None:
        self._running[job.number] = _Running(candidate, job.trial.epochs)
        self._show()

    def epoch(self, job: Job, epoch: Epoch) -> None:
        self._running[job.number].epochs_done = epoch.epoch
        self._show()

    def again(self, job: Job, candidate: Candidate, why: str) -> None:
        self._running.pop(job.number, None)
        say(self._console, "again", f"{candidate.label}  seed {job.trial.seed}  {why}")
        self._show()

    def finished(self, job: Job, candidate: Candidate, outcome: Outcome) -> None:
        self._running.pop(job.number, None)
        # a test trains nothing, and counts as no run
        if self._testing:
            if outcome.status != "done":
                reason = f"{outcome.status}: {outcome.note}"
                say(self._console, "test", f"{candidate.label}: not measured, {reason}")
            self._show()
            return
        self._finished += 1
        name = candidate.label
        if candidate.role != "candidate":
            name = f"{candidate.role}, {name}"
        of_macs = "" if candidate.budget.of == "macs" else " MACs"
        line = (
            f"{self._finished}/{self._planned}  {name}  {candidate.ratio:.2f}x{of_macs}  "
            f"seed {job.trial.seed}  {self._result(candidate, outcome)}  "
            f"{outcome.seconds:.0f} s · {self._time_left()} left"
        )
        say(self._console, "run", line)
        self._show()

    def _result(self, candidate: Candidate, outcome: Outcome) -> str:
        """Return a run's result in words, and remember the best candidate's accuracy."""
        if outcome.status != "done":
            return f"{outcome.status}: {outcome.note}"
        accuracy = outcome.epochs[-1].val_acc
        if candidate.role == "candidate":
            self._best = max(self._best or 0.0, accuracy)
        return f"val {points(accuracy)}"

    def _time_left(self) -> str:
        """minutes:seconds, if the runs to come take as long as those so far."""
        elapsed = time.monotonic() - self._begun
        remaining = max(0, self._planned - self._finished)
        seconds = int(elapsed / max(1, self._finished) * remaining)
        return f"{seconds // 60}:{seconds % 60:02d}"

    def _show(self) -> None:
        parts: list[str] = []
        if self._finished:
            parts.append(f"{self._time_left()} left")
        if self._best:
            parts.append(f"best {points(self._best)}")
        parts.append(", ".join(run.words for run in self._running.values()))
        self._bar.update(self._task, completed=self._finished, now=" · ".join(parts))
