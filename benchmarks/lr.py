"""The learning rate of a preset, chosen where it matters: on the baseline and the corners, never at
the centre alone.

    python benchmarks/lr.py [--preset quick | --study FILE] [--data fashion-mnist]
        [--lr 0.004 0.008 0.016] [--seed 0] [--seeds 2]

Trains the baseline and the networks nearest to depth only, width only and resolution only, as the
preset or the study does, at each learning rate; validation accuracy in per cent, mean over the
seeds. The last line is the rate that loses least: its worst network lies nearest to that network's
best."""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
import tempfile
from pathlib import Path

import torch
from jobs import Jobs

from scaling_search.data.sources import load
from scaling_search.driver.executors.local import open_local
from scaling_search.study.directions import SINGLE
from scaling_search.study.plan import plan
from scaling_search.study.settings import preset_path, read
from scaling_search.training.trial import Trial


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--preset", default="quick")
    which.add_argument("--study", type=Path, help="a study file, in place of a preset")
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--lr", type=float, nargs="+", default=[4e-3, 8e-3, 16e-3])
    parser.add_argument("--seed", type=int, default=0, help="the first")
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()

    study = read(args.study or preset_path(args.preset))
    data = load(args.data)
    todo = plan(study, len(data.classes), data.native)
    corners = []  # the networks that stand for pure depth, width or resolution
    for candidate in todo.candidates:
        if any(candidate.direction(name) for name in SINGLE):
            corners.append(candidate)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    workers = 1 if device == "cuda" else max(1, (os.cpu_count() or 1) // study.threads)
    names, trials, folder = {}, [], tempfile.mkdtemp()
    for lr in args.lr:
        recipe = dataclasses.replace(study.recipe, lr=lr)
        for candidate in (todo.baseline, *corners):
            for seed in range(args.seed, args.seed + args.seeds):
                trial = Trial(
                    arch=candidate.arch,
                    data_digest=data.digest,
                    data_folder=str(data.folder),
                    recipe=recipe,
                    seed=seed,
                    epochs=study.rungs[-1],
                    train_images=study.data.train_images,
                    val_images=study.data.val_images,
                    device=device,
                    threads=study.threads,
                    checkpoints=folder,
                    epoch_images=study.data.epoch_images,
                )
                names[len(trials)] = (candidate.stands_for or "baseline", lr)
                trials.append(trial)
    executor, driver = open_local(workers, device, study.threads), Jobs(trials)
    executor.run(driver)
    executor.close()
    accuracies: dict[tuple[str, float], list[float]] = {}  # per cent, by network and rate
    for number, outcome in driver.outcomes.items():
        accuracy = outcome.epochs[-1].val_acc if outcome.status == "done" else 0.0
        accuracies.setdefault(names[number], []).append(100 * accuracy)
    networks = list(dict.fromkeys(name for name, _ in names.values()))
    print(
        f"{args.study or args.preset} on {data.name}: {study.rungs[-1]} epochs, "
        f"batch {study.recipe.batch}, {args.seeds} seeds each"
    )
    print(f"{'':<40}" + "".join(f"{lr:>10g}" for lr in args.lr))
    losses = dict.fromkeys(args.lr, 0.0)
    for name in networks:
        means = {lr: statistics.mean(accuracies[name, lr]) for lr in args.lr}
        print(f"{name:<40}" + "".join(f"{means[lr]:>10.1f}" for lr in args.lr))
        for lr in args.lr:
            losses[lr] = max(losses[lr], max(means.values()) - means[lr])
    print(f"{'most lost on one network':<40}" + "".join(f"{losses[lr]:>10.1f}" for lr in args.lr))
    print(f"{min(losses, key=lambda lr: losses[lr]):g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
