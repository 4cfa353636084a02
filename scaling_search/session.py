"""A run folder from start to finish: data, plan, store, executor, search; then the answer
(report/answer.py)."""

from __future__ import annotations

import logging
import math
import os
import platform
import re
import shlex
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from rich.console import Console

from effnet import atomic
from effnet.budget import human
from effnet.custom import Function
from effnet.latency import Table
from scaling_search import UserError, __version__
from scaling_search.data.dataset import FOLDS, Dataset, Facts
from scaling_search.data.samples import samples
from scaling_search.data.source import safe_name
from scaling_search.data.sources import is_choice, load_or_explain, own_path
from scaling_search.driver import sharing
from scaling_search.driver.console import say
from scaling_search.driver.devices import Machine
from scaling_search.driver.executors.local import LocalExecutor, open_local
from scaling_search.driver.executors.protocol import Executor
from scaling_search.driver.executors.replay import ReplayExecutor
from scaling_search.driver.log import LOG, log_into
from scaling_search.driver.pace import (
    Forecast,
    Pace,
    forecast,
    pace_of_rates,
    pace_of_records,
    work_left,
)
from scaling_search.driver.packing import Packing
from scaling_search.driver.place import (
    Place,
    agree_on_kernels,
    examine_machine,
    resolve_device,
    trainings_per_gpu,
)
from scaling_search.driver.progress import Live
from scaling_search.driver.search import Conditions, Limits, Search, StoppedError, runs_needed
from scaling_search.driver.signals import Stopping
from scaling_search.driver.tensorboard import FOLDER, TensorBoardLog
from scaling_search.report.answer import finish, write_table
from scaling_search.results.curves import REPLAYED, TABLE, Curves, check_known
from scaling_search.results.curves import check as check_curves
from scaling_search.results.curves import read as read_curves
from scaling_search.results.database import REMEMBERED, has_file
from scaling_search.results.database import versions as store_versions
from scaling_search.results.reader import StoreReader
from scaling_search.results.record import Record, count_ended
from scaling_search.results.store import Store
from scaling_search.study.growth import GROWING, Addition, grown
from scaling_search.study.latency import (
    Recorded,
    again,
    grown_plan,
    open_bench,
    plan_by_latency,
    save_given,
    with_times,
)
from scaling_search.study.plan import Plan, plan
from scaling_search.study.settings import Study, check, check_same, identity_hash
from scaling_search.study.wording import counted, percent
from scaling_search.training.train import versions
from scaling_search.training.trial import inside

__all__ = ["Clock", "Place", "resolve_device_and_data", "search", "train_family"]

_RETRIED = ("crashed", "timeout", "out-of-memory")  # what another machine may do better

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Clock:
    """`limit` seconds from `began` (time.monotonic()) bound the whole study, earlier sessions
    included."""

    limit: float = math.inf
    began: float = field(default_factory=time.monotonic)

    @property
    def is_up(self) -> bool:
        """Whether this session has lasted as long as the whole study may."""
        return time.monotonic() - self.began >= self.limit

    def ends(self, spent: float) -> tuple[float, float]:
        """time.monotonic() at which training stops, and testing, when earlier sessions took `spent`
        seconds; a twentieth of the limit, 8 to 60 s, is kept for testing and the report."""
        if self.limit == math.inf:
            return math.inf, math.inf
        end = self.end(spent)
        return end - min(max(0.05 * self.limit, 8.0), 60.0), end - 3

    def end(self, spent: float) -> float:
        """time.monotonic() at which the study is to have ended."""
        return self.began + self.limit - spent

    def limit_for(self, seconds: float, spent: float) -> float:
        """The limit that leaves `seconds` from now on for training."""
        seconds += time.monotonic() - self.began + spent
        return seconds + min(max(seconds / 19, 8.0), 60.0)  # a twentieth of the sum, as above


@dataclass(frozen=True, slots=True)
class _Session:
    """What is trained or replayed, where, and for how long: settled before the first run.

    `curves`: the table that is replayed, None where networks are trained; `machine`: what trains
    them, None in a replay."""

    study: Study
    todo: Plan
    data: Facts
    folder: Path
    checkpoints: str
    place: Place
    clock: Clock
    console: Console
    machine: Machine | None = None
    curves: Curves | None = None

    def say(self, label: str, text: str) -> None:
        say(self.console, label, text)


# ---- the two ways to use a run folder


def search(
    study: Study,
    *,
    label: str,
    out: Path | None,
    place: Place,
    command: str,
    console: Console,
    clock: Clock,
    replay: Path | None = None,
    known: Path | None = None,
    latency_table: Path | None = None,
    retry_failed: bool = False,
    show_images: bool = True,
    overridden: Collection[str] = (),
    for_tensorboard: bool = False,
) -> int:
    """The main job. `replay`: a table of curves in place of training; `known`: one whose runs count
    as this study's, which trains the others. `latency_table`: a file of
    measured latencies, read where it is there, else written, for budgets of latency.
    `retry_failed`: runs that crashed, timed out or ran out of memory are tried again.
    `show_images`: the report shows a few of the data's images. `overridden`:
    the settings that come from the command line and not from the study's file. `for_tensorboard`:
    every run is logged for TensorBoard too. Exit status 0; 1
    when no network of the budget finished; 128 + the signal after Ctrl-C or SIGTERM (what was
    recorded stays, and the same command goes on).

    Everything the user gave is checked before anything is written. Raises UserError."""
    if replay and known:
        raise UserError(f"--known {known}: a replay trains nothing; give it or --replay")
    curves = read_curves(replay) if replay else None
    known_runs = read_curves(known) if known else None
    if curves:
        study, data = _as_recorded(study, curves)
    else:
        study, data = resolve_device_and_data(study, console, place)
    say(console, "data", data.line)
    for note in data.notes:
        say(console, "note", note)
    folder = out or Path("runs") / _folder_name(study, data, label, is_replay=curves is not None)
    _check_folder(folder, curves, place)
    recorded = None
    if curves is None:
        recorded = _read_recorded(folder, place.store, study, data, known_runs is not None)
    more: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    if recorded:
        study, more, kept = grown(study, recorded.study, overridden)
    study, todo, latencies = _plan(study, data, recorded, curves, latency_table, console)
    _say_plan(console, study, todo, data)
    for words in kept:
        say(console, "kept", words)
    for words in more:
        say(console, "more", words)
    machine = None
    taken = []
    if known_runs:
        taken = _runs_of_study(known_runs, study, data, todo)
        _check_kernels(known_runs, taken, recorded)
    if curves:
        check_curves(curves, study, todo.everything)
    else:
        machine = examine_machine(study, todo, place, console)

    session = _Session(
        study=study,
        todo=todo,
        data=data,
        folder=folder,
        checkpoints=_checkpoints(folder, place.storage),
        place=place,
        clock=clock,
        console=console,
        machine=machine,
        curves=curves,
    )
    identity = study.identity(data.digest)
    facts = study_facts(study, todo, data, command, identity, machine)
    facts["folder"] = folder.resolve().name
    if not curves and show_images and recorded is None:  # else they are on record
        facts["samples"] = samples(Path(data.folder), _shown_sides(todo))
    if latencies:
        facts["latencies"] = Recorded.of(study, todo, latencies).as_dict()
    # a replay takes seconds, and is not worth a database
    if curves:
        store = Store.in_memory(facts)
    else:
        store = Store.create(folder, identity, facts, place.store, growing=GROWING)
    with store, log_into(folder) as log_file:
        logger.info("%s begins: %s", label or "search", command)
        if more:
            _record_addition(store, more, facts, todo)
        if known_runs:
            all_runs = len(known_runs.records())
            words = f"{len(taken)} of the {counted(all_runs, 'run')} of {known_runs.path}"
            say(console, "known", f"{words} are taken")
            _take(store, taken)
        if retry_failed:
            _free_failed(store, console)
        with _logged_for_tensorboard(session, store) if for_tensorboard else nullcontext():
            status = _train(session, store, log_file)
        if latencies and machine and not status:
            _measure_again(session, store, latencies)
        has_results = any(r.outcome for r in store.records())
        if has_results and curves:  # in place of study.db
            write_table(store, folder / TABLE, is_replay=True)
        if has_results and not finish(store, folder, console):
            status = status or 1
        if has_results:
            store.set_fact("answered", len(store.records()))
    return status


def _check_folder(folder: Path, curves: Curves | None, place: Place) -> None:
    """Raise UserError for a folder that holds what this study would write over: trained runs where
    `curves` are replayed, a recorded study's table where it is not a replay's own."""
    has_runs = has_file(folder) or (folder / REMEMBERED).exists() or place.store is not None
    if curves and has_runs:
        raise UserError(
            f"run folder {folder} holds trained runs, not to be mixed with replayed ones; choose "
            "another"
        )
    table = folder / TABLE
    if has_runs or not table.exists():
        return
    if curves is None:
        raise UserError(
            f"run folder {folder} holds the table of a recorded study, and no database of runs; "
            f"choose another with --out, and go on with --known {shlex.quote(str(table))}"
        )
    is_replays = False
    with suppress(UserError):  # whatever else lies there
        is_replays = bool(read_curves(table).fact(REPLAYED))
    if not is_replays:
        raise UserError(
            f"run folder {folder} holds the table of a recorded study, which a replay would write "
            "over; choose another with --out, or remove it where it is an earlier replay's"
        )


def _runs_of_study(curves: Curves, study: Study, data: Facts, todo: Plan) -> list[Record]:
    """The runs of a table that count as this study's, each with its network as the plan has it: of
    another study's it may have the role, the budget and the directions of that one.

    Raises UserError where they were trained otherwise, or are of no network of the plan."""
    check_known(curves, study, data.digest)
    # a reference is in the pool too, where TPE proposes
    networks = {c.key: c for c in (*todo.pool, *todo.everything)}
    runs = []
    for record in curves.records():
        network = networks.get(record.candidate.key)
        if record.outcome and network and record.epochs in study.rungs:
            runs.append(replace(record, candidate=network))
    if not runs:
        raise UserError(
            f"{curves.path}: none of its {len(curves.records())} runs is of a network of this "
            "study; its own baseline and budget are in it, or in the study.toml beside it"
        )
    return runs


def _check_kernels(curves: Curves, taken: Sequence[Record], recorded: _Recorded | None) -> None:
    """Raise UserError where the runs of a table were trained with several kernels, or with others
    than those that are recorded: their last bits differ."""
    kernels = _kernels(taken)
    if recorded and recorded.kernels:
        kernels |= {recorded.kernels}
    if len(kernels) > 1:
        raise UserError(
            f"{curves.path}: its runs and those of this study were trained with several kernels "
            f"({', '.join(sorted(kernels))}), whose last bits differ: they are no one study's"
        )


def _kernels(records: Sequence[Record]) -> set[str]:
    """The kernels that these runs were trained with."""
    return {r.outcome.versions.get("kernels", "") for r in records if r.outcome} - {""}


def _take(store: Store, runs: Sequence[Record]) -> None:
    """Record these runs but for those that are recorded, and before them the kernels that they were
    trained with, which every other run has to be trained with too."""
    for kernels in _kernels(runs):
        store.set_fact("kernels", kernels)
    for record in runs:
        earlier = store.recorded(record.key)
        if earlier is None or earlier.outcome is None:
            store.take(record)


def train_family(
    study: Study,
    todo: Plan,
    data: Facts,
    folder: Path,
    workers: int | None,
    console: Console,
    retry_failed: bool = False,
) -> tuple[int, list[Record]]:
    """Train a plan that no space was searched for; exit status and the runs. `retry_failed` as in
    `search`. Raises UserError."""
    place = Place(workers=workers)
    machine = examine_machine(study, todo, place, console)
    checkpoints = _checkpoints(folder, None)
    session = _Session(study, todo, data, folder, checkpoints, place, Clock(), console, machine)
    identity = study.identity(data.digest) | {"family": [c.key for c in todo.candidates]}
    command = f"scaling-search family, in {shlex.quote(str(folder))}"
    facts = study_facts(study, todo, data, command, identity, machine)
    store = Store.create(folder, identity, facts)
    with store, log_into(folder) as log_file:
        logger.info("%s begins", command)
        if retry_failed:
            _free_failed(store, console)
        status = _train(session, store, log_file)
        return status, store.records()


# ---- a study that grows


@dataclass(frozen=True, slots=True)
class _Recorded:
    """The study that a run folder holds. `candidates`: keys of the networks that it compares, where
    some were added later; empty where they are those of its plan."""

    study: Study
    candidates: tuple[str, ...]
    latencies: Recorded | None = None  # what its networks were chosen by
    kernels: str = ""  # that its runs were trained with; "" before the first, or not asked for

    def is_growing(self, study: Study) -> bool:
        """Whether `study` compares another number of networks."""
        return self.study.space.candidates != study.space.candidates


def _read_recorded(
    folder: Path, url: str | None, study: Study, data: Facts, with_kernels: bool
) -> _Recorded | None:
    """The study that is recorded there, if it is `study` but for what may grow; its kernels where
    they are asked for, since all its runs are read for them. None where there is none, or another,
    or it cannot be read: whoever opens the store to write says which."""
    with suppress(UserError), StoreReader.open(folder, url) as reader:
        settings = reader.fact("settings")
        if settings is None:
            return None
        recorded = check(settings, str(folder))
        check_same(folder, recorded.identity(data.digest), study.identity(data.digest), GROWING)
        candidates, latencies = reader.fact("candidates"), reader.fact("latencies")
        of_latency = recorded.budgets[0].of == "latency"  # planned by measurements, not again
        if (
            candidates is None
            and not of_latency
            and recorded.space.candidates != study.space.candidates
        ):
            candidates = [c.key for c in plan(recorded, data.classes, data.native).candidates]
        known = Recorded.read(latencies, recorded) if latencies else None
        kernels = None
        if with_kernels and reader.records():  # that of a study without runs binds nobody
            kernels = reader.fact("kernels")
        return _Recorded(recorded, tuple(candidates or ()), known, kernels or "")
    return None


def _record_addition(
    store: Store, more: tuple[str, ...], facts: dict[str, object], todo: Plan
) -> None:
    """The study grows: what was added, when, and which runs were there by then."""
    known = [record.key for record in store.records() if record.outcome]
    addition = Addition(time.strftime("%Y-%m-%d %H:%M"), more, tuple(known))
    earlier = store.fact("additions") or []
    store.set_fact("additions", [*earlier, addition.as_dict()])
    store.set_fact("candidates", [candidate.key for candidate in todo.candidates])
    for name in ("settings", "planned", "notes", "latencies", "command"):
        if name in facts:
            store.set_fact(name, facts[name])
    logger.info("the study grows: %s", addition)


# ---- what is settled before the first run


def _plan(
    study: Study,
    data: Facts,
    recorded: _Recorded | None,
    curves: Curves | None,
    latency_table: Path | None,
    console: Console,
) -> tuple[Study, Plan, Table | None]:
    """The study, its plan, and the latencies that it went by where its budget is one. Raises
    UserError."""
    earlier = recorded.candidates if recorded else ()
    with console.status("planning") as line:

        def progress(words: str) -> None:
            line.update(f"planning: {words}")

        if study.budgets[0].of != "latency":
            if latency_table:
                raise UserError(
                    f"--latency-table {latency_table}: for a budget of latency, such as 2x latency "
                    f"or 5ms; this one is {study.budgets[0]}"
                )
            return study, plan(study, data.classes, data.native, earlier, progress), None
        was = recorded.latencies if recorded else None
        if curves:
            if curves.fact("latencies") is None:
                raise UserError(f"{curves.path}: no latencies were recorded with its runs")
            was = Recorded.read(curves.fact("latencies"), study)
        if was:
            was_planned = len(was.plan.candidates) >= (study.space.candidates or 0)
            if curves or recorded is None or was_planned or not recorded.is_growing(study):
                return with_times(study, was.times), was.plan, was.table
        with open_bench(study, was.table if was else None, latency_table) as bench:
            if was:
                study, todo = grown_plan(study, was, data.classes, data.native, bench, progress)
            else:
                study, todo = plan_by_latency(study, data.classes, data.native, (), bench, progress)
        if latency_table and bench.stopwatch:
            save_given(latency_table, study, bench.table)
        return study, todo, bench.table


def _measure_again(session: _Session, store: Store, table: Table) -> None:
    """Measure the networks' latencies once more after the training, unless that was done, the time
    is up, or this is another machine than they were measured on."""
    networks = sorted(candidate.key for candidate in session.todo.candidates)
    if store.fact("latency again of") == networks or session.clock.is_up:
        return
    try:
        with open_bench(session.study, table, None) as bench:
            if bench.stopwatch is None:
                return
            with session.console.status("measuring latencies again"):
                words = again(bench, session.todo)
    except UserError as error:  # the answer does not depend on it
        session.say("latency", f"not measured again: {error}")
        return
    store.set_fact("latency again", [f"Latency: {words}."])
    store.set_fact("latency again of", networks)
    session.say("latency", words)


def resolve_device_and_data(
    study: Study, console: Console, place: Place | None = None
) -> tuple[Study, Facts]:
    """The study with `auto` replaced by its device and its data set, and what the data are.

    `place`: where it runs, by default this machine. Raises UserError."""
    device = resolve_device(study, place or Place(), console)
    with console.status("reading data (once; it is cached)"):
        data = load_or_explain(study.data.source, study.reading)
    # a device and a data set that `auto` stood for are part of the study from here on
    settings = study.settings()
    settings["device"] = device
    settings["budgets"] = _with_device(study, device)
    channels = data.input_channels(study.data.channels)
    settings["data"]["channels"] = None if channels == data.channels == 3 else channels
    path = own_path(study.data.source)
    if is_choice(study.data.source):
        settings["data"]["source"] = data.name
    elif path.exists():
        settings["data"]["source"] = str(path.resolve())  # study.toml can be run from anywhere
    return check(settings, "study"), data.facts(study.data.train_images, study.data.val_images)


def _with_device(study: Study, device: str) -> list[str]:
    """The budgets, those of a latency on the study's own device where they name none."""
    budgets = []
    for budget in study.budgets:
        if budget.of == "latency" and not budget.device:
            budget = replace(budget, device=device)  # type: ignore[arg-type]
        budgets.append(str(budget))
    return budgets


def _as_recorded(study: Study, curves: Curves) -> tuple[Study, Facts]:
    """The study with the device and the data of a table, and what these data are. Raises UserError
    for a study of other data."""
    recorded = curves.study
    wanted = Path(study.data.source).stem
    names = (curves.data.name, Path(recorded.data.source).stem)
    same = wanted in names or safe_name(Path(study.data.source)) in names
    if not is_choice(study.data.source) and not same:
        raise UserError(
            f"{curves.path}: its runs are of {curves.data.name}, the study's data are "
            f"{study.data.source}"
        )
    settings = study.settings()
    settings["data"]["source"] = curves.data.name
    settings["data"]["channels"] = recorded.data.channels
    settings["device"] = recorded.device if study.device == "auto" else study.device
    settings["budgets"] = _with_device(study, settings["device"])
    return check(settings, "study"), curves.data


def _folder_name(study: Study, data: Facts, label: str, is_replay: bool) -> str:
    """The name of a run folder for which the user gave none: data, budgets, preset."""
    budgets = "_".join(str(budget) for budget in study.budgets)
    parts = [data.name, budgets, label]
    if is_replay:
        parts.append("replay")
    name = "-".join(part for part in parts if part)
    return re.sub(r"[^\w.,+-]", "_", name).lstrip(".")


def _checkpoints(folder: Path, storage: str | None) -> str:
    """The place where the runs of a run folder keep their checkpoints. Raises UserError for an
    address that leads nowhere."""
    if storage is None:
        return str(folder.resolve() / "checkpoints")
    if "://" not in storage:
        return str(Path(storage).resolve() / folder.resolve().name)
    from scaling_search.training import remote

    remote.check(storage)
    return inside(storage, folder.resolve().name)


def _shown_sides(todo: Plan) -> list[tuple[int, int]]:
    """Rows and columns of the smallest, the middle and the largest images that are trained."""
    sides = sorted({candidate.arch.sides for candidate in todo.candidates})
    return list(dict.fromkeys((sides[0], sides[len(sides) // 2], sides[-1])))


def study_facts(
    study: Study,
    todo: Plan,
    data: Facts,
    command: str,
    identity: dict[str, object],
    machine: Machine | None,
) -> dict[str, object]:
    """What describes the study to the readers of its results, as plain data for JSON."""
    networks = ", ".join(f"{count} networks at {b}" for b, count in todo.sizes.items())
    notes = [f"The space holds {networks}; {len(todo.candidates)} were chosen."]
    notes += [*(f"Data: {note}." for note in data.notes), *todo.notes]
    if machine:
        notes += [f"This machine failed a check of its numbers. {w}" for w in machine.warnings]
    targets: dict[str, float] = {}
    if study.space.mode != "nominal":
        targets = {str(b): b.target(b.measure(todo.baseline.arch)) for b in study.budgets}
    return {
        "settings": study.settings(),
        "data": data.line,
        "dataset": data.name,
        "data facts": {**asdict(data), "folder": ""},
        "command": command,
        "notes": notes,
        "targets": targets,
        "planned": runs_needed(study, todo),
        "provenance": {
            "data digest": data.digest,
            "study": identity_hash(identity),
            "begun": time.strftime("%Y-%m-%d %H:%M"),
            "hardware": _hardware(machine),
            "versions": _versions(machine),
        },
    }


def _hardware(machine: Machine | None) -> str:
    hardware = f"{platform.machine()}, {os.cpu_count()} cores"
    return f"{machine.gpu}; {hardware}" if machine and machine.gpu else hardware


def _versions(machine: Machine | None) -> str:
    training = versions(machine.kernels if machine else "")
    installed = {"scaling-search": __version__, **training, **store_versions()}
    return ", ".join(f"{name} {version}" for name, version in installed.items() if version)


def _say_plan(console: Console, study: Study, todo: Plan, data: Facts) -> None:
    base, spec = todo.baseline, study.baseline
    blocks = f"{base.arch.blocks} blocks, " if base.arch.blocks else ""
    baseline = (
        f"{base.arch.name}, {blocks}width {spec.width:g}, at {base.arch.px} · "
        f"{human(base.cost.macs)} FLOPs (multiply-adds)"
    )
    if base.waste > 0.005:
        baseline += f" · wastes {percent(base.waste)}"
    say(console, "baseline", baseline)
    for budget in study.budgets:
        chosen = [c for c in todo.candidates if c.budget == budget]
        base_cost = budget.measure(base.arch)
        target = budget.target(base_cost)
        if study.space.mode == "nominal":
            costs = [c.ratio for c in chosen]
            kind = f"nominally {budget}, really {min(costs):.2f}x to {max(costs):.2f}x"
        else:
            tolerance = f"{budget.tolerance:.0%}"
            kind = f"{target / base_cost:.2f}x = {budget.quantity(target)} ± {tolerance}"
        distinct = todo.sizes[str(budget)]
        say(console, "budget", f"{kind} · {distinct} distinct networks, {len(chosen)} chosen")
    shrunk = _shrunk_words(todo, data.native)
    if shrunk:
        say(console, "images", shrunk)
    for note in todo.notes:
        say(console, "note", note)


def _shrunk_words(todo: Plan, native: int) -> str:
    """What becomes of images of `native` px that are larger than the networks' inputs; "" where
    none is shrunk."""
    sides = [candidate.arch.sides[0] for candidate in todo.everything]
    least, most = min(sides), max(sides)
    if least >= native:
        return ""
    trained = f"{least} px" if least == most else f"{least} to {most} px"
    return f"{native} px originals, trained at {trained} (shrunk for each network)"


# ---- training


@contextmanager
def _logged_for_tensorboard(session: _Session, store: Store) -> Iterator[None]:
    """Within this block every run is logged for TensorBoard, those before it too."""
    session.say("log", f"tensorboard --logdir {session.folder / FOLDER}")
    with closing(TensorBoardLog(session.folder, session.study.recipe)) as log:
        log.catch_up(store.records())
        store.listener = log
        try:
            yield
        finally:
            store.listener = None


def _train(session: _Session, store: Store, log_file: Path) -> int:
    """Train or replay whatever the study lacks; the exit status. Raises UserError."""
    study, machine, folder = session.study, session.machine, session.folder
    kernels = ""
    if machine:
        kernels = agree_on_kernels(store, study, folder, machine, session.place)
        logger.info("%s; %s", _hardware(machine), _versions(machine))
    # what is run, with every default: `--study` of another machine takes it
    atomic.write(folder / "study.toml", study.to_toml().encode())
    base = study.network()
    if isinstance(base, Function):
        _keep_source(base, folder / "baseline.py")
    finished = count_ended(store.records())
    if finished:
        session.say("resume", f"{finished} runs are recorded in {folder}")
    planned = max(runs_needed(study, session.todo) - finished, 0)
    spent = store.fact("spent") or 0.0
    until, test_until = session.clock.ends(spent)
    with Stopping(lambda: _say_stopping(session)) as stopping:
        limits = Limits(until, test_until, stopping)
        try:
            with closing(_open_executor(session, log_file)) as executor:
                packing = _share_gpus(session, store, executor, kernels, planned, limits)
                at_once = executor.workers
                if packing and isinstance(executor, LocalExecutor):
                    at_once = packing.level * len(executor.devices)
                pace = None
                if limits.are_given:
                    pace = _find_pace(session, store, executor, kernels, at_once, limits)
                conditions = Conditions(
                    study.device,
                    session.checkpoints,
                    kernels,
                    packing,
                    log_name=LOG,
                )
                _run_search(
                    session, store, executor, conditions, limits, planned, spent, at_once, pace
                )
        except StoppedError:
            store.set_fact("state", "stopped")
            recorded = count_ended(store.records())
            session.say(
                "stopped", f"{recorded} runs are recorded; the same command goes on from here"
            )
            return stopping.status
        except UserError:
            with suppress(UserError):  # the store may be what failed
                store.set_fact("state", "stopped")
            raise
        finally:
            # also after a failure: --time bounds the sum over all sessions
            with suppress(UserError):  # whatever is wrong with the store has been said
                store.set_fact("spent", spent + time.monotonic() - session.clock.began)
    return 0


def _keep_source(function: Function, path: Path) -> None:
    """Put a copy of a function's file into the run folder. Raises UserError where another file of
    that name is there."""
    source = function.source.encode()
    if path.exists() and path.read_bytes() != source:
        raise UserError(
            f"{path}: a file of yours is where the study's copy of {function.name} goes; choose "
            "another folder with --out"
        )
    atomic.write(path, source)


def _run_search(
    session: _Session,
    store: Store,
    executor: Executor,
    conditions: Conditions,
    limits: Limits,
    planned: int,
    spent: float,
    at_once: int,
    pace: Pace | None,
) -> None:
    """Train what is missing and say how it ended. `spent`: seconds of earlier sessions; `at_once`:
    how many runs there are at a time; `pace`: theirs, None where it is not known yet."""
    clock = session.clock

    def coming(pace: Pace) -> Forecast:
        return forecast(session.study, session.todo, store.records(), pace, at_once)

    def limit_for(seconds: float) -> float:
        return clock.limit_for(seconds, spent)

    def say_what_fits() -> None:
        known = pace or pace_of_records(store.records())
        if known is not None:
            left = limits.until - time.monotonic()
            session.say("time", coming(known).words(clock.limit, left, limit_for))

    if pace is not None:
        say_what_fits()
    unsaid = limits.are_given and pace is None and session.curves is None
    with Live(
        session.console,
        planned,
        work=None if session.curves else work_left(session.study, session.todo, store.records()),
        budgets=len(session.study.budgets),
        earlier=store.records(),
        began=clock.began,
        end=clock.end(spent),
        on_first=say_what_fits if unsaid else None,
    ) as live:
        job = Search(
            session.study,
            session.todo,
            session.data,
            store,
            executor,
            live,
            conditions,
            limits=limits,
            recorded=session.curves.by_key() if session.curves else None,
            known=_known_before(store),
        )
        store.set_fact("state", "running")
        trained = job.run()
        store.set_fact("state", "out of time" if job.out_of_time else "finished")
    logger.info("%d runs were trained", trained)
    if job.out_of_time:
        words = "is up; the same command goes on from here, with more --time"
        known = pace_of_records(store.records()) or pace
        if known is not None and coming(known).ends:
            words = f"{words}: {coming(known).wants(limit_for)}"
        session.say("time", words)
    elif not trained:
        session.say("nothing", "left to train: every run of this study is recorded")


def _find_pace(
    session: _Session,
    store: Store,
    executor: Executor,
    kernels: str,
    at_once: int,
    limits: Limits,
) -> Pace | None:
    """How long an epoch takes: by runs on record, else by a few training steps of the cheapest and
    the costliest network, `at_once` trainings beside one another. None where neither can be had, as
    on a cluster: the first runs tell."""
    known = pace_of_records(store.records())
    if known is not None or not isinstance(executor, LocalExecutor) or session.curves:
        return known
    study, todo = session.study, session.todo
    load = sharing.workload(study, todo, session.data, kernels, session.checkpoints, 0)
    networks = sorted((todo.baseline, *todo.candidates), key=lambda c: c.cost.macs)
    networks = [networks[0], networks[-1]]
    with session.console.status("timing a few training steps, to say what fits into the time"):
        trials = [replace(load.typical, arch=network.arch) for network in networks]
        rates = executor.time_steps(trials, at_once, limits.training_is_over)
    val_images = study.data.val_images
    if val_images is None:  # one of the folds
        val_images = len(Dataset.open(Path(session.data.folder)).train_labels) // FOLDS
    return pace_of_rates(
        list(zip(networks, rates, strict=True)),
        load.steps * study.recipe.batch // study.rungs[0],
        val_images,
        "by the pace of a few training steps of the cheapest and the costliest network",
    )


def _known_before(store: Store) -> tuple[tuple[str, int, int], ...]:
    """The runs that were there when the study last grew; none where it never did."""
    additions = store.fact("additions")
    if not additions:
        return ()
    return Addition.from_dict(additions[-1]).known


def _open_executor(session: _Session, log_file: Path) -> Executor:
    """What runs the session's trainings; `log_file` keeps what local workers write to stderr.
    Raises UserError."""
    if session.curves:
        return ReplayExecutor(session.curves)
    place, study, data = session.place, session.study, session.data
    if place.executor == "local":
        return open_local(place.workers, study.device, study.threads, place.devices, log_file)
    from scaling_search.driver.executors.ray import RayExecutor

    return RayExecutor(
        place.workers,
        study.device,
        study.threads,
        Path(data.folder),
        data.digest,
        session.checkpoints,
        place.ray_address,
        devices=place.devices,
        per_gpu=trainings_per_gpu(study, session.todo, session.machine),
    )


def _share_gpus(
    session: _Session,
    store: Store,
    executor: Executor,
    kernels: str,
    planned: int,
    limits: Limits,
) -> Packing | None:
    """How trainings share the GPUs of this machine; None where there are none: on a CPU, or under
    Ray, which shares them itself."""
    machine = session.machine
    if machine is None or not machine.memory or not isinstance(executor, LocalExecutor):
        return None
    load = sharing.workload(
        session.study, session.todo, session.data, kernels, session.checkpoints, planned
    )
    return sharing.settle(
        load,
        machine,
        executor,
        session.place.workers,
        store,
        limits.training_is_over,
        session.console,
    )


def _free_failed(store: Store, console: Console) -> None:
    """Runs that crashed, timed out or ran out of memory are to be tried again, as on a machine that
    has been mended; those that diverged would do so again."""
    freed: Counter[str] = Counter()
    for record in store.records():
        if record.outcome and record.outcome.status in _RETRIED:
            store.free(record.number, "--retry-failed")
            freed[record.outcome.status] += 1
    kinds = ", ".join(f"{count} {status}" for status, count in sorted(freed.items()))
    details = f" ({kinds})" if freed else ""
    say(console, "retry", f"{freed.total()} runs that failed{details} are tried again")


def _say_stopping(session: _Session) -> None:
    session.say("stopping", "each run writes its checkpoint; again, and it stops at once")
