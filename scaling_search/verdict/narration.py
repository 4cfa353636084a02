"""Says a verdict in plain sentences; terminal, report and comparison all take them from here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from effnet.budget import human
from scaling_search.results.record import Record, count_ended
from scaling_search.study.settings import Study
from scaling_search.study.wording import percent, points, spent
from scaling_search.verdict.chances import MARGIN
from scaling_search.verdict.confirm import Confirmed, confirmed
from scaling_search.verdict.correlation import Agreement, agreements
from scaling_search.verdict.posterior import ENOUGH_DRAWS
from scaling_search.verdict.verdict import Row, Verdict

# More times the runs that a study has than this, and it takes other runs, not more of them.
_AFFORDABLE = 16


@dataclass(frozen=True, slots=True)
class Sentence:
    """A plain sentence, and the word that stands before it; '' continues the sentence above."""

    label: str
    text: str


def opening(verdicts: Sequence[Verdict], records: Sequence[Record], part: str) -> list[Sentence]:
    """Return what a reader must know before any verdict: that there is none yet, or that `part` of
    the study has ended ('4 of 19 runs'; '' for a finished one)."""
    if not verdicts:
        return [Sentence("answer", f"none yet: {_why_none(records)}")]
    if part:
        return [Sentence("so far", f"unfinished, {part}: what follows may change")]
    return []


def narrate(v: Verdict, records: Sequence[Record], study: Study) -> list[Sentence]:
    """Return a whole verdict, what to choose first; a term is explained where it first stands."""
    sentences = [
        Sentence("choose", choice_words(v)),
        Sentence("accuracy", accuracy_words(v, study)),
        Sentence("certainty", bound_words(v)),
        Sentence("noise", noise_words(v)),
    ]
    more = next_words(v, study)
    if more is not None:
        sentences.append(Sentence("next", more))
    others = [
        ("fastest", fastest_words(v)),
        ("paper", paper_words(v)),
        ("single", single_words(v)),
        *(("direction", direction_words(v, name)) for name in study.directions),
        ("baseline", baseline_words(v)),
    ]
    compared = [Sentence(label, text) for label, text in others if text is not None]
    if compared:
        sentences += [Sentence("others", _OTHERS), *compared]
    finalists = confirmed(records, study, v)
    if finalists:
        sentences.append(Sentence("confirm", _CONFIRM))
        sentences += [Sentence("", confirmed_words(c)) for c in finalists]
    surface = surface_words(v, study.rungs)
    if surface is not None:
        sentences.append(Sentence("surface", surface))
    orders = agreements(records, study, v.budget)
    if orders:
        sentences.append(Sentence("order", _ORDER))
        sentences += [Sentence("", agreement_words(a)) for a in orders]
    failed = failed_words(v)
    if failed is not None:
        sentences.append(Sentence("failed", failed))
    sentences.append(Sentence("cost", cost_words(v, study)))
    return sentences


def in_brief(v: Verdict, study: Study) -> list[Sentence]:
    """Return a verdict as the cells of one row; the labels are the same for every verdict."""
    c = v.pick.candidate
    return [
        Sentence("budget", str(v.budget)),
        Sentence("the pick", c.label),
        Sentence("its shares", spent(c.shares) if c.shares else "none"),
        Sentence("val %", f"{points(v.pick.mean)} ± {points(v.pick.error)}"),
        Sentence("may lose (95%)", f"{points(v.bound)} points"),
        Sentence("tied", f"{len(v.tied)} of {len(v.rows)}"),
        Sentence("baseline val %", points(v.baseline.mean) if v.baseline else ""),
        Sentence("trained", trained_words(study)),
    ]


# ---- numbers


def trained_words(study: Study) -> str:
    """'2 epochs (adamw, lr 0.02, batch 64)', or '28,800 images (...)' where epochs are not passes
    over the data."""
    last, recipe, images = study.rungs[-1], study.recipe, study.data.epoch_images
    length = f"{last} epoch{_plural(last)}"
    if images is not None:
        length = f"{last * images:,} images"
    return f"{length} ({recipe.optimizer}, lr {recipe.lr:g}, batch {recipe.batch})"


def _plural(count: int) -> str:
    return "" if count == 1 else "s"


# ---- the pick


def choice_words(v: Verdict) -> str:
    c = v.pick.candidate
    coefficients = f"alpha {c.alpha:.3g}, beta {c.beta:.3g}, gamma {c.gamma:.3g}"
    shares = "no extra cost, it is the baseline's"
    if c.shares:
        shares = f"shares of the extra cost: {spent(c.shares)}"
    cost = f"{human(c.cost.macs)} FLOPs (multiply-adds), {c.ratio:.2f} times the baseline's"
    if c.latency is not None:
        cost = f"{v.budget.quantity(c.latency)}{_latency_ratio(v)}; {cost}"
    if v.budget.of in ("params", "acts"):
        cost = f"{human(getattr(c.cost, v.budget.of))} {v.budget.unit}; {cost}"
    return (
        f"{c.label} for the budget {v.budget}: {coefficients} (multipliers of depth, width and "
        f"resolution); {shares}; {cost}"
    )


def _latency_ratio(v: Verdict) -> str:
    """The pick's latency beside the baseline's, where both are known."""
    ours = v.pick.candidate.latency
    base = v.baseline.candidate.latency if v.baseline else None
    return f", {ours / base:.2f} times the baseline's" if ours and base else ""


def accuracy_words(v: Verdict, study: Study) -> str:
    runs = f"{v.pick.seeds} run{_plural(v.pick.seeds)} of it"
    metric = "accuracy"
    if study.metric == "balanced":
        metric = "balanced accuracy (the mean over classes of the part of each that is right)"
    words = (
        f"val {points(v.pick.mean)} ± {points(v.pick.error)}%: validation {metric} expected over "
        f"seeds, from {runs} and all others through the model, which sees {_seen_words(v)}"
    )
    if v.pick.test is not None:
        words += f"; test {points(v.pick.test)}%"
    return words


def _seen_words(v: Verdict) -> str:
    """What of the runs the model knows."""
    if not v.runs:
        return "accuracies alone: losses are taken from runs of full length"
    if not v.losses:
        return "accuracies alone, since no losses are on record"
    return f"accuracies and, of runs of full length, {' and '.join(v.losses)}"


def bound_words(v: Verdict) -> str:
    """The loss bound, P(best) and the tied set."""
    if len(v.rows) == 1:
        return "the only network of this cost that finished"
    bound = f"at most {points(v.bound)} points below the best (95%)"
    probability = f"P(best), the probability that it is the best, is {v.pick.best:.2f}"
    return f"{bound}; {probability}. {tied_words(v)}"


def tied_words(v: Verdict) -> str:
    """How many of the networks may be the best; their cost where they differ in it."""
    total, tied = len(v.rows), len(v.tied)
    cost = "of this cost"
    if v.budget.of != "macs":
        cost = f"of {v.budget}"
    elif not v.equal_cost:
        ratios = [row.candidate.ratio for row in v.rows]
        cost = f"that really cost {min(ratios):.2f}x to {max(ratios):.2f}x"
    if tied == total:
        return f"All {total} networks {cost} are tied: none can be told apart from the best"
    if tied == 1:
        return f"It is the best of {total} networks {cost} with 95% probability"
    return f"{tied} of {total} networks {cost} are tied: they cannot be told apart from the best"


def noise_words(v: Verdict) -> str:
    """Say how much one run varies, what was left out, and where the model is rough."""
    words = f"one run varies by ± {points(v.noise)} points around its network"
    if v.left_out == 1:
        words += "; 1 failed run is left out"
    elif v.left_out:
        words += f"; {v.left_out} failed runs are left out"
    if v.effective_draws < ENOUGH_DRAWS:
        words += (
            f"; the model rests on {v.effective_draws} effective draws of its hyper-parameters, "
            f"{ENOUGH_DRAWS} were wanted: intervals are rougher than usual"
        )
    return words


def next_words(v: Verdict, study: Study) -> str | None:
    """What would narrow the answer, and what that takes; None for a single network."""
    margin = points(MARGIN)
    if len(v.rows) == 1:
        return None
    if not v.outlook:
        return f"settled: whatever is best lies within {margin} points of the pick"

    longer = (
        "the networks lie too close for runs of this length; longer ones (--epochs) may tell more, "
        "which runs of this length cannot say"
    )
    shown = []  # that can be made, and would be seen in the answer
    for step in v.outlook:
        narrower = step.bound < v.bound and points(step.bound) != points(v.bound)
        if narrower and step.runs <= _AFFORDABLE * v.runs:
            shown.append(step)
    if not shown:
        return (
            f"more runs would hardly narrow the {points(v.bound)} points that the pick may lose: "
            f"{longer}"
        )
    # about as many runs as there are, or as few as would be seen
    step = next((step for step in shown if step.runs > v.runs / 2), shown[-1])
    extra = max(v.extra, study.extra) + step.runs  # --time may have made more than were asked for
    words = (
        f"{_more_runs(v, step.runs)}, --extra {extra} in the same folder, would narrow the most "
        f"that the pick may lose from {points(v.bound)} to about {points(step.bound)} points"
    )
    if step.bound <= MARGIN or points(step.bound) == margin:
        return words
    if v.settle is not None and v.settle <= _AFFORDABLE * v.runs:
        return f"{words}; {margin} points would take {_more_runs(v, v.settle)}"
    return f"{words}; {margin} points are out of their reach: {longer}"


def _more_runs(v: Verdict, runs: int) -> str:
    """'24 more runs (some 10 minutes of one worker)'."""
    words = f"{runs:,} more run{_plural(runs)}"
    minutes = runs * v.seconds / 60
    if minutes >= 120:
        return f"{words} (some {minutes / 60:,.0f} hours of one worker)"
    if minutes >= 1.5:
        return f"{words} (some {minutes:.0f} minutes of one worker)"
    return words


# ---- others against the pick

_OTHERS = (
    f"each against the pick: as good within {100 * MARGIN:g} points, worse or better where the 95% "
    "interval leaves no doubt, else it cannot be told"
)
_CONFIRM = "on the test split, over fresh seeds, which had no part in the search"


def against(row: Row) -> str:
    """'1.1 points below the pick (95%: 0.2 to 2.0): worse', with the interval and the margin's
    word."""
    low, high = points(abs(row.low)), points(abs(row.high))
    side = "below" if row.behind >= 0 else "above"
    if row.low < 0 < row.high:
        interval = f"{low} above to {high} below"
    elif row.behind >= 0:
        interval = f"{low} to {high}"
    else:
        interval = f"{high} to {low}"
    return f"{points(abs(row.behind))} points {side} the pick (95%: {interval}): {row.standing}"


def _against_or_pick(v: Verdict, row: Row) -> str:
    return "it is the pick" if row.candidate.key == v.pick.candidate.key else against(row)


def fastest_words(v: Verdict) -> str | None:
    """The fastest of the tied networks; None where it is not known, or is the pick."""
    fast, pick = v.fastest, v.pick
    if fast is None or pick.speed is None or fast.speed is None:
        return None
    if fast.candidate.key == pick.candidate.key:
        return None
    speed = f"{fast.speed / pick.speed:.2f} times the pick's images/s in training"
    return f"of the tied, {fast.candidate.label}: {speed}; {against(fast)}"


def paper_words(v: Verdict) -> str | None:
    """The network that stands for the paper's direction; None where none was reached."""
    row = v.named("paper")
    if row is None:
        return None
    candidate = row.candidate
    direction = f"the paper's direction ({candidate.stands_for}; {candidate.label})"
    return f"{direction}: {_against_or_pick(v, row)}"


def direction_words(v: Verdict, name: str) -> str | None:
    """The network that stands for a direction of the study's own; None where none was reached."""
    row = v.named(name)
    if row is None:
        return None
    words = f"{row.candidate.direction(name)} ({row.candidate.label})"
    return f"{words}: {_against_or_pick(v, row)}"


def single_words(v: Verdict) -> str | None:
    """The best single dimension; None where none was reached."""
    if v.best_single is None:
        return None
    name, row = v.best_single
    direction = row.candidate.direction(name)
    words = f"the best single dimension ({direction}; {row.candidate.label})"
    return f"{words}: {_against_or_pick(v, row)}"


def baseline_words(v: Verdict) -> str | None:
    """The baseline, and whether the larger cost has brought anything; None where it has no run."""
    if v.baseline is None:
        return None
    cost = f"at {1 / v.pick.candidate.ratio:.2f} of the pick's cost"
    if v.budget.of != "macs":
        cost = f"at {1 / v.pick.candidate.ratio:.2f} of the pick's multiply-adds"
    words = f"val {points(v.baseline.mean)}%, {cost}: {against(v.baseline)}"
    if v.pick.candidate.ratio > 1 and v.baseline.low <= 0:
        words += (
            ". The extra cost does not show at this length of training: train longer before "
            "trusting a direction"
        )
    return words


def confirmed_words(c: Confirmed) -> str:
    head = f"{c.row.candidate.label}: test {points(c.mean)}% over {c.runs} seed{_plural(c.runs)}"
    if c.standing is None:
        return head
    side = "below" if c.behind >= 0 else "above"
    return f"{head}, {points(abs(c.behind))} ± {points(c.half)} {side} the pick: {c.standing}"


def failed_words(v: Verdict) -> str | None:
    if not v.failed:
        return None
    return f"left out because they did not finish: {'; '.join(c.label for c in v.failed)}"


# ---- the whole


def surface_words(v: Verdict, rungs: tuple[int, ...]) -> str | None:
    """The fitted optimum, its region, and how far more epochs moved it; None without a surface."""
    if v.surface is None:
        return None
    s = v.surface
    region = []
    for i, name in enumerate(("depth", "width", "resolution")):
        shares = [point[i] for point in s.region]
        region.append(f"{name} {percent(min(shares))} to {percent(max(shares))}")
    words = (
        f"accuracy, fitted as a smooth function of the shares, is highest at "
        f"{spent(s.optimum[-1])}; 95% region: {', '.join(region)}"
    )
    if len(s.region) > len(s.points) / 2:
        part = percent(len(s.region) / len(s.points))
        words += f" ({part} of the map: the direction is not settled)"
    if len(s.optimum) > 1:
        first, last = s.optimum[0], s.optimum[-1]
        moved = "did not move"
        if first != last:
            moved = f"moved there from {spent(first)}, {percent(s.moved)} of the cost"
        interval = f"{percent(s.moved_low)} to {percent(s.moved_high)}"
        words += (
            f". From {rungs[0]} to {rungs[-1]} epochs the optimum {moved} "
            f"(95%: {interval} of the extra cost elsewhere)"
        )
    return words


_ORDER = (
    "does the order of the networks hold? Kendall's tau is 1 where two orders are the same, 0 "
    "where they have nothing in common, -1 where one is the other reversed"
)


def agreement_words(a: Agreement) -> str:
    r = a.rank
    if r.few:
        return f"{a.compared}: Kendall's tau {r.tau:.2f} over {r.n} networks: too few to say"
    if r.low > 0:
        says = "agree"
    elif r.high < 0:
        says = "disagree"
    else:
        says = "may agree or not"
    interval = f"(95%: {r.low:.2f} to {r.high:.2f}, {r.n} networks)"
    return f"{a.compared}: Kendall's tau {r.tau:.2f} {interval}: they {says}"


def cost_words(v: Verdict, study: Study) -> str:
    """Say what makes the comparison fair, or that it is not."""
    if v.budget.of != "macs":
        return _other_measure_words(v, study)
    if not v.equal_cost:
        return (
            "these networks are equal in nominal cost only: weigh each accuracy against its real "
            "cost"
        )
    return (
        f"these networks cost the same and trained for {trained_words(study)}: equal cost and "
        "equal length are equal training cost; short training is a proxy for long"
    )


def _other_measure_words(v: Verdict, study: Study) -> str:
    """Say how networks of equal cost by another measure differ in multiply-adds, and what that is
    for their training."""
    ratios = [row.candidate.ratio for row in v.rows]
    span = f"{min(ratios):.2f} to {max(ratios):.2f}"
    if len(ratios) == 1:
        span = f"{ratios[0]:.2f}"
    differ = (
        f"these networks are equal in {v.budget.unit}; their multiply-adds are {span} times the "
        "baseline's"
    )
    if study.equal == "training":
        return (
            f"{differ}, and each trained for as many images as make the training cost the same"
            f"{_fewest_words(v, study, ratios)}; short training is a proxy for long"
        )
    return (
        f"{differ}, and each trained for {trained_words(study)}: training cost is not equal "
        "(--equal training makes it so); short training is a proxy for long"
    )


def _fewest_words(v: Verdict, study: Study, ratios: Sequence[float]) -> str:
    """How many images the networks saw, where a relative budget says it."""
    images = study.data.epoch_images
    if images is None or not v.budget.relative:
        return ""
    whole = study.rungs[-1] * images * v.budget.value
    least, most = (max(study.recipe.batch, whole / ratio) for ratio in (max(ratios), min(ratios)))
    return f" ({least:,.0f} to {most:,.0f})"


def _why_none(records: Sequence[Record]) -> str:
    ended, failed = count_ended(records), sum(r.failed for r in records)
    if not records:
        return "no run has been started"
    if not ended:
        are = "is" if len(records) == 1 else "are"
        return f"no run has ended; {len(records)} {are} in progress"
    if failed == ended:
        return f"every run so far has failed ({failed} of {failed}); results.csv says how"
    done = ended - failed
    return f"no network of the budget has finished ({done} runs have, {failed} failed)"
