"""The questions that `scaling-search check` asks, and that they can fail."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from scaling_search.cli import main
from scaling_search.data.dataset import Dataset
from scaling_search.training import device_check
from scaling_search.training.device_check import (
    Subject,
    before_study,
    line,
    questions,
    steps,
    verdict_before_study,
)
from scaling_search.training.device_check.questions import Question
from scaling_search.training.device_check.runs import resume_and_promotion
from scaling_search.training.device_check.steps import gradients_agree, steps_agree
from scaling_search.training.step import Step
from tests.cuda_stub import stub


@pytest.fixture
def subject(data: Dataset, tmp_path: Path) -> Subject:
    return Subject(torch.device("cpu"), data, tmp_path)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "rmsprop"])
def test_steps_here_are_those_of_plain_modules(subject: Subject, optimizer: str) -> None:
    answers = list(steps_agree(subject, optimizer))
    assert [answer.ok for answer in answers] == [True, True], answers


def test_a_step_that_computes_something_else_fails(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forget(self: Step) -> None:
        """Update with half the gradient."""
        for vector, _ in self._vectors:
            vector.grad.mul_(0.5)
        update(self)

    update = Step.update
    monkeypatch.setattr(Step, "update", forget)
    learns, agrees = steps_agree(subject, "sgd")
    assert learns.ok is True, "plain modules are as they were"
    assert agrees.ok is False
    assert "FAIL" in line(agrees)
    assert agrees.advice in line(agrees)


def test_gradients_here_are_those_of_plain_modules(subject: Subject) -> None:
    (answer,) = gradients_agree(subject)
    assert answer.ok is True, answer


@pytest.mark.parametrize("part", ["depthwise.0.weight", "se.excite.weight", "project.1.weight"])
@pytest.mark.parametrize("factor", [0.0, 3.0])
def test_a_layer_with_a_wrong_gradient_fails(
    subject: Subject, part: str, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a kernel of one kind that computes nothing, or a scale that Adam would hide."""

    def altered(self: Step) -> dict[str, torch.Tensor]:
        wrong = gradients(self)
        for name in wrong:
            if name.endswith(part):
                wrong[name] = factor * wrong[name]
        return wrong

    gradients = Step.gradients
    monkeypatch.setattr(Step, "gradients", altered)
    (answer,) = gradients_agree(subject)
    assert answer.ok is False
    assert part in answer.detail


def test_losses_that_agree_on_nothing_are_no_agreement(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "_losses", lambda *a: [0.0] * 10)
    assert [answer.ok for answer in steps_agree(subject, "adamw")] == [False, False]


def test_stopped_and_lengthened_runs_are_those_of_one_piece(subject: Subject) -> None:
    answers = list(resume_and_promotion(subject))
    assert [answer.question for answer in answers] == ["state comes back", "resumed", "promoted"]
    assert [answer.ok for answer in answers] == [True, True, True], answers


def test_a_run_that_begins_anew_has_not_been_resumed(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end is the same: that its checkpoint was taken up must be seen otherwise."""
    monkeypatch.setattr("scaling_search.training.train._Training._resume", lambda *a: 0)
    answers = {a.question: a.ok for a in resume_and_promotion(subject)}
    assert answers == {"state comes back": True, "resumed": False, "promoted": False}


def test_what_was_not_asked_is_not_right() -> None:
    answers = list(device_check.check("cpu", seconds=-1.0))
    assert {a.ok for a in answers if a.question in ("gradients", "steps, adamw")} == {False}
    assert {a.ok for a in answers if a.question in ("rates", "trainings together")} == {None}


def test_a_question_that_raises_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(subject: Subject) -> Iterator[device_check.Answer]:
        raise RuntimeError("CUDA error: device-side assert triggered\nCompile with ...")
        yield

    monkeypatch.setattr(questions, "_questions", lambda *a: [Question("steps", broken)])
    (answer,) = device_check.check("cpu")
    assert answer.ok is False
    assert "device-side assert" in answer.detail
    assert "\n" not in line(answer)


def test_the_command_ends_with_1_where_an_answer_is_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fine = device_check.Answer("steps", True, "agree")
    for answers, status in (([fine], 0), ([fine, dataclasses.replace(fine, ok=False)], 1)):
        monkeypatch.setattr(device_check, "check", lambda *a, answers=answers: iter(answers))
        assert main(["check", "--device", "cpu"]) == status
        assert ("FAIL" in capsys.readouterr().out) == (status == 1)


@pytest.mark.parametrize("word", ["gpu", "cuda:x"])
def test_no_other_device_is_checked_than_was_named(
    word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "--device", word]) == 2
    assert f"--device {word}: wanted is auto, cpu, cuda" in capsys.readouterr().err


def test_a_verdict_without_failures_is_remembered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SCALING_SEARCH_CACHE", str(tmp_path))
    first = verdict_before_study("cpu", "a card")  # in a process of its own
    assert first.failures == ()
    assert not first.remembered
    again = verdict_before_study("cpu", "a card")
    assert again == dataclasses.replace(first, remembered=True)

    devices: list[str] = []

    def answers(device: str) -> tuple[list[device_check.Answer], str]:
        devices.append(device)
        return [device_check.Answer("gradients", True, "agree")], ""

    monkeypatch.setattr(before_study, "_ask_in_process", answers)
    assert not verdict_before_study("cpu", "another card").remembered
    for verdict in (tmp_path / "device-checks").iterdir():
        verdict.write_text("{")
    assert not verdict_before_study("cpu", "a card").remembered, "a damaged verdict is none"
    assert len(devices) == 2


def test_a_verdict_with_failures_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of plain modules; what Triton's kernels do wrong is remembered, with its reason."""
    monkeypatch.setenv("SCALING_SEARCH_CACHE", str(tmp_path))
    monkeypatch.setattr(before_study.cuda, "why_no_triton", lambda: "")
    fine = device_check.Answer("gradients of torch", True, "agree")
    wrong = device_check.Answer("captured = eager, adamw", False, "3 apart")
    monkeypatch.setattr(before_study, "_ask_in_process", lambda device: ([fine, wrong], ""))
    for _ in range(2):
        verdict = verdict_before_study("cuda:0", "a card")
        assert verdict.kernels == "torch"
        assert verdict.failures == ("captured = eager, adamw: 3 apart",)
        assert not verdict.remembered
    monkeypatch.setattr(before_study, "_ask_in_process", lambda device: ([], "it hangs"))
    assert verdict_before_study("cuda:0", "a card").failures == ("it hangs",)

    of_triton = device_check.Answer("gradients", False, "2 of their norm apart", of_triton=True)
    monkeypatch.setattr(before_study, "_ask_in_process", lambda device: ([fine, of_triton], ""))
    for remembered in (False, True):
        verdict = verdict_before_study("cuda:0", "a card")
        assert (verdict.kernels, verdict.failures) == ("torch", ())
        assert "2 of their norm apart" in verdict.why_no_triton
        assert verdict.remembered == remembered
    monkeypatch.setattr(before_study, "_ask_in_process", lambda device: ([fine], ""))
    assert verdict_before_study("cuda:0", "a better card").kernels == "triton"


@stub.needs_stub
def test_the_stand_ins_numbers_fail() -> None:
    """Its kernels do nothing; a study on it is warned, and its verdict is not remembered."""
    done = stub.run(
        "-m", "scaling_search.training.device_check", "--short", "--json", "--device", "cuda"
    )
    assert done.returncode == 1, done.stderr
    answers = {row["question"]: row["ok"] for row in json.loads(done.stdout.splitlines()[-1])}
    assert answers["gradients"] is False
    assert answers["learns, adamw"] is False
    assert answers["captured = eager, adamw"] is False
    assert answers["triton = torch, adamw"] is False


def test_what_a_device_is_asked(data: Dataset, tmp_path: Path) -> None:
    """Everything that a study relies on."""
    subject = Subject(torch.device("cuda"), data, tmp_path)
    names = [question.name for question in questions._questions(subject, short=False)]
    for wanted in (
        "versions", "gradients", "steps, adamw", "steps, sgd", "steps, rmsprop",
        "resume and promotion", "evaluation", "refused capture", "out of memory", "every device",
        "rates", "trainings together",
    ):  # fmt: skip
        assert wanted in names
