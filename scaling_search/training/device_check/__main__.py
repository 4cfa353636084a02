"""The command: python -m scaling_search.training.device_check."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

import torch

from scaling_search import UserError
from scaling_search.training import device_check
from scaling_search.training.device_check.speed import train_beside_others


def main() -> int:
    """Ask, and print the answers. Return 1 where one is FAIL."""
    parser = argparse.ArgumentParser(
        prog="python -m scaling_search.training.device_check", description=device_check.__doc__
    )
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu, cuda or cuda:1 (default: cuda where there is one).",
    )
    parser.add_argument(
        "--short", action="store_true", help="Only whether a step's numbers are right."
    )
    parser.add_argument("--json", action="store_true", help="Answers as one line of JSON.")
    parser.add_argument("--worker", help=argparse.SUPPRESS)  # a process of speed.together
    args = parser.parse_args()
    if args.worker:
        train_beside_others(json.loads(args.worker))
        return 0
    answers = []
    for answer in device_check.check(args.device, args.short):
        answers.append(answer)
        if not args.json:
            print(device_check.line(answer), flush=True)
    if args.json:
        print(json.dumps([dataclasses.asdict(answer) for answer in answers]))
    return int(any(answer.ok is False for answer in answers))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
