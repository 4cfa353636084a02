import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling_search import UserError
from scaling_search.study.directions import (
    Direction,
    distance,
    on_square,
    on_triangle,
    simplex,
    sobol,
)
from scaling_search.study.plan import plan
from scaling_search.study.settings import check, preset_path, read
from tests.conftest import SMALL

UNIT = st.floats(0, 1)


@given(UNIT, UNIT)
def test_square_and_triangle(u: float, v: float) -> None:
    shares = on_triangle(u, v)
    assert sum(shares) == pytest.approx(1)
    assert min(shares) >= 0
    back = on_triangle(*on_square(shares))
    assert back == pytest.approx(shares, abs=1e-9)


def test_uniform_on_the_square_is_uniform_on_the_triangle() -> None:
    rng = np.random.default_rng(0)
    points = np.array([on_triangle(u, v) for u, v in rng.random((20000, 2))])
    assert points.mean(0) == pytest.approx([1 / 3] * 3, abs=0.01)
    assert (points.max(1) > 0.5).mean() == pytest.approx(
        3 / 4, abs=0.02
    )  # three of the four equal parts


def test_simplex_lattice() -> None:
    for m in (1, 4, 6):
        points = simplex(m)
        assert len(set(points)) == (m + 1) * (m + 2) // 2
        assert all(sum(p) == pytest.approx(1) and min(p) >= 0 for p in points)


def test_sobol_covers_better_than_chance_and_repeats() -> None:
    points = sobol(32, 3)
    assert points == sobol(32, 3) != sobol(32, 4)
    assert len(set(points)) == 32

    def hole(points: list[tuple[float, float, float]]) -> float:
        return max(min(distance(point, p) for p in points) for point in simplex(12))

    rng = np.random.default_rng(1)
    chance = [hole([on_triangle(u, v) for u, v in rng.random((32, 2))]) for _ in range(30)]
    assert hole(points) < np.mean(chance)
    assert distance(None, points[0]) == math.inf


@pytest.mark.parametrize("sampler", ["lattice", "sobol"])
@pytest.mark.parametrize("count", [1, 3, 8, 15, 99])
def test_every_point_becomes_a_network_and_none_twice(sampler: str, count: int) -> None:
    study = read(preset_path("quick-b0-s4"), {"space.sampler": sampler, "space.candidates": count})
    todo = plan(study, 10, 28)
    keys = [c.key for c in todo.candidates]
    assert len(keys) == len(set(keys)) == min(count, todo.sizes["2x"])
    assert all(abs(c.ratio - 2) <= 0.04 for c in todo.candidates)


@pytest.mark.parametrize(
    ("direction", "text"),
    [
        (Direction("paper"), "paper"),
        (Direction("depth only", "nearest"), "nearest to depth only"),
        (Direction("paper", "beside"), "beside the paper"),
    ],
)
def test_a_direction_is_recorded_as_text(direction: Direction, text: str) -> None:
    assert str(direction) == text
    assert Direction.from_text(text) == direction
    assert direction.represents == (direction.match != "beside")


def test_a_studys_own_directions() -> None:
    """dWr of Dollár et al. (arXiv 2103.06877), alpha .8, is one such."""
    space = {"candidates": 8}
    own = {"dWr": [0.1, 0.8, 0.1], "deep": [0.8, 0.2, 0.0]}
    study = check({**SMALL, "space": space, "directions": own}, "test")
    planned = plan(study, 10, 64)
    for name, aim in study.directions.items():
        (network,) = [c for c in planned.candidates if c.direction(name) is not None]
        assert math.dist(network.shares or (1, 1, 1), aim) <= 0.25
    plain = check({**SMALL, "space": space}, "test")
    assert "directions" not in str(plain.identity("digest"))
    assert study.identity("digest")["directions.dWr"] == [0.1, 0.8, 0.1]


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"paper": [0.1, 0.8, 0.1]}, "are there already"),
        ({"mine": [0.1, 0.8, 0.2]}, "that sum to 1"),
        ({"mine": [-0.1, 0.8, 0.3]}, "each at least 0"),
        ({"mine": [math.nan, 0.5, 0.5]}, "each at least 0"),
        ({"mine": [0.1, 0.9]}, "directions.mine"),
        ({"a, b": [0.1, 0.8, 0.1]}, "without a comma"),
        ({"nearest to mine": [0.1, 0.8, 0.1]}, "not beginning with"),
        ({"": [0.1, 0.8, 0.1]}, "a name of at most"),
    ],
)
def test_directions_that_are_none(own: dict[str, list[float]], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check({**SMALL, "directions": own}, "test")
