"""Which devices a study trains on, whether torch can use them here, and what fits their memory."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from effnet import Network
from effnet.cost import Precision
from effnet.nn import cuda as cuda_kernels
from scaling_search import UserError
from scaling_search.driver.packing import CONTEXT, predicted_peak, room
from scaling_search.study.settings import Study
from scaling_search.training import step
from scaling_search.training.device_check.before_study import verdict_before_study

logger = logging.getLogger(__name__)

_ABSENT = ("found no nvidia driver", "no cuda gpus are available")  # torch's words: no GPU at all


@dataclass(frozen=True, slots=True)
class Cuda:
    """How many of this machine's GPUs torch can use; where none, why, and what to do about it.

    `present`: whether a GPU seems to be there that torch cannot use."""

    count: int
    reason: str = ""
    present: bool = False
    advice: str = "see that nvidia-smi lists the GPU"


@dataclass(frozen=True, slots=True)
class Machine:
    """What trains a study, as far as its numbers and its memory depend on it."""

    kernels: str  # as step.kernels names them
    why_no_kernels: str = ""  # with which numba's, or on CUDA Triton's, cannot be imported
    memory: int = 0  # bytes of the smallest GPU; 0 on a CPU
    gpu: str = ""  # name of that GPU
    precision: Precision = "fp32"  # of a step; fp32 where any of the GPUs needs it
    problem: str = ""  # why torch cannot use a GPU that is wanted
    warnings: tuple[str, ...] = ()  # what a check of its numbers has found wrong
    triton_failure: str = ""  # why that check keeps Triton's kernels, though importable, from use


def cores() -> int:
    """How many this process may use; macOS does not say, and has them counted."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def parse(text: str) -> tuple[str, tuple[int, ...] | None]:
    """`cuda:1` as ("cuda", (1,)); auto, cpu and cuda as (text, None): every card of that kind.

    Raises UserError for anything else."""
    index = re.fullmatch(r"cuda:(\d+)", text)
    if index:
        return "cuda", (int(index[1]),)
    if text not in ("auto", "cpu", "cuda"):
        raise UserError(
            f"--device {text}: wanted is auto, cpu, cuda or, for one card, such as cuda:1"
        )
    return text, None


def probe_cuda() -> Cuda:
    """Ask torch for this machine's GPUs; no CUDA context is created."""
    version = torch.__version__
    if not torch.backends.cuda.is_built():
        has_card = any(Path("/dev").glob("nvidia[0-9]*"))
        reason = f"torch {version} is built without CUDA"
        return Cuda(0, reason, has_card, "install a CUDA build of torch")
    # the reason comes as an exception below; torch warns of it too, and only once
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if torch.cuda.is_available():
            return Cuda(torch.cuda.device_count())
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as error:
            message = " ".join(str(error).split())
        else:
            return Cuda(torch.cuda.device_count())
    if message.lower().startswith(_ABSENT):
        return Cuda(0, f"torch {version} finds no GPU here")
    old = re.search(r"driver on your system is too old \(found version (\d+)\)", message)
    if old:
        number = int(old[1])  # CUDA's own form: 9020 is 9.2
        known = f"{number // 1000}.{number % 1000 // 10}"
        reason = f"the NVIDIA driver knows CUDA {known}, too old for torch {version}"
        if torch.version.cuda:
            reason += f" (CUDA {torch.version.cuda})"
        advice = "update the driver, or install a torch built for an older CUDA"
        return Cuda(0, reason, True, advice)
    return Cuda(0, f"torch {version} cannot use CUDA: {message[:200]}", True)


def resolve(device: str, indices: tuple[int, ...] | None = None) -> tuple[str, str]:
    """`cpu` or `cuda` for `cpu`, `cuda` or `auto` on this machine, and a line to say ("" for none).

    Raises UserError for a GPU that is not here, or that torch cannot use."""
    if device == "cpu":
        return "cpu", ""
    cuda = probe_cuda()
    if device == "auto":
        if cuda.present:
            return "cpu", (
                f"a GPU seems to be here, but {cuda.reason}: training on the CPU; "
                f"to use the GPU, {cuda.advice}"
            )
        return ("cuda" if cuda.count else "cpu"), ""
    if not cuda.count:
        raise UserError(f"--device cuda: {cuda.reason}; {cuda.advice}, or use --device cpu")
    for index in indices or ():
        if index >= cuda.count:
            names = [f"cuda:{i}" for i in range(cuda.count)]
            raise UserError(f"--device cuda:{index}: this machine has {' and '.join(names)}")
    return "cuda", ""


def describe(device: str, indices: tuple[int, ...] | None = None) -> Machine:
    """Describe what this machine trains with on `device` (cpu or cuda; its GPUs `indices` alone).

    It raises nothing: what is wrong with a GPU is in `problem`, so that a cluster's nodes can be
    asked."""
    if device != "cuda":
        return Machine(step.kernels("cpu"), step.why_no_kernels())
    cuda = probe_cuda()
    if not cuda.count:
        return Machine("", problem=f"{cuda.reason}; {cuda.advice}")
    every = indices or range(cuda.count)
    cards = [torch.cuda.get_device_properties(i) for i in every]
    smallest = min(cards, key=lambda card: card.total_memory)
    return Machine(
        step.kernels("cuda"),
        cuda_kernels.why_no_triton(),
        memory=smallest.total_memory,
        gpu=smallest.name,
        precision=highest(step.precision_on(torch.device("cuda", i)) for i in every),
    )


def highest(precisions: Iterable[Precision]) -> Precision:
    """The one that takes most memory."""
    return "fp32" if "fp32" in precisions else "bf16"


def cards(indices: tuple[int, ...] | None = None) -> dict[str, int]:
    """The first index of each kind of GPU here, by name, among `indices` or all."""
    first: dict[str, int] = {}
    for index in indices or range(torch.cuda.device_count()):
        first.setdefault(torch.cuda.get_device_name(index), index)
    return first


def check_numbers(machine: Machine, indices: tuple[int, ...] | None = None) -> Machine:
    """The machine with the kernels that each kind of its GPUs is known to compute rightly with, and
    with what a check found wrong; asked once per machine and torch release."""
    kernels, triton_failure = machine.kernels, ""
    warnings: list[str] = []
    for name, index in cards(indices).items():
        verdict = verdict_before_study(f"cuda:{index}", name)
        when = "earlier" if verdict.remembered else "now"
        logger.info("%s: checked %s, to train through %s's kernels", name, when, verdict.kernels)
        warnings += [f"{name}: {failure}" for failure in verdict.failures]
        if kernels == "triton" and verdict.kernels != "triton":
            kernels, triton_failure = verdict.kernels, f"{name}: {verdict.why_no_triton}"
    return dataclasses.replace(
        machine, kernels=kernels, warnings=tuple(warnings), triton_failure=triton_failure
    )


def memory_needed(
    study: Study, arch: Network, precision: Precision, batch: int | None = None
) -> int:
    """Predicted bytes of a GPU for one training of `arch`: an estimate, the CUDA context
    included."""
    recipe = study.recipe
    if batch is not None:
        recipe = dataclasses.replace(recipe, batch=batch)
    images = (study.data.train_images or 0) + (study.data.val_images or 0)
    return CONTEXT + predicted_peak(arch, recipe, images, precision)


def trainings_per_gpu(
    study: Study, networks: Sequence[Network], machine: Machine, most: int
) -> int:
    """How many trainings of the largest network a GPU of `machine` holds: from 1 to `most`."""
    largest = max(memory_needed(study, arch, machine.precision) for arch in networks)
    return min(most, room(machine.memory, largest))


def check_memory(study: Study, networks: Sequence[Network], machine: Machine) -> str:
    """A line to say where some networks will not fit the smallest GPU; "" where all do.

    Raises UserError where not even the smallest does. Needs are predictions: only what is larger
    than the whole memory is counted."""
    precision = machine.precision
    needs = [memory_needed(study, arch, precision) for arch in networks]
    too_large = sum(need > machine.memory for need in needs)
    if not too_large:
        return ""
    batch = study.recipe.batch
    advice = "a smaller --width, --resolution or --budget is needed"
    while batch > 8:
        batch //= 2
        smaller = [memory_needed(study, arch, precision, batch) for arch in networks]
        if max(smaller) <= machine.memory:
            advice = f"--batch {batch} would fit"
            break
    memory = f"{machine.gpu} has {_gib(machine.memory)} GiB of memory"
    if too_large == len(networks):
        raise UserError(
            f"{memory}, and the smallest network of this study needs about {_gib(min(needs))} GiB "
            f"at batch {study.recipe.batch}: {advice}"
        )
    return (
        f"{memory}: {too_large} of {len(networks)} networks need more, about {_gib(max(needs))} "
        f"GiB at batch {study.recipe.batch}, and will run out of memory; {advice}"
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f}"
