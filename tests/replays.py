"""Studies replayed from a recorded table, or from one whose truth is known."""

from pathlib import Path

import numpy as np
from rich.console import Console

from scaling_search import session
from scaling_search.data.dataset import Facts
from scaling_search.results import curves
from scaling_search.results.record import Record
from scaling_search.study.plan import plan
from scaling_search.study.settings import Study, check
from scaling_search.training.trial import Epoch, Outcome
from scaling_search.verdict.verdict import FRESH
from tests.conftest import SMALL

RECORDED = Path(__file__).parent.parent / "studies" / "imagenette-24px-2x"


OWN = {**SMALL, "rungs": [1, 2], "seeds": 2, "extra": 4, "confirm": 2}


def synthetic(
    path: Path, settings: dict, seeds: range, noise: float = 0.005, seed: int = 0
) -> dict[str, float]:
    """A table of a world whose truth is known: {network: expected accuracy after the last
    epoch}."""
    study = check({**settings, "device": "cpu"}, "test")
    data = Facts("shapes", "digest", "", 10, 64, "shapes, made up")
    todo = plan(study, 10, 64)
    rng = np.random.default_rng(seed)
    truth = {c.key: 0.6 + 0.1 * rng.random() for c in (*todo.everything, *todo.pool)}
    records = []
    for c in (*todo.everything, *todo.pool):
        for s in (*seeds, *range(FRESH, FRESH + 3)):
            for epochs in study.rungs:
                values = [
                    truth[c.key] - 0.05 * (epochs - e) for e in range(1, epochs + 1)
                ] + noise * rng.normal(size=epochs)
                done = tuple(Epoch(e + 1, 1.0, 1.0, float(v), 0.1) for e, v in enumerate(values))
                outcome = Outcome("done", done, "f" * 100, None, 1.0, 100.0, 1, {"torch": "2"})
                test = truth[c.key] if s >= FRESH and epochs == study.rungs[-1] else None
                records.append(Record(len(records), c, s, epochs, outcome, test))
    facts = session.study_facts(study, todo, data, "made up", study.identity("digest"), None)
    curves.write(path, records, {**facts, "state": "finished"})
    return truth


def replay(study: Study, table: Path, out: Path) -> int:
    console = Console(quiet=True)
    return session.search(
        study,
        label="",
        out=out,
        place=session.Place(),
        clock=session.Clock(),
        command="test",
        console=console,
        replay=table,
    )
