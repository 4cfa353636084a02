"""A network with how it came about: what a study trains, stores and compares."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, Literal

from effnet.arch import Network, network_from_dict
from effnet.budget import Budget
from effnet.cost import Cost
from effnet.shares import Shares
from scaling_search.study.directions import Direction


@dataclass(frozen=True)
class Candidate:
    """A network with how it came about.

    `alpha`, `beta`, `gamma` rebuild it at phi = 1. `ratio` is that of its exact MACs to the
    baseline's, `waste` that of its resolution (effnet.shares.waste); `directions` are those it was
    chosen for; `latency` [ns] is known where the study's budget is one."""

    arch: Network
    role: Literal["baseline", "reference", "candidate"]
    budget: Budget
    alpha: float
    beta: float
    gamma: float
    shares: Shares | None
    cost: Cost
    ratio: float
    waste: float
    directions: tuple[Direction, ...] = ()
    latency: int | None = None

    @cached_property
    def key(self) -> str:
        """The network's identity. Kept, since it is a hash over the whole network and every run
        needs it."""
        return self.arch.key

    @property
    def label(self) -> str:
        """The network in words."""
        return in_words(self.arch, self.alpha, self.beta)

    @property
    def name(self) -> str:
        """The network in words, after its role where it is none of a budget's."""
        return self.label if self.role == "candidate" else f"{self.role}, {self.label}"

    @property
    def stands_for(self) -> str:
        """The directions that it was chosen for, in words."""
        return ", ".join(map(str, self.directions))

    def direction(self, name: str) -> Direction | None:
        """The direction of that name, where the network was chosen to stand for it."""
        for direction in self.directions:
            if direction.name == name and direction.represents:
                return direction
        return None

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as it is recorded; `from_dict` is its inverse."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.latency is None:  # as recorded before there were such budgets
            del plain["latency"]
        return {
            **plain,
            "arch": self.arch.as_dict(),
            "cost": asdict(self.cost),
            "budget": str(self.budget),
            "directions": [str(direction) for direction in self.directions],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Candidate:
        """The candidate of recorded plain data. Raises what a malformed record raises."""
        return cls(
            **{
                **data,
                "arch": network_from_dict(data["arch"]),
                "budget": Budget.from_text(data["budget"]),
                "cost": Cost(**data["cost"]),
                "shares": tuple(data["shares"]) if data["shares"] else None,
                "directions": tuple(map(Direction.from_text, data["directions"])),
            }
        )


def in_words(arch: Network, depth: float, width: float) -> str:
    """A network of these multipliers as "8 blocks, width 1.2, 20 px"; a function's, whose blocks
    are its own affair, by its depth multiplier."""
    size = f"depth {depth:g}" if arch.blocks is None else f"{arch.blocks} blocks"
    return f"{size}, width {width:g}, {arch.px}"
