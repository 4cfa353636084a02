"""Local worker processes: what they are forked from, and what they have from their driver."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.jobs import Jobs
from scaling_search.data.dataset import Dataset
from scaling_search.driver.executors.local import LocalExecutor
from scaling_search.training.trial import Outcome, Trial
from tests.chaos import ROOT

# A driver that says where it and a worker of its own have their code from.
DRIVER = """
import json
import sys

sys.path.insert(0, sys.argv[1])
import scaling_search
from benchmarks.jobs import Jobs
from scaling_search.driver.executors.local import LocalExecutor
from scaling_search.training.trial import Outcome, Trial

def train(trial, data):
    yield Outcome("done", note=scaling_search.__file__)

if __name__ == "__main__":
    executor, jobs = LocalExecutor(1, train=train), Jobs([Trial.from_dict(json.loads(sys.argv[2]))])
    executor.run(jobs)
    executor.close()
    print(scaling_search.__file__, jobs.outcomes[0].note, sep="\\n")
"""


def test_workers_have_their_drivers_code(trial: Trial, tmp_path: Path) -> None:
    """A checkout that is run from elsewhere, beside another one that is installed."""
    checkout, elsewhere = tmp_path / "checkout", tmp_path / "elsewhere"
    for folder in (checkout, elsewhere):
        folder.mkdir()
    for package in ("effnet", "scaling_search", "benchmarks"):
        (checkout / package).symlink_to(ROOT / package)
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    command = [sys.executable, str(script), str(checkout), json.dumps(trial.as_dict())]
    done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    of_driver, of_worker = done.stdout.splitlines()
    assert of_driver == str(checkout / "scaling_search" / "__init__.py")
    assert of_worker == of_driver


def _reports_its_environment(trial: Trial, data: Dataset) -> Iterator[Outcome]:
    yield Outcome("done", note=f"{os.environ.get('OF_DRIVER')} {os.environ.get('GONE')}")


def test_workers_have_their_drivers_environment(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is when they start, not when the process began that they are forked from."""
    notes = []
    for value in ("first", "second"):
        monkeypatch.setenv("OF_DRIVER", value)
        if value == "first":
            monkeypatch.setenv("GONE", "here")
        else:
            monkeypatch.delenv("GONE")
        executor, jobs = LocalExecutor(1, train=_reports_its_environment), Jobs([trial])
        try:
            executor.run(jobs)
        finally:
            executor.close()
        notes.append(jobs.outcomes[0].note)
    assert notes == ["first here", "second None"]
