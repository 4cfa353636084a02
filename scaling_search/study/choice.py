"""Which of the networks of one cost are trained: the named directions, and others that cover the
map."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Literal

from effnet.arch import Scaling
from effnet.shares import Shares, nominal_shares
from scaling_search.study.candidate import Candidate
from scaling_search.study.directions import NAMED, Direction, distance, simplex, sobol

# Distances in shares: as good as the direction itself; still worth its name; beside the paper's.
_ALONG, _NEAREST, _BESIDE = 0.05, 0.25, 0.2

Position = Callable[[Candidate], Shares | None]


def real_position(candidate: Candidate) -> Shares | None:
    """Where a network lies on the map: in shares of its real cost."""
    return candidate.shares


def nominal_position(candidate: Candidate) -> Shares | None:
    """Where the bare coefficients point: on the paper's lattice these name a network, not its real
    cost."""
    return nominal_shares(Scaling(candidate.alpha, candidate.beta, candidate.gamma))


def choose(
    networks: list[Candidate],
    count: int | None,
    position: Position = real_position,
    sampler: str = "lattice",
    seed: int = 0,
    kept: Collection[str] = (),
    directions: Mapping[str, Shares] = NAMED,
) -> tuple[list[Candidate], list[str]]:
    """`count` of the networks (None: all), and a line for each direction that none comes near.
    Those whose keys are `kept`, which were chosen before, are among them; `directions` are those
    that have a name.

    The named directions come first, then for each point of a lattice or a Sobol sequence over the
    shares the nearest network, unless it is taken; then, each time, the network farthest from all
    chosen. Points of the lattice come farthest first too, so that a study that is stopped early has
    seen the whole map."""
    choice = _Choice(networks, len(networks) if count is None else count, position)
    choice.keep(kept)
    notes = choice.take_named(directions)
    # A lattice of another size has other points: what is new goes between what is kept.
    if not kept and sampler == "sobol":
        for point in sobol(choice.most, seed):
            choice.take_nearest(point)
    elif not kept:
        choice.take_lattice()
    choice.take_farthest()
    return list(choice.chosen.values()), notes


def _of_macs(candidate: Candidate) -> str:
    """Words after a ratio that is of multiply-adds, where the budget is not."""
    return "" if candidate.budget.of == "macs" else " the baseline's multiply-adds"


class _Choice:
    """Networks chosen so far, of at most `most`, in the order in which they were."""

    def __init__(self, networks: list[Candidate], most: int, position: Position) -> None:
        self.networks = networks
        self.most = most
        self.chosen: dict[str, Candidate] = {}
        self._positions = {network.key: position(network) for network in networks}

    @property
    def full(self) -> bool:
        return len(self.chosen) >= self.most

    def keep(self, keys: Collection[str]) -> None:
        """Choose the networks of these keys, however many."""
        by_key = {network.key: network for network in self.networks}
        for key in keys:
            if key in by_key:  # not of another budget
                self.chosen[key] = by_key[key]

    def take_named(self, directions: Mapping[str, Shares]) -> list[str]:
        """Choose the network nearest to each named direction; a line for each without one."""
        notes = []
        for name, aim in directions.items():
            by_distance = sorted(
                self.networks, key=lambda network: (self._distance(network, aim), network.key)
            )
            nearest = by_distance[0]
            away = self._distance(nearest, aim)
            if away > _NEAREST:
                notes.append(
                    f"{name} is unreachable; the nearest of this cost is {nearest.label} "
                    f"({nearest.ratio:.2f}x{_of_macs(nearest)}), not close enough; skipped"
                )
                continue
            match: Literal["along", "nearest"] = "along" if away <= _ALONG else "nearest"
            self._take(nearest, Direction(name, match))
            if name == "paper":  # bracketed, since it is the direction that people ask about
                for network in by_distance[1:3]:
                    if self._distance(network, aim) <= _BESIDE:
                        self._take(network, Direction(name, "beside"))
        return notes

    def take_lattice(self) -> None:
        """Choose the network nearest to each point of the smallest lattice of enough points, the
        point farthest from all chosen networks first."""
        steps = next(m for m in itertools.count(1) if (m + 1) * (m + 2) // 2 >= self.most)
        points = simplex(steps)
        while points and not self.full:
            point = max(points, key=lambda point: (self._isolation(point), point))
            points.remove(point)
            self.take_nearest(point)

    def take_nearest(self, point: Shares) -> None:
        """Choose the network nearest to a point, unless it is chosen already."""
        if self.full:
            return
        nearest = min(
            self.networks, key=lambda network: (self._distance(network, point), network.key)
        )
        self.chosen.setdefault(nearest.key, nearest)

    def take_farthest(self) -> None:
        """Choose what is farthest from all chosen networks, again and again."""
        free = [network for network in self.networks if network.key not in self.chosen]
        while free and not self.full:
            farthest = max(
                free,
                key=lambda network: (self._isolation(self._positions[network.key]), network.key),
            )
            self.chosen[farthest.key] = farthest
            free.remove(farthest)

    def _take(self, network: Candidate, direction: Direction) -> None:
        if self.full and network.key not in self.chosen:
            return
        before = self.chosen.get(network.key, network)
        self.chosen[network.key] = replace(before, directions=(*before.directions, direction))

    def _distance(self, network: Candidate, point: Shares | None) -> float:
        return distance(self._positions[network.key], point)

    def _isolation(self, point: Shares | None) -> float:
        """The distance from a point to the nearest chosen network; 0 where none is chosen."""
        return min((distance(self._positions[key], point) for key in self.chosen), default=0.0)
