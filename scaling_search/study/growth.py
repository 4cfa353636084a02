"""A finished study can have more runs: what may grow, and what an addition is remembered as.

What only adds runs is no part of what a study is: the runs that are there keep their meaning.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import Any

from scaling_search import UserError
from scaling_search.study.settings import Study, check, override

# The settings that may grow, as in a study's identity, with the flags that set them.
GROWING = {
    "extra": "--extra",
    "seeds": "--seeds",
    "confirm": "--confirm",
    "space.candidates": "--candidates",
    "rungs": "--epochs",
}


@dataclass(frozen=True, slots=True)
class Addition:
    """Runs that were asked for later. `known` are the runs (network, seed, epochs) that had ended
    by then: what is trained afterwards is decided from all of them."""

    when: str
    what: tuple[str, ...]  # such as "extra: 6, now 20"
    known: tuple[tuple[str, int, int], ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for the store; `from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Addition:
        known = [(network, seed, epochs) for network, seed, epochs in data["known"]]
        return cls(data["when"], tuple(data["what"]), tuple(known))

    def __str__(self) -> str:
        return f"{self.when}, after {len(self.known)} runs: {'; '.join(self.what)}"


def grown(
    study: Study, recorded: Study, overridden: Collection[str]
) -> tuple[Study, tuple[str, ...], tuple[str, ...]]:
    """The study that goes on in a run folder that holds `recorded`, what it has more of, and what
    it keeps although `study` has less.

    A setting of which `study` has less stays as recorded, so that the command that began a study
    goes on with what was added to it. Raises UserError where the command line itself asks for less
    (its settings are those `overridden`), and where the rungs are others."""
    settings = study.settings()
    additions: list[str] = []
    kept: list[str] = []
    for name, flag in GROWING.items():
        value = attrgetter(name)
        before, now = value(recorded), value(study)
        if now == before:
            continue
        if _is_more(name, before, now):
            additions.append(f"{name}: {_words(before)}, now {_words(now)}")
            continue
        if name in overridden or not _is_more(name, now, before):
            raise UserError(
                f"{flag} {_typed(now)}: the run folder holds {_words(before)}, and a study only "
                f"grows; give {_least(name, before)}, or another folder with --out"
            )
        kept.append(f"{name}: {_words(before)}, as the run folder has it, and not {_words(now)}")
        override(settings, {name: before})
    return check(settings, "study"), tuple(additions), tuple(kept)


def _is_more(name: str, before: Any, now: Any) -> bool:
    """Whether `now` asks for all the runs that `before` asks for, and more."""
    if name == "rungs":
        return bool(now[: len(before)] == before)
    if name == "space.candidates":  # None: all there are
        return now is None or (before is not None and now > before)
    return bool(now > before)


def _words(value: Any) -> str:
    if value is None:
        return "all networks"
    return _typed(value)


def _typed(value: Any) -> str:
    """A value as it is typed after its flag."""
    if isinstance(value, tuple):
        return ",".join(str(number) for number in value)
    return str(value)


def _least(name: str, before: Any) -> str:
    if name == "rungs":
        return f"{_typed(before)} and longer ones after it"
    if before is None:
        return "none, for all networks"
    return f"{before} or more"
