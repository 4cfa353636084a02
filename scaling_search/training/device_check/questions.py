"""The questions of a device check, in their order, and how they are asked."""

from __future__ import annotations

import functools
import logging
import os
import platform
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from effnet.messages import first_line
from effnet.nn import cuda
from scaling_search.training import memory
from scaling_search.training.device_check import runs, speed, steps
from scaling_search.training.device_check.subject import REPORT_IT, Answer, Subject, draw_data
from scaling_search.training.step import kernels, why_no_kernels

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Question:
    """`ask` yields one answer or more; it may raise, which is a failure."""

    name: str
    ask: Callable[[Subject], Iterator[Answer]]
    about_speed: bool = False


def check(device: str, short: bool = False, seconds: float = 110.0) -> Iterator[Answer]:
    """Yield every answer about `device` ("cpu", "cuda", "cuda:1"), the most important first.

    `short`: only whether a step's numbers are right, by one optimizer. No question is begun after
    `seconds`. A question that raises is one that failed."""
    deadline = time.monotonic() + seconds
    torch.set_num_threads(1)  # as a study's runs have
    with tempfile.TemporaryDirectory(prefix="device-check-") as folder:
        subject = Subject(memory.activate(device), draw_data(Path(folder)), Path(folder))
        for question in _questions(subject, short):
            if time.monotonic() > deadline:
                yield _not_asked(question, seconds)
                continue
            try:
                yield from question.ask(subject)
            except Exception as error:
                yield _raised(question, error)
            memory.release()


def _not_asked(question: Question, seconds: float) -> Answer:
    # what was not asked is not known to be right; a speed that was not measured is no fault
    ok = None if question.about_speed else False
    detail = f"not asked: {seconds:.0f} s are over"
    return Answer(question.name, ok, detail, "ask again when the machine is less busy")


def _raised(question: Question, error: Exception) -> Answer:
    logger.debug("%s raised", question.name, exc_info=error)
    if os.environ.get("DEVICE_CHECK_TRACEBACK"):
        traceback.print_exception(error)
    return Answer(
        question.name,
        False,
        first_line(error, named=True),
        f"DEVICE_CHECK_TRACEBACK=1 shows where; {REPORT_IT}",
    )


def _questions(subject: Subject, short: bool) -> list[Question]:
    gradients = Question("gradients", steps.gradients_agree)
    losses = []
    for optimizer in steps.LEARNING_RATES:
        ask = functools.partial(steps.steps_agree, optimizer=optimizer)
        losses.append(Question(f"steps, {optimizer}", ask))
    if short:
        return [gradients, losses[0]]
    questions = [
        Question("versions", _describe),
        gradients,
        *losses,
        Question("resume and promotion", runs.resume_and_promotion),
    ]
    if subject.cuda:
        questions += [
            Question("evaluation", runs.evaluation_agrees),
            Question("refused capture", runs.refused_capture),
            Question("out of memory", runs.out_of_memory),
            Question("every device", runs.every_device),
        ]
    return [
        *questions,
        Question("rates", speed.rates, about_speed=True),
        Question("trainings together", speed.together, about_speed=True),
    ]


def _describe(subject: Subject) -> Iterator[Answer]:
    """Name versions, device and kernels. Kernels that do not load cost time, and are no failure."""
    detail = (
        f"python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}"
    )
    if subject.cuda:
        card = torch.cuda.get_device_properties(subject.device)
        detail += (
            f", CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}; {card.name}, "
            f"{card.total_memory / 2**30:.0f} GiB, compute capability {card.major}.{card.minor}"
        )
    else:
        detail += f"; {platform.machine()}, {os.cpu_count()} cores"
    yield Answer("versions", None, detail)
    detail = kernels(subject.device.type)
    library, missing = "numba", why_no_kernels()
    if subject.cuda:
        library, missing = "triton", cuda.why_no_triton()
    if missing:
        detail += f": {library} cannot be imported ({missing}); plain modules train, more slowly"
    yield Answer("kernels", None, detail)
