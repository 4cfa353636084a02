"""A network with how it came about: what a study trains, stores and compares."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, Literal

from effnet.arch import Arch
from effnet.budget import Budget
from effnet.cost import Cost
from effnet.shares import Shares


@dataclass(frozen=True)
class Candidate:
    """A network with how it came about. `alpha`, `beta`, `gamma` rebuild it at phi = 1;
    `resolution` in px; `ratio` of exact MACs to the baseline's; `directions` are the names it
    stands for."""

    arch: Arch
    role: Literal["baseline", "reference", "candidate"]
    budget: Budget
    alpha: float
    beta: float
    gamma: float
    shares: Shares | None
    cost: Cost
    ratio: float
    waste: float
    directions: tuple[str, ...] = ()

    @cached_property
    def key(self) -> str:  # a hash over the whole network, asked for again with every run
        return self.arch.key

    @property
    def label(self) -> str:
        return f"{self.arch.blocks} blocks, width {self.beta:g}, {self.arch.resolution} px"

    def as_dict(self) -> dict[str, Any]:
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            **plain,
            "arch": self.arch.as_dict(),
            "cost": asdict(self.cost),
            "budget": str(self.budget),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Candidate:
        return cls(
            **{
                **data,
                "arch": Arch.from_dict(data["arch"]),
                "budget": Budget.from_text(data["budget"]),
                "cost": Cost(**data["cost"]),
                "shares": tuple(data["shares"]) if data["shares"] else None,
                "directions": tuple(data["directions"]),
            }
        )
