"""Concludes from a study's runs: the pick, what it may lose, and what cannot be told apart from it.

*Best* is the highest expected validation accuracy at the last rung under this recipe, over seeds
and held-out images. It is inferred by one joint model of all networks at all rungs (posterior.py),
those left behind at a lower rung included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from effnet.budget import Budget
from effnet.shares import Shares
from scaling_search.results.record import Record, by_network_key
from scaling_search.study.candidate import Candidate
from scaling_search.study.directions import SINGLE, simplex
from scaling_search.study.settings import Study
from scaling_search.training.trial import Epoch
from scaling_search.verdict.chances import CONFIDENCE, HALF_WIDTH, MARGIN, chances, tied_set
from scaling_search.verdict.foresight import Outlook, outlook
from scaling_search.verdict.posterior import Array, Fit, Posterior, Runs, fit

# Seeds from study.seed + this on only confirm a verdict; they have no part in it.
FRESH = 500

_TAILS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)

# The surface is looked at where the shares are twelfths, and no farther than this from a network
# (as a distance of shares): beyond, it is the prior that speaks.
_GRID = np.array(simplex(12))
_REACH = 0.25
_SURFACE_SAMPLES = 1024  # of 91 grid points and all rungs each; their quantiles need no more
_FEWEST_FOR_A_SURFACE = 4  # networks: three lie on a plane whatever they are


@dataclass(frozen=True, slots=True)
class Row:
    """The conclusions about one network; accuracies and differences are fractions.

    `mean` is its expected accuracy at the last rung, `error` that one's standard deviation.
    `behind` is the pick minus this network, between `low` and `high` in 95% of cases.
    """

    candidate: Candidate
    mean: float
    error: float
    behind: float
    low: float
    high: float
    best: float  # P(best), the probability of being the best of the budget; 0 outside the budget
    tied: bool
    seeds: int  # finished runs at the last rung
    own: tuple[float, ...]  # their accuracies, in the order of the seeds
    speed: float | None  # training images/s, median of its runs; None: not known
    test: float | None  # mean test accuracy of its tested runs; None: not tested

    @property
    def interval(self) -> tuple[float, float]:
        """95% of what its accuracy may be; the model is Gaussian, an accuracy stays within 0 and
        1."""
        half = HALF_WIDTH * self.error
        return max(self.mean - half, 0.0), min(self.mean + half, 1.0)

    @property
    def standing(self) -> str:
        """Against the pick: 'as good' within the margin, 'worse', 'better', or 'cannot tell'.

        A network that could be the best is not called worse, however the two compare alone: one
        rule for what can be told apart."""
        if self.low >= -MARGIN and self.high <= MARGIN:
            return "as good"
        if self.low > 0 and not self.tied:
            return "worse"
        if self.high < 0:
            return "better"
        return "cannot tell"


@dataclass(frozen=True, slots=True)
class Surface:
    """The smooth part of the accuracy, as a function of the shares.

    `optimum` is its highest point at each rung, the last one final. `region` holds the final
    optimum with a probability of 95%. `moved` says what share of the extra cost the optimum moved
    between dimensions from the first rung to the last, in 95% of cases from `moved_low` to
    `moved_high`. `height` is the final surface at `points`, relative to its highest, as a fraction.
    """

    optimum: tuple[Shares, ...]
    moved: float
    moved_low: float
    moved_high: float
    region: tuple[Shares, ...]
    points: tuple[Shares, ...]  # of the grid, those within reach of the networks
    height: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """All that is concluded for one budget."""

    budget: Budget
    pick: Row
    # The budget's networks with a finished run at any rung, the pick among them; best first.
    rows: tuple[Row, ...]
    baseline: Row | None
    references: tuple[Row, ...]
    bound: float  # the loss bound: the most that the pick may lie below the best, 95%
    # Of more and more runs, up to those that would bring the bound to the margin, or to more than
    # anyone would make; empty where it is there already.
    outlook: tuple[Outlook, ...]
    extra: int  # runs beyond those that all of the networks have
    seconds: float  # of a finished run of these networks at the last rung, the median
    noise: float  # standard deviation of one run at the last rung around its network
    effective_draws: int  # that carry the model; fewer than ENOUGH_DRAWS leave intervals rough
    losses: tuple[str, ...]  # what the model saw of a run besides its accuracy
    surface: Surface | None  # None: fewer than four networks have shares
    failed: tuple[Candidate, ...]  # networks left out since their longest run failed
    left_out: int  # failed runs of the networks that are not left out
    directions: Mapping[str, Shares]  # the study's own

    @property
    def is_alone(self) -> bool:
        """Whether one network alone has finished, with which nothing is compared."""
        return len(self.rows) == 1

    @property
    def equal_cost(self) -> bool:
        """Whether these networks may be compared without saying what each costs."""
        ratios = [row.candidate.ratio for row in self.rows]
        return max(ratios) <= 1.1 * min(ratios)

    @property
    def runs(self) -> int:
        """Finished runs of the budget's networks at the last rung."""
        return sum(row.seeds for row in self.rows)

    @property
    def settle(self) -> int | None:
        """Further runs that would bring the bound to the margin; None: more than anyone would
        make."""
        if not self.outlook:
            return 0
        last = self.outlook[-1]
        return last.runs if last.bound <= MARGIN else None

    @property
    def tied(self) -> tuple[Row, ...]:
        """The networks that cannot be told apart from the best: the smallest set whose P(best) sums
        to 0.95, and the pick."""
        return tuple(row for row in self.rows if row.tied)

    @property
    def faster(self) -> tuple[Row, ...]:
        """Of the networks that could be the best, those that train faster than the pick and are the
        best of all that are as fast: the front of speed and accuracy, the fastest first.

        Empty where one of them has no speed on record, as runs that shared their GPU have none: it
        might be that one."""
        if not all(row.speed for row in self.tied):
            return ()
        front: list[Row] = []
        for row in sorted(self.tied, key=lambda row: -row.mean):
            fastest = front[-1] if front else self.pick
            if (row.speed or 0.0) > (fastest.speed or 0.0):
                front.append(row)
        return tuple(reversed(front))

    @property
    def cheaper(self) -> Row | None:
        """The best of the baseline and the references that cost less than the pick and are expected
        to be better than it; None where none is."""
        pick = self.pick
        others = [row for row in (self.baseline, *self.references) if row is not None]
        better = [
            row
            for row in others
            if row.candidate.ratio < pick.candidate.ratio and row.mean > pick.mean
        ]
        return max(better, key=lambda row: row.mean, default=None)

    def named(self, name: str) -> Row | None:
        """The best network that stands for a direction, exactly or as the nearest to it."""
        for row in self.rows:
            if row.candidate.direction(name) is not None:
                return row
        return None

    @property
    def best_single(self) -> tuple[str, Row] | None:
        """The best of depth only, width only and resolution only, with that name."""
        reached = []
        for name in SINGLE:
            row = self.named(name)
            if row is not None:
                reached.append((name, row))
        return max(reached, key=lambda pair: pair[1].mean) if reached else None

    @property
    def finalists(self) -> tuple[Row, ...]:
        """The networks to confirm on the test split: the pick, the paper's direction, the best
        single dimension, the study's own directions, the baseline; each network once."""
        rows = [self.pick, self.named("paper")]
        if self.best_single is not None:
            rows.append(self.best_single[1])
        rows += [self.named(name) for name in self.directions]
        rows.append(self.baseline)
        return tuple({row.candidate.key: row for row in rows if row is not None}.values())


def verdicts(records: Sequence[Record], study: Study) -> list[Verdict]:
    """Return a verdict for each budget that has a finished network, in the study's order.

    The order of the records changes nothing.
    """
    runs = sorted(searched(records, study), key=lambda r: (r.epochs, r.seed, r.candidate.key))
    planned = {r.candidate.budget for r in records if r.candidate.role == "candidate"}
    concluded = []
    for budget in dict.fromkeys(study.budgets):
        if budget in planned:
            verdict = _verdict(budget, runs, records, study)
            if verdict is not None:
                concluded.append(verdict)
    return concluded


def is_fresh(record: Record, study: Study) -> bool:
    """Whether a run's seed is one that had no part in the search."""
    return record.seed >= study.seed + FRESH


def searched(records: Sequence[Record], study: Study) -> list[Record]:
    """Return the runs that a verdict may use: those of fresh seeds only confirm it."""
    return [r for r in records if not is_fresh(r, study)]


def count_extra(records: Iterable[Record], study: Study, budget: Budget) -> int:
    """Return how many runs of a budget's networks there are beyond those that all of them have."""
    seeds = range(study.seed + study.seeds, study.seed + FRESH)
    count = 0
    for r in records:
        of_budget = r.candidate.role == "candidate" and r.candidate.budget == budget
        if of_budget and r.epochs == study.rungs[-1] and r.seed in seeds:
            count += 1
    return count


# ---- the joint model of a budget's runs


def _validation_loss(epochs: Sequence[Epoch]) -> float:
    """After the last epoch."""
    return epochs[-1].val_loss


def _training_loss(epochs: Sequence[Epoch]) -> float:
    """Its mean over the whole run: on short runs a better estimate than the accuracy at the end (Ru
    et al. 2020, arXiv 2006.04492)."""
    return sum(epoch.train_loss for epoch in epochs) / len(epochs)


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss of a run as a further view of its network: `of` is its value, `luck` how much of the
    noise in it is expected to be the run's own luck, which its accuracy has too."""

    name: str
    of: Callable[[Sequence[Epoch]], float]
    luck: float


# What the model sees of a run besides its accuracy, at the last rung. Their luck, and that of the
# accuracy, is what the residuals of two recorded studies show (imagenette-24px-2x,
# quick-cifar10-seeds): the noise of a run's validation loss correlates with its accuracy's by 0.91
# and 0.85, that of its training loss by 0.57 and 0.64, these two with each other by 0.65 and 0.75.
LOSSES = (
    Loss("validation loss", _validation_loss, luck=0.97),
    Loss("training loss", _training_loss, luck=0.68),
)
_LUCK, _LUCK_OF_LOWER_RUNGS = 0.9, 0.6
# Of accuracies at several rungs and nothing else: the noise of a short and a long run of one seed
# correlates by 0.49 (studies/imagenette-24px-2x).
_LUCK_ALONE = 0.7


def expected_luck(losses: Sequence[Loss], rungs: int) -> Array:
    """Return for each view, losses first, then accuracies, how much of its noise is expected to be
    the run's own luck."""
    if not losses:
        return np.full(rungs, _LUCK_ALONE)
    lower = [_LUCK_OF_LOWER_RUNGS] * (rungs - 1)
    return np.array([*(loss.luck for loss in losses), *lower, _LUCK])


def _seen(run: Record, loss: Loss, study: Study) -> float | None:
    """A loss as the model takes it: the larger the better, and with noise that is even over
    networks. None of a run at a lower rung, or of a recorded one without losses."""
    if run.epochs != study.rungs[-1] or run.outcome is None or not run.outcome.epochs:
        return None
    value = loss.of(run.outcome.epochs)
    return -math.log(value) if math.isfinite(value) and value > 0 else None


def _differs(loss: Loss, runs: Sequence[Record], study: Study) -> bool:
    """Whether runs have this loss, and not all the same one, which would say nothing."""
    return len({_seen(run, loss, study) for run in runs} - {None}) > 1


@dataclass(frozen=True, slots=True)
class Model:
    """The joint model of one budget's networks, the baseline and the references, fitted once.

    `networks` [networks] are the columns of its samples, the budget's own first; `losses` names
    what it sees of a run besides its accuracy.
    """

    networks: tuple[Candidate, ...]
    losses: tuple[str, ...]
    fit: Fit

    @property
    def keys(self) -> list[str]:
        return [c.key for c in self.networks]

    def sample(self, samples: int = 4096, grid: Array | None = None) -> Posterior:
        """Return samples of every network's accuracy; see `posterior.Fit.sample`."""
        return self.fit.sample(samples, grid)


def model(records: Sequence[Record], study: Study, budget: Budget) -> Model | None:
    """Fit the joint model; None without a finished network of this budget.

    Runs of fresh seeds have no part in it, and a network whose longest run failed is left out
    altogether: an accuracy cut short is not its accuracy.
    """
    runs = _finished(searched(records, study), study, budget)
    if not any(r.candidate.role == "candidate" for r in runs):
        return None
    by_key = {r.candidate.key: r.candidate for r in runs}
    networks = sorted(by_key.values(), key=lambda c: (c.role != "candidate", c.key))
    row_of = {c.key: row for row, c in enumerate(networks)}
    # The last rung is what is asked about, so it is in the model before any run has reached it.
    modelled = {r.epochs for r in runs} | {study.rungs[-1]}
    rungs = [epochs for epochs in study.rungs if epochs in modelled]
    seeds = sorted({r.seed for r in runs})
    seed_of = {seed: i for i, seed in enumerate(seeds)}

    shares = np.full((len(networks), 3), math.nan)
    for row, c in enumerate(networks):
        if c.role == "candidate" and c.shares:
            shares[row] = c.shares
    losses = [loss for loss in LOSSES if _differs(loss, runs, study)]
    values: list[tuple[int, int, int, float]] = []
    for r in runs:
        row, seed = row_of[r.candidate.key], seed_of[r.seed]
        values.append((row, len(losses) + rungs.index(r.epochs), seed, r.val_acc))
        for view, loss in enumerate(losses):
            value = _seen(r, loss, study)
            if value is not None:
                values.append((row, view, seed, value))
    data = Runs.of(
        shares,
        values,
        rungs=len(rungs),
        unit=_binomial_deviation(float(np.mean([r.val_acc for r in runs])), runs),
        luck=expected_luck(losses, len(rungs)),
    )
    return Model(tuple(networks), tuple(loss.name for loss in losses), fit(data))


def _finished(runs: Sequence[Record], study: Study, budget: Budget) -> list[Record]:
    """Return the finished runs that the model of this budget is made of."""
    failed = _failed_longest(runs)
    kept = []
    for r in runs:
        elsewhere = r.candidate.role == "candidate" and r.candidate.budget != budget
        if r.done and r.epochs in study.rungs and not elsewhere and r.candidate.key not in failed:
            kept.append(r)
    return kept


def _failed_longest(runs: Iterable[Record]) -> set[str]:
    """Return the networks with a failed run and none that finished at as many epochs."""
    longest: dict[str, int] = {}
    failed: dict[str, int] = {}
    for r in runs:
        if r.outcome is not None:
            epochs = longest if r.done else failed
            epochs[r.candidate.key] = max(epochs.get(r.candidate.key, 0), r.epochs)
    return {key for key, epochs in failed.items() if longest.get(key, 0) < epochs}


def _binomial_deviation(accuracy: float, runs: Sequence[Record]) -> float:
    """Return the standard deviation that the number of validation images alone gives a run.

    `Outcome.right` has a bit for each image, four to a hex digit. Without it, 100 images are
    assumed, the fewest that a study has; an accuracy of 0 or 1 would have no deviation at all.
    """
    counts = [r.outcome.effective_images or 4 * len(r.outcome.right) for r in runs if r.outcome]
    images = max(counts, default=0) or 100
    p = float(np.clip(accuracy, 0.01, 0.99))
    return math.sqrt(p * (1 - p) / images)


# ---- what follows from samples of it


def _verdict(
    budget: Budget, runs: list[Record], records: Sequence[Record], study: Study
) -> Verdict | None:
    """`runs`: the searched ones, sorted; `records`: all, for their accuracies on the test split."""
    fitted = model(runs, study, budget)
    if fitted is None:
        return None
    samples = fitted.sample()
    inside = [i for i, c in enumerate(fitted.networks) if c.role == "candidate"]
    accuracy = samples.accuracy[:, inside]
    pick, best, bound = chances(accuracy)
    chance = dict(zip(inside, best.tolist(), strict=True))
    tied = {inside[i] for i in (*tied_set(best), pick)}
    accuracy_of_pick = samples.accuracy[:, inside[pick]]
    runs_of = by_network_key(runs)
    tests_of = by_network_key([r for r in records if r.test_acc is not None])
    rows = []
    means = samples.accuracy.mean(0)
    for i, candidate in enumerate(fitted.networks):
        accuracy_of_network = samples.accuracy[:, i]
        behind = accuracy_of_pick - accuracy_of_network
        low, high = np.quantile(behind, _TAILS)
        done = [r for r in runs_of[candidate.key] if r.done]
        own = tuple(r.val_acc for r in done if r.epochs == study.rungs[-1])
        row = Row(
            candidate=candidate,
            mean=float(np.clip(means[i], 0.0, 1.0)),  # the model is Gaussian and knows no ends
            error=float(accuracy_of_network.std()),
            behind=float(behind.mean()),
            low=float(low),
            high=float(high),
            best=chance.get(i, 0.0),
            tied=i in tied,
            seeds=len(own),
            own=own,
            speed=_speed(done),
            test=_test_accuracy(tests_of.get(candidate.key, ()), study),
        )
        rows.append(row)

    return Verdict(
        directions=study.directions,
        budget=budget,
        pick=rows[inside[pick]],
        rows=tuple(rows[i] for i in sorted(inside, key=lambda i: (-means[i], fitted.keys[i]))),
        baseline=next((r for r in rows if r.candidate.role == "baseline"), None),
        references=tuple(r for r in rows if r.candidate.role == "reference"),
        bound=bound,
        outlook=outlook(samples.seen[:, inside], samples.run),
        extra=count_extra(runs, study, budget),
        seconds=_seconds(runs_of, [fitted.networks[i] for i in inside], study.rungs[-1]),
        noise=samples.noise,
        effective_draws=fitted.fit.effective_draws,
        losses=fitted.losses,
        surface=_surface(fitted),
        failed=_left_out(budget, runs_of, fitted),
        left_out=sum(run.failed for key in fitted.keys for run in runs_of[key]),
    )


def _seconds(runs_of: dict[str, list[Record]], networks: Sequence[Candidate], epochs: int) -> float:
    """Return the median seconds of these networks' finished runs of so many epochs; 0 without
    one."""
    seconds = []
    for network in networks:
        for run in runs_of[network.key]:
            if run.done and run.epochs == epochs and run.outcome is not None:
                seconds.append(run.outcome.seconds)
    return float(np.median(seconds)) if seconds else 0.0


def _speed(runs: Sequence[Record]) -> float | None:
    """Return the median training speed, images/s; None where no run has one on record."""
    outcomes = [r.outcome for r in runs if r.outcome is not None]
    speeds = [outcome.images_per_s for outcome in outcomes if outcome.images_per_s]
    return float(np.median(speeds)) if speeds else None


def _test_accuracy(runs: Sequence[Record], study: Study) -> float | None:
    """Return the mean accuracy on the test split: of fresh seeds, where there are any, since those
    that chose the pick flatter it."""
    fresh = [r for r in runs if is_fresh(r, study)]
    accuracies = [r.test_acc for r in fresh or runs if r.test_acc is not None]
    return float(np.mean(accuracies)) if accuracies else None


def _left_out(
    budget: Budget, runs_of: dict[str, list[Record]], fitted: Model
) -> tuple[Candidate, ...]:
    """Return the budget's networks that have a run that ended and are not in the model."""
    inside = set(fitted.keys)
    left_out = []
    for key, runs in runs_of.items():
        candidate = runs[0].candidate
        mine = candidate.role == "candidate" and candidate.budget == budget
        if mine and key not in inside and any(r.outcome for r in runs):
            left_out.append(candidate)
    return tuple(left_out)


def _surface(fitted: Model) -> Surface | None:
    """Return the smooth part's optimum and region, from samples of it on a grid near the networks;
    None with too few networks."""
    candidates = [c for c in fitted.networks if c.role == "candidate"]
    places = np.array([c.shares for c in candidates if c.shares])
    if len(places) < _FEWEST_FOR_A_SURFACE:
        return None
    distance = np.linalg.norm(_GRID[:, None] - places[None], axis=2).min(1)
    grid = _GRID[distance <= _REACH]
    fields = fitted.sample(_SURFACE_SAMPLES, grid).fields
    means = fields.mean(0)  # [rungs, points]
    optimum = [int(m.argmax()) for m in means]

    final = fields[:, -1].argmax(1)  # each sample's optimum
    probability = np.bincount(final, minlength=len(grid)) / len(fields)
    # half the sum of absolute differences: what some dimensions lost and others gained
    moved = np.abs(grid[fields[:, 0].argmax(1)] - grid[final]).sum(1) / 2
    low, high = np.quantile(moved, _TAILS)
    points: list[Shares] = [
        (depth, width, resolution) for depth, width, resolution in grid.tolist()
    ]
    return Surface(
        optimum=tuple(points[i] for i in optimum),
        moved=float(np.abs(grid[optimum[0]] - grid[optimum[-1]]).sum() / 2),
        moved_low=float(low),
        moved_high=float(high),
        region=tuple(points[i] for i in tied_set(probability)),
        points=tuple(points),
        height=tuple((means[-1] - means[-1].max()).tolist()),
    )
