import html
import html.parser
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

import scaling_search
from effnet.budget import Budget
from scaling_search.report.figures import curves
from scaling_search.report.figures.style import axes_of
from scaling_search.report.page import Page, answer_sentences, command_of
from scaling_search.report.render import build, build_comparison
from scaling_search.results.curves import TABLE, write
from scaling_search.results.curves import read as read_curves
from scaling_search.results.reader import StoreReader
from scaling_search.results.record import Record
from scaling_search.study.plan import plan
from scaling_search.study.settings import preset_path, read
from scaling_search.training.trial import Epoch, Outcome
from scaling_search.verdict.narration import (
    StudyState,
    cards,
    comparisons,
    details,
    in_brief,
    worth_card,
)
from tests.pages import page_with
from tests.records import TODO, dominates, record

ROOT = Path(__file__).parent.parent


class Outside(html.parser.HTMLParser):
    """Every address that the page would fetch, and every script element with what it says."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.scripts: list[str] = []
        self._in_script = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_script = tag == "script" and ("type", "application/json") not in attrs
        self.fetched += [
            v for k, v in attrs if k in ("src", "href") and v and not v.startswith("data:")
        ]

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts.append(data)


def test_self_contained_and_escaped(page: Page) -> None:
    text = build(page)
    seen = Outside()
    seen.feed(text)
    assert seen.fetched == []
    assert text.count("plotly.js v") == 1, "plotly.js is embedded once"
    assert not any("alert(" in s and len(s) < 100_000 for s in seen.scripts)
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    assert "&lt;script&gt;alert(4)" in text
    assert len(text) < 7_000_000


def test_answer_says_what_the_numbers_say(page: Page) -> None:
    text = answer_of(build(page))
    (v,) = page.verdicts
    arch = v.pick.candidate.arch
    assert f"Which network, for 2x? {arch.blocks} blocks, {arch.px}, {arch.stem_width} to" in text
    assert "How sure is that?" in text
    assert "Was the larger cost worth it?" in text
    assert "What next?" in text
    assert "the paper's direction" in text
    assert "best single dimension" in text
    assert "unfinished" not in text
    part = replace(page, unfinished="4 of 19 runs", state=StudyState("4 of 19 runs"))
    words = answer_of(build(part))
    assert "so far unfinished, 4 of 19 runs: what follows may change" in words
    assert "Which network leads so far, for 2x?" in words


def test_every_sentence_of_the_verdict_is_on_the_page(page: Page) -> None:
    """The report says what the terminal says, word for word."""
    text = build(page)
    answer, behind = answer_of(text), words_of(text, "reproduce")
    (v,) = page.verdicts
    for card in cards(v, page.study, page.state):
        assert card.headline in answer
        assert card.text in answer
    for sentence in comparisons(v, page.records, page.study):
        assert f"{sentence.label} {sentence.text}".strip() in answer
    sentences = details(v, page.records, page.study)
    assert len(sentences) > 4
    for sentence in sentences:
        assert f"{sentence.label} {sentence.text}".strip() in behind


def test_a_budget_without_an_answer_is_said(page: Page) -> None:
    budgets = (*page.study.budgets, Budget.parse("3x"))
    of_two = replace(page, study=page.study.model_copy(update={"budgets": budgets}))
    said = [(s.label, s.text) for s in answer_sentences(of_two)]
    assert said[0] == ("budget", "2x")
    assert said[-2:] == [("budget", "3x"), ("answer", "none yet: no run has been started")]
    assert "no answer for 3x: no run has been started" in build(of_two)
    assert "budget" not in {s.label for s in answer_sentences(page)}


def test_an_interrupted_study_answers_for_the_runs_that_it_has(tmp_path: Path) -> None:
    """Of a length that no network has reached the model knows nothing but its prior: 0%."""
    recorded = read_curves(ROOT / "studies" / "transfer-fashion-mnist" / TABLE)
    facts = {**recorded.facts(), "state": "stopped"}
    write(tmp_path / TABLE, recorded.records()[:9], facts)  # nine networks, the first length
    opened = scaling_search.open(tmp_path)
    text = str(opened)
    assert "unfinished, 9 of 78 runs, none of 102,400 images" in text
    assert "after 25,600 images" in text
    (verdict,) = opened.verdicts.values()
    assert 0.8 < verdict.pick.mean < 0.9
    assert verdict.pick.seeds == 1


def test_the_command_of_a_study_leads_to_its_folder(tmp_path: Path) -> None:
    """A study that was copied or renamed is not begun anew in its old place."""

    def command(words: str, folder: str, name: str | None = None) -> str:
        facts = {"command": f"scaling-search search{words}", "folder": name}
        return command_of(cast(StoreReader, None), facts, tmp_path / folder)

    here = tmp_path / "b"
    assert command(f" --out {here}", "b", "b") == f"scaling-search search --out {here}"
    moved = shlex.quote(str(tmp_path / "my copy"))
    assert command(f" --out {here}", "my copy", "b") == f"scaling-search search --out {moved}"
    assert command("", "my copy", "cifar10-2x") == f"scaling-search search --out {moved}"
    assert command("", "cifar10-2x", "cifar10-2x") == "scaling-search search"
    assert command("", "older", None) == "scaling-search search"
    assert command(", in /home/o'brien", "x", "y").endswith("o'brien"), "no command of a shell"


def test_an_option_is_set_as_it_is_typed(page: Page) -> None:
    once = page_with(page, [record(c, 0, 0.7) for c in TODO.everything])
    assert "is a guess: <code>--extra</code> tells." in build(once)
    named = replace(once, unfinished="2 of runs/my--photos")
    assert "unfinished, 2 of runs/my--photos: what" in build(named)


def test_the_bound_is_drawn_to_scale(page: Page) -> None:
    (v,) = page.verdicts
    text = build(replace(page, verdicts=(replace(v, bound=0.01),)))
    assert '<div class="lost" style="width: 50.0%">' in text  # of two points
    assert '<div class="good" style="width: 25.0%">' in text
    wide = build(replace(page, verdicts=(replace(v, bound=0.04),)))
    assert '<div class="lost" style="width: 80.0%">' in wide


def test_the_pick_stands_beside_the_baseline(page: Page) -> None:
    (v,) = page.verdicts
    assert v.baseline is not None
    seen = words_of(build(page), "seen")
    pick = v.pick.candidate.arch
    for stage in (*pick.stages, *v.baseline.candidate.arch.stages):
        assert f"{stage.repeats} × {stage.width} channels" in seen


def test_one_finished_network_of_many_is_no_answer(page: Page) -> None:
    one = [record(TODO.candidates[0], 0, 0.5)]
    part = replace(page_with(page, one), verdicts=(), unfinished="1 of 19 runs")
    assert "fewer than two networks of a budget have finished" in build(part)


def test_one_map_for_each_budget(page: Page) -> None:
    todo = plan(read(preset_path("quick-b0-s4"), {"budgets": ["0.5x", "2x"]}), 10, 28)
    records = [record(c, 0, 0.7) for c in todo.everything]
    study = page.study.model_copy(update={"budgets": (Budget.parse("0.5x"), Budget.parse("2x"))})
    text = build(page_with(page, records, study=study, targets={"0.5x": 1e6, "2x": 4e6}))
    assert [f["heading"] for f in texts_of(text)["figures"] if f["id"].startswith("map")] == [
        "The map: where the extra cost went, 0.5x", "The map: where the extra cost went, 2x",
    ]  # fmt: skip
    assert "budgets" in [f["id"] for f in texts_of(text)["figures"]]


def test_of_several_budgets_each_answer_says_whose_it_is(page: Page) -> None:
    todo = plan(read(preset_path("quick-b0-s4"), {"budgets": ["1.5x", "3x"]}), 10, 28)
    records = [record(c, s, 0.7 + 0.01 * s) for c in todo.everything for s in range(2)]
    budgets = (Budget.parse("1.5x"), Budget.parse("3x"))
    study = page.study.model_copy(update={"budgets": budgets})
    both = page_with(page, records, study=study, targets={"1.5x": 1e6, "3x": 4e6})
    said = answer_sentences(both)
    assert [s.text for s in said if s.label == "budget"] == ["1.5x", "3x"]
    networks = texts_of(build(both))["tables"]["networks"]["rows"]
    place = networks["network"].index(todo.baseline.key)
    assert networks["mean"][place] is not None
    assert networks["difference"][place] is None, "to which of the two picks?"


def test_the_cost_of_a_budget_of_parameters_is_its_parameters(page: Page) -> None:
    (v,) = page.verdicts
    assert v.baseline is not None
    card = worth_card(replace(v, budget=Budget.parse("2x params")))
    ratio = v.pick.candidate.cost.params / v.baseline.candidate.cost.params
    assert card is not None
    assert f"{ratio:.2f} times its parameters" in card.text


def test_speeds_that_nobody_has_are_no_axis(page: Page) -> None:
    """As where runs shared their GPU."""
    assert next(iter(axes_of(page))) == "params"
    study = page.study.model_copy(update={"budgets": (Budget.parse("2x params"),)})
    shared = [record(r.candidate, r.seed, 0.7, speed=0.0) for r in page.records]
    assert next(iter(axes_of(replace(page, study=study, records=shared)))) != "image_ms"


def test_page_without_any_finished_network(page: Page) -> None:
    records = [
        Record(0, c, 0, 1, Outcome("diverged", note="loss not finite")) for c in TODO.everything
    ]
    text = build(page_with(page, records))
    assert "answer none yet: every run so far has failed (" in answer_of(text)
    content = texts_of(text)
    assert set(content["tables"]["runs"]["rows"]["status"]) == {"diverged"}
    assert content["tables"]["runs"]["rows"]["note"][0] == "loss not finite"
    assert "front" not in [f["id"] for f in content["figures"]]


def test_baseline_alone(page: Page) -> None:
    text = answer_of(build(page_with(page, [record(TODO.baseline, 0, 0.5)])))
    assert "answer none yet: no network of the budget has finished (1 runs have, 0 failed)" in text


def test_pages_of_little(page: Page) -> None:
    assert "no run has been started" in build(page_with(page, []))
    assert "no run has ended; 1 is in progress" in build(
        page_with(page, [Record(0, TODO.baseline, 0, 1, None)])
    )
    one = build(page_with(page, [record(TODO.candidates[0], 0, 0.5)]))
    assert "The only network of this budget that finished" in one
    assert "front" in [f["id"] for f in texts_of(one)["figures"]]


def test_tables_say_what_the_records_and_the_verdict_say(page: Page) -> None:
    tables = texts_of(build(page))["tables"]
    networks, runs = tables["networks"]["rows"], tables["runs"]["rows"]
    (v,) = page.verdicts
    assert networks["network"][0] == v.pick.candidate.key
    assert networks["stands"][0].startswith("the pick")
    assert networks["mean"][: len(v.rows)] == [row.mean for row in v.rows]
    assert networks["low"][1] == -v.rows[1].high
    assert networks["difference"][1] == -v.rows[1].behind
    assert networks["difference"][0] is None
    assert networks["tied"][0] == "yes"
    assert len(runs["row"]) == len(page.records)
    for i, r in enumerate(page.records):
        assert networks["network"][runs["row"][i]] == r.candidate.key
        assert runs["seed"][i] == r.seed
        assert runs["val_acc"][i] == (r.val_acc if r.done else None)
        assert networks["macs"][runs["row"][i]] == r.candidate.cost.macs


def test_the_front_along_each_cost_is_not_dominated(page: Page) -> None:
    content = texts_of(build(page))
    rows = content["tables"]["networks"]["rows"]
    (lines,) = [
        t["meta"]["front"]
        for t in figure_of(content, "front")["data"]
        if "front" in t.get("meta", {})
    ]
    for axis in ("macs", "params", "acts"):
        points = []
        for point in zip(rows[axis], rows["mean"], strict=True):
            if point[1] is not None:
                points.append(point)
        best = {p for p in points if not any(dominates(q, p) for q in points)}
        assert {(rows[axis][i], rows["mean"][i]) for i in lines[axis]} == best


def test_published_networks_lie_over_imagenet(page: Page) -> None:
    def names(dataset: str) -> list[str]:
        figure = figure_of(texts_of(build(replace(page, dataset=dataset))), "front")
        return [t["name"] for t in figure["data"]]

    assert any("as published" in name for name in names("imagenet"))
    assert any("NNI's run" in name for name in names("imagenet"))
    assert not any("published" in name or "NNI" in name for name in names("imagenette"))


def test_a_trained_family_lies_over_the_front(page: Page) -> None:
    small, large = sorted(TODO.everything, key=lambda c: c.cost.macs)[:: len(TODO.everything) - 1]
    family = (record(large, 0, 0.8), record(small, 0, 0.7), record(large, 1, 0.9))
    traces = figure_of(texts_of(build(replace(page, family=family))), "front")["data"]
    (trace,) = [t for t in traces if t["name"].startswith("its family")]
    assert trace["x"] == [small.cost.params, large.cost.params]
    assert trace["y"] == pytest.approx([70, 85])
    assert trace["meta"]["costs"]["macs"] == [small.cost.macs, large.cost.macs]


def test_several_studies_on_one_page(page: Page) -> None:
    other = replace(page, title="other <script>")
    text = build_comparison([page, other, page_with(page, [])])
    ids = [f["id"] for f in texts_of(text)["figures"]]
    assert ids == ["front", "map-0-0", "map-1-0"]
    assert "other &lt;script&gt;" in text
    assert text.count("plotly.js v") == 1
    assert "answer: none yet: no run has been started" in text
    for sentence in in_brief(page.verdicts[0], page.study):
        assert f"<th>{sentence.label}</th>" in text
        assert text.count(f"<td>{sentence.text}</td>") >= 2  # of two studies with this verdict


def answer_of(text: str) -> str:
    """The words of a page's answer, as a reader sees them."""
    return words_of(text, "answer")


def words_of(text: str, part: str) -> str:
    """The words of a part of a page."""
    following = {"answer": 'id="rest"', "seen": 'id="reproduce"', "reproduce": "</main>"}[part]
    words = re.sub(r"<[^>]*>?", " ", text.split(f'id="{part}">')[1].split(following)[0])
    return " ".join(html.unescape(words).split())


def figure_of(content: dict[str, Any], name: str) -> dict[str, Any]:
    """A figure of a page's content."""
    (figure,) = [f["figure"] for f in content["figures"] if f["id"] == name]
    return dict(figure)


def texts_of(text: str) -> dict[str, Any]:
    """The content that a page carries as JSON: its figures, tables and words."""
    (carried,) = re.findall(
        r'<script type="application/json" id="content">(.*?)</script>', text, re.DOTALL
    )
    content: dict[str, Any] = json.loads(carried)
    return content


def test_runs_of_one_epoch_are_drawn_by_their_losses(page: Page) -> None:
    """Of five losses three are averaged into each of three points; a run without detail has
    none. Beside the pick's, since all fall alike."""
    losses = (3.0, 2.0, 1.0, 1.0, 1.0)
    detailed = Outcome("done", (Epoch(1, 1.6, 1.5, 0.5, 1.0, losses),))
    one, other = TODO.candidates[:2]
    index = {one.key: 0, other.key: 1}
    runs = [Record(0, one, 0, 1, detailed), record(one, 1, 0.5)]
    alone = replace(page, records=runs, verdicts=())
    drawn = curves.draw(alone, index).data[0]
    assert list(drawn.x) == [0.3, 0.5, 0.7, None]
    assert list(drawn.y) == [2.0, 1.333, 1.0, None]
    assert drawn.meta == {"curves": [0], "points": [3]}
    higher = Outcome("done", (Epoch(1, 1.6, 1.5, 0.4, 1.0, tuple(loss + 1 for loss in losses)),))
    both = page_with(page, [runs[0], Record(1, other, 0, 1, higher)])
    (v,) = both.verdicts
    assert v.pick.candidate == one
    lines = {trace.name: list(trace.y) for trace in curves.draw(both, index).data}
    assert lines["the pick"] == [0, 0, 0, None]
    assert [1, 1, 1, None] in lines.values()
    two = Outcome("done", (*detailed.epochs, replace(detailed.epochs[0], epoch=2)))
    twice = replace(alone, records=[Record(0, one, 0, 2, two)])
    assert list(curves.draw(twice, index).data[0].y) == [50, 50, None]
    assert not curves.are_drawn([record(one, 0, 0.5)]), "a single dot is no curve"
