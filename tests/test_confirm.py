import math

import numpy as np
import pytest
from scipy import stats

from scaling_search.verdict.confirm import confirmed
from scaling_search.verdict.narration import confirmed_words
from scaling_search.verdict.verdict import FRESH, verdicts
from tests.records import STUDY, TODO, record


def test_confirmation_is_the_paired_t_interval() -> None:
    rng = np.random.default_rng(2)
    records = [record(c, 0, 0.6 + 0.01 * k) for k, c in enumerate(TODO.everything)]
    (v,) = verdicts(records, STUDY)
    tests = {
        row.candidate.key: 0.7 + 0.02 * i + rng.normal(0, 0.01, 5)
        for i, row in enumerate(v.finalists)
    }
    records += [
        record(row.candidate, FRESH + s, 0.6, test=tests[row.candidate.key][s])
        for row in v.finalists
        for s in range(5)
    ]
    finalists = confirmed(records, STUDY, v)
    assert [c.row.candidate.key for c in finalists] == [row.candidate.key for row in v.finalists]
    mine = tests[v.pick.candidate.key]
    for c in finalists:
        theirs = tests[c.row.candidate.key]
        assert c.mean == pytest.approx(theirs.mean())
        assert c.runs == 5
        if c.row.candidate.key == v.pick.candidate.key:
            assert math.isnan(c.behind)
            assert "over 5 seeds" in confirmed_words(c)
            continue
        paired = stats.ttest_rel(mine, theirs).confidence_interval(0.95)
        assert (c.behind - c.half, c.behind + c.half) == pytest.approx((paired.low, paired.high))
        if paired.high < 0:
            assert "the pick is worse" in confirmed_words(c)
    assert confirmed(records[: len(TODO.everything)], STUDY, v) == []
