"""The driver: which runs a study needs, handed to an executor, recorded in the store.

Every network with the first seeds (all to the last rung, or half of them going on from rung to
rung), then single runs where the posterior says they help most, then fresh seeds for what the
answer names, then its test accuracy. Each step is decided from the complete results of the steps
before it, so neither the order in which runs end nor an interruption changes anything. Where the
time is limited, the networks of other costs come after all this, and then runs for as long as there
is time.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Container, Sequence
from dataclasses import dataclass, replace

from effnet.budget import Budget
from effnet.custom import CustomArch, Function
from scaling_search import UserError
from scaling_search.data.dataset import Facts
from scaling_search.driver.allocation import half, next_runs, promoted
from scaling_search.driver.crashes import Crashes
from scaling_search.driver.dispatch import Measuring, Training, Watcher
from scaling_search.driver.executors.protocol import Executor
from scaling_search.driver.packing import Packing
from scaling_search.results.proposals import suggest
from scaling_search.results.record import Record, Run, count_ended
from scaling_search.results.step import Step
from scaling_search.results.store import Store
from scaling_search.study.candidate import Candidate
from scaling_search.study.directions import distance, on_square, on_triangle
from scaling_search.study.plan import Plan
from scaling_search.study.settings import Study
from scaling_search.study.wording import counted
from scaling_search.training.trial import Trial
from scaling_search.verdict.verdict import FRESH, count_extra, is_fresh, searched, verdicts

logger = logging.getLogger(__name__)


class StoppedError(Exception):
    """The user has asked to stop; what was running has written its checkpoint."""


class _OutOfTimeError(Exception):
    """The time given is spent; runs in progress go on from their last checkpoint another time."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """How the runs of this session are trained, besides what the study says.

    `kernels`: those that every run must be trained with (step.kernels), "" for any. `packing`:
    where several trainings may share a GPU. `log_name`: the file that keeps the tracebacks of
    crashed runs, "" for none."""

    device: str
    checkpoints: str
    kernels: str = ""
    packing: Packing | None = None
    log_name: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """When to end before everything is trained.

    `until`, `test_until`: time.monotonic() at which training stops, and testing; given them, runs
    are added for as long as there is time. `stopping`: whether the user has asked to stop."""

    until: float = math.inf
    test_until: float = math.inf
    stopping: Callable[[], bool] = lambda: False

    @property
    def are_given(self) -> bool:
        """Whether the time is limited at all."""
        return self.until < math.inf

    def training_is_over(self) -> bool:
        return self.stopping() or time.monotonic() >= self.until

    def testing_is_over(self) -> bool:
        return self.stopping() or time.monotonic() >= self.test_until


class Search:
    """One session of a study.

    `recorded`: the runs (network, seed, epochs) of a table that is replayed, which may lack some;
    its crashes are no fault of this machine. None: every run can be had, by training it.
    `known`: the runs that were there before the study grew, from which every decision is made."""

    def __init__(
        self,
        study: Study,
        plan: Plan,
        data: Facts,
        store: Store,
        executor: Executor,
        watcher: Watcher,
        conditions: Conditions,
        *,
        limits: Limits | None = None,
        recorded: Container[tuple[str, int, int]] | None = None,
        known: Collection[tuple[str, int, int]] = (),
    ) -> None:
        self._study, self._plan, self._data = study, plan, data
        self._store, self._executor, self._watcher = store, executor, watcher
        self._conditions, self._limits = conditions, limits or Limits()
        self._recorded = recorded
        self._crashes = Crashes(store) if recorded is None else None
        self.out_of_time = False
        # (network, seed, epochs) requested so far, in this session or an earlier one
        self._requested: set[tuple[str, int, int]] = set(known)
        # numbers of the runs that a verdict was made from, and the networks that it names
        self._named: tuple[frozenset[int], list[Candidate]] | None = None

    def _exists(self, network: str, seed: int, epochs: int) -> bool:
        """Whether a run can be had at all."""
        return self._recorded is None or (network, seed, epochs) in self._recorded

    @property
    def _last(self) -> int:
        """Epochs of the last rung."""
        return self._study.rungs[-1]

    def run(self) -> int:
        """Train whatever has no outcome yet; return the number of runs trained now.

        Raises StoppedError when the user has asked to stop: recorded results are kept, and runs in
        progress go on from their checkpoints next time. Raises UserError for what would fail every
        run alike."""
        before = count_ended(self._store.records())
        # in order of worth: a study whose time is up has an answer from every network, if a noisy
        # one, before it has a certain one from some
        try:
            self._train_grid()
            self._train_extra(self._study.extra)
            self._train_fresh_seeds()
            if self._limits.are_given:
                self._train_references()
                self._train_extra(math.inf)
        except _OutOfTimeError:
            logger.info("the time is up")
            self.out_of_time = True
        self._test()
        return count_ended(self._store.records()) - before

    # ---- what is trained

    def _train_grid(self) -> None:
        """Every network of the plan with the first seeds, and TPE's proposals with the first."""
        study, plan = self._study, self._plan
        # these are for the front alone: when the time is short, the candidates have it
        references = () if self._limits.are_given else plan.references
        seeds = range(study.seed, study.seed + study.seeds)
        active = list(plan.candidates)
        halves = study.allocation == "rungs" and len(study.rungs) > 1
        if halves or plan.pool:
            # one seed decides who goes on; the others confirm, and train the same networks
            active = self._train_first_seed(references)
            seeds = seeds[1:]
        if not seeds:
            return
        # nothing is decided here, so that no worker waits for the last run of a seed or a rung
        self._train_seeds("", (plan.baseline, *active, *references), seeds)

    def _train_first_seed(self, references: Sequence[Candidate]) -> list[Candidate]:
        """Train the networks with the first seed, half of them going on from rung to rung where the
        study says so, and TPE's proposals. Return those that went on, and the proposals."""
        study, plan = self._study, self._plan
        active = list(plan.candidates)
        for i, epochs in enumerate(study.rungs):
            if study.allocation == "rungs" and i > 0:
                # by the runs of this seed up to here, so that a study that has grown since promotes
                # the same networks
                known = [r for r in self._known() if r.seed == study.seed and r.epochs < epochs]
                active = promoted(known, active, study)
            networks = (plan.baseline, *active, *references)
            runs = [Run(network, study.seed, epochs) for network in networks]
            self._train(f"seed {study.seed}, {counted(epochs, 'epoch')}", runs)
        return self._train_proposals(active) if plan.pool else active

    def _train_seeds(self, name: str, networks: Sequence[Candidate], seeds: Sequence[int]) -> None:
        """Train these networks with these seeds, at every rung."""
        rungs = self._study.rungs
        runs = [Run(c, seed, epochs) for seed in seeds for epochs in rungs for c in networks]
        lengths = counted(rungs[-1], "epoch")
        if len(rungs) > 1:
            lengths = f"{rungs[0]} to {lengths}"
        of_seeds = f"seed {seeds[0]}" if len(seeds) == 1 else counted(len(seeds), "seed")
        self._train(f"{name}{of_seeds}, {lengths}", runs)

    def _train_references(self) -> None:
        """The networks of other costs, as `_train_grid` trains them where time is not limited."""
        study = self._study
        seeds = range(study.seed, study.seed + study.seeds)
        self._train_seeds("other costs, ", self._plan.references, seeds)

    def _train_proposals(self, active: list[Candidate]) -> list[Candidate]:
        """TPE's networks, a few at a time: of those not trained yet, the nearest to each point that
        it suggests. Returns `active` with them."""
        study = self._study
        for budget in study.budgets:
            pool = [c for c in self._plan.pool if c.budget == budget]
            # those that were proposed before the study grew
            earlier = {record.candidate.key for record in self._known()}
            active += [c for c in pool if c.key in earlier]
            free = [c for c in pool if c.key not in earlier]
            count = sum(c.budget == budget for c in active)
            wanted = count + len(free)
            if study.space.candidates is not None:
                wanted = min(wanted, study.space.candidates)
            while count < wanted:
                proposed: list[Candidate] = []
                batch = min(study.extra_batch, wanted - count)
                for u, v in suggest(self._accuracies(budget), batch, study.seed + count):
                    point = on_triangle(u, v)
                    nearest = min(free, key=lambda c: (distance(c.shares, point), c.key))
                    free.remove(nearest)
                    proposed.append(nearest)
                active += proposed
                count += len(proposed)
                # trained before the next batch is suggested, which is to learn from them
                self._train_seeds("proposed by TPE, ", proposed, [study.seed])
        return active

    def _accuracies(self, budget: Budget) -> list[tuple[tuple[float, float], float]]:
        """((u, v) of the unit square, accuracy) of what has finished the last rung."""
        seen: list[tuple[tuple[float, float], float]] = []
        # sorted, since TPE depends on the order, and the store's is that in which runs started
        for record in sorted(self._known(), key=lambda r: r.candidate.key):
            candidate = record.candidate
            complete = record.done and record.epochs == self._last
            if complete and candidate.budget == budget and candidate.shares:
                seen.append((on_square(candidate.shares), record.val_acc))
        return seen

    def _train_extra(self, most: float) -> None:
        """At most `most` single runs per budget at the last rung, a batch at a time, where the
        posterior says; those that were there before the study grew are some of them."""
        left: dict[Budget, float] = {}
        for budget in self._study.budgets:
            left[budget] = most - count_extra(self._known(), self._study, budget)
        while any(count > 0 for count in left.values()):
            for budget in self._study.budgets:
                if left[budget] <= 0:
                    continue
                # the batch is the study's own: of the number of workers, another machine would make
                # other decisions
                count = int(min(self._study.extra_batch, left[budget]))
                runs = self._next_extra(budget, count)
                self._train("more runs where they help", runs)
                left[budget] = left[budget] - count if runs else 0

    def _next_extra(self, budget: Budget, count: int) -> list[Run]:
        """The next `count` runs of a budget's networks, and the baseline's with their seeds."""
        study, baseline = self._study, self._plan.baseline
        known = self._known()
        taken = {(r.candidate.key, r.seed) for r in known if r.epochs == self._last}

        def is_open(network: str, seed: int) -> bool:
            return (network, seed) not in taken and self._exists(network, seed, self._last)

        networks: dict[str, Candidate] = {}
        for record in known:
            candidate = record.candidate
            if candidate.role == "candidate" and candidate.budget == budget:
                networks[candidate.key] = candidate
        seeds = range(study.seed, study.seed + FRESH)
        open_seeds = {key: [s for s in seeds if is_open(key, s)] for key in networks}
        chosen = next_runs(known, study, budget, open_seeds, count)
        # the baseline keeps up, so that it is compared over the same seeds
        beside = sorted({seed for _, seed in chosen if is_open(baseline.key, seed)})
        runs = [Run(networks[key], seed, self._last) for key, seed in chosen]
        return runs + [Run(baseline, seed, self._last) for seed in beside]

    def _train_fresh_seeds(self) -> None:
        """Seeds that no decision has seen, for what the answer names."""
        study = self._study
        seeds = [study.seed + FRESH + i for i in range(study.confirm)]
        if not seeds:
            return
        finalists = self._finalists(self._known())
        runs = [Run(c, seed, self._last) for seed in seeds for c in finalists]
        self._train("fresh seeds to confirm", [run for run in runs if self._exists(*run.key)])

    def _finalists(self, records: Sequence[Record]) -> list[Candidate]:
        """The networks that the answer names, over all budgets."""
        # a verdict takes seconds, and is needed twice: for fresh seeds and for the test split
        runs = frozenset(r.number for r in searched(records, self._study) if r.outcome)
        if self._named is None or self._named[0] != runs:
            rows = [row for v in verdicts(records, self._study) for row in v.finalists]
            networks = {row.candidate.key: row.candidate for row in rows}
            self._named = runs, list(networks.values())
        return self._named[1]

    def _known(self) -> list[Record]:
        """The requested runs that have an outcome. Results of earlier sessions are hidden until
        they are requested again, so that decisions replay exactly."""
        records = self._store.records()
        requested = [r for r in records if r.key in self._requested]
        return [r for r in requested if r.outcome is not None]

    # ---- how it is trained

    def _train(self, name: str, runs: Sequence[Run]) -> None:
        """Train the runs that have no outcome yet. Raises UserError for a run that a replayed table
        lacks, and for crashes that are no network's fault."""
        self._requested |= {run.key for run in runs}
        self._check_existence(runs)
        waiting = [run for run in dict.fromkeys(runs) if not self._has_outcome(run)]
        if waiting and not self._limits.training_is_over():
            logger.info("%s: %d runs", name, len(waiting))
            self._watcher.phase(name, len(waiting))
            self._record_step(Step.of(name, waiting, self._limits.until))
            phase = Training(
                self._store,
                self._watcher,
                waiting,
                self._trial,
                self._limits.training_is_over,
                packing=self._conditions.packing,
                crashes=self._crashes,
                log_name=self._conditions.log_name,
            )
            self._executor.run(phase)
            self._check_crashes()
        if self._limits.stopping():
            raise StoppedError
        if waiting and self._limits.training_is_over():
            raise _OutOfTimeError

    def _record_step(self, step: Step) -> None:
        """Tell the dashboard; a replay is over before anyone could look."""
        if self._recorded is None:
            self._store.set_fact("step", step.as_dict())

    def _check_existence(self, runs: Sequence[Run]) -> None:
        lacking = [run for run in runs if not self._exists(*run.key)]
        if not lacking:
            return
        first = lacking[0]
        raise UserError(
            f"the table lacks {counted(len(lacking), 'run')} that the study asks for, the first of "
            f"{first.candidate.label}, seed {first.seed}, {counted(first.epochs, 'epoch')}: replay "
            "the study that it was exported from, or fewer --seeds and --epochs"
        )

    def _has_outcome(self, run: Run) -> bool:
        record = self._store.recorded(run.key)
        return record is not None and record.outcome is not None

    def _check_crashes(self) -> None:
        if self._crashes is None or not self._crashes.common:
            return
        log = self._conditions.log_name
        where = f"; the traceback is in {log} of the run folder" if log else ""
        raise UserError(
            f"training stopped: {self._crashes.networks} networks crashed alike "
            f"({self._crashes.common}): a fault of the program or the machine{where}. "
            "Fix it, then run the same command again: these networks are tried again"
        )

    def _test(self) -> None:
        """Measure the test split for what the answer names: its fresh seeds where there are some,
        else its runs. The only place that touches it; the checkpoints stand at the end of training,
        so nothing is trained again."""
        missing = self._untested()
        if not missing:
            return
        count = len({record.candidate.key for record in missing})
        name = f"scoring {counted(count, 'network')} on the test split"
        self._watcher.phase(name, len(missing), testing=True)
        self._record_step(Step.of(name, missing, self._limits.test_until, testing=True))
        phase = Measuring(
            self._store,
            self._watcher,
            missing,
            lambda record: replace(self._trial(record), test=True),
            self._limits.testing_is_over,
            self._conditions.packing,
        )
        self._executor.run(phase)
        if self._limits.stopping():
            raise StoppedError

    def _untested(self) -> list[Record]:
        records = self._store.records()
        complete = [r for r in records if r.epochs == self._last]
        done = [r for r in complete if r.done]
        finalists = {c.key for c in self._finalists(records)}
        # seeds that chose the pick flatter it: a test accuracy is of fresh ones, if there are any
        only_fresh = any(is_fresh(r, self._study) for r in done)
        untested: list[Record] = []
        for record in done:
            wanted = record.candidate.key in finalists and record.test_acc is None
            if wanted and is_fresh(record, self._study) == only_fresh:
                untested.append(record)
        return untested

    def _epoch_images(self, candidate: Candidate) -> int | None:
        """How many images an epoch of a network has. Where training is to cost the same, those of a
        network whose multiply-adds exceed its budget's share of the baseline's are fewer."""
        images = self._study.data.epoch_images
        if self._study.equal == "images" or images is None:
            return images
        budget = candidate.budget
        ratio = budget.ratio(budget.measure(self._plan.baseline.arch))
        return max(self._study.recipe.batch, round(images * ratio / candidate.ratio))

    def _trial(self, run: Run | Record) -> Trial:
        study, conditions = self._study, self._conditions
        arch, base = run.candidate.arch, study.network()
        if isinstance(arch, CustomArch):
            if not isinstance(base, Function) or base.digest != arch.function.digest:
                raise UserError(f"{arch.name}: a recorded network of another function, or of none")
            # a network that comes from the store is without the source that a worker builds it from
            arch = replace(arch, function=base)
        return Trial(
            arch=arch,
            data_digest=self._data.digest,
            data_folder=self._data.folder,
            recipe=study.recipe,
            seed=run.seed,
            epochs=run.epochs,
            train_images=study.data.train_images,
            epoch_images=self._epoch_images(run.candidate),
            val_images=study.data.val_images,
            device=conditions.device,
            threads=study.threads,
            checkpoints=conditions.checkpoints,
            test_images=study.data.test_images,
            compile=study.compile,
            deadline=study.deadline,
            kernels=conditions.kernels,
            metric=study.metric,
        )


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """A run that a study will make. `seed` is None for one that is not decided yet: a network of
    the same cost stands in for its own. `epochs` are those of its rung, of which `added` are
    trained in this run, after those of the rung before."""

    candidate: Candidate
    seed: int | None
    epochs: int
    added: int


def planned_runs(study: Study, todo: Plan) -> list[PlannedRun]:
    """The runs of a study when none fails, in the order in which limited time goes to them: at
    most, as the baseline keeps up with extra runs."""
    groups: list[list[Candidate]] = []  # the networks of each budget that are trained
    for budget in dict.fromkeys(c.budget for c in (*todo.candidates, *todo.pool)):
        chosen = [c for c in todo.candidates if c.budget == budget]
        free = [c for c in todo.pool if c.budget == budget]
        wanted = max(len(chosen), study.space.candidates or len(chosen) + len(free))
        groups.append([*chosen, *free][:wanted])
    whole = list(groups)
    last = study.rungs[-1]
    runs: list[PlannedRun] = []
    references: list[PlannedRun] = []
    for seed in range(study.seed, study.seed + study.seeds):
        before = 0
        for epochs in study.rungs:
            if study.allocation == "rungs" and seed == study.seed and before:
                groups = [group[: half(len(group))] for group in groups]
            networks = [todo.baseline, *(network for group in groups for network in group)]
            runs += [PlannedRun(c, seed, epochs, epochs - before) for c in networks]
            references += [PlannedRun(c, seed, epochs, epochs - before) for c in todo.references]
            before = epochs
    # an answer names at most three networks of each budget, one for each direction of the study's
    # own, and the baseline
    named = 3 + len(study.directions)
    for group in whole:
        more = study.extra + study.confirm * named
        runs += [PlannedRun(group[i % len(group)], None, last, last) for i in range(more)]
    runs += [PlannedRun(todo.baseline, None, last, last)] * study.confirm
    return runs + references


def runs_needed(study: Study, todo: Plan) -> int:
    """How many runs the study takes when none fails, at most."""
    return len(planned_runs(study, todo))
