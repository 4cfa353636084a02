"""Latency budgets: texts, tables, the model of times, the plan by them, and whole studies.

Devices are made up where numbers are held to something: a formula takes the time, whatever else
this machine is doing. What is measured here is only held to be measured."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from effnet import custom
from effnet.arch import Arch, Network, scale
from effnet.blocks import Block, blocks
from effnet.budget import Budget
from effnet.cost import cost, op_cost
from effnet.families import named_baseline
from effnet.latency import Inference, Table, TableError, Times, parse_table, read_table
from effnet.nn.timing import Stopwatch, TimingError
from scaling_search import UserError
from scaling_search.cli import main
from scaling_search.results.reader import StoreReader
from scaling_search.study.latency import (
    Bench,
    Recorded,
    again,
    grown_plan,
    open_bench,
    plan_by_latency,
    read_given,
    save_given,
)
from scaling_search.study.plan import Plan
from scaling_search.study.settings import Study, preset_path, read
from tests import functions

CPU = Inference("cpu", hardware="made up")


class MadeUp(Stopwatch):
    """A device on which each network takes its own time: that of its blocks by a formula, a
    twentieth more or less by its key, and all of it `pace` times as long."""

    def __init__(self, pace: float = 1.0) -> None:
        self.inference = CPU
        self.pace = pace
        self.measured = 0

    def __exit__(self, *_: object) -> None: ...

    def blocks(self, arch: Arch, shapes: Sequence[Block]) -> list[float]:
        return [block_time(shape) for shape in shapes]

    def networks(self, archs: Sequence[Network]) -> list[float]:
        self.measured += len(archs)
        return [self.pace * network_time(arch) for arch in archs]


def block_time(block: Block) -> float:
    """Nanoseconds: a launch, and what follows from multiply-adds and from elements."""
    from effnet.blocks import ops

    layers = [op_cost(op, block) for op in ops(block)]
    return sum(5_000 / len(layers) + 0.05 * each.macs + 1.0 * each.acts for each in layers)


def network_time(arch: Network) -> float:
    assert isinstance(arch, Arch)
    whole = sum(block.repeats * block_time(block) for block in blocks(arch))
    return whole * (0.95 + 0.1 * random.Random(arch.key).random()) + 20_000


def planned(
    budget: str,
    stopwatch: Stopwatch | None = None,
    *,
    preset: str = "quick-b0-s4",
    table: Table | None = None,
    candidates: int = 12,
) -> tuple[Study, Plan, Bench]:
    settings = {
        "budgets": budget.split(","), "device": "cpu", "space.candidates": candidates
    }  # fmt: skip
    study = read(preset_path(preset), settings)
    bench = Bench(table or Table(CPU), "made up", stopwatch or MadeUp())
    study, todo = plan_by_latency(study, 10, 32, (), bench, lambda words: None)
    return study, todo, bench


@pytest.mark.parametrize(
    ("text", "printed", "value"),
    [
        ("5ms", "5ms@1", 5e6),
        ("750us", "750us@1", 7.5e5),
        ("0.002s latency", "2ms@1", 2e6),
        ("5ms@8/cuda", "5ms@8/cuda", 5e6),
        ("5ms@cuda", "5ms@1/cuda", 5e6),
        ("5ms@8/CPU/bf16", "5ms@8/cpu/bf16", 5e6),
        ("2x latency", "2x latency@1", 2.0),
        ("2x latency@4/cpu", "2x latency@4/cpu", 2.0),
    ],
)
def test_texts(text: str, printed: str, value: float) -> None:
    budget = Budget.parse(text)
    assert (str(budget), budget.value, budget.of) == (printed, value, "latency")
    assert Budget.parse(printed) == budget


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("5ms@tpu", "a device of cpu or cuda"),
        ("5ms params", "latency seconds"),
        ("2M latency", "latency seconds"),
        ("5ms@8/8", "each once"),
        ("5ms@0", "a batch of at least 1"),
        ("8GiB@4/cpu", "a precision of"),
        ("1e-9s", "budget '1e-9s': a budget is"),
        ("0.1us", "from 1us"),
    ],
)
def test_texts_that_are_none(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Budget.parse(text)


def test_a_latency_without_times_says_so() -> None:
    with pytest.raises(ValueError, match="measured by search, and none are at hand"):
        Budget.parse("5ms").measure(scale(named_baseline("b0")))


def test_the_model_finds_what_times_grow_with() -> None:
    """Blocks whose times are sums over layers are told, those that were not measured too."""
    base = dataclasses.replace(named_baseline("b0-s4"), width=0.5, rounding="spread")
    rng = random.Random(0)
    known, unknown = {}, []
    for n in range(12):
        arch = scale(base, 1.0, rng.uniform(1, 2), rng.randint(16, 32), num_classes=10)
        for block in blocks(arch):
            single = block._replace(repeats=1)
            if n < 8:
                known[single] = block_time(single)
            else:
                unknown.append(single)
    times = Times(CPU, known)
    errors = [times.model.block_estimate(block) / block_time(block) - 1 for block in unknown]
    assert np.median(np.abs(errors)) < 0.05
    wider = scale(base, 1.0, 2.0, 16, num_classes=10)
    assert times.latency(wider) >= times.latency(scale(base, resolution=16, num_classes=10))


@pytest.mark.parametrize("budget", ["2x latency@1/cpu", "0.3ms@1/cpu", "0.6x latency@1/cpu"])
def test_every_network_meets_the_budget_as_measured(budget: str) -> None:
    study, todo, _ = planned(budget)
    base = network_time(todo.baseline.arch)
    target = study.budgets[0].value * (base if study.budgets[0].relative else 1)
    assert len(todo.candidates) >= 5
    for candidate in todo.candidates:
        assert candidate.latency == round(network_time(candidate.arch))
        assert abs(network_time(candidate.arch) / target - 1) <= 0.02
        assert sum(candidate.shares or (1,)) == pytest.approx(1)
    assert todo.baseline.latency == round(base)
    assert any("of every network compared as measured" in note for note in todo.notes)


@pytest.mark.parametrize("preset", ["quick-b0-s4", "quick"])
def test_a_study_goes_on_as_it_was_planned(preset: str) -> None:
    """What is recorded reads back the same, and a growing study keeps what it compared."""
    study, todo, bench = planned("2x latency@1/cpu", preset=preset, candidates=7)
    plain = json.loads(json.dumps(Recorded.of(study, todo, bench.table).as_dict()))
    recorded = Recorded.read(plain, study)
    assert recorded.table.text() == bench.table.text()
    assert [c.as_dict() for c in recorded.plan.everything] == [c.as_dict() for c in todo.everything]
    for candidate in todo.everything:
        assert recorded.times.latency(candidate.arch) == candidate.latency

    larger = study.model_copy(update={"space": study.space.model_copy(update={"candidates": 10})})
    watch = MadeUp()
    there = Bench(recorded.table, "recorded", watch, is_settled=True)
    _, grown = grown_plan(larger, recorded, 10, 32, there, lambda words: None)
    assert grown.candidates[:7] == recorded.plan.candidates
    assert 7 < len(grown.candidates) <= 10
    base = network_time(grown.baseline.arch)
    for candidate in grown.candidates:
        assert abs(network_time(candidate.arch) / base - 2) <= 0.04
    with pytest.raises(UserError, match="more --candidates: their latency is measured on made up"):
        elsewhere = Bench(recorded.table, "recorded", None)
        grown_plan(larger, recorded, 10, 32, elsewhere, lambda words: None)


def test_a_network_that_costs_nothing_more_is_refused_by_the_tolerance_of_the_study() -> None:
    """As on a device whose networks all take as long: what is said is the study's own 2%."""

    class Flat(MadeUp):
        def blocks(self, arch: Arch, shapes: Sequence[Block]) -> list[float]:
            return [1e4] * len(shapes)

        def networks(self, archs: Sequence[Network]) -> list[float]:
            return [1e5] * len(archs)

    with pytest.raises(UserError, match="no network within 2% of"):
        planned("2x latency@1/cpu", Flat())


def test_no_monster_is_measured() -> None:
    """A budget of the wrong unit is refused before its networks are; a large one asks for none far
    beyond those that meet it."""
    largest = 0

    class Careful(MadeUp):
        def networks(self, archs: Sequence[Network]) -> list[float]:
            nonlocal largest
            largest = max(largest, *(cost(arch).params for arch in archs))
            return super().networks(archs)

    with pytest.raises(UserError, match="budget 5s@1/cpu: .* times the baseline's"):
        planned("5s@1/cpu", Careful())
    assert largest < 1e6
    planned("50x latency@1/cpu", Careful())
    assert largest < 1e8


def test_one_file_for_several_studies(tmp_path: Path) -> None:
    """Networks of other kinds stay in the file and out of the model; a table that was not measured
    here is not overwritten."""
    path = tmp_path / "mine.csv"
    study, _, bench = planned("2x latency@1/cpu")
    save_given(path, study, bench.table)
    other, _, second = planned("2x latency@1/cpu", preset="quick", table=read_given(path, study))
    save_given(path, other, second.table)
    both = read_given(path, study)
    assert both.networks.keys() >= bench.table.networks.keys() | second.table.networks.keys()

    function = scale(custom.find(functions.write(tmp_path)), num_classes=10)
    both.networks[function] = 1e6
    _, todo, _ = planned("2x latency@1/cpu", table=both)
    assert len(todo.candidates) >= 5
    of_phone = Table(dataclasses.replace(CPU, hardware="a phone"), bench.table.blocks)
    path.write_text(of_phone.text())
    with (
        pytest.raises(UserError, match="of a phone; the study's own is of made up"),
        open_bench(study, bench.table, path),
    ):
        pass
    place = functions.write(tmp_path)
    settings = {"baseline.name": place, "budgets": ["2x latency@1/cpu"], "device": "cpu"}
    alone = Bench(of_phone, "phone", None)
    with pytest.raises(UserError, match="it has fewer than 4, and a function's are known by no"):
        plan_by_latency(read(preset_path("quick"), settings), 10, 24, (), alone, lambda words: None)


def test_a_table_of_another_pace_is_refused() -> None:
    """As of another machine of the same name, or of microseconds."""
    _, _, bench = planned("2x latency@1/cpu")
    with pytest.raises(UserError, match="it is of another machine"):
        planned("2x latency@1/cpu", MadeUp(pace=10), table=bench.table)


def test_a_slower_machine_is_told_from_slower_networks() -> None:
    study, todo, bench = planned("2x latency@1/cpu")
    slow = Bench(bench.table, "made up", MadeUp(pace=1.3))
    words = again(slow, todo)
    assert "changed by at most 0.0%, and the baseline itself by +30.0%" in words
    more = [scale(study.network(), 2.0, 1.0, 16, num_classes=10)]
    measured = slow.networks(todo.baseline.arch, more)
    assert measured[more[0]] == pytest.approx(network_time(more[0]), rel=1e-6)


def test_a_table_of_another_device_is_gone_by_alone(tmp_path: Path) -> None:
    """A phone's: block kind, shape, milliseconds, and nothing else."""
    study, _, bench = planned("2x latency@1/cpu")
    rows = pd.read_csv(pd.io.common.StringIO(bench.table.text()))
    rows = rows[rows["network"].isna()].drop(
        columns=["hardware", "device", "batch", "precision", "threads", "shortcut", "network"]
    )
    path = tmp_path / "phone.csv"
    rows.to_csv(path, index=False)
    table = read_table(path, CPU)
    assert table.inference.hardware == ""
    assert len(table.blocks) == len(rows)
    study, todo = plan_by_latency(
        study, 10, 32, (), Bench(table, str(path), None), lambda words: None
    )
    assert len(todo.candidates) >= 8
    times = study.budgets[0].times
    assert times is not None
    for candidate in todo.candidates:
        assert times.latency(candidate.arch) == candidate.latency
        assert abs((candidate.latency or 0) / times.latency(todo.baseline.arch) - 2) <= 0.04
    assert any("which its table does not say" in note for note in todo.notes)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no column"),
        ("operator,ms\nmbconv,1\n", "no column c_in"),
        (
            "operator,side,c_in,expanded,squeezed,c_out,kernel,stride,ms\n"
            "conv9,8,8,8,0,8,3,1,1.5\n",
            "line 2: operator = 'conv9': known are stem",
        ),
        (
            "operator,side,c_in,expanded,squeezed,c_out,kernel,stride,ms\nfused,8,8,8,0,8,3,1,-1\n",
            "line 2: ms = -1: a time above 0",
        ),
        (
            "operator,side,c_in,expanded,squeezed,c_out,kernel,stride,ms\nfused,8,8,8,0,8,3,0,1\n",
            "line 2: side, stride, kernel",
        ),
        (
            "batch,operator,side,c_in,expanded,squeezed,c_out,kernel,stride,ms\n"
            "1,fused,8,8,8,0,8,3,1,1\n2,fused,8,8,8,0,8,3,1,1\n",
            "line 3: of another device, batch",
        ),
        ("operator,side,c_in,expanded,squeezed,c_out,kernel,stride,ms\n", "no rows"),
        (
            "operator,side,c_in,expanded,squeezed,c_out,kernel,stride,ms\n"
            "fused,8,8,8,0,8,3,1,1\nfused,8,8,8,0,8,3,1,3\n",
            "line 3: the same block",
        ),
        (
            "operator,side,c_in,expanded,squeezed,c_out,kernel,stride,ms\n"
            "fused,inf,8,8,0,8,3,1,1\n",
            "line 2: cannot convert",
        ),
        (
            "operator,side,c_in,expanded,squeezed,c_out,kernel,stride,ms\nfused,8,8,8,0,8,4,1,1\n",
            "line 2: kernel must be odd",
        ),
        (f'operator,ms\n"{"x" * 200_000}",1\n', "field larger than"),
    ],
)
def test_files_that_are_no_table(text: str, says: str) -> None:
    with pytest.raises(TableError, match=says):
        parse_table(text, CPU, "table.csv")


def test_tables_that_do_not_fit_the_study(tmp_path: Path) -> None:
    study, _, bench = planned("2x latency@1/cpu")
    path = tmp_path / "table.csv"
    path.write_text(Table(dataclasses.replace(CPU, batch=8), bench.table.blocks).text())
    with (
        pytest.raises(UserError, match="it is of 8 images in fp32 on cpu, 1 thread; the budget"),
        open_bench(study, None, path),
    ):
        pass
    only_fused = {block: 1.0 for block in bench.table.blocks if block.operator == "fused"}
    only_fused[Block(1, 8, 8, 8, 8, "fused", 8, 8, 0, 8, 3, 1)] = 1.0
    table = Table(CPU, only_fused)
    with pytest.raises(UserError, match="no row of head, mbconv, stem, which the networks of b0"):
        plan_by_latency(study, 10, 32, (), Bench(table, "t", None), lambda words: None)
    gpu = read(preset_path("quick"), {"budgets": ["2x latency@1/cuda"], "device": "cpu"})
    of_gpu = Table(dataclasses.replace(CPU, device="cuda"), bench.table.blocks)
    with open_bench(gpu, of_gpu, None) as elsewhere:
        assert elsewhere.stopwatch is None
    with pytest.raises(UserError, match="there is no GPU here"), open_bench(gpu, None, None):
        pass


def test_this_machine_is_measured(tmp_path: Path) -> None:
    """In a process of its own: blocks, networks of a table, and one of a function."""
    base = dataclasses.replace(named_baseline("b0-s4"), width=0.2, rounding="spread")
    small = scale(base, 0.5, 1.0, 8, num_classes=10)
    large = scale(base, 2.0, 8.0, 64, num_classes=10)
    function = scale(custom.find(functions.write(tmp_path)), num_classes=10)
    with Stopwatch(Inference("cpu")) as watch:
        assert watch.inference.hardware
        few, many, other = watch.networks([small, large, function])
        assert min(few, many, other) > 0
        single = [block._replace(repeats=1) for block in blocks(small)]
        assert min(watch.blocks(small, single)) > 0
    with pytest.raises(TimingError, match="there is no GPU here that torch can use"):
        Stopwatch(Inference("cuda"))


def test_a_study_of_a_function(tmp_path: Path) -> None:
    """Whose blocks are its own affair: whole networks make the model."""
    place = functions.write(tmp_path)

    class Device(MadeUp):
        def networks(self, archs: Sequence[Network]) -> list[float]:
            return [2e4 + 3e3 * arch.depth + 0.01 * arch.counts.macs for arch in archs]  # type: ignore[union-attr]

    study = read(
        preset_path("quick"),
        {"baseline.name": place, "budgets": ["2x latency@1/cpu"], "device": "cpu"},
    )
    bench = Bench(Table(CPU), "made up", Device())
    study, todo = plan_by_latency(study, 10, 24, (), bench, lambda words: None)
    base = Device().networks([todo.baseline.arch])[0]
    assert len(todo.candidates) >= 5
    for candidate in todo.candidates:
        assert abs(Device().networks([candidate.arch])[0] / base - 2) <= 0.04


TINY = [
    "search", "--data", "shapes", "--device", "cpu", "--preset", "quick-b0-s4", "--candidates", "4",
    "--extra", "0", "--set", "references=[]", "--epoch-images", "64", "--train-images", "200",
    "--val-images", "100", "--workers", "1",
]  # fmt: skip


def test_a_whole_study_by_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Searched, gone on with, grown, replayed; its family; and what it says."""
    _, _, bench = planned("2x latency@1/cpu")
    path, out = tmp_path / "phone.csv", tmp_path / "run"
    blocks_alone = Table(dataclasses.replace(CPU, hardware="a phone"), bench.table.blocks)
    path.write_text(blocks_alone.text())
    study = preset_path("quick-b0-s4")
    command = [word if word != "quick-b0-s4" else str(study) for word in TINY]
    command[command.index("--preset")] = "--study"
    command += ["--budget", "2x latency", "--out", str(out)]
    assert main([*command, "--latency-table", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "equal in latency; their FLOPs (multiply-adds) are" in printed
    assert "(a phone)" in printed
    results = pd.read_csv(out / "results.csv")
    networks = results.drop_duplicates("network")
    base = networks[(networks.alpha == 1) & (networks.beta == 1) & (networks.gamma == 1)]
    others = networks[networks.network != base.network.iloc[0]]
    ratios = others.latency_ms / base.latency_ms.iloc[0]
    assert len(others) == 4
    assert (abs(ratios - 2) <= 0.04).all()

    path.unlink()  # it is in the study by now
    assert main([*command, "--candidates", "5"]) == 0
    with closing(StoreReader.open(out)) as reader:
        assert len({record.candidate.key for record in reader.records()}) == 6
    capsys.readouterr()
    assert main(["family", str(out), "--budgets", "2x,3x"]) == 0
    assert "3x latency@1/cpu" in capsys.readouterr().out
    assert main(["export", str(out), "--to", str(tmp_path / "x.parquet")]) == 0
    replay = [*command, "--candidates", "5", "--replay", str(tmp_path / "x.parquet")]
    replay[replay.index(str(out))] = str(tmp_path / "replayed")
    assert main(replay) == 0
    assert set(pd.read_csv(tmp_path / "replayed" / "results.csv").network) == set(
        pd.read_csv(out / "results.csv").network
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--budget", "5ms@cuda"], "there is no GPU here"),
        (["--budget", "2x", "--latency-table", "t.csv"], "for a budget of latency"),
        (["--budget", "2x latency", "--sampler", "tpe"], "has not been measured"),
        (["--budget", "2x latency,5ms@8"], "of different measures"),
        (["--budget", "2x latency", "--latency-table", "README.md"], "latency table README.md"),
    ],
)
def test_what_cannot_be(
    options: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["search", "--data", "shapes", "--device", "cpu", "--out", str(tmp_path / "run")]
    assert main([*command, *options]) == 2
    error = capsys.readouterr().err
    assert says in " ".join(error.split())
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()
