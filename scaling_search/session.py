"""A run folder from start to finish: data, plan, store, executor, search; then the answer
(answer.py)."""

from __future__ import annotations

import math
import os
import platform
import re
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from rich.console import Console

from effnet import atomic
from effnet.budget import human
from scaling_search import UserError, __version__
from scaling_search.data.dataset import Facts
from scaling_search.data.sources import is_choice, load_or_explain, own_path
from scaling_search.driver import devices, sharing
from scaling_search.driver.devices import Machine
from scaling_search.driver.executors import open_executor
from scaling_search.driver.executors.local import LocalExecutor
from scaling_search.driver.executors.protocol import Executor
from scaling_search.driver.executors.replay import ReplayExecutor
from scaling_search.driver.progress import Live, say
from scaling_search.driver.search import Search, StoppedError, runs_needed
from scaling_search.driver.signals import Stopping
from scaling_search.report.answer import finish, write_table
from scaling_search.results.curves import TABLE, Curves
from scaling_search.results.curves import check as check_curves
from scaling_search.results.curves import read as read_curves
from scaling_search.results.record import Record
from scaling_search.results.store import Store
from scaling_search.results.store import versions as store_versions
from scaling_search.study.plan import Plan, plan
from scaling_search.study.settings import Study, check, identity_hash
from scaling_search.training.train import versions
from scaling_search.training.trial import inside
from scaling_search.verdict.narration import percent


@dataclass(frozen=True, slots=True)
class Place:
    """Where a study runs and what it writes to: no part of its identity. None: this machine, the
    run folder."""

    executor: str = "local"
    workers: int | None = None
    ray_address: str | None = None
    devices: tuple[int, ...] | None = None  # of this machine's GPUs, these alone; None: every one
    check: bool = True  # the numbers of a GPU, once per machine and torch release
    storage: str | None = (
        # of checkpoints: a folder that all nodes share, or an address such as s3://bucket/path
        None
    )
    store: str | None = None  # postgresql://...


@dataclass(frozen=True, slots=True)
class Clock:
    """`limit` seconds from `began` (time.monotonic()) bound the whole study, earlier sittings
    included."""

    limit: float = math.inf
    began: float = field(default_factory=time.monotonic)

    def ends(self, spent: float) -> tuple[float, float]:
        """time.monotonic() at which training stops, and testing, `spent` seconds having gone
        before; some is left for the report."""
        if self.limit == math.inf:
            return math.inf, math.inf
        end = self.began + self.limit - spent
        return end - min(max(0.05 * self.limit, 8.0), 60.0), end - 3


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
) -> int:
    """The main job. `replay`: a table of curves in place of training. Exit status 0; 1 when no
    network of the budget finished; 128 + the signal after Ctrl-C or SIGTERM (what was recorded
    stays, and the same command goes on).

    Everything the user gave is checked before anything is written. Raises UserError."""
    curves = read_curves(replay) if replay else None
    if curves:
        study, data = _recorded(study, curves)
    else:
        study, data = resolve_device_and_data(study, console, place)
    say(console, "data", data.line)
    with console.status("planning"):
        todo = plan(study, data.classes, data.native)
    _say_plan(console, study, todo)
    machine = None
    if curves:
        check_curves(curves, study, todo.everything)
    else:
        machine = _examine_machine(study, todo, place, console)

    names = [data.name, "_".join(map(str, study.budgets)), label, "replay" if curves else ""]
    folder = out or Path("runs") / re.sub(r"[^\w.,+-]", "_", "-".join(filter(None, names))).lstrip(
        "."
    )
    identity = study.identity(data.digest)
    facts = _facts(study, todo, data, command, identity, machine)
    if curves and (folder / "study.db").exists():
        raise UserError(
            f"run folder {folder} holds trained runs, not to be mixed with replayed ones; choose another"
        )
    checkpoints = _checkpoints(folder, place.storage)
    store = Store.in_memory(facts) if curves else Store.create(folder, identity, facts, place.store)
    try:
        status = _train(
            study, todo, data, store, folder, checkpoints, place, clock, curves, machine, console
        )
        if any(r.outcome for r in store.records()):
            if curves:  # in place of study.db
                write_table(store, folder / TABLE)
            answered = finish(store, folder, console)
            if status == 0 and not answered:
                status = 1
    finally:
        store.close()
    return status


def _train(
    study: Study,
    todo: Plan,
    data: Facts,
    store: Store,
    folder: Path,
    checkpoints: str,
    place: Place,
    clock: Clock,
    curves: Curves | None,
    machine: Machine | None,
    console: Console,
) -> int:
    kernels = _agreed_kernels(store, study, folder, machine, place) if machine else ""
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write(folder / "study.toml", study.to_toml().encode())
    finished, spent = (
        sum(r.outcome is not None for r in store.records()),
        store.fact("spent") or 0.0,
    )
    if finished:
        say(console, "resume", f"{finished} runs are recorded in {folder}")
    planned = max(runs_needed(study, todo) - finished, 0)
    known = curves.by_key() if curves else {}
    where: Executor | None = None
    with Stopping(
        lambda: say(
            console, "stopping", "each run writes its checkpoint; again, and it stops at once"
        )
    ) as asked:
        try:
            where = (
                ReplayExecutor(curves)
                if curves
                else open_executor(
                    place.executor,
                    place.workers,
                    study.device,
                    study.threads,
                    data,
                    checkpoints,
                    place.ray_address,
                    devices=place.devices,
                    per_gpu=_per_gpu(study, todo, machine),
                )
            )
            until, test_until = clock.ends(spent)
            packing = None
            if machine and machine.memory and isinstance(where, LocalExecutor):
                packing = sharing.settle(
                    sharing.workload(study, todo, data, kernels, checkpoints, planned),
                    machine,
                    where,
                    place.workers,
                    store,
                    lambda: asked() or time.monotonic() >= until,
                    console,
                )
            with Live(console, planned, where.workers) as live:
                job = Search(
                    study,
                    todo,
                    data,
                    store,
                    where,
                    live,
                    device=study.device,
                    kernels=kernels,
                    checkpoints=checkpoints,
                    until=until,
                    test_until=test_until,
                    exists=lambda network, seed, epochs: (
                        not curves or (network, seed, epochs) in known
                    ),
                    stopping=asked,
                    packing=packing,
                )
                store.set_fact("state", "running")
                trained = job.run()
                store.set_fact("state", "out of time" if job.out_of_time else "finished")
        except StoppedError:
            store.set_fact("state", "stopped")
            recorded = sum(r.outcome is not None for r in store.records())
            say(
                console,
                "stopped",
                f"{recorded} runs are recorded; the same command goes on from here",
            )
            return asked.status
        finally:
            if where:
                where.close()
            with suppress(UserError):  # whatever is wrong with the store has been said
                store.set_fact("spent", spent + time.monotonic() - clock.began)
    if job.out_of_time:
        say(console, "time", "is up; the same command goes on from here, with more --time")
    elif not trained:
        say(console, "nothing", "left to train: every run of this study is recorded")
    return 0


def _checkpoints(folder: Path, storage: str | None) -> str:
    """Where the runs of a run folder keep theirs. Raises UserError for an address that leads
    nowhere."""
    if storage is None:
        return str(folder.resolve() / "checkpoints")
    if "://" not in storage:
        return str(Path(storage).resolve() / folder.resolve().name)
    from scaling_search.training import remote

    remote.check(storage)
    return inside(storage, folder.resolve().name)


def train_family(
    study: Study, todo: Plan, data: Facts, folder: Path, workers: int | None, console: Console
) -> tuple[int, list[Record]]:
    """Train a plan that no space was searched for; exit status and the runs. Raises UserError."""
    identity = study.identity(data.digest) | {"family": [c.key for c in todo.candidates]}
    place, checkpoints = Place(workers=workers), _checkpoints(folder, None)
    machine = _examine_machine(study, todo, place, console)
    command = f"scaling-search family, in {folder}"
    store = Store.create(folder, identity, _facts(study, todo, data, command, identity, machine))
    try:
        status = _train(
            study, todo, data, store, folder, checkpoints, place, Clock(), None, machine, console
        )
        return status, store.records()
    finally:
        store.close()


def resolve_device(study: Study, place: Place, console: Console) -> str:
    """cpu or cuda: of this machine or, with a Ray address, of that cluster.

    Raises UserError for a device that is not there, or a library of the recipe that is not here."""
    if place.ray_address is not None:
        from scaling_search.driver.executors.ray import resolve_on_cluster

        return resolve_on_cluster(place.ray_address, study.device, place.devices)
    device, note = devices.resolve(study.device, place.devices)
    if note:
        say(console, "note", note)
    return device


def resolve_device_and_data(
    study: Study, console: Console, place: Place | None = None
) -> tuple[Study, Facts]:
    """The study with `auto` replaced by its device and its data set, and what the data are.

    `place`: where it runs, by default this machine. Raises UserError."""
    device = resolve_device(study, place or Place(), console)
    with console.status("reading data (once; it is cached)"):
        data = load_or_explain(study.data.source)
    # a device and a data set that were found for `auto` are part of the study from here on
    settings = study.settings()
    settings["device"] = device
    if is_choice(study.data.source):
        settings["data"]["source"] = data.name
    elif (path := own_path(study.data.source)).exists():
        settings["data"]["source"] = str(path.resolve())  # study.toml can be run from anywhere
    return check(settings, "study"), data.facts(study.data.train_images, study.data.val_images)


def _examine_machine(study: Study, todo: Plan, place: Place, console: Console) -> Machine:
    """What trains the study: this machine, or the nodes of its cluster; what is slow or does not
    fit is said. Raises UserError where nothing could be trained."""
    cuda = study.device == "cuda"
    wait = (
        "checking the numbers of each kind of GPU (once; it is remembered)"
        if cuda and place.check
        else ""
    )
    with console.status(wait or "looking at the devices"):
        if place.ray_address is not None:
            from scaling_search.driver.executors.ray import describe_cluster

            machine = describe_cluster(
                place.ray_address, study.device, study.threads, cuda and place.check
            )
        else:
            machine = devices.describe(study.device, place.devices)
            if cuda and place.check:
                machine = devices.check_numbers(machine, place.devices)
    if cuda and not place.check:  # Triton's kernels are for where they are known to agree
        machine = replace(machine, kernels="torch")
    for warning in machine.warnings:
        say(console, "check", f"FAIL {warning}; scaling-search check says more")
    if cuda and machine.kernels == "torch":
        reason, remedy = _why_no_triton(machine, place)
        say(console, "note", f"{reason}: plain modules train; {remedy}, before the first run")
    if study.device == "cpu" and machine.why_no_kernels:
        say(
            console,
            "note",
            f"numba cannot be imported ({machine.why_no_kernels}): plain modules train, 2 to 5 times "
            "slower on a CPU; pip install numba, before the first run",
        )
    if machine.memory:
        networks = [c.arch for c in todo.everything]
        if note := devices.check_memory(study, networks, machine):
            say(console, "note", note)
    return machine


def _why_no_triton(machine: Machine, place: Place) -> tuple[str, str]:
    """Why plain modules train a study on CUDA, and what would change that."""
    if machine.why_no_kernels:
        return f"Triton cannot be imported ({machine.why_no_kernels})", "pip install triton"
    if not place.check:
        return "Triton's kernels are not checked, for --no-check", "leave --no-check out"
    if machine.triton_failure:
        reason = f"Triton's kernels are not used, since a check failed ({machine.triton_failure})"
        return reason, "see scaling-search check"
    return "Triton's kernels are not checked, for no node has answered", "wait until a GPU is idle"


def _per_gpu(study: Study, todo: Plan, machine: Machine | None) -> int:
    """How many trainings share a GPU under Ray, which counts by fractions, when nobody says.

    At most 2, unmeasured: without MPS, processes take turns on a card, and while two fill each
    other's gaps, more wait for one another and each takes memory."""
    if machine is None or not machine.memory:
        return 1
    return devices.trainings_per_gpu(study, [c.arch for c in todo.everything], machine, 2)


def _agreed_kernels(
    store: Store, study: Study, folder: Path, machine: Machine, place: Place
) -> str:
    """The kernels of every run of this study, recorded when it begins.

    Raises UserError where its runs so far were trained with others: their last bits differ."""
    records = store.records()
    recorded = store.fact("kernels")
    if recorded is None:
        # earlier releases kept them with each run, and had plain modules alone on CUDA
        named = [r.outcome.versions.get("kernels", "") for r in records if r.outcome and r.done]
        known = [name for name in named if name]
        if known:
            recorded = "torch" if study.device == "cuda" else known[0]
    if recorded is None or not records:  # nothing was trained yet
        recorded = machine.kernels
    store.set_fact("kernels", recorded)
    plain_on_cuda = study.device == "cuda" and recorded == "torch"  # which every machine has
    if recorded != machine.kernels and not plain_on_cuda:
        reason, remedy = machine.why_no_kernels, f"go on where {recorded}'s are"
        if study.device == "cuda" and machine.kernels == "torch":
            reason, remedy = _why_no_triton(machine, place)
        raise UserError(
            f"run folder {folder} was trained with the kernels of {recorded}, here they are those of "
            f"{machine.kernels}{f' ({reason})' if reason else ''}, whose last bits differ: {remedy}, "
            "or choose another folder with --out"
        )
    return str(recorded)


def _recorded(study: Study, curves: Curves) -> tuple[Study, Facts]:
    """The same from a table: its device and its data. Raises UserError for a study of other
    data."""
    there = Study.model_validate(curves.fact("settings"))
    wanted = Path(study.data.source).stem
    if not is_choice(study.data.source) and wanted not in (
        curves.data.name,
        Path(there.data.source).stem,
    ):
        raise UserError(
            f"{curves.path}: its runs are of {curves.data.name}, the study's data are {study.data.source}"
        )
    settings = study.settings()
    settings["data"]["source"] = curves.data.name
    settings["device"] = there.device if study.device == "auto" else study.device
    return check(settings, "study"), curves.data


def _facts(
    study: Study,
    todo: Plan,
    data: Facts,
    command: str,
    identity: dict[str, object],
    machine: Machine | None,
) -> dict[str, object]:
    base = todo.baseline.cost.macs
    hardware = f"{platform.machine()}, {os.cpu_count()} cores"
    if machine and machine.gpu:
        hardware = f"{machine.gpu}; {hardware}"
    training = versions(machine.kernels if machine else "")
    installed = {"scaling-search": __version__, **training, **store_versions()}
    found = ", ".join(f"{n} networks at {b}" for b, n in todo.found.items())
    return {
        "settings": study.settings(),
        "data": data.line,
        "dataset": data.name,
        "data facts": {**asdict(data), "folder": ""},
        "command": command,
        "notes": [
            f"The space holds {found}; {len(todo.candidates)} were chosen.",
            *todo.notes,
            *(
                f"This machine failed a check of its numbers. {w}"
                for w in (machine.warnings if machine else ())
            ),
        ],
        "targets": {}
        if study.space.mode == "nominal"
        else {str(b): b.target(base) for b in study.budgets},
        "planned": runs_needed(study, todo),
        "provenance": {
            "data digest": data.digest,
            "study": identity_hash(identity),
            "begun": time.strftime("%Y-%m-%d %H:%M"),
            "hardware": hardware,
            "versions": ", ".join(
                f"{name} {version}" for name, version in installed.items() if version
            ),
        },
    }


def _say_plan(console: Console, study: Study, todo: Plan) -> None:
    base, spec = todo.baseline, study.baseline
    say(
        console,
        "baseline",
        f"{spec.name}, {base.arch.blocks} blocks, width {spec.width:g}, at {base.arch.resolution} px · "
        f"{human(base.cost.macs)} MACs"
        + (f" · wastes {percent(base.waste)}" if base.waste > 0.005 else ""),
    )
    for budget in study.budgets:
        chosen = sum(c.budget == budget for c in todo.candidates)
        target = budget.target(base.cost.macs)
        if study.space.mode == "nominal":
            costs = [c.ratio for c in todo.candidates if c.budget == budget]
            kind = f"nominally {budget}, really {min(costs):.2f}x to {max(costs):.2f}x"
        else:
            kind = f"{target / base.cost.macs:.2f}x = {human(target)} MACs ± {budget.tolerance:.0%}"
        say(
            console,
            "budget",
            f"{kind} · {todo.found[str(budget)]} distinct networks, {chosen} chosen",
        )
    for note in todo.notes:
        say(console, "note", note)
