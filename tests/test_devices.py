"""Which device a study trains on, and the one line where it cannot; GPUs are the stand-in's."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmarks.jobs import Jobs
from scaling_search import UserError
from scaling_search.data.dataset import Dataset
from scaling_search.driver import devices, place
from scaling_search.driver.devices import Machine
from scaling_search.driver.executors.local import LocalExecutor
from scaling_search.results.store import Store
from scaling_search.study.plan import plan
from scaling_search.study.settings import Study, check
from scaling_search.training.trial import Epoch, Outcome, Trial
from tests.cuda_stub import stub

SMALL_STUDY = [
    "search",
    "--preset",
    "standard",
    "--candidates",
    "2",
    "--allocation",
    "flat",
    "--epochs",
    "1",
]


def test_one_card_is_named_and_the_study_knows_its_kind_alone() -> None:
    assert devices.parse("cuda:1") == ("cuda", (1,))
    assert devices.parse("cuda") == ("cuda", None)
    with pytest.raises(UserError, match="--device cuda:x: wanted is auto, cpu, cuda"):
        devices.parse("cuda:x")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_cuda_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.resolve("auto") == ("cpu", "")
    if torch.backends.cuda.is_built():
        with pytest.raises(
            UserError, match=r"--device cuda: torch .* finds no GPU here; .*, or use --device cpu"
        ):
            devices.resolve("cuda")
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    with pytest.raises(
        UserError, match=r"--device cuda: torch .* is built without CUDA; install a CUDA build"
    ):
        devices.resolve("cuda")


@stub.needs_stub
def test_bad_input_for_gpus_is_one_line_and_the_driver_takes_no_memory_of_a_card(
    pets: str, tmp_path: Path
) -> None:
    code = f"""
import contextlib, io
from scaling_search.driver import devices
from scaling_search.cli import main
from tests.cuda_stub import counters

def error(words):
    text = io.StringIO()
    with contextlib.redirect_stderr(text), contextlib.redirect_stdout(io.StringIO()):
        assert main(words) == 2, text.getvalue()
    assert text.getvalue().count("\\n") == 1, text.getvalue()
    return text.getvalue()

study = {[*SMALL_STUDY, "--data", pets]}
both = "--device cuda:3: this machine has cuda:0 and cuda:1"
assert both in error([*study, "--device", "cuda:3"])
assert both in error(["train", "b0-s4", "--data", {pets!r}, "--device", "cuda:3"])
small = error([*study, "--device", "cuda", "--batch", "4096", "--out", {str(tmp_path)!r}])
assert "has 1.9 GiB of memory, and the smallest network of this study needs about 1" in small, small
assert "at batch 4096: --batch 64 would fit" in small, small
assert devices.describe("cuda").precision == "bf16"
assert not counters.has_context(0) and not counters.has_context(1)
"""
    stub.check("-c", code, gpus=2, memory=2e9)
    assert not list(tmp_path.iterdir()), "nothing is written before everything is checked"


@stub.needs_stub
def test_one_card_alone_is_used(pets: str, tmp_path: Path) -> None:
    code = f"""
from scaling_search.cli import main
from scaling_search.driver.executors.local import open_local
from tests.cuda_stub import counters

assert set(open_local(None, "cuda", 1, (1,))._slots) == {{"cuda:1"}}
words = ["train", "b0-s4", "--data", {pets!r}, "--device", "cuda:1", "--out", {str(tmp_path)!r}]
assert main([*words, "--width", "0.1", "--resolution", "12", "--batch", "8"]) == 0
assert counters.has_context(1) and not counters.has_context(0)
"""
    stub.check("-c", code, gpus=2)


@stub.needs_stub
def test_a_driver_too_old_is_said_and_auto_does_not_hide_it() -> None:
    code = """
from scaling_search import UserError; from scaling_search.driver import devices
assert devices.probe_cuda() == devices.probe_cuda(), "torch warns once, and is asked twice"
device, note = devices.resolve("auto")
assert device == "cpu"
old = "a GPU seems to be here, but the NVIDIA driver knows CUDA 9.2, too old for torch"
assert old in note and "training on the CPU" in note and "update the driver" in note
try:
    devices.resolve("cuda")
except UserError as error:
    assert "--device cuda: the NVIDIA driver knows CUDA 9.2" in str(error)
    assert "--device cpu" in str(error)
else:
    raise AssertionError
assert "9.2" in devices.describe("cuda").problem
"""
    done = stub.run("-c", code, variables={"FAKE_CUDA_DRIVER_VERSION": "9020"})
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr


def test_networks_that_do_not_fit_are_said(study: Study) -> None:
    study = check({**study.settings(), "recipe": {"batch": 512}}, "test")
    networks = [c.arch for c in plan(study, 10, 64).everything]
    needs = sorted(devices.memory_needed(study, arch, "bf16") for arch in networks)

    def machine(memory: int) -> Machine:
        return Machine("torch", memory=memory, gpu="A card", precision="bf16")

    assert devices.check_memory(study, networks, machine(needs[-1])) == ""
    note = devices.check_memory(study, networks, machine(needs[-1] - 1))
    assert f"1 of {len(networks)} networks need more" in note
    assert "--batch 256 would fit" in note
    with pytest.raises(
        UserError,
        match=r"A card has .* the smallest network .* at batch 512: --batch \d+ would fit",
    ):
        devices.check_memory(study, networks, machine(needs[0] - 1))
    assert devices.trainings_per_gpu(study, networks, machine(80 * 2**30), 2) == 2
    assert devices.trainings_per_gpu(study, networks, machine(int(1.5 * needs[-1])), 2) == 1
    assert devices.trainings_per_gpu(study, networks, machine(1), 2) == 1


def test_a_card_without_bf16_needs_more_memory(study: Study) -> None:
    study = check({**study.settings(), "recipe": {"batch": 512}}, "test")
    networks = [c.arch for c in plan(study, 10, 64).everything]
    needs = {
        p: max(devices.memory_needed(study, arch, p) for arch in networks) for p in ("bf16", "fp32")
    }
    assert needs["fp32"] > needs["bf16"]
    newer = Machine("torch", memory=int(2.1 * needs["bf16"] / 0.9), precision="bf16")
    older = dataclasses.replace(newer, precision="fp32")
    assert devices.trainings_per_gpu(study, networks, newer, 2) == 2
    assert devices.trainings_per_gpu(study, networks, older, 2) == 1
    assert devices.highest(["bf16", "fp32"]) == "fp32"
    assert devices.highest(["bf16"]) == "bf16"


@stub.needs_stub
def test_memory_is_predicted_in_the_precision_of_the_card() -> None:
    code = """
import torch
from scaling_search.driver import devices; from scaling_search.training import step
from tests.cuda_stub import counters
assert devices.describe("cuda").precision == "fp32" and not counters.has_context(0)
assert step._dtype_on(torch.device("cuda:0")) == torch.float32
"""
    stub.check("-c", code, variables={"FAKE_CUDA_CAPABILITY": "7.5"})


# ---- kernels


def recorded(folder: Path, study: Study, data: Dataset, kernels: str) -> Store:
    """A store with one run, trained with these kernels."""
    store = Store.create(folder, study.identity(data.digest), {})
    store.set_fact("kernels", kernels)
    number = store.start(plan(study, 10, 64).baseline, 0, 1)
    epoch = Epoch(1, 2.0, 2.0, 0.5, 1.0)
    store.finish(number, Outcome("done", (epoch,), versions={"kernels": kernels}))
    return store


def test_a_study_keeps_to_its_kernels(study: Study, data: Dataset, tmp_path: Path) -> None:
    store = recorded(tmp_path / "old", study, data, "numba")
    for _ in range(2):
        with pytest.raises(
            UserError, match=r"kernels of numba, here they are those of torch \(no numba\)"
        ) as error:
            place.agree_on_kernels(
                store, study, tmp_path, Machine("torch", "no numba"), place.Place()
            )
        assert "\n" not in str(error.value)
        assert (
            place.agree_on_kernels(store, study, tmp_path, Machine("numba"), place.Place())
            == "numba"
        )
        assert store.fact("kernels") == "numba"
    store.close()
    fresh = Store.create(tmp_path / "new", study.identity(data.digest), {})
    assert (
        place.agree_on_kernels(fresh, study, tmp_path, Machine("torch"), place.Place()) == "torch"
    )
    changed = place.agree_on_kernels(fresh, study, tmp_path, Machine("numba"), place.Place())
    assert changed == "numba", "nothing is trained yet"
    fresh.close()


@pytest.mark.parametrize(
    ("machine", "checked", "cause", "remedy"),
    [
        (Machine("torch"), False, "Triton's kernels are not checked", "leave --no-check out"),
        (
            Machine("torch", "no triton"),
            True,
            "cannot be imported (no triton)",
            "pip install triton",
        ),
        (
            Machine("torch", triton_failure="A card: losses differ"),
            True,
            "since a check failed (A card: losses differ)",
            "see scaling-search check",
        ),
    ],
)
def test_a_study_of_tritons_kernels_says_why_they_are_missing(
    machine: Machine,
    checked: bool,
    cause: str,
    remedy: str,
    study: Study,
    data: Dataset,
    tmp_path: Path,
) -> None:
    cuda = check({**study.settings(), "device": "cuda"}, "test")
    store = recorded(tmp_path, cuda, data, "triton")
    with pytest.raises(UserError) as error:
        place.agree_on_kernels(store, cuda, tmp_path, machine, place.Place(check=checked))
    store.close()
    message = str(error.value)
    assert cause in message
    assert f"differ: {remedy}, or choose another folder" in message
    assert "\n" not in message


@stub.needs_stub
def test_triton_that_cannot_be_imported_is_said(study: Study, tmp_path: Path) -> None:
    """By the driver, where numbers are not checked too, and by a worker that should use it."""
    (tmp_path / "triton.py").write_text("raise ImportError('no wheel for this Python')\n")
    (tmp_path / "study.toml").write_text(
        study.to_toml().replace('device = "cpu"', 'device = "cuda"')
    )
    code = f"""
from pathlib import Path
import torch
from rich.console import Console
from scaling_search import UserError; from scaling_search.driver import place
from scaling_search.training import preparation
from scaling_search.study.plan import plan
from scaling_search.study.settings import read
from scaling_search.training.trial import Trial
study = read(Path({str(tmp_path / "study.toml")!r}))
assert study.device == "cuda"
todo = plan(study, 10, 64)
machine = place.examine_machine(study, todo, place.Place(check=False), Console(width=1000))
assert machine.kernels == "torch"
where = {{"device": "cuda", "threads": 1, "checkpoints": "", "kernels": "triton"}}
trial = Trial(todo.baseline.arch, "", "", study.recipe, 0, 1, None, None, **where)
try:
    preparation._choose_kernels(trial, torch.device("cuda"))
except UserError as error:
    print(error)
"""
    path = os.pathsep.join([str(tmp_path), str(stub.ROOT)])
    note, refusal = stub.check("-c", code, variables={"PYTHONPATH": path}).splitlines()
    reason = "(ImportError: no wheel for this Python)"
    assert f"Triton cannot be imported {reason}: plain modules train; pip install triton" in note
    assert f"kernels of triton, this machine has those of torch {reason}" in refusal


def test_a_local_worker_with_other_kernels_stops_the_study(trial: Trial) -> None:
    driver, executor = Jobs([dataclasses.replace(trial, kernels="others")]), LocalExecutor(1)
    try:
        with pytest.raises(
            UserError, match="training stopped: .*the study trains through kernels of others"
        ):
            executor.run(driver)
    finally:
        executor.close()
    assert not driver.outcomes, "no network is blamed"
    assert not driver.losses, "no network is blamed"


def test_numba_that_cannot_be_imported_is_said(study: Study, tmp_path: Path) -> None:
    (tmp_path / "numba.py").write_text("raise ImportError('numba needs NumPy 1.0 or less')\n")
    (tmp_path / "study.toml").write_text(study.to_toml())
    code = f"""
from pathlib import Path
from rich.console import Console
from scaling_search.driver import place
from scaling_search.study.plan import plan
from scaling_search.study.settings import read
study = read(Path({str(tmp_path / "study.toml")!r}))
machine = place.examine_machine(study, plan(study, 10, 64), place.Place(), Console(width=1000))
assert machine.kernels == "torch"
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(stub.ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "numba cannot be imported (ImportError: numba needs NumPy 1.0 or less)" in done.stdout
    assert "2 to 5 times slower" in done.stdout


def test_a_machine_with_numba_has_nothing_to_say(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("numba")
    machine = place.examine_machine(study, plan(study, 10, 64), place.Place(), Console())
    assert machine == Machine("numba")
    assert capsys.readouterr().out == ""
