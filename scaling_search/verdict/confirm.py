"""Fresh seeds on the test split: does what the search chose hold?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t

from scaling_search.results.record import Record
from scaling_search.study.settings import Study
from scaling_search.verdict.narration import points
from scaling_search.verdict.verdict import FRESH, MARGIN, Row, Verdict


@dataclass(frozen=True, slots=True)
class Confirmed:
    """A network's fresh runs on the test split. `mean` accuracy; `behind`: the pick minus it over
    the seeds that both have, ± `half` (95%, Student's t); nan with fewer than two."""

    row: Row
    runs: int
    mean: float
    behind: float
    half: float

    @property
    def words(self) -> str:
        head = f"test {points(self.mean)} over {self.runs} fresh seed{'s' if self.runs > 1 else ''}"
        if math.isnan(self.half):
            return head
        low, high = self.behind - self.half, self.behind + self.half
        kept = (
            "the pick is as good or better"
            if low >= -MARGIN
            else "not confirmed"
            if high > 0
            else "the pick is worse"
        )
        side = "below" if self.behind >= 0 else "above"
        return f"{head}, {points(abs(self.behind))} ± {points(self.half)} {side} the pick: {kept}"


def confirmed(records: Sequence[Record], study: Study, v: Verdict) -> list[Confirmed]:
    """For the pick (its own difference is nan) and all it is compared with; empty without fresh
    tested seeds."""
    tests: dict[str, dict[int, float]] = {}
    for r in records:
        if r.seed >= study.seed + FRESH and r.test_acc is not None and r.epochs == study.rungs[-1]:
            tests.setdefault(r.candidate.key, {})[r.seed] = r.test_acc
    mine = tests.get(v.pick.candidate.key, {})
    found = []
    for row in v.finalists:
        theirs = tests.get(row.candidate.key, {})
        if not theirs:
            continue
        behind = half = math.nan
        shared = [mine[s] - theirs[s] for s in sorted(mine) if s in theirs]
        if row is not v.pick and len(shared) > 1:
            behind = float(np.mean(shared))
            half = float(
                t.ppf(0.975, len(shared) - 1) * np.std(shared, ddof=1) / math.sqrt(len(shared))
            )
        found.append(
            Confirmed(row, len(theirs), float(np.mean(list(theirs.values()))), behind, half)
        )
    return found
