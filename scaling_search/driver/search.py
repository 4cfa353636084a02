"""The driver: which runs a study needs, handed to an executor, told to the store.

Every network with the first seeds (all to the last rung, or half of them going on from rung to
rung), then single runs where the posterior says they help most, then fresh seeds for what the
answer names, then its test accuracy. Each step is decided from the complete results of the steps
before it, so neither the order in which runs end nor an interruption changes anything.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from effnet.budget import Budget
from scaling_search import UserError
from scaling_search.data.dataset import Facts
from scaling_search.driver.allocation import BATCH, half, next_runs, promoted
from scaling_search.driver.dispatch import Measuring, Training, Watcher
from scaling_search.driver.executors.protocol import Executor
from scaling_search.driver.packing import Packing
from scaling_search.results.record import Record
from scaling_search.results.store import Store, suggest
from scaling_search.study.candidate import Candidate
from scaling_search.study.directions import apart, on_square, on_triangle
from scaling_search.study.plan import Plan
from scaling_search.study.settings import Study
from scaling_search.training.trial import Trial
from scaling_search.verdict.verdict import FRESH, searched, verdicts


class StoppedError(Exception):
    """The user has asked to stop; what was running has written its checkpoint."""


class _OutOfTimeError(Exception):
    """The time given is spent; runs in progress go on from their last checkpoint another time."""


class Search:
    def __init__(
        self,
        study: Study,
        plan: Plan,
        data: Facts,
        store: Store,
        executor: Executor,
        watcher: Watcher,
        *,
        device: str,
        checkpoints: str,
        kernels: str = "",
        until: float = math.inf,
        test_until: float = math.inf,
        exists: Callable[[str, int, int], bool] = lambda network, seed, epochs: True,
        stopping: Callable[[], bool] = lambda: False,
        packing: Packing | None = None,
    ) -> None:
        """`until`, `test_until`: time.monotonic() at which training stops, and testing; given them,
        runs are added for as long as there is time. `exists`: whether a run can be had at all; a
        replayed table may end. `stopping`: whether the user has asked to stop. `packing`: where
        several trainings may share a GPU. `kernels`: those that every run must be trained with
        (step.kernels), "" for any."""
        self._study, self._plan, self._data = study, plan, data
        self._store, self._executor, self._watcher = store, executor, watcher
        self._device, self._checkpoints, self._kernels = device, checkpoints, kernels
        self._until, self._test_until, self._exists = until, test_until, exists
        self._stopping, self._packing = stopping, packing
        self.out_of_time = False
        self._named: tuple[frozenset[int], list[Candidate]] | None = (
            None  # by which runs, what they name
        )
        self._decided: set[tuple[str, int, int]] = (
            set()
        )  # runs asked for so far, in this sitting or an earlier one

    def run(self) -> int:
        """Train whatever has no outcome yet; the number of runs trained now.

        Raises StoppedError: what was told is kept, what was running goes on next time."""
        before = self._recorded()
        try:
            self._grid()
            self._extra(self._study.extra)
            self._confirm()
            if self._until < math.inf:
                self._extra(math.inf)
        except _OutOfTimeError:
            self.out_of_time = True
        self._test()
        return self._recorded() - before

    # ---- what is trained

    def _grid(self) -> None:
        study, plan = self._study, self._plan
        # references are for the front alone: when the time is short, the candidates have had it
        active = list(plan.candidates)
        for seed in range(study.seed, study.seed + study.seeds):
            for i, epochs in enumerate(study.rungs):
                self._train(
                    f"seed {seed}, {epochs} epochs",
                    [(c, seed) for c in (plan.baseline, *active, *plan.references)],
                    epochs,
                )
                if seed > study.seed:
                    continue
                if study.allocation == "rungs" and i + 1 < len(study.rungs):
                    active = promoted(self._known(), active, study)
            if seed == study.seed and plan.pool:
                active = self._propose(active)

    def _propose(self, active: list[Candidate]) -> list[Candidate]:
        """TPE's networks: the free one nearest to each point that it suggests, a few at a time."""
        study, last = self._study, self._study.rungs[-1]
        for budget in study.budgets:
            free = [c for c in self._plan.pool if c.budget == budget]
            have = sum(c.budget == budget for c in active)
            wanted = min(study.space.candidates or math.inf, have + len(free))
            while have < wanted:
                seen = [
                    (on_square(r.candidate.shares), r.val_acc)
                    for r in sorted(self._known(), key=lambda r: r.candidate.key)
                    if r.done
                    and r.epochs == last
                    and r.candidate.budget == budget
                    and r.candidate.shares
                ]
                fresh: list[Candidate] = []
                for u, v in suggest(seen, min(BATCH, int(wanted) - have), study.seed + have):
                    nearest = min(free, key=lambda c: (apart(c.shares, on_triangle(u, v)), c.key))
                    free.remove(nearest)
                    fresh.append(nearest)
                active += fresh
                have += len(fresh)
                for epochs in study.rungs:
                    self._train("proposed by TPE", [(c, study.seed) for c in fresh], epochs)
        return active

    def _extra(self, most: float) -> None:
        """Single runs at the last rung, a batch at a time, where the posterior says."""
        study, last = self._study, self._study.rungs[-1]
        seeds = range(study.seed, study.seed + FRESH)
        networks = {
            r.candidate.key: r.candidate for r in self._known() if r.candidate.role == "candidate"
        }
        exhausted: set[Budget] = set()
        done = 0.0
        while done < most and len(exhausted) < len(study.budgets):
            count = int(min(BATCH, most - done))
            for budget in (b for b in study.budgets if b not in exhausted):
                known = self._known()
                taken = {(r.candidate.key, r.seed) for r in known if r.epochs == last}
                open_seeds = {
                    key: [s for s in seeds if (key, s) not in taken and self._exists(key, s, last)]
                    for key, c in networks.items()
                    if c.budget == budget
                }
                runs = next_runs(known, study, budget, open_seeds, count)
                if not runs:
                    exhausted.add(budget)
                # the baseline keeps up, so that it is compared over the same seeds
                base = self._plan.baseline
                along = {
                    s
                    for _, s in runs
                    if (base.key, s) not in taken and self._exists(base.key, s, last)
                }
                wanted = [(networks[key], seed) for key, seed in runs] + [
                    (base, s) for s in sorted(along)
                ]
                self._train("more runs where they help", wanted, last)
            done += count

    def _confirm(self) -> None:
        study, last = self._study, self._study.rungs[-1]
        seeds = [study.seed + FRESH + i for i in range(study.confirm)]
        if not seeds:
            return
        rows = self._finalists(self._known())
        wanted = [(c, s) for s in seeds for c in rows if self._exists(c.key, s, last)]
        self._train("fresh seeds to confirm", wanted, last)

    def _finalists(self, records: list[Record]) -> list[Candidate]:
        """What the answer names, over all budgets."""
        runs = frozenset(r.number for r in searched(records, self._study) if r.outcome)
        if self._named is None or self._named[0] != runs:
            rows = [r for v in verdicts(records, self._study) for r in v.finalists]
            self._named = runs, list({r.candidate.key: r.candidate for r in rows}.values())
        return self._named[1]

    def _known(self) -> list[Record]:
        """What has been asked for and has an outcome. Runs of an earlier sitting count from when
        they are asked for again, so that every decision sees what it saw then."""
        return [
            r for r in self._store.records() if r.key in self._decided and r.outcome is not None
        ]

    def _recorded(self) -> int:
        return sum(r.outcome is not None for r in self._store.records())

    def _train(self, name: str, runs: list[tuple[Candidate, int]], epochs: int) -> None:
        self._decided |= {(c.key, seed, epochs) for c, seed in runs}
        if lacking := [(c, seed) for c, seed in runs if not self._exists(c.key, seed, epochs)]:
            first = f"{lacking[0][0].label}, seed {lacking[0][1]}"
            raise UserError(
                f"the table lacks {len(lacking)} runs of {epochs} epochs that the study asks for ({first}, ...): "
                "replay the study that it was exported from, or fewer --seeds and --epochs"
            )
        queue = [
            run
            for run in dict.fromkeys(runs)
            if (known := self._store.recorded((run[0].key, run[1], epochs))) is None
            or known.outcome is None
        ]
        if queue and not self._over():
            self._watcher.phase(name, len(queue))
            phase = Training(
                self._store,
                self._watcher,
                queue,
                epochs,
                lambda candidate, seed: self._trial(candidate, seed, epochs),
                self._over,
                self._packing,
            )
            self._executor.run(phase)
        if self._stopping():
            raise StoppedError
        if queue and self._over():
            raise _OutOfTimeError

    def _over(self) -> bool:
        return self._stopping() or time.monotonic() >= self._until

    def _test(self) -> None:
        """Measure the test split for what the answer names: its fresh seeds where there are some,
        else its runs. The only place that touches it; the checkpoints stand at the end of training,
        so nothing is trained again."""
        study, last = self._study, self._study.rungs[-1]
        known = [r for r in self._store.records() if r.epochs == last and r.done]
        keys = {c.key for c in self._finalists(self._store.records())}
        fresh = any(r.seed >= study.seed + FRESH for r in known)
        missing = [
            r
            for r in known
            if r.candidate.key in keys
            and r.test_acc is None
            and (r.seed >= study.seed + FRESH) == fresh
        ]
        if not missing:
            return
        self._watcher.phase("test accuracy of what the answer names", len(missing))
        phase = Measuring(
            self._store,
            self._watcher,
            missing,
            lambda r: self._trial(r.candidate, r.seed, last, test=True),
            lambda: self._stopping() or time.monotonic() >= self._test_until,
            self._packing,
        )
        self._executor.run(phase)
        if self._stopping():
            raise StoppedError

    def _trial(self, candidate: Candidate, seed: int, epochs: int, test: bool = False) -> Trial:
        study = self._study
        return Trial(
            arch=candidate.arch,
            data_digest=self._data.digest,
            data_folder=self._data.folder,
            recipe=study.recipe,
            seed=seed,
            epochs=epochs,
            train_images=study.data.train_images,
            val_images=study.data.val_images,
            device=self._device,
            threads=study.threads,
            checkpoints=self._checkpoints,
            test=test,
            test_images=study.data.test_images,
            compile=study.compile,
            deadline=study.deadline,
            kernels=self._kernels,
        )


def runs_needed(study: Study, todo: Plan) -> int:
    """How many runs the study takes when none fails: at most, as the baseline keeps up with extra
    runs."""
    groups = []
    for budget in dict.fromkeys(c.budget for c in (*todo.candidates, *todo.pool)):
        chosen = sum(c.budget == budget for c in todo.candidates)
        free = sum(c.budget == budget for c in todo.pool)
        groups.append(min(max(chosen, study.space.candidates or chosen + free), chosen + free))
    budgets, always, runs = len(groups), 1 + len(todo.references), 0
    for seed in range(study.seeds):
        for i in range(len(study.rungs)):
            if study.allocation == "rungs" and seed == 0 and i:
                groups = [half(n) for n in groups]
            runs += always + sum(groups)
    return runs + study.extra * budgets + study.confirm * (3 * budgets + 1)
