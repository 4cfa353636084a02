"""What a running study shows: a live bar on a terminal, a line per finished run everywhere."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from scaling_search.driver.executors.protocol import Job
from scaling_search.study.candidate import Candidate
from scaling_search.training.trial import Epoch, Outcome
from scaling_search.verdict.narration import points


def say(console: Console, label: str, text: str) -> None:
    """One aligned line, never wrapped, its text taken literally."""
    console.print(f"{label:<9} {text}", soft_wrap=True, markup=False, highlight=False)


class Live:
    """A Watcher. `planned` is how many runs the study needs in all from now."""

    def __init__(self, console: Console, planned: int, workers: int) -> None:
        self._console, self._planned, self._workers = console, planned, workers
        self._begun = time.monotonic()
        self._finished = 0
        self._best: float | None = None
        self._running: dict[int, tuple[Candidate, int, int]] = {}  # candidate, epochs done, epochs
        self._testing = False
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:g}/{task.total:g} runs", markup=False),
            TimeElapsedColumn(),
            TextColumn("{task.fields[now]}", markup=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("starting workers", total=planned, now="")

    def __enter__(self) -> Live:
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def phase(self, name: str, jobs: int) -> None:
        self._testing = name.startswith("test")
        if not self._testing:
            self._planned = max(self._planned, self._finished + jobs)
        self._bar.update(self._task, description=name, total=self._planned)

    def started(self, job: Job, candidate: Candidate) -> None:
        self._running[job.number] = candidate, 0, job.trial.epochs
        self._show()

    def epoch(self, job: Job, epoch: Epoch) -> None:
        candidate, _, epochs = self._running[job.number]
        self._running[job.number] = candidate, epoch.epoch, epochs
        self._show()

    def again(self, job: Job, candidate: Candidate, why: str) -> None:
        self._running.pop(job.number, None)
        say(self._console, "again", f"{candidate.label}  seed {job.trial.seed}  {why}")
        self._show()

    def finished(self, job: Job, candidate: Candidate, outcome: Outcome) -> None:
        self._running.pop(job.number, None)
        if self._testing:
            if outcome.status != "done":
                say(
                    self._console,
                    "test",
                    f"{candidate.label}: not measured, {outcome.status}: {outcome.note}",
                )
            self._show()
            return
        self._finished += 1
        if outcome.status == "done":
            accuracy = outcome.epochs[-1].val_acc
            result = f"val {points(accuracy)}"
            if candidate.role == "candidate" and (self._best is None or accuracy > self._best):
                self._best = accuracy
        else:
            result = f"{outcome.status}: {outcome.note}"
        name = (
            candidate.label
            if candidate.role == "candidate"
            else f"{candidate.role}, {candidate.label}"
        )
        line = (
            f"{self._finished}/{self._planned}  {name}  {candidate.ratio:.2f}x  seed {job.trial.seed}  {result}  "
            f"{outcome.seconds:.0f} s · {self._left()} left"
        )
        say(self._console, "run", line)
        self._show()

    def _left(self) -> str:
        elapsed = time.monotonic() - self._begun
        left = elapsed / max(1, self._finished) * max(0, self._planned - self._finished)
        return f"{int(left) // 60}:{int(left) % 60:02d}"

    def _show(self) -> None:
        running = ", ".join(
            f"{c.arch.blocks}b w{c.beta:g} {c.arch.resolution}px ({done}/{epochs})"
            for c, done, epochs in self._running.values()
        )
        best = f"best {points(self._best)} · " if self._best else ""
        left = f"{self._left()} left · " if self._finished else ""
        self._bar.update(self._task, completed=self._finished, now=f"{left}{best}{running}")
