import itertools
import math

import pytest

import effnet
from effnet.arch import scale
from effnet.budget import Budget
from effnet.cost import cost, macs
from scaling_search import UserError
from scaling_search.study.candidate import Candidate
from scaling_search.study.choice import choose
from scaling_search.study.context import ScalingContext
from scaling_search.study.directions import NAMED, Direction
from scaling_search.study.measured import measured
from scaling_search.study.nominal import nominal_triples
from scaling_search.study.plan import Plan, plan
from scaling_search.study.settings import Study, preset_path, read


def make(
    overrides: dict | None = None, native: int = 28, preset: str = "quick-b0-s4", classes: int = 10
) -> Plan:
    return plan(read(preset_path(preset), overrides or {}), classes, native)


@pytest.mark.parametrize(("preset", "references"), [("quick", [0.5]), ("quick-b0-s4", [0.5, 1.5])])
def test_quick_plan_is_what_the_readme_says(preset: str, references: list[float]) -> None:
    todo = make(preset=preset)
    assert len(todo.candidates) >= 10
    assert len({c.key for c in todo.everything}) == len(todo.everything)
    for c in todo.candidates:
        assert abs(c.ratio - 2) <= 0.04
        assert c.waste <= 0.08
        assert c.arch.resolution <= 28
    assert (todo.baseline.alpha, todo.baseline.beta, todo.baseline.gamma) == (1, 1, 1)
    assert [round(r.ratio, 1) for r in todo.references] == references
    names = {d.name for c in todo.candidates for d in c.directions if d.represents}
    assert set(NAMED) - {"EfficientNet-X"} <= names  # nothing of this cost comes near that one


@pytest.mark.parametrize("budgets", [["2x"], ["0.5x", "2x", "4x"], ["9M"]])
def test_coefficients_rebuild_the_network(budgets: list[str]) -> None:
    study = read(preset_path("quick-b0-s4"), {"budgets": budgets})
    base = study.network()
    todo = plan(study, 10, 64)
    assert {str(c.budget) for c in todo.candidates} == set(budgets)
    assert bool(todo.references) == (len(budgets) == 1)
    for c in todo.everything:
        assert (
            scale(base, c.alpha, c.beta, round(c.gamma * base.resolution), num_classes=10) == c.arch
        )
        assert c.cost == cost(c.arch)
        assert c.ratio == macs(c.arch) / todo.baseline.cost.macs
        assert c.shares is None or sum(c.shares) == pytest.approx(1)
        assert Candidate.from_dict(c.as_dict()) == c


def test_one_network_per_cell_and_within_the_space() -> None:
    study = read(
        preset_path("quick-b0-s4"),
        {"space.alpha_max": 1.4, "space.gamma_max": 1.3, "space.candidates": 500},
    )
    todo = plan(study, 10, 64)
    cells = [(c.arch.blocks, c.arch.resolution) for c in todo.candidates]
    assert len(set(cells)) == len(cells) == todo.sizes["2x"]
    assert max(c.alpha for c in todo.candidates) <= 1.4
    assert max(c.gamma for c in todo.candidates) <= 1.3


def test_resolution_never_exceeds_the_native_side_unless_asked() -> None:
    assert max(c.arch.resolution for c in make(native=24).everything) <= 24
    with pytest.raises(UserError, match="above the images' native 16 px.*--upscale"):
        make(native=16)
    assert max(c.arch.resolution for c in make({"space.upscale": True}, native=16).candidates) > 20


def test_no_network_within_the_budget_names_the_nearest() -> None:
    with pytest.raises(
        UserError, match=r"no network within 2% .* the nearest is \d+ blocks, width .* px at .*x\)"
    ):
        make(
            {
                "budgets": ["8x"],
                "space.alpha_max": 1.1,
                "space.beta_max": 1.1,
                "space.gamma_max": 1.1,
            }
        )
    with pytest.raises(UserError, match="use measured mode below 1x"):
        make({"budgets": ["0.5x"], "space.mode": "nominal"})
    with pytest.raises(UserError, match="no alpha, beta, gamma on the lattice"):
        make(
            {
                "space.mode": "nominal",
                "space.step": 50,
                "space.nominal_tolerance": 0.001,
                "space.alpha_max": 1.5,
            }
        )


def test_shrinking_budgets_never_grow_a_dial() -> None:
    todo = make({"budgets": ["0.5x"], "space.candidates": 500}, native=64)
    assert todo.candidates
    for c in todo.candidates:
        assert c.alpha <= 1
        assert c.beta <= 1
        assert c.gamma <= 1
        assert abs(c.ratio / 0.5 - 1) <= 0.02


# ---- the paper's lattice (section 3.3)


def test_lattice_of_the_paper() -> None:
    triples = nominal_triples(5, 2.0, 0.05)
    # 108 or 109 by how the boundary is compared; in exact integers it is included
    assert len(triples) == 109
    strict = [t for t in triples if abs(t[0] * t[1] ** 2 * t[2] ** 2 - 2 * 10**10) < 10**9]
    assert len(strict) == 108
    assert (120, 110, 115) in triples
    brute = [
        (a, b, g)
        for a, b, g in itertools.product(range(100, 201, 5), range(100, 151, 5), range(100, 151, 5))
        if abs(a * b * b * g * g - 2 * 10**10) <= 10**9
    ]
    assert triples == brute
    assert (120, 110, 115) not in nominal_triples(5, 2.0, 0.02), (
        "2% of nominal would leave the paper's answer out"
    )


def test_paper_preset_has_65_networks_and_their_real_cost() -> None:
    todo = make({"data.source": "shapes"}, native=400, preset="paper", classes=1000)
    assert len(todo.candidates) == 65
    every_pixel = make(
        {"data.source": "shapes", "space.resolution_step": 1}, 400, "paper", 1000
    ).candidates
    ratios = [c.ratio for c in (*todo.candidates, *every_pixel)]
    assert 1.8 <= min(ratios) < 1.9
    assert 3.3 < max(ratios) <= 3.4  # though nominally all 2x
    paper = next(c for c in todo.candidates if Direction("paper") in c.directions)
    assert (paper.alpha, paper.beta, paper.gamma, paper.arch.resolution) == (1.2, 1.1, 1.15, 256)
    assert paper.ratio == pytest.approx(2.23, abs=0.005)
    assert paper.arch == effnet.arch("b0", depth=1.2, width=1.1, resolution=256)


# ---- which ones are chosen


@pytest.mark.parametrize("budget", ["2x params", "2x acts", "2x memory@64", "0.5x acts"])
@pytest.mark.parametrize("preset", ["quick", "quick-b0-s4"])
def test_networks_of_another_measure(budget: str, preset: str) -> None:
    todo = make({"budgets": [budget]}, preset=preset, native=32)
    assert len(todo.candidates) >= 3
    assert len({c.key for c in todo.everything}) == len(todo.everything)
    wanted = Budget.parse(budget)
    base = wanted.measure(todo.baseline.arch)
    for c in todo.candidates:
        assert wanted.met(wanted.measure(c.arch), base)
        assert sum(c.shares) == pytest.approx(1)
    if wanted.of == "params":
        assert {c.arch.resolution for c in todo.candidates} == {todo.baseline.arch.resolution}
        assert "resolution costs no parameters" in todo.notes[0]
        names = {d.name for c in todo.candidates for d in c.directions}
        assert "resolution only" not in names


def test_choice_spreads_over_the_shares() -> None:
    study = read(preset_path("quick-b0-s4"), {"baseline.blocks": 16, "baseline.width": 0.25})
    context = ScalingContext(study.network(), classes=10, max_side=64, max_waste=0.08)
    cells, notes = measured(context, Budget.parse("2x"), study.space)
    assert not notes
    picked, _ = choose(cells, 12)
    assert len(picked) == 12
    covered = [min(math.dist(c.shares, p.shares) for p in picked) for c in cells]
    first, _ = choose(cells[:12], None)
    naive = [min(math.dist(c.shares, p.shares) for p in first) for c in cells]
    assert max(covered) < max(naive)
    assert max(covered) < 0.3
    for name, along in NAMED.items():
        named = [c for c in picked if c.direction(name) is not None]
        best = min(math.dist(c.shares, along) for c in cells)
        assert [math.dist(c.shares, along) for c in named] == [best]


def test_large_budgets_are_planned_and_absurd_ones_refused() -> None:
    todo = make({"budgets": ["400M"]})
    assert len(todo.candidates) >= 10
    assert all(abs(c.cost.macs / 4e8 - 1) <= 0.02 for c in todo.candidates)
    with pytest.raises(
        UserError,
        match=r"budget 4G: 1.1e\+03 times the baseline's 3.62M FLOPs \(.*\); take one between",
    ):
        make({"budgets": ["4G"]})


def test_waste_is_stated() -> None:
    assert make({"baseline.resolution": 21}).baseline.waste > 0.1
    assert make().baseline.waste < 0.01
    nominal = make({"space.mode": "nominal", "space.candidates": 500}).candidates
    assert max(c.waste for c in nominal) > 0.05
    assert make(
        {"space.mode": "nominal", "budgets": ["1x"], "space.nominal_tolerance": 0.3}
    ).candidates


def test_reference_above_the_native_side_takes_another_way() -> None:
    todo = make({"references": [4.0], "baseline.resolution": 28, "space.max_waste": 1.0})
    assert max(c.arch.resolution for c in todo.everything) <= 28


def test_unreachable_direction_is_said() -> None:
    todo = make({"space.alpha_max": 1.0}, native=64)
    assert any(
        "depth only is unreachable; the nearest of this cost is" in note for note in todo.notes
    )
    assert not any(d.name == "depth only" for c in todo.candidates for d in c.directions)


def test_default_study_has_candidates() -> None:
    assert plan(Study(), 10, 80).candidates
