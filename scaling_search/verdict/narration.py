"""Says a verdict in plain sentences; terminal, report and comparison all take them from here."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from effnet.arch import Arch, typed_sides
from effnet.budget import human
from scaling_search.results.record import Record, count_ended
from scaling_search.study.candidate import Candidate
from scaling_search.study.commands import without_option
from scaling_search.study.settings import Study
from scaling_search.study.wording import difference, percent, points, spent
from scaling_search.verdict.chances import HALF_WIDTH, MARGIN
from scaling_search.verdict.confirm import Confirmed, confirmed
from scaling_search.verdict.correlation import Agreement, agreements
from scaling_search.verdict.foresight import Outlook
from scaling_search.verdict.posterior import ENOUGH_DRAWS
from scaling_search.verdict.verdict import Row, Verdict

# More times the runs that a study has than this, and it takes other runs, not more of them.
_AFFORDABLE = 16


@dataclass(frozen=True, slots=True)
class Sentence:
    """A plain sentence, and the word that stands before it; '' continues the sentence above."""

    label: str
    text: str


@dataclass(frozen=True, slots=True)
class Card:
    """One of the four questions that an answer answers: `label` is the word that stands before it,
    `question` what it answers, `headline` the answer in a few words, `text` the sentences that go
    with it. `bound` [fraction] is the most that the pick may lose, where the card is about that;
    `command` is what to type next, where there is something."""

    label: str
    question: str
    headline: str
    text: str
    bound: float | None = None
    command: str = ""

    @property
    def sentences(self) -> list[Sentence]:
        """The card as the terminal says it."""
        said = [Sentence(self.label, f"{self.headline}. {self.text}")]
        if self.command:
            said.append(Sentence("", self.command))
        return said


@dataclass(frozen=True, slots=True)
class StudyState:
    """What else an answer depends on: how far the study is, and how it is gone on with.

    `unfinished`: such as '4 of 19 runs', '' of a finished study; `out_of_time`: its --time is up.
    `command`: the study's own, '' where nothing can be added to it (a replay). `folder`: its run
    folder. `train`: budget → the command that trains its pick."""

    unfinished: str = ""
    command: str = ""
    folder: str = ""
    out_of_time: bool = False
    train: Mapping[str, str] = field(default_factory=dict)


def opening(verdicts: Sequence[Verdict], records: Sequence[Record], part: str) -> list[Sentence]:
    """Return what a reader must know before any verdict: that there is none yet, or that `part` of
    the study has ended ('4 of 19 runs'; '' for a finished one)."""
    if not verdicts:
        return [Sentence("answer", f"none yet: {why_none(records)}")]
    if part:
        return [Sentence("so far", f"unfinished, {part}: what follows may change")]
    return []


def cards(v: Verdict, study: Study, state: StudyState) -> list[Card]:
    """Return the answer: which network, how sure, was the larger cost worth it, what next."""
    answers = [
        pick_card(v, study, state),
        certainty_card(v, study, state),
        worth_card(v),
        next_card(v, study, state),
    ]
    return [card for card in answers if card is not None]


def comparisons(v: Verdict, records: Sequence[Record], study: Study) -> list[Sentence]:
    """Return what named networks are against the pick: the paper's direction, the best single
    dimension, the study's own directions, and what is faster or cheaper and may be as good; and
    whether the baseline is short of something."""
    others = [
        ("paper", paper_words(v)),
        ("single", single_words(v)),
        *(("direction", direction_words(v, name)) for name in study.directions),
        ("faster", faster_words(v)),
        ("cheaper", cheaper_words(v)),
        ("balance", balance_words(v, study)),
    ]
    sentences = [Sentence(label, text) for label, text in others if text is not None]
    finalists = confirmed(records, study, v)
    if finalists:
        sentences.append(Sentence("confirm", _CONFIRM))
        sentences += [Sentence("", confirmed_words(c)) for c in finalists]
    if v.budget.of != "macs" or not v.equal_cost:
        # networks of unequal cost are never compared without saying it
        sentences.append(Sentence("cost", cost_words(v, study)))
    return sentences


def details(v: Verdict, records: Sequence[Record], study: Study) -> list[Sentence]:
    """Return what stands behind the answer, for those who want to check it."""
    sentences = [
        Sentence("accuracy", accuracy_words(v, study)),
        Sentence("certainty", bound_words(v)),
        Sentence("noise", noise_words(v)),
        Sentence("shares", shares_words(v)),
    ]
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
    if v.budget.of == "macs" and v.equal_cost:
        sentences.append(Sentence("cost", cost_words(v, study)))
    return sentences


def in_brief(v: Verdict, study: Study) -> list[Sentence]:
    """Return a verdict as the cells of one row; the labels are the same for every verdict."""
    c = v.pick.candidate
    return [
        Sentence("budget", str(v.budget)),
        Sentence("the pick", c.label),
        Sentence("its shares", spent(c.shares) if c.shares else "none"),
        Sentence("accuracy %", accuracy_and_interval(v.pick)),
        Sentence("may lose (95%)", f"{points(v.bound)} points"),
        Sentence("could be best", f"{len(v.tied)} of {len(v.rows)}"),
        Sentence("baseline %", points(v.baseline.mean) if v.baseline else ""),
        Sentence("trained", trained_words(study)),
    ]


# ---- numbers


def trained_words(study: Study) -> str:
    """'2 epochs (adamw, lr 0.02, batch 64)', or '28,800 images (...)' where epochs are not passes
    over the data."""
    recipe = study.recipe
    return f"{length_words(study)} ({recipe.optimizer}, lr {recipe.lr:g}, batch {recipe.batch})"


def length_words(study: Study, epochs: int | None = None) -> str:
    """'2 epochs', or '28,800 images' where epochs are not passes over the data: of runs of so many
    epochs, by default of the last rung."""
    images = study.data.epoch_images
    length = study.rungs[-1] if epochs is None else epochs
    if images is not None:
        return f"{length * images:,} images"
    return f"{length} epoch{_plural(length)}"


def accuracy_and_interval(row: Row) -> str:
    """'52.1 ± 0.5' in per cent with its 95%, or '0.4 (0.0 to 1.2)' where a ± would leave 0 to
    100."""
    half = HALF_WIDTH * row.error
    if half <= row.mean <= 1 - half:
        return f"{points(row.mean)} ± {points(half)}"
    low, high = row.interval
    return f"{points(row.mean)} ({points(low)} to {points(high)})"


def own_runs_words(row: Row) -> str:
    """How a network's accuracy comes from its own runs: 'two runs, 35.2 and 39.9, and what its
    neighbours say: 36.0'."""
    own = [points(accuracy) for accuracy in row.own]
    if not own:
        return f"no run of full length of its own; what its neighbours say: {points(row.mean)}"
    if len(own) > _LISTED:
        runs = f"{len(own)} runs, {min(own)} to {max(own)}"
    elif len(own) == 1:
        runs = f"one run, {own[0]}"
    else:
        runs = f"{_COUNTS[len(own)]} runs, {', '.join(own[:-1])} and {own[-1]}"
    return f"{runs}, and what its neighbours say: {points(row.mean)}"


_LISTED = 4  # runs whose accuracies are all named; of more the lowest and the highest
_COUNTS = {2: "two", 3: "three", 4: "four"}


def _plural(count: int) -> str:
    return "" if count == 1 else "s"


# ---- which network


def pick_card(v: Verdict, study: Study, state: StudyState) -> Card:
    """The pick, in terms that a person can use."""
    c = v.pick.candidate
    label, question = "choose", f"Which network, for {v.budget}?"
    if state.unfinished:
        label, question = "leading", f"Which network leads so far, for {v.budget}?"
    name = "Balanced validation accuracy" if study.metric == "balanced" else "Validation accuracy"
    runs = f"{v.pick.seeds} run{_plural(v.pick.seeds)} of its own"
    text = (
        f"{name} {accuracy_and_interval(v.pick)}% (95%), from {runs} and what its neighbours say, "
        f"after {length_words(study)}"
    )
    if v.pick.test is not None:
        text += f", test {points(v.pick.test)}%"
    return Card(label, question, network_words(c), f"{text}. {multipliers_words(v)}.")


def network_words(c: Candidate) -> str:
    """'8 blocks, 28 px, 6 to 260 channels, 110K parameters', the channels from the stem to the
    head; of a function, whose inside is not known, its two multipliers."""
    size = f"{human(c.cost.params)} parameters"
    net = c.arch
    if not isinstance(net, Arch):
        return f"depth {net.depth:g}, width {net.width:g}, {net.px}, {size}"
    channels = f"{net.stem_width} to {net.head_width or net.stages[-1].width} channels"
    return f"{net.blocks} blocks, {net.px}, {channels}, {size}"


def multipliers_words(v: Verdict) -> str:
    """How the pick was scaled from the baseline, and what it costs."""
    c = v.pick.candidate
    if c.ratio == 1 and c.alpha == c.beta == c.gamma == 1:
        return "It is the baseline"
    scaled = f"depth ×{c.alpha:.3g}, width ×{c.beta:.3g}, resolution ×{c.gamma:.3g}"
    cost = f"{human(c.cost.macs)} FLOPs (multiply-adds), {c.ratio:.2f} times the baseline's"
    if c.latency is not None:
        cost = f"{v.budget.quantity(c.latency)}{_latency_ratio(v)}; {cost}"
    if v.budget.of in ("params", "acts"):
        cost = f"{human(getattr(c.cost, v.budget.of))} {v.budget.unit}; {cost}"
    return f"Against the baseline: {scaled}; {cost}"


def _latency_ratio(v: Verdict) -> str:
    """The pick's latency beside the baseline's, where both are known."""
    ours = v.pick.candidate.latency
    base = v.baseline.candidate.latency if v.baseline else None
    return f", {ours / base:.2f} times the baseline's" if ours and base else ""


def shares_words(v: Verdict) -> str:
    """Where the pick's extra cost went."""
    c = v.pick.candidate
    if not c.shares:
        return "the pick has no extra cost to share out, it costs what the baseline does"
    coefficients = f"alpha {c.alpha:.3g}, beta {c.beta:.3g}, gamma {c.gamma:.3g}"
    went = "the pick's extra cost went to"
    if _costs_less(v):
        went = "what the pick saves was taken from"
    return (
        f"{went} {spent(c.shares)} ({coefficients}: its multipliers of depth, width and resolution)"
    )


def _costs_less(v: Verdict) -> bool:
    """Whether the pick costs less than the baseline."""
    if v.baseline is None:
        return v.pick.candidate.ratio < 1
    return _times_the_baseline(v, v.baseline)[0] < 1


def accuracy_words(v: Verdict, study: Study) -> str:
    """What the accuracy of the pick is, and what it comes from."""
    metric = "accuracy"
    if study.metric == "balanced":
        metric = "balanced accuracy (the mean over classes of the part of each that is right)"
    return (
        f"the pick: {own_runs_words(v.pick)}. That is the validation {metric} expected over seeds, "
        f"from one model of all runs, which sees {_seen_words(v)}; ± and brackets are 95% "
        "everywhere"
    )


def _seen_words(v: Verdict) -> str:
    """What of the runs the model knows."""
    if not v.runs:
        return "accuracies alone: losses are taken from runs of full length"
    if not v.losses:
        return "accuracies alone, since no losses are on record"
    return f"accuracies and, of runs of full length, {' and '.join(v.losses)}"


# ---- how sure

# Fewer runs of the pick than this, and luck is not told from merit.
_ENOUGH_SEEDS = 3
# Of one network, and it is seen how much runs vary.
_FEWEST_REPEATS = 2


def is_settled(v: Verdict) -> bool:
    """Whether the pick is within the margin of the best, as far as the digits shown say."""
    return not v.outlook or float(points(v.bound)) <= 100 * MARGIN


# Steps of a run below which no agreement with long training has been seen: on CIFAR-10
# (studies/length) the order after 100 steps has nothing to do with that after 6,400, and its pick
# is points worse there; that after 400 steps agrees as far as its own noise lets it.
_FEWEST_STEPS = 400
# Steps and seeds from which on an answer warns of no longer runs. On CIFAR-10, of seven answers
# of 400 steps (from one, two or three seeds) five lost 0.7 points to the best after 6,400. Of seven
# of 1,600 steps four did, all of one or two seeds (docs/trust.md, "How far short runs reach").
_STEPS_THAT_HELD = 1600
_SEEDS_THAT_HELD = 3
# The longest runs of these: what still longer ones would favour is not known.
_LONGEST_STEPS = 6400


def _too_short(study: Study) -> str:
    """Say that runs are too short to trust a direction; "" where they are not, or where the study
    does not say how long they are."""
    steps = study.steps(study.rungs[-1])
    if steps is None or steps >= _FEWEST_STEPS:
        return ""
    return (
        f" Runs of {steps} step{_plural(steps)} are too short to trust a direction: on CIFAR-10, "
        f"networks stand in another order after 100 steps than after thousands; give them "
        f"{_FEWEST_STEPS} at least."
    )


def certainty_card(v: Verdict, study: Study, state: StudyState) -> Card:
    """How sure the pick is: what could be the best, and the most that the pick may lose."""
    question = "How sure is that?"
    total, tied = len(v.rows), len(v.tied)
    if v.is_alone:
        headline = "The only network of this budget that finished"
        return Card("sure", question, headline, "Nothing to compare it with.")
    lose = f"You lose at most {points(v.bound)} points (95%)"
    few = ""
    if v.pick.seeds < _ENOUGH_SEEDS:
        runs = f"{v.pick.seeds} run{_plural(v.pick.seeds)}"
        few = f" The pick has {runs} of its own; the rest is its neighbours'."
    others = [row for row in (v.baseline, *v.references) if row is not None]
    settled = "Settled"
    if max(row.seeds for row in (*v.rows, *others)) < _FEWEST_REPEATS:
        # how much runs vary is then the prior's, and a wide spread of luck passes for merit
        settled = "Looks settled"
        few = " No network was run twice, so that how much runs vary is a guess: --extra tells."
    if state.unfinished:
        settled = "Looks settled"
        few += " More runs are to come."
    few += _too_short(study)
    if not is_settled(v):
        headline = f"Not settled: {tied} of {total} could be best"
        return Card("sure", question, headline, f"{lose}.{few}", v.bound)
    if tied == 1:
        headline = f"{settled}: the best of {total}"
        return Card("sure", question, headline, f"{lose}.{few}", v.bound)
    headline = f"{settled}: within half a point of the best"
    text = f"{lose}; {tied} of {total} could be best.{few}"
    return Card("sure", question, headline, text, v.bound)


def bound_words(v: Verdict) -> str:
    """The loss bound, P(best) and the networks that could be the best."""
    if v.is_alone:
        return "the only network of this budget that finished"
    bound = f"with 95% probability the pick lies at most {points(v.bound)} points below the best"
    probability = f"P(best), the probability that it is the best, is {v.pick.best:.2f}"
    return f"{bound}; {probability}. {tied_words(v)}"


def tied_words(v: Verdict) -> str:
    """How many of the networks could be the best; their cost where they differ in it."""
    total, tied = len(v.rows), len(v.tied)
    cost = "of this cost"
    if v.budget.of != "macs":
        cost = f"of {v.budget}"
    elif not v.equal_cost:
        ratios = [row.candidate.ratio for row in v.rows]
        cost = f"that really cost {min(ratios):.2f}x to {max(ratios):.2f}x"
    if tied == total:
        return f"All {total} networks {cost} could be the best: none can be told apart"
    if tied == 1:
        return f"It is the best of {total} networks {cost} with 95% probability"
    return (
        f"{tied} of {total} networks {cost} could be the best: the smallest set whose P(best) sums "
        "to 0.95"
    )


def noise_words(v: Verdict) -> str:
    """Say how much one run varies, what was left out, and where the model is rough."""
    words = f"one run lies within ± {points(HALF_WIDTH * v.noise)} points of its network (95%)"
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


# ---- was the larger cost worth it


def worth_card(v: Verdict) -> Card | None:
    """What the pick brings over the baseline; None where that has no run, or is the pick."""
    base = v.baseline
    if base is None or base.candidate.key == v.pick.candidate.key:
        return None
    gain = difference(base.behind, base.low, base.high)
    times, measure = _times_the_baseline(v, base)
    cost = f"{times:.2f} times its {measure}"
    # Without its ±: the two share their seeds' luck, so that they differ more surely than each is
    # known.
    text = f"Points against the baseline ({base.candidate.label}: {points(base.mean)}%)"
    if times <= 1:
        question = "What does the smaller cost lose?"
        headline = f"Not shown: {gain}"
        if base.low >= -MARGIN:
            headline = f"No more than half a point: {gain}"
        elif base.high < 0:
            headline = f"It loses: {gain}"
        return Card("worth it", question, headline, f"{text}, at {cost}.")
    question = "Was the larger cost worth it?"
    text = f"{text}, for {cost}."
    if base.standing == "as good":
        return Card("worth it", question, f"Hardly, within half a point: {gain}", text)
    if base.low > 0:
        return Card("worth it", question, f"Yes: {gain}", text)
    if base.high < 0:
        return Card("worth it", question, f"No: {gain}", f"{text} {_TRAIN_LONGER}")
    return Card("worth it", question, f"Not shown: {gain}", f"{text} {_TRAIN_LONGER}")


def _times_the_baseline(v: Verdict, base: Row) -> tuple[float, str]:
    """How many times the baseline's cost the pick has, and of what: the budget's measure, or
    multiply-adds where that is memory."""
    ours, theirs = v.pick.candidate, base.candidate
    if v.budget.of == "latency" and ours.latency and theirs.latency:
        return ours.latency / theirs.latency, "latency"
    if v.budget.of == "params":
        return ours.cost.params / theirs.cost.params, "parameters"
    if v.budget.of == "acts":
        return ours.cost.acts / theirs.cost.acts, "activations"
    return ours.ratio, "FLOPs (multiply-adds)"


_TRAIN_LONGER = "Train longer before trusting a direction."


# ---- what next

# A run of so many times the length tells the networks apart better than so many runs more
# (benchmarks/information.py: 46% of the variance is the network's at 400 steps, 84% at 3,200).
_LONGER = 4


# Times the runs there are: as many more are proposed where they settle the answer.
_WORTH_SETTLING = 4


def next_card(v: Verdict, study: Study, state: StudyState) -> Card:
    """What to do next: train the pick where the answer is settled, else more or longer runs."""
    question = "What next?"
    if state.out_of_time and state.unfinished:
        headline = f"More time: {state.unfinished}"
        text = "Without --time the study ends by itself; what is shown may change."
        command = without_option(state.command, "--time")
        return Card("next", question, headline, text, command=command)
    if state.unfinished:
        headline = f"Let the study end: {state.unfinished} so far"
        text = "What is shown may change"
        if state.command:
            text += "; the same command goes on where it stopped"
        return Card("next", question, headline, f"{text}.", command=state.command)
    if v.is_alone and v.failed:
        text = f"{failed_words(v)}.".capitalize()
        return Card("next", question, "See why the others did not finish", text)
    if is_settled(v) and _too_short(study):
        headline = f"Longer runs: {_FEWEST_STEPS} steps at least"
        text = "What is settled here is settled of runs this short."
        return Card("next", question, headline, text, command=_longer_command(study, state))
    if v.is_alone or is_settled(v):
        train = state.train.get(str(v.budget), "")
        text = f"{next_words(v)}{_of_this_length(v, study)}"
        return Card("next", question, "Train the pick in full", text, command=train)
    step = _worthwhile(v)
    if step is None:
        headline = f"Longer runs{_about(_LONGER * v.seconds * v.runs / 60)}"
        command = _longer_command(study, state)
        return Card("next", question, headline, next_words(v), command=command)
    command = ""
    if state.command:
        # in place of the one that it may have; the time of a study that has ended is spent
        command = without_option(state.command, "--extra", "extra")
        command = without_option(command, "--time")
        command = f"{command} --extra {_extra(v, study, step)}"
    headline = f"{step.runs:,} more run{_plural(step.runs)}{_about(step.runs * v.seconds / 60)}"
    return Card("next", question, headline, next_words(v), command=command)


def _of_this_length(v: Verdict, study: Study) -> str:
    """Say that longer runs may favour another network; "" where runs are as long, and as many, as
    those whose answer held, or so long that nothing longer was tried."""
    steps = study.steps(study.rungs[-1])
    if v.is_alone or steps is None or steps >= _LONGEST_STEPS:
        return ""
    lost = "four of six answers of 1,600 steps and one or two seeds"
    options = []
    if steps < _STEPS_THAT_HELD:
        lost = "five of seven answers of 400 steps"
        option, _, value = _longer(study)
        options.append(f"{option} {value}")
    if study.seeds < _SEEDS_THAT_HELD:
        options.append(f"--seeds {_SEEDS_THAT_HELD}")
    if not options:
        return ""
    return (
        f" Longer runs may favour another: on CIFAR-10, {lost} lost 0.7 points to the best after "
        f"{_LONGEST_STEPS:,}. A second study with {' '.join(options)} says more."
    )


def _longer_command(study: Study, state: StudyState) -> str:
    """The command of the same study with longer runs; "" where nothing can be added."""
    if not state.command:
        return ""
    option, setting, value = _longer(study)
    command = without_option(without_option(state.command, "--out"), "--time")
    command = without_option(command, option, setting)
    return f"{command} {option} {value} --out {shlex.quote(f'{state.folder}-longer')}"


def _longer(study: Study) -> tuple[str, str, str]:
    """The option that makes every run longer, the setting behind it, and its value."""
    if study.data.epoch_images is not None:
        return "--epoch-images", "data.epoch_images", f"{_LONGER * study.data.epoch_images}"
    return "--epochs", "rungs", ",".join(str(_LONGER * epochs) for epochs in study.rungs)


def _extra(v: Verdict, study: Study, step: Outlook) -> int:
    """The --extra that asks for this step: --time may have made more than were asked for."""
    return max(v.extra, study.extra) + step.runs


def _worthwhile(v: Verdict) -> Outlook | None:
    """As many more runs as settle it, where they are few enough; else about as many as there are,
    or as few as would be seen in the answer; None where no affordable number would."""
    shown = []
    for step in v.outlook:
        narrower = step.bound < v.bound and points(step.bound) != points(v.bound)
        if narrower and step.runs <= _AFFORDABLE * v.runs:
            shown.append(step)
    if not shown:
        return None
    settling = [step for step in shown if step.bound <= MARGIN]
    if settling and settling[0].runs <= _WORTH_SETTLING * v.runs:
        return settling[0]
    return next((step for step in shown if step.runs > v.runs / 2), shown[-1])


def next_words(v: Verdict) -> str:
    """What that would bring."""
    margin = points(MARGIN)
    if v.is_alone:
        return "There is one network of this budget."
    if is_settled(v):
        better = f"more than {margin} points better after runs of this length"
        return f"No other network compared can be {better}."
    longer = "longer ones may tell more, which runs of this length cannot say"
    step = _worthwhile(v)
    if step is None:
        return (
            f"More runs of this length would hardly narrow the {points(v.bound)} points; {longer}."
        )
    narrower = f"from {points(v.bound)} to about {points(step.bound)} points"
    words = f"They would narrow what you may lose {narrower}"
    if step.bound <= MARGIN or points(step.bound) == margin:
        return f"{words}."
    if v.settle is not None and v.settle <= _AFFORDABLE * v.runs:
        about = _about(v.settle * v.seconds / 60)
        return f"{words}; {margin} would take {v.settle:,} runs{about}."
    return f"{words}. No number of them would reach {margin}: {longer}."


def _about(minutes: float) -> str:
    """', about 10 minutes one at a time'; nothing where no run has a time on record."""
    if minutes >= 120:
        return f", about {minutes / 60:,.0f} hours one at a time"
    if minutes >= 1.5:
        return f", about {minutes:.0f} minutes one at a time"
    return ", about a minute one at a time" if minutes else ""


# ---- others against the pick

_CONFIRM = "on the test split, over fresh seeds, which had no part in the search"
# What a standing is called where a network is compared with the pick.
_STANDINGS = {
    "as good": "as good, within half a point",
    "worse": "worse",
    "better": "better",
    "cannot tell": "too close to call",
}


def against(row: Row) -> str:
    """'−1.1 (−2.0 to −0.2): worse': the network's points against the pick's, and the margin's
    word."""
    word = _STANDINGS[row.standing]
    if row.standing == "cannot tell" and row.candidate.role == "candidate" and not row.tied:
        word = "hardly the best"  # of what cannot be told from the pick alone, it could not be
    return f"{difference(-row.behind, -row.high, -row.low)}: {word}"


def _against_or_pick(v: Verdict, row: Row) -> str:
    return "it is the pick" if row.candidate.key == v.pick.candidate.key else against(row)


def faster_words(v: Verdict) -> str | None:
    """What is faster in training and could be the best too; None where nothing is known to be."""
    pick_speed = v.pick.speed
    if not v.faster or not pick_speed:
        return None
    named = []
    for row in v.faster[:_NAMED_FASTER]:
        times = (row.speed or 0.0) / pick_speed
        if times >= _FASTER:
            named.append(
                f"{row.candidate.label}, {times:.2f} times the pick's images/s, {against(row)}"
            )
    if not named:
        return None
    return f"of those that could be the best: {'; '.join(named)}"


# As many are named, and only from so much faster on: speeds of one network differ by several per
# cent between runs.
_NAMED_FASTER, _FASTER = 2, 1.1


def cheaper_words(v: Verdict) -> str | None:
    """A cheaper network that is expected to be better than the pick; None where none is."""
    row = v.cheaper
    if row is None or v.budget.of != "macs":  # cheaper in multiply-adds, which is not the question
        return None
    name = "the baseline"
    if row.candidate.role == "reference":
        name = f"the reference of {row.candidate.ratio:.2f}x"
    return (
        f"{name} ({row.candidate.label}) costs less than the pick and is expected above it: "
        f"{against(row)}"
    )


def paper_words(v: Verdict) -> str | None:
    """The network that stands for the paper's direction; None where none was reached."""
    row = v.named("paper")
    if row is None:
        return None
    candidate = row.candidate
    name = "the paper's direction"
    direction = candidate.direction("paper")
    if direction is not None and direction.match == "nearest":
        name = "the nearest to the paper's direction"
    return f"{name} ({candidate.label}): {_against_or_pick(v, row)}"


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
    words = f"the best single dimension, {row.candidate.direction(name)} ({row.candidate.label})"
    return f"{words}: {_against_or_pick(v, row)}"


# Of the extra cost: a dimension that takes so much of it, with 95%, is what the baseline lacks.
_LACKING = 0.5


def balance_words(v: Verdict, study: Study) -> str | None:
    """Say what the baseline is short of; None where no dimension takes most of the extra cost for
    certain, or there is no extra cost. A direction at the edge of the map is of the baseline as
    much as of the data: networks only grow, so that what should have been less cannot be."""
    pick, spec = v.pick.candidate, study.baseline
    if v.surface is None or not isinstance(pick.arch, Arch) or _costs_less(v):
        return None
    side = typed_sides(pick.arch.resolution, pick.arch.columns)
    flags = (
        ("depth", "blocks", f"--blocks {pick.arch.blocks}"),
        ("width", "channels", f"--width {spec.width * pick.beta:.3g}"),
        ("resolution", "pixels", f"--resolution {side}"),
    )
    for place, (dimension, what, flag) in enumerate(flags):
        least = min(point[place] for point in v.surface.region)
        if least >= _LACKING:
            return (
                f"the baseline is short of {what}: at least half of the extra cost is best spent "
                f"on {dimension} (95%). From a baseline with more of them, such as {flag}, the "
                "best direction may be another"
            )
    return None


def confirmed_words(c: Confirmed) -> str:
    head = f"{c.row.candidate.label}: test {points(c.mean)}% over {c.runs} seed{_plural(c.runs)}"
    if c.standing is None:
        return head
    interval = difference(-c.behind, -c.behind - c.half, -c.behind + c.half)
    return f"{head}, {interval} against the pick: {c.standing}"


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
        f"these networks are equal in {v.budget.unit}; their FLOPs (multiply-adds) are {span} "
        "times the baseline's"
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


def why_none(records: Sequence[Record]) -> str:
    """Say why these runs are no answer."""
    ended, failed = count_ended(records), sum(r.failed for r in records)
    if not records:
        return "no run has been started"
    if any(r.candidate.role == "candidate" and r.done for r in records):
        return "fewer than two networks of a budget have finished; an answer compares them"
    if not ended:
        are = "is" if len(records) == 1 else "are"
        return f"no run has ended; {len(records)} {are} in progress"
    if failed == ended:
        return f"every run so far has failed ({failed} of {failed}); results.csv says how"
    done = ended - failed
    return f"no network of the budget has finished ({done} runs have, {failed} failed)"
