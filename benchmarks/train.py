"""How fast short trainings are, beside what users run today. Every figure is a median, every rival
in the same run.

    python benchmarks/train.py [--only b0 quick machine epoch start job] [--rounds 5] [--check]

b0       B0, 10 classes, batch 128, two threads, at 32 and 64 px: a step, beside timm's model in a
         plain loop (contiguous fp32, SGD) and in channels_last with a fused optimizer
quick    the networks of studies/quick-b0-s4.toml, one thread: a step, beside the same network in
         plain channels_last code
machine  images/s of two one-thread processes together, over one process of two threads
epoch    an epoch's training beside its bare steps, its evaluation beside bare forward passes
start    a fresh worker to its first step; the next run on it, once warm
job      ten networks, 4,096 CIFAR-10 images, one epoch each: this project's workers, beside
         Optuna + timm + ImageFolder

A GPU's figures are gpu.py's.

Each measurement has a process of its own, rivals in turn, so that nobody inherits another's
allocator or threads. `--check` exits 1 when a target of the issue is missed; the last line is the
least of the ratios over its target."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from effnet.messages import last_line

CIFAR = ROOT.parent / "shared" / "data" / "cifar10"
TEN = [  # alpha, beta, gamma: nominally twice B0
    (2.0, 1.0, 1.0), (1.0, 1.4, 1.0), (1.0, 1.0, 1.4), (1.2, 1.1, 1.15), (1.4, 1.2, 1.0),
    (1.4, 1.0, 1.2), (1.0, 1.2, 1.2), (1.1, 1.25, 1.05), (1.6, 1.1, 1.0), (1.3, 1.05, 1.15),
]  # fmt: skip


# ---- one measurement, in a process of its own


def timed(step: Callable[[], object], seconds: float) -> float:
    """Median seconds of a step, after three that do not count."""
    for _ in range(3):
        step()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        t = time.perf_counter()
        step()
        times.append(time.perf_counter() - t)
    return statistics.median(times)


def _arch(spec: dict[str, Any]) -> Any:
    import effnet
    from effnet.arch import Arch

    return (
        Arch.from_dict(spec["arch"])
        if "arch" in spec
        else effnet.arch("b0", num_classes=10, **spec["dials"])
    )


def _peer(spec: dict[str, Any]) -> Any:
    import timm.models.efficientnet as timm_efficientnet

    import effnet

    if spec["model"] == "timm":
        width, depth = spec["dials"].get("width", 1.0), spec["dials"].get("depth", 1.0)
        return timm_efficientnet._gen_efficientnet(
            "efficientnet_b0", channel_multiplier=width, depth_multiplier=depth, num_classes=10
        )
    return effnet.build(_arch(spec), dropout=0.0, drop_path=0.0)


def measure(spec: dict[str, Any]) -> dict[str, float]:
    """images/s of a training step: `who` is ours, plain (contiguous, SGD) or tuned (channels_last,
    fused)."""
    import torch
    from torch.nn import functional as F

    import effnet
    from scaling_search.training import memory
    from scaling_search.training.recipe import Recipe
    from scaling_search.training.step import Step

    device, batch = torch.device("cpu"), spec["batch"]
    torch.set_num_threads(spec["threads"])
    side = spec["arch"]["resolution"] if "arch" in spec else spec["dials"]["resolution"]
    images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8)
    labels = torch.randint(0, 10, (batch,))
    if spec["who"] == "ours":
        torch.set_flush_denormal(True)
        memory.keep_freed_pages()

        def normalise(x: torch.Tensor) -> torch.Tensor:
            return x.contiguous(memory_format=torch.channels_last).float().mul_(1 / 64).sub_(2)

        recipe = Recipe(optimizer=spec["optimizer"], lr=1e-3)
        model = effnet.build(_arch(spec), dropout=0.0, drop_path=0.0).train()
        ours = Step(model, recipe, device, normalise)

        def step() -> None:
            ours(lambda: (images, labels), 1e-3, 0)
    else:
        tuned = spec["who"] == "tuned"
        model = _peer(spec).train()
        if tuned:
            model = model.to(memory_format=torch.channels_last)
        x = images.float().div_(64).sub_(2)
        x = x.contiguous(memory_format=torch.channels_last) if tuned else x
        if spec["optimizer"] == "adamw":
            optimizer: Any = torch.optim.AdamW(
                model.parameters(), lr=1e-3, fused=tuned and spec.get("fused", True)
            )
        else:
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=tuned)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(model(x), labels)
            loss.backward()
            optimizer.step()

    return {"images_per_s": batch / timed(step, spec.get("seconds", 4.0))}


def in_process(spec: dict[str, Any], **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--measure", json.dumps(spec)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        cwd=tempfile.gettempdir(),
    )


def result(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"a measurement failed with status {process.returncode}")
    answer: dict[str, Any] = json.loads(last_line(out))
    return answer


def rates(specs: dict[str, dict[str, Any]], rounds: int) -> dict[str, float]:
    """Median images/s of each, measured in turn."""
    seen: dict[str, list[float]] = {name: [] for name in specs}
    for _ in range(rounds):
        for name, spec in specs.items():
            seen[name].append(result(in_process(spec))["images_per_s"])
    return {name: statistics.median(values) for name, values in seen.items()}


class Checks:
    """Ratios and their targets, printed as they come."""

    def __init__(self) -> None:
        self.least = float("inf")

    def row(
        self, text: str, value: float, target: float | None, unit: str = "x", below: bool = False
    ) -> None:
        line = f"{text:<88}{value:8.2f} {unit}"
        if target is not None:
            margin = target / value if below else value / target
            self.least = min(self.least, margin)
            bound = "at most" if below else "at least"
            line += f"   {bound} {target:g}: {'met' if margin >= 1 else 'MISSED'}"
        print(line, flush=True)


# ---- the sections


def b0(checks: Checks, rounds: int) -> None:
    for side, least_plain, least_tuned in ((32, 3.3, 1.15), (64, 1.8, 1.1)):
        common = {
            "model": "timm",
            "dials": {"resolution": side},
            "batch": 128,
            "threads": 2,
            "optimizer": "sgd",
        }
        specs = {who: {**common, "who": who, "seconds": 6.0} for who in ("plain", "tuned", "ours")}
        measured = rates(specs, rounds)
        print(
            f"B0 at {side} px, images/s: "
            + ", ".join(f"{who} {rate:.0f}" for who, rate in measured.items())
        )
        checks.row(
            f"B0 at {side} px beside timm, plain", measured["ours"] / measured["plain"], least_plain
        )
        checks.row(
            f"B0 at {side} px beside timm, channels_last, fused",
            measured["ours"] / measured["tuned"],
            least_tuned,
        )


def quick_networks() -> list[Any]:
    """The baseline of studies/quick-b0-s4.toml and four of its candidates, spread over the list."""
    from scaling_search.study.plan import plan
    from scaling_search.study.settings import preset_path, read

    study = read(preset_path("quick-b0-s4"))
    todo = plan(study, 10, 28)
    networks = [todo.baseline]
    for i in range(4):
        networks.append(todo.candidates[i * (len(todo.candidates) - 1) // 3])
    return networks


def quick(checks: Checks, rounds: int) -> None:
    from scaling_search.study.settings import preset_path, read

    batch, ratios = read(preset_path("quick-b0-s4")).recipe.batch, []
    for candidate in quick_networks():
        common = {
            "model": "ours",
            "arch": candidate.arch.as_dict(),
            "batch": batch,
            "threads": 1,
            "optimizer": "adamw",
        }
        specs = {who: {**common, "who": who, "fused": False} for who in ("tuned", "ours")}
        measured = rates(specs, rounds)
        ratios.append(measured["ours"] / measured["tuned"])
        compared = f"{measured['tuned']:.0f} -> {measured['ours']:.0f} images/s"
        checks.row(f"quick-b0-s4: {candidate.label}, batch {batch}: {compared}", ratios[-1], None)
    checks.row(
        "the networks of quick-b0-s4 beside plain channels_last code, the least", min(ratios), 1.5
    )


def machine(checks: Checks, rounds: int) -> None:
    ratios = []
    for candidate in quick_networks()[::2]:
        spec = {
            "who": "ours",
            "arch": candidate.arch.as_dict(),
            "batch": 32,
            "optimizer": "adamw",
            "seconds": 6.0,
        }
        measured = []
        for _ in range(rounds):
            pair = [in_process({**spec, "threads": 1}) for _ in range(2)]
            both = sum(result(p)["images_per_s"] for p in pair)
            measured.append(both / result(in_process({**spec, "threads": 2}))["images_per_s"])
        ratios.append(statistics.median(measured))
        checks.row(
            f"two one-thread workers over one of two threads: {candidate.label}", ratios[-1], None
        )
    checks.row("machine throughput, the least", min(ratios), 1.7)


def _job_trial(
    spec: dict[str, Any], epochs: int = 1, batch: int = 128, train: int = 4096, val: int = 1000
) -> Any:
    from scaling_search.data.sources import load
    from scaling_search.training.recipe import Recipe
    from scaling_search.training.trial import Trial

    data = load(str(CIFAR))
    return Trial(
        arch=_arch(spec),
        data_digest=data.digest,
        data_folder=str(data.folder),
        recipe=Recipe(optimizer="sgd", lr=0.05, batch=batch),
        seed=0,
        epochs=epochs,
        train_images=train,
        val_images=val,
        device="cpu",
        threads=1,
        checkpoints=tempfile.mkdtemp(),
    )


def epoch(checks: Checks, rounds: int) -> None:
    spec = {"arch": quick_networks()[-1].arch.as_dict()}
    measured = [result(in_process({"what": "epoch", **spec})) for _ in range(rounds)]
    for part, bare in (("training", "steps"), ("evaluation", "forward passes")):
        ratio = statistics.median(of_round[part] for of_round in measured)
        checks.row(f"{part} of an epoch over the bare {bare}", ratio, 1.1, below=True)


def measure_epoch(spec: dict[str, Any]) -> dict[str, float]:
    """What an epoch's training and evaluation take, over their bare steps and forward passes
    alone."""
    import torch

    from scaling_search.data.dataset import Dataset
    from scaling_search.training import train
    from scaling_search.training.preparation import prepare

    trial = _job_trial(spec, epochs=4, batch=32, train=2048, val=1500)
    data = Dataset.open(Path(trial.data_folder))
    evaluations: list[float] = []
    evaluate = train.evaluate

    def clocked(*args: Any) -> Any:
        t = time.perf_counter()
        evaluation = evaluate(*args)
        evaluations.append(time.perf_counter() - t)
        return evaluation

    train.evaluate = clocked
    *_, outcome = train.run(trial, data)
    torch.set_flush_denormal(True)  # as training does
    ready = prepare(trial, data)
    images, labels, step = ready.images[torch.arange(32)], ready.labels[:32], ready.step
    step.model.train()
    bare_step = timed(lambda: step(lambda: (images, labels), 0.01, 0), 4.0)
    training = trial.recipe.batch / outcome.images_per_s
    chunk = ready.images[torch.arange(256)]
    norms = timed(lambda: step.logits(chunk), 2.0)
    step.model.eval()
    forward = timed(lambda: step.logits(chunk), 2.0)
    bare = (1024 * norms + 1500 * forward) / 256
    return {"training": training / bare_step, "evaluation": statistics.median(evaluations) / bare}


def start(checks: Checks, rounds: int) -> None:
    spec = {"what": "start", "arch": quick_networks()[1].arch.as_dict()}
    measured = [result(in_process(spec)) for _ in range(rounds)]
    for name, target in (
        ("fresh worker to its first step", 5.0),
        ("next run on a warm worker to its first step", 0.5),
    ):
        checks.row(
            name,
            statistics.median(of_round[name] for of_round in measured),
            target,
            "s",
            below=True,
        )


def measure_start(spec: dict[str, Any]) -> dict[str, float]:
    """Seconds from asking a worker to its first step's end, its process new and then warm."""
    from dataclasses import replace

    from jobs import Jobs

    from scaling_search.driver.executors.local import LocalExecutor

    # a run of one step: its outcome comes after the step and a validation of one image
    trial = _job_trial(spec, batch=32, train=32, val=1)
    trial = replace(trial, recipe=replace(trial.recipe, bn_images=2))
    jobs = Jobs([replace(trial, seed=i) for i in range(4)])
    began = time.perf_counter()
    executor = LocalExecutor(1)
    executor.run(jobs)
    executor.close()
    warm = statistics.median(b - a for a, b in itertools.pairwise(jobs.ends))
    return {
        "fresh worker to its first step": jobs.ends[0] - began,
        "next run on a warm worker to its first step": warm,
    }


def job(checks: Checks, rounds: int) -> None:
    """Once, not `rounds` times: the rival takes minutes."""
    ours = result(in_process({"what": "job"}))
    theirs = result(in_process({"what": "peer job"}))
    print(
        f"the whole job: this project {ours['seconds']:.0f} s, "
        f"Optuna + timm + ImageFolder {theirs['seconds']:.0f} s"
    )
    checks.row("the whole job beside it", theirs["seconds"] / ours["seconds"], 4.0)


def _ten() -> list[dict[str, Any]]:
    return [{"dials": {"depth": a, "width": b, "resolution": round(32 * g)}} for a, b, g in TEN]


def measure_job(spec: dict[str, Any]) -> dict[str, float]:
    from jobs import Jobs

    from scaling_search.driver.executors.local import LocalExecutor

    jobs = Jobs([_job_trial(s) for s in _ten()])  # reading CIFAR-10 into the cache is counted out
    began = time.perf_counter()
    executor = LocalExecutor(2)
    executor.run(jobs)
    executor.close()
    assert [o.status for o in jobs.outcomes.values()] == ["done"] * 10, jobs.outcomes
    return {"seconds": time.perf_counter() - began}


def measure_peer_job(spec: dict[str, Any]) -> dict[str, float]:
    """As people write it: one trial after another on all cores, torchvision transforms in two
    loader processes."""
    import optuna
    import pyarrow.parquet as parquet
    import torch
    from torch.nn import functional as F
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder = Path(tempfile.mkdtemp())
    rows = parquet.read_table(CIFAR / "train.parquet").slice(0, 5096).to_pylist()
    for i, row in enumerate(rows):
        place = folder / ("train" if i < 4096 else "val") / str(row["label"])
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i}.jpg").write_bytes(row["img"]["bytes"])
    began = time.perf_counter()

    def objective(trial: optuna.Trial) -> float:
        dials = _ten()[trial.suggest_categorical("network", list(range(10)))]["dials"]
        plain = [transforms.Resize((dials["resolution"],) * 2), transforms.ToTensor(),
                 transforms.Normalize((0.49, 0.48, 0.45), (0.25, 0.24, 0.26))]  # fmt: skip
        train = ImageFolder(
            folder / "train", transforms.Compose([transforms.RandomHorizontalFlip(), *plain])
        )
        val = ImageFolder(folder / "val", transforms.Compose(plain))
        model = _peer({"model": "timm", "dials": dials})
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        model.train()
        for x, y in DataLoader(train, 128, shuffle=True, num_workers=2):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        model.eval()
        right = 0
        with torch.no_grad():
            for x, y in DataLoader(val, 256, num_workers=2):
                right += int((model(x).argmax(1) == y).sum())
        return right / len(val)

    study = optuna.create_study(direction="maximize")
    for i in range(10):
        study.enqueue_trial({"network": i})
    study.optimize(objective, n_trials=10)
    return {"seconds": time.perf_counter() - began}


MEASURES: dict[str, Callable[[dict[str, Any]], dict[str, float]]] = {
    "step": measure,
    "epoch": measure_epoch,
    "start": measure_start,
    "job": measure_job,
    "peer job": measure_peer_job,
}
SECTIONS: dict[str, Callable[[Checks, int], None]] = {
    "b0": b0, "quick": quick, "machine": machine, "epoch": epoch, "start": start, "job": job,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        spec = json.loads(args.measure)
        print(json.dumps(MEASURES[spec.get("what", "step")](spec)))
        return 0
    import torch

    print(f"torch {torch.__version__}, {os.cpu_count()} cores, {args.rounds} rounds")
    checks = Checks()
    for name in args.only:
        SECTIONS[name](checks, args.rounds)
    print(f"{checks.least:.2f}")
    return int(args.check and checks.least < 1)


if __name__ == "__main__":
    sys.exit(main())
