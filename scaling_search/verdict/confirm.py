"""Compares the pick with the other finalists on the test split, over seeds not yet used.

The pick was chosen because its runs looked good, so these very runs flatter it; fresh ones do not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scaling_search.results.record import Record
from scaling_search.study.settings import Study
from scaling_search.verdict.chances import MARGIN, half_widths
from scaling_search.verdict.verdict import Row, Verdict, is_fresh


@dataclass(frozen=True, slots=True)
class Confirmed:
    """A finalist's fresh runs on the test split; accuracies as fractions.

    `behind` ± `half` (95%) is the pick minus this network over the seeds that both have; nan for
    the pick itself, and with fewer than two such seeds.
    """

    row: Row
    runs: int
    mean: float
    behind: float
    half: float

    @property
    def standing(self) -> str | None:
        """Whether the pick holds against this network, with the margin; None where nothing says."""
        if math.isnan(self.half):
            return None
        if self.behind - self.half >= -MARGIN:
            return "the pick is as good or better"
        if self.behind + self.half > 0:
            return "not confirmed"
        return "the pick is worse"


def confirmed(records: Sequence[Record], study: Study, v: Verdict) -> list[Confirmed]:
    """Return the finalists that have fresh tested runs, the pick first."""
    tests = _fresh_tests(records, study)
    of_pick = tests.get(v.pick.candidate.key, {})
    rows = []
    for row in v.finalists:
        own = tests.get(row.candidate.key, {})
        if not own:
            continue
        behind = half = math.nan
        differences = [of_pick[seed] - own[seed] for seed in sorted(of_pick) if seed in own]
        if row is not v.pick and len(differences) > 1:
            behind = float(np.mean(differences))
            half = half_interval(differences)
        rows.append(Confirmed(row, len(own), float(np.mean(list(own.values()))), behind, half))
    return rows


def _fresh_tests(records: Sequence[Record], study: Study) -> dict[str, dict[int, float]]:
    """Return {network: {seed: test accuracy}} of the fresh seeds' runs at the last rung."""
    tests: dict[str, dict[int, float]] = {}
    for r in records:
        if is_fresh(r, study) and r.epochs == study.rungs[-1] and r.test_acc is not None:
            tests.setdefault(r.candidate.key, {})[r.seed] = r.test_acc
    return tests


def half_interval(differences: Sequence[float]) -> float:
    """Return half the width of the 95% interval of the mean: paired differences, Student's t."""
    n = len(differences)
    return half_widths(n - 1) * float(np.std(differences, ddof=1)) / math.sqrt(n)
