"""Run with syscalls.c preloaded: the n-th write, fsync or rename fails, for n = 1, 2, 3, ... until
none is hit.

python -m tests.syscalls FOLDER WHAT[:STEP] ...: checkpoint, report, store (one that holds a run
takes another) or new (one made and filled; minutes); of the calls every STEP-th. Prints for each
how many failed in turn.
"""

from __future__ import annotations

import ctypes
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console

from scaling_search import UserError
from scaling_search.report.answer import finish
from scaling_search.results.reading import open_results
from scaling_search.results.store import Store
from scaling_search.study.plan import plan
from scaling_search.study.settings import check
from scaling_search.training import checkpoint
from scaling_search.training.trial import Epoch, Outcome
from tests.conftest import SMALL
from tests.records import read_records

STUDY = check(SMALL, "test")
BEFORE, *NETWORKS = plan(STUDY, 10, 64).everything[:2]
FACTS = {
    "settings": STUDY.settings(),
    "data": "x",
    "dataset": "shapes",
    "command": "",
    "notes": [],
    "targets": {},
    "planned": 2,
    "provenance": {},
}


def outcome(accuracy: float) -> Outcome:
    return Outcome("done", (Epoch(1, 1.0, 1.0, accuracy, 0.1),), "ff" * 500)


def store(folder: Path, acknowledged: dict[int, float]) -> None:
    opened = Store.create(folder, {"a": 1}, FACTS)
    try:
        for i, candidate in enumerate(NETWORKS):
            known = opened.recorded((candidate.key, 0, 1))
            if known is not None and known.outcome is not None:
                continue
            number = opened.start(candidate, 0, 1)
            opened.epoch(number, Epoch(1, 1.0, 1.0, 0.1 * i, 0.1))
            opened.finish(number, outcome(0.1 * i))
            acknowledged[number] = 0.1 * i
        opened.set_test(opened.recorded((NETWORKS[0].key, 0, 1)).number, 0.5)
    finally:
        opened.close()


def store_is_whole(folder: Path, acknowledged: dict[int, float], finished: bool) -> None:
    """Every acknowledged result is there; the same work goes on to the end."""
    if (folder / "study.db").exists() and acknowledged:
        recorded = {r.number: r.val_acc for r in read_records(folder) if r.outcome}
        assert acknowledged.items() <= recorded.items(), (acknowledged, recorded)
    store(folder, {})
    records = [r for r in read_records(folder) if r.seed == 0]
    assert [r.val_acc for r in records] == [0.1 * i for i in range(len(NETWORKS))]
    assert records[0].test_acc == 0.5
    assert len({r.key for r in records}) == len(NETWORKS)


OLD, NEW = {"w": torch.zeros(2000), "step": 1}, {"w": torch.ones(2000), "step": 2}


def save(folder: Path, acknowledged: dict[int, float]) -> None:
    checkpoint.save(f"{folder}/e2.ckpt", NEW)


def checkpoint_is_whole(folder: Path, acknowledged: dict[int, float], finished: bool) -> None:
    state = checkpoint.load(f"{folder}/e2.ckpt")
    assert state is not None
    assert state["step"] == (2 if finished else 1)
    assert float(state["w"][0]) == state["step"] - 1
    assert [p.name for p in folder.iterdir()] == ["e2.ckpt"], "nothing is left behind"


def report(folder: Path, acknowledged: dict[int, float]) -> None:
    study = folder.parent / "studied"
    if not study.exists():
        store(study, {})
    with open_results(study) as results:
        finish(results, folder, Console(quiet=True))


def report_is_whole(folder: Path, acknowledged: dict[int, float], finished: bool) -> None:
    """Each of the two files that were there; the study's baseline may stand beside them."""
    for name, whole in (("results.csv", "network,alpha"), ("report.html", "<!doctype html>")):
        text = (folder / name).read_text()
        if text == "old":
            assert not finished
        else:
            assert text.startswith(whole)
            assert text.endswith("\n")
    names = {p.name for p in folder.iterdir()} - {"baseline.toml"}
    assert names == {"results.csv", "report.html"}, "nothing is left behind"


def prepared(what: str, folder: Path) -> None:
    if what == "store":
        template = folder.parent / "template"
        if not template.exists():
            opened = Store.create(template, {"a": 1}, FACTS)
            opened.finish(opened.start(BEFORE, 7, 1), outcome(0.9))
            opened.close()
        shutil.copytree(template, folder)
        return
    folder.mkdir()
    if what == "checkpoint":
        checkpoint.save(f"{folder}/e2.ckpt", OLD)
    elif what == "report":
        for name in ("results.csv", "report.html"):
            (folder / name).write_text("old")


Work = Callable[[Path, dict[int, float]], None]
Whole = Callable[[Path, dict[int, float], bool], None]
WHAT: dict[str, tuple[Work, Whole]] = {
    "store": (store, store_is_whole),
    "new": (store, store_is_whole),
    "checkpoint": (save, checkpoint_is_whole),
    "report": (report, report_is_whole),
}


def count_failures(root: Path, what: str, step: int) -> int:
    """Let each `step`-th call of `what` fail, alone and with all that follow it; how many failed.

    Raises AssertionError where something is lost or mixed, or an error is no clear one."""
    shim = ctypes.CDLL(None)
    work, whole = WHAT[what]
    total = 0
    for every in (0, 1):
        n = 0
        while True:
            folder = root / f"{what}-{every}-{n}"
            prepared(what, folder)
            acknowledged: dict[int, float] = {}
            finished = False
            shim.faults_arm(ctypes.c_long(n), every, str(folder).encode())
            try:
                work(folder, acknowledged)
                finished = True
            except (UserError, OSError) as error:  # anything else is no clear error
                assert len(str(error).splitlines()) == 1, error
            struck = shim.faults_disarm()
            whole(folder, acknowledged, finished)
            shutil.rmtree(folder)
            if not struck:
                break
            n += step
            total += 1
    return total


def main(root: Path, works: list[str]) -> None:
    time.sleep = lambda seconds: None  # Optuna waits between its tries
    for work in works:
        what, _, step = work.partition(":")
        print(count_failures(root, what, int(step or 1)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
