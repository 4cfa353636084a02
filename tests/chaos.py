"""Studies of cheap real trainings whose processes are killed at random moments, and what must be
true of them after.

Every start of a run is also written down by the workers themselves (`LOG`), independently of the
store.
"""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from tests.records import read_records
from tests.searches import DISTURBED

ROOT = Path(__file__).parent.parent
# As small as networks train: nine of them, an epoch takes about a second.
WORDS = shlex.split(
    f"--study {ROOT}/studies/quick-b0-s4.toml --device cpu "
    "--blocks 7 --width 0.1 --divisor 2 --resolution 12 --candidates 5 "
    "--train-images 400 --val-images 60 --set data.test_images=50 --batch 16 "
    "--set recipe.bn_images=32 --epochs 1,3 --allocation rungs --extra 2"
)
_LOG = """
import functools, json, os
import scaling_search.training.train as train
inner = train.run
@functools.wraps(inner)
# a generator: an actor that Tune sets up and then does not use has started nothing
def run(trial, data):
    if not trial.test:
        line = json.dumps([trial.arch.key, trial.seed, trial.epochs, os.getpid()]) + "\\n"
        handle = os.open(os.environ["CHAOS_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, line.encode())
        os.close(handle)
    yield from inner(trial, data)
train.run = run
"""


def environment(folder: Path) -> dict[str, str]:
    """Python processes with this environment write down each run that they start."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(_LOG)
    return {
        **os.environ,
        "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
        "CHAOS_LOG": str(folder / "log"),
    }


def children(pid: int) -> list[int]:
    """Of a process, all generations, that train: workers, which are the children of its fork server
    and have that one's command line, and Ray's actors."""
    parents: dict[int, int] = {}
    commands: dict[int, str] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        process = int(stat.parent.name)
        try:
            # after the name, in brackets, which may hold any character: state, parent, ...
            parents[process] = int(stat.read_text().rpartition(")")[2].split()[1])
            commands[process] = (stat.parent / "cmdline").read_text()
        except (OSError, ValueError):  # it has ended meanwhile
            continue
    descendants: set[int] = set()
    generation = {pid}
    while generation:
        generation = {p for p, parent in parents.items() if parent in generation} - descendants
        descendants |= generation
    training = []
    for process in descendants:
        command, parent = commands.get(process, ""), commands.get(parents[process], "")
        is_forked = "forkserver" in command and "forkserver" in parent
        if is_forked or command.startswith("ray::"):
            training.append(process)
    return training


@dataclass
class Chaos:
    """`command` run again and again in `folder` until it ends well, `kills` of its processes on the
    way; `victims` are the kinds to choose from, each a function of the driver's pid that kills one
    and says whether it did. With `progress` the study gets somewhere between two kills, however
    slow the machine is."""

    folder: Path
    words: list[str]
    victims: dict[str, Callable[[int], bool]]
    rng: random.Random
    every: tuple[float, float] = (0.3, 6.0)  # s between two kills
    log: Path | None = None  # where workers that are not the driver's children write their starts
    progress: bool = False  # whether a kill waits until a run has started or ended since the last
    killed: Counter[str] = field(default_factory=Counter)
    output: str = ""
    acknowledged: list[tuple[str, str]] = field(default_factory=list)  # network and seed, accuracy

    def run(self, kills: int) -> None:
        environ = environment(self.folder / "log")
        self.log = self.log or self.folder / "log" / "log"
        self.log.unlink(missing_ok=True)
        script, out = str(ROOT / "run_search.py"), str(self.folder / "run")
        command = [sys.executable, script, *self.words, "--out", out]
        events_at_kill = 0
        while True:
            driver = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=environ,
                start_new_session=True,
            )
            reader = threading.Thread(target=self._read, args=(driver,), daemon=True)
            reader.start()
            while driver.poll() is None:
                if self.killed.total() >= kills:
                    driver.wait()
                    break
                while self.progress and driver.poll() is None and self._events() == events_at_kill:
                    time.sleep(0.05)
                time.sleep(self.rng.uniform(*self.every))
                kind = self.rng.choice(list(self.victims))
                if driver.poll() is None and self.victims[kind](driver.pid):
                    self.killed[kind] += 1
                    events_at_kill = self._events()
            reader.join()
            if driver.returncode == 0:
                return
            assert driver.returncode == -signal.SIGKILL, self.output[-3000:]

    def _events(self) -> int:
        """How many runs have started or ended so far."""
        assert self.log is not None
        starts = self.log.read_text().count("\n") if self.log.exists() else 0
        return starts + len(self.acknowledged)

    def _read(self, driver: subprocess.Popen[str]) -> None:
        assert driver.stdout is not None
        self.output = ""
        for line in driver.stdout:
            self.output += line
            match = re.match(r"run +\d+/\d+ +(.*?)  (val \S+|\S+: .*?)  \d+ s · ", line)
            if match:
                self.acknowledged.append((match[1], match[2]))

    @property
    def table(self) -> pd.DataFrame:
        return pd.read_csv(self.folder / "run" / "results.csv")

    @property
    def verdict(self) -> list[str]:
        """But for the fastest network, which depends on the machine's mood."""
        lines = self.output.splitlines()
        return [
            line
            for line in lines
            if line.startswith(("choose", "paper", "single", "baseline  val", "surface"))
        ]

    def check(self, whole: Chaos) -> None:
        """Everything acknowledged is there once, nothing was trained again without a recorded
        reason, and the table and the verdict are those of the undisturbed study."""
        a, b = self.table.drop(columns=DISTURBED), whole.table.drop(columns=DISTURBED)
        pd.testing.assert_frame_equal(a, b, check_exact=True)
        assert not a.duplicated(["network", "seed", "epochs"]).any()
        assert self.verdict == whole.verdict
        assert Counter(self.acknowledged) <= Counter(whole.acknowledged), (
            "an acknowledged result was reported again"
        )
        assert self.log is not None
        starts = Counter(tuple(json.loads(line)[:3]) for line in self.log.read_text().splitlines())
        for record in read_records(self.folder / "run"):
            again = starts.pop(record.key, 1) - 1
            assert again <= len(record.again), (
                f"{record.key}: started again {again} times for {record.again}"
            )
        assert not starts, "trained and not recorded"


def kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def kill_worker(rng: random.Random) -> Callable[[int], bool]:
    def one(driver: int) -> bool:
        workers = children(driver)
        return bool(workers) and kill(rng.choice(workers))

    return one
