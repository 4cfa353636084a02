"""A hundred SIGKILLs over drivers, workers and Ray nodes, in the middle of studies of cheap real
trainings.

    python benchmarks/chaos.py [--kills 100] [--ray 40] [--seed 0] [--check]

An undisturbed study first, then as many disturbed ones as it takes: the same command is given again
whenever its driver was killed, lost Ray nodes come back. After each study: every acknowledged
result present once, no run started again without a recorded reason (the workers keep a log of their
own), the final table and the verdict the undisturbed one's. `--ray` of the kills are on a cluster
of two nodes. The last line is the number of violations.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.chaos import WORDS, Chaos, environment, kill, kill_worker
from tests.clusters import start_cluster

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--ray", type=int, default=40, help="of them on a Ray cluster")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    rng, folder = random.Random(args.seed), Path(tempfile.mkdtemp(prefix="chaos-"))
    local = [*WORDS, "--data", "shapes", "--workers", "2"]
    whole = Chaos(folder / "whole", local, {}, rng)
    whole.run(0)
    print(f"undisturbed: {len(whole.table)} runs")
    killed, violations = Counter[str](), 0

    def studies(
        kills: int,
        words: list[str],
        victims: dict[str, Callable[[int], bool]],
        every: tuple[float, float],
        log: Path | None = None,
    ) -> None:
        nonlocal violations
        done = 0
        while done < kills:
            began = time.monotonic()
            study = Chaos(folder / f"study-{killed.total()}", words, victims, rng, every, log)
            study.run(min(8, kills - done))
            try:
                study.check(whole)
                says = "as undisturbed"
            except AssertionError as error:
                violations += 1
                says = f"VIOLATION {' '.join(str(error).split())[:300]}"
            print(f"{dict(study.killed)} in {time.monotonic() - began:.0f} s: {says}", flush=True)
            done += study.killed.total()
            killed.update(study.killed)

    studies(args.kills - args.ray, local, {"driver": kill, "worker": kill_worker(rng)}, (0.3, 7.0))
    if args.ray:
        cluster = _cluster(folder)
        words = [
            *WORDS,
            "--data",
            "shapes",
            "--executor",
            "ray",
            "--ray-address",
            cluster.address,
            "--workers",
            "2",
        ]

        def node(driver: int) -> bool:
            lost = rng.choice(list(cluster.worker_nodes))
            cluster.remove_node(lost, allow_graceful=False)
            for _ in range(5):  # on a busy machine a node may take longer to start than Ray waits
                try:
                    cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1")
                    break
                except Exception as error:
                    print(f"a node did not start: {str(error)[:100]}")
            return True

        def actor(driver: int) -> bool:
            pids = _actors()
            return bool(pids) and kill(rng.choice(pids))

        studies(
            args.ray,
            words,
            {"driver": kill, "actor": actor, "node": node},
            (2.0, 12.0),
            folder / "cluster" / "log",
        )
        cluster.shutdown()
    print(f"kills: {dict(killed)}, {killed.total()} in all")
    print(violations)
    return int(args.check and violations > 0)


def _cluster(folder: Path) -> Cluster:
    os.environ.update(environment(folder / "cluster"))
    return start_cluster(2, num_cpus=0)


def _actors() -> list[int]:
    """The processes of Ray that train now."""
    processes = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if line.read_text().startswith("ray::") and "Trainable" in line.read_text():
                processes.append(int(line.parent.name))
        except OSError:
            continue
    return processes


if __name__ == "__main__":
    sys.exit(main())
