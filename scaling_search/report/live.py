"""What the dashboard says of a study while it runs: plain data, in words where it can be.

Epochs are in the store as they end (Optuna's intermediate values); whether the driver is at work is
known from its lock.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from scaling_search.results.encoding import StoredRun
from scaling_search.results.reader import Glance, StoreReader
from scaling_search.results.reading import Results
from scaling_search.results.record import Record, count_ended
from scaling_search.results.step import Planned, Step
from scaling_search.study.wording import counted, points

_MOST_ROWS = 16  # runs in progress that are shown; packed GPUs may have many more
_MOST_NEXT, _MOST_ENDED, _MOST_FAILED = 4, 4, 4
_LONG_NOTE = 160  # characters of why a run failed
_WIDTH, _HEIGHT, _EDGE = 120.0, 32.0, 3.0  # of a curve, in its own units


@dataclass(frozen=True, slots=True)
class Curve:
    """Validation accuracy by epoch, as a picture: `line` is SVG's points, `end` the last of them;
    `words` say the same."""

    line: str
    end: tuple[str, str]
    words: str


@dataclass(frozen=True, slots=True)
class Row:
    """A run in progress. `role` is empty for one of the budget's networks; `part` is how much of it
    is done; `curve` is None before its first epoch."""

    network: str
    role: str
    seed: int
    epoch: str
    part: float
    accuracy: str
    curve: Curve | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Live:
    """A study at one moment. `kind`: running, stopped (by whatever), finished, unknown or
    unreadable. `parts` of the state go on from its `headline`; `brief` is for the browser's tab;
    `now` says what goes on where no run does. `command`: how to go on, "" where nothing is left;
    `advice` stands before it. `queued` are runs of this step beyond those in `next`, `later` those
    that results will choose. `part` is how much is done."""

    kind: str
    headline: str
    parts: tuple[str, ...] = ()
    brief: str = ""
    part: float | None = None
    advice: str = ""
    command: str = ""
    now: str = ""
    rows: tuple[Row, ...] = ()
    more_rows: int = 0
    baseline_curve: Curve | None = None
    next: tuple[str, ...] = ()
    queued: int = 0
    later: int = 0
    baseline: str = ""
    ended: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    more_failed: int = 0
    version: str = ""  # it changes with what the report tells; "" where that cannot be read


def look(results: Results) -> Live:
    """Return what is to be said of a study now. Raises UserError."""
    if isinstance(results, StoreReader):
        return describe(results.glance(), time.time())
    runs = counted(count_ended(results.records()), "run")
    return Live("finished", "recorded", (runs,), "recorded", version=version(results))


def version(results: Results) -> str:
    """Return a text that changes with whatever the report tells of. Raises UserError."""
    facts = results.facts()
    return _version([facts.get(name) for name in _TOLD], results.records())


# Facts that the report tells of and that change; the last says that the picks lie in the folder.
_TOLD = ("state", "planned", "answered")


def _version(facts: list[object], records: Sequence[Record]) -> str:
    runs = [(r.number, r.outcome is not None, r.test_acc) for r in records]
    return hashlib.sha256(repr((facts, runs)).encode()).hexdigest()[:16]


def unreadable(why: str) -> Live:
    """Return what is to be said of a study that cannot be read now."""
    return Live("unreadable", "cannot be read", (why,), "cannot be read")


def describe(glance: Glance, now: float) -> Live:
    """Return what is to be said of a study at the moment `now` [seconds since 1970]."""
    study = _Study.of(glance, now)
    attributes = glance.attributes
    current = _version([attributes.get(name) for name in _TOLD], study.records)
    return replace(study.live(), version=current)


@dataclass(frozen=True, slots=True)
class _Study:
    """A glance, sorted: what runs, what waits, what has ended."""

    glance: Glance
    now: float
    state: str
    step: Step | None
    active: list[StoredRun]  # handed out by the driver that is at work
    interrupted: list[StoredRun]  # left in progress by a driver before it
    queue: list[Planned]
    planned: int
    records: list[Record]

    @classmethod
    def of(cls, glance: Glance, now: float) -> _Study:
        state = glance.attributes.get("state") or "starting"
        step = None
        with suppress(LookupError, TypeError, ValueError, AttributeError):  # of another release
            step = Step.from_dict(glance.attributes["step"])
        active: list[StoredRun] = []
        interrupted: list[StoredRun] = []
        for run in glance.runs:
            if run.record.outcome is not None:
                continue
            was_handed_out = glance.alive is not False and _begun(run, glance) >= _since(glance)
            (active if was_handed_out else interrupted).append(run)
        queue: list[Planned] = []
        if step is not None and state == "running" and not step.testing:
            handed_out = {_key(run) for run in glance.runs if run.record.outcome}
            # what a driver has left in progress is shown as such until another hands it out
            shown = active if glance.alive else [*active, *interrupted]
            handed_out |= {_key(run) for run in shown}
            for planned_run in step.runs:
                if planned_run.key not in handed_out:
                    queue.append(planned_run)
        records = [run.record for run in glance.runs]
        ended = count_ended(records)
        planned = glance.attributes.get("planned") or 0
        planned = max(planned, ended + len(active) + len(queue))
        return cls(glance, now, state, step, active, interrupted, queue, planned, records)

    @property
    def ended(self) -> int:
        return count_ended(self.records)

    @property
    def runs_words(self) -> str:
        """Return '7 of 26 runs'."""
        return f"{self.ended} of {counted(self.planned, 'run')}"

    @property
    def driver(self) -> str:
        owner = self.glance.owner
        return owner.words if owner else "its process is not known"

    @property
    def last_sign(self) -> float | None:
        """When anything was last written."""
        signs = [self.glance.last_sign] if self.glance.last_sign else []
        for run in self.glance.runs:
            for moment in (run.begun, run.ended):
                if moment is not None:
                    signs.append(_seconds(moment, self.glance))
        return max(signs, default=None)

    # ---- the states

    def live(self) -> Live:
        alive = self.glance.alive
        if self.state == "finished":
            return self._finished()
        if alive and self.state == "out of time":
            return self._at_work("the time is up", "it writes the answer")
        if alive and self.state == "stopped":
            return self._at_work("stopping", "")
        if alive:
            return self._running()
        if alive is None and self.state in ("starting", "running"):
            return self._unknown()
        return self._stopped()

    def _finished(self) -> Live:
        parts = [counted(self.ended, "run")]
        failed = sum(record.failed for record in self.records)
        if failed:
            parts.append(f"{failed} of them failed")
        spent = self.glance.attributes.get("spent")
        if spent:
            parts.append(f"took {_duration(spent)}")
        if self.glance.alive:
            parts.append("its driver is at work on the answer")
        elif self.glance.last_sign:
            parts.append(f"ended {_clock(self.glance.last_sign, self.now)}")
        return self._with_failures(Live("finished", "finished", tuple(parts), "finished"))

    def _at_work(self, headline: str, words: str) -> Live:
        parts = [self.runs_words, *([words] if words else [])]
        live = Live("running", headline, tuple(parts), headline, self._part, rows=self._rows())
        return self._with_failures(live)

    def _running(self) -> Live:
        starting = self.state == "starting"
        parts = [self.runs_words]
        left = self._time_left()
        if left and not starting:
            parts.append(left)
        owner = self.glance.owner
        if owner:
            parts.append(f"started {_clock(owner.since, self.now)}")
        live = Live(
            "running",
            "starting" if starting else "running",
            tuple(parts),
            f"{self.ended} of {self.planned}",
            self._part,
            now=self._what_goes_on(),
        )
        return self._with_runs(live)

    def _what_goes_on(self) -> str:
        """Return what the driver does where no training is in progress; '' where one is."""
        step = self.step
        if self.state == "starting":
            return "The driver prepares its workers."
        if self.active:
            return ""
        if self.queue:
            return "Waiting for a worker that is free."
        if step is not None and step.testing:
            tested = {_key(run) for run in self.glance.runs if run.record.test_acc is not None}
            count = sum(run.key in tested for run in step.runs)
            return (
                f"Measuring the answer on the test split: {count} of "
                f"{counted(len(step.runs), 'run')}."
            )
        return "Choosing the next runs from the results so far."

    def _unknown(self) -> Live:
        sign = self.last_sign
        parts = [self.runs_words, f"{self.driver}: whether it runs cannot be seen from here"]
        if sign is not None:
            minutes = round((self.now - sign) / 60)
            silent = "a sign of it just now" if minutes < 1 else f"no sign for {_minutes(minutes)}"
            parts.append(f"{silent}, the last at {_clock(sign, self.now)}")
        live = Live(
            "unknown",
            "running, as far as is known",
            tuple(parts),
            f"{self.ended} of {self.planned}",
            self._part,
            advice="If it has ended, this goes on from here:",
            command=self._command,
        )
        return self._with_runs(live)

    def _stopped(self) -> Live:
        headline, advice = self.state, "This goes on from here:"
        parts = [self.runs_words]
        if self.state == "out of time":
            advice = "This goes on from here, given more --time:"
        elif self.state != "stopped":
            headline = "stopped"
            sign = self.last_sign
            at = f"; its last sign was at {_clock(sign, self.now)}" if sign else ""
            if self.state == "running":
                parts.append(f"the driver ({self.driver}) ended without a word{at}")
            else:
                parts.append(f"the driver ({self.driver}) ended before its first run{at}")
        if self.interrupted:
            one = len(self.interrupted) == 1
            goes = "run goes on from its" if one else "runs go on from their"
            parts.append(f"{len(self.interrupted)} {goes} last epoch")
        live = Live(
            "stopped",
            headline,
            tuple(parts),
            headline,
            self._part,
            advice=advice,
            command=self._command,
        )
        return self._with_runs(live)

    @property
    def _command(self) -> str:
        return str(self.glance.attributes.get("command") or "")

    @property
    def _part(self) -> float | None:
        """Return how much of the study is done, epochs of runs in progress included."""
        if not self.planned:
            return None
        done = self.ended + sum(map(_part, [*self.active, *self.interrupted]))
        return done / self.planned

    # ---- what every state may show

    def _with_runs(self, live: Live) -> Live:
        """Return `live` with what runs, waits and has ended."""
        rows = self._rows()
        names = []
        for run in self.queue:
            names.append(f"{run.name}, seed {run.seed}, {counted(run.epochs, 'epoch')}")
        # of what this step leaves, results decide
        later = self.planned - self.ended - len(self.active) - len(self.queue)
        live = replace(
            live,
            rows=rows[:_MOST_ROWS],
            more_rows=max(0, len(rows) - _MOST_ROWS),
            baseline_curve=self._baseline_curve() if rows else None,
            next=tuple(names[:_MOST_NEXT]),
            queued=max(0, len(names) - _MOST_NEXT),
            later=max(0, later) if live.kind == "running" else 0,
            baseline=self._baseline(),
            ended=self._ended_last(),
        )
        return self._with_failures(live)

    def _with_failures(self, live: Live) -> Live:
        failed = [record for record in self.records if record.failed]
        shown = failed[::-1][:_MOST_FAILED]
        return replace(
            live,
            failed=tuple(_failure(record) for record in shown),
            more_failed=len(failed) - len(shown),
        )

    def _ended_last(self) -> tuple[str, ...]:
        """Return the runs that ended last, the latest first; not the baseline's, which has a line
        of its own."""
        done = []
        for run in self.glance.runs:
            if run.record.done and run.ended and run.record.candidate.role != "baseline":
                done.append(run)
        done.sort(key=lambda run: run.ended or datetime.min, reverse=True)
        lines = []
        for run in done[:_MOST_ENDED]:
            record = run.record
            after = f"{points(record.val_acc)}% after {counted(record.epochs, 'epoch')}"
            lines.append(f"{record.candidate.name}, seed {record.seed}: {after}")
        return tuple(lines)

    def _baseline_runs(self) -> list[Record]:
        """Return the baseline's finished runs of the most epochs."""
        done = [r for r in self.records if r.done and r.candidate.role == "baseline"]
        longest = max((record.epochs for record in done), default=0)
        return [record for record in done if record.epochs == longest]

    def _baseline(self) -> str:
        """Return what is known of the baseline, as soon as its first run has ended."""
        runs = self._baseline_runs()
        if not runs:
            return ""
        mean = sum(record.val_acc for record in runs) / len(runs)
        over = "" if len(runs) == 1 else f" (mean of {len(runs)} runs)"
        epochs = counted(runs[0].epochs, "epoch")
        return f"{runs[0].candidate.label}: {points(mean)}% after {epochs}{over}"

    # ---- runs in progress, and their curves

    def _rows(self) -> tuple[Row, ...]:
        at_work = self.glance.alive is not False
        return tuple(self._row(run) for run in (self.active if at_work else self.interrupted))

    def _row(self, run: StoredRun) -> Row:
        record = run.record
        done = max(run.reported, default=0)
        epoch = f"{done} of {record.epochs}" if done else f"first of {record.epochs}"
        return Row(
            network=record.candidate.label,
            role="" if record.candidate.role == "candidate" else record.candidate.role,
            seed=record.seed,
            epoch=epoch,
            part=done / record.epochs,
            accuracy=f"{points(run.reported[done])}%" if done else "",
            curve=self._curve(run.reported),
            note=f"started again {record.again[-1]}" if record.again else "",
        )

    def _baseline_curve(self) -> Curve | None:
        """Return the baseline's curve, to be drawn behind the others."""
        runs = self._baseline_runs()
        if not runs or runs[0].outcome is None:
            return None
        return self._curve({epoch.epoch: epoch.val_acc for epoch in runs[0].outcome.epochs})

    def _scale(self) -> tuple[int, float, float]:
        """Return the epochs, the lowest and the highest accuracy that the curves have in common."""
        runs = [*self.active, *self.interrupted]
        values = [value for run in runs for value in run.reported.values()]
        epochs = max((run.record.epochs for run in runs), default=1)
        for record in self._baseline_runs()[:1]:
            assert record.outcome is not None
            values += [epoch.val_acc for epoch in record.outcome.epochs]
            epochs = max(epochs, record.epochs)
        return epochs, min(values, default=0.0), max(values, default=1.0)

    def _curve(self, accuracies: dict[int, float]) -> Curve | None:
        if not accuracies:
            return None
        epochs, low, high = self._scale()
        places = []
        for epoch in sorted(accuracies):
            x = (epoch - 1) / max(epochs - 1, 1)
            y = (accuracies[epoch] - low) / max(high - low, 1e-9)
            across = _EDGE + x * (_WIDTH - 2 * _EDGE)
            down = _HEIGHT - _EDGE - y * (_HEIGHT - 2 * _EDGE)
            places.append((f"{across:.1f}", f"{down:.1f}"))
        words = ", ".join(f"{points(accuracies[epoch])}%" for epoch in sorted(accuracies))
        return Curve(" ".join(f"{x},{y}" for x, y in places), places[-1], f"by epoch: {words}")

    # ---- the time left

    def _time_left(self) -> str:
        """Return 'about 1:40 left', or '' where nothing says how long it takes. What is left is
        taken to go as fast as this session has gone."""
        if self.step is None:
            return ""
        if self.step.until is not None:
            return f"at most {_duration(max(0.0, self.step.until - self.now))} left"
        work = _Work.of(self.glance, self.queue)
        since = _since(self.glance)
        of_this_session = [run for run in self.glance.runs if _begun(run, self.glance) >= since]
        done = sum(work.of_record(run.record) * _part(run) for run in of_this_session)
        if not done:
            return ""
        elapsed = self.now - min(_begun(run, self.glance) for run in of_this_session)
        left = sum(work.of_record(run.record) * (1 - _part(run)) for run in self.active)
        for planned in self.queue:
            left += work.of_run(*planned.key, planned.ratio)
        later = self.planned - self.ended - len(self.active) - len(self.queue)
        left += later * work.usual(self.records)
        return f"about {_duration(elapsed * left / done)} left"


@dataclass(frozen=True, slots=True)
class _Work:
    """What runs cost, in epochs of the baseline. `lengths` are the epochs of every run of a
    (network, seed), queued ones too, as a longer one goes on from a shorter one; `alike`: every
    epoch costs the same, whatever the network."""

    lengths: dict[tuple[str, int], list[int]]
    alike: bool

    @classmethod
    def of(cls, glance: Glance, queue: Sequence[Planned]) -> _Work:
        lengths: dict[tuple[str, int], list[int]] = {}
        for network, seed, epochs in (*map(_key, glance.runs), *(run.key for run in queue)):
            lengths.setdefault((network, seed), []).append(epochs)
        settings = glance.attributes.get("settings") or {}
        return cls(lengths, settings.get("equal") == "training")

    def of_run(self, network: str, seed: int, epochs: int, ratio: float) -> float:
        known = self.lengths.get((network, seed), [])
        shorter = max((length for length in known if length < epochs), default=0)
        return (epochs - shorter) * (1.0 if self.alike else ratio)

    def of_record(self, record: Record) -> float:
        candidate = record.candidate
        return self.of_run(candidate.key, record.seed, record.epochs, candidate.ratio)

    def usual(self, records: Sequence[Record]) -> float:
        """Return the mean over all runs so far."""
        return sum(map(self.of_record, records)) / len(records) if records else 0.0


# ---- moments and words


def _key(run: StoredRun) -> tuple[str, int, int]:
    return run.network, run.record.seed, run.record.epochs


def _part(run: StoredRun) -> float:
    """Return how much of a run is done."""
    if run.record.outcome is not None:
        return 1.0
    return max(run.reported, default=0) / run.record.epochs


def _seconds(moment: datetime, glance: Glance) -> float:
    """Return a moment of Optuna's, in its driver's local time, as seconds since 1970."""
    if glance.owner is None:
        return moment.timestamp()
    return moment.replace(tzinfo=UTC).timestamp() - glance.owner.ahead


def _begun(run: StoredRun, glance: Glance) -> float:
    """Return when a run was last handed out [seconds since 1970]."""
    if run.resumed is not None:
        return run.resumed
    return _seconds(run.begun, glance) if run.begun else 0.0


def _since(glance: Glance) -> float:
    """Return when the last driver took the study [seconds since 1970]."""
    return glance.owner.since if glance.owner else 0.0


def _failure(record: Record) -> str:
    """Return how a run failed, in one line."""
    assert record.outcome is not None
    note = " ".join(record.outcome.note.split())
    if len(note) > _LONG_NOTE:
        note = f"{note[:_LONG_NOTE]}..."
    words = f"{record.candidate.name}, seed {record.seed}: {record.outcome.status}"
    return f"{words} ({note})" if note else words


def _duration(seconds: float) -> str:
    """100 → '1:40', 4000 → '1 h 06 min'."""
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _minutes(minutes: int) -> str:
    if minutes < 60:
        return counted(minutes, "minute")
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _clock(moment: float, now: float) -> str:
    """Return a moment [seconds since 1970] as 12:03, with its date where that is another."""
    at, today = time.localtime(moment), time.localtime(now)
    same = (at.tm_year, at.tm_yday) == (today.tm_year, today.tm_yday)
    return time.strftime("%H:%M" if same else "%Y-%m-%d %H:%M", at)
