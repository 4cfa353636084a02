"""The command `check`: whether training works on this machine."""

from __future__ import annotations

import argparse

from scaling_search.cli.command import Argument, Command


def _check(args: argparse.Namespace, argv: list[str]) -> int:
    """Exit status 1 where a question is answered with FAIL."""
    from scaling_search.driver import devices
    from scaling_search.training import device_check

    kind, indices = devices.parse(args.device)
    kind, note = devices.resolve(kind, indices)
    if note:
        print(f"note: {note}")
    device = f"cuda:{indices[0]}" if indices else kind
    failures = 0
    for answer in device_check.check(device):
        print(device_check.line(answer), flush=True)
        failures += answer.ok is False
    if failures:
        print(f"{failures} FAIL: do not trust a study on {device} before this is mended")
    return int(failures > 0)


CHECK = Command(
    "check",
    "say whether training works on this machine, and how fast",
    (
        Argument(
            "--device",
            "Device to check: cpu, cuda, cuda:1 (that card) or auto, which is cuda where there is "
            "a GPU.",
            "auto",
            options={"default": "auto"},
        ),
    ),
    _check,
)
