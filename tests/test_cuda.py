"""The CUDA path of a training, on a stand-in for CUDA that enforces its rules and counts what is
done.

Each program holds several cases, since importing torch's CUDA build takes seconds.
"""

import pytest

from tests.cuda_stub import stub

pytestmark = stub.needs_stub

PRELUDE = """
import torch
from scaling_search.training import memory, preparation
from scaling_search.training.evaluation import evaluate
from scaling_search.training.preparation import prepare
from scaling_search.training.trial import Outcome
from tests.cuda_stub import counters
from tests.cuda_stub.trainings import SMALL, STANDARD, finish, make_trial, random_data
MIB = 2**20
"""


def test_a_fresh_process_trains_on_the_device_that_it_is_given() -> None:
    """Before CUDA is started it keeps no peak of memory; on a second device a capture works only
    where that device is the current one, and else every step of it was silently eager."""
    program = """
data = random_data()
assert not torch.cuda.is_initialized()
outcome = finish(make_trial(data, device="cuda:1"), data)
assert outcome.status == "done", outcome.note
assert outcome.eager == ""
assert outcome.note == ""
assert counters.count("graph_replays") > 20
assert not counters.has_context(0)
assert outcome.peak_memory == torch.cuda.max_memory_reserved("cuda:1")
assert outcome.peak_memory > torch.cuda.max_memory_allocated("cuda:1") > 0
assert outcome.versions["kernels"] == "torch"
assert finish(make_trial(data, device="cuda:0"), data).status == "done"
assert finish(make_trial(data, device="cuda"), data).status == "done"
"""
    stub.check("-c", PRELUDE + program, gpus=2)


@pytest.mark.parametrize(("kernels", "most"), [("torch", 1000), ("triton", 700)])
def test_a_step_is_few_nodes_and_neither_copies_nor_waits(kernels: str, most: int) -> None:
    program = f"""
data = random_data(3000)
trial = make_trial(data, STANDARD, kernels="{kernels}", recipe={{"batch": 128, "bn_images": 512}})
device = memory.activate("cuda:0")
ready = prepare(trial, data)
step, batches = ready.step, ready.batches
step.model.train()
for at in range(3):
    batches.seek(at)
    step(batches.load, 1e-3, at)
counters.reset()
batches.seek(3)
step(batches.load, 1e-3, 3)
assert step.captured, step.eager
nodes = counters.count("captured_nodes")
print("nodes", nodes)
assert 300 < nodes <= {most}, nodes

counters.reset()
for at in range(4, 10):
    batches.seek(at)
    step(batches.load, 1e-3, at)
counts = counters.read()
assert counts["graph_replays"] == 6
assert counts["host_to_device_pageable"] == 0
assert counts["host_to_device_pinned"] == 0
assert counts["device_to_host"] == 0
assert counts["synchronisations"] == 0
assert counts["launches"] <= 6 * 4, "the cursor, the learning rate and the like"

before = torch.cuda.max_memory_reserved()
counters.reset()
evaluate(ready)
chunks = 512 // 256 + -(-len(ready.val_labels) // 256)
assert counters.count("synchronisations") <= 3 * chunks
assert torch.cuda.max_memory_reserved() < 1.25 * before, "evaluation takes far less than a step"
batches.close()
"""
    stub.check("-c", PRELUDE + program)


def test_an_epochs_draws_are_copied_once() -> None:
    program = """
data = random_data()
ready = prepare(make_trial(data, recipe={"cutout": 0.3}), data)
ready.step.model.train()
per_epoch = ready.batches.per_epoch
assert per_epoch > 10
for at in range(per_epoch):
    ready.batches.seek(at)
    ready.step(ready.batches.load, 1e-3, at)
counters.reset()
for at in range(per_epoch, 2 * per_epoch):
    ready.batches.seek(at)
    ready.step(ready.batches.load, 1e-3, at)
counts = counters.read()
assert counts["host_to_device_pinned"] == 1, counts
assert counts["host_to_device_pageable"] == 0, counts
assert counts["synchronisations"] == 0, counts
"""
    stub.check("-c", PRELUDE + program)


def test_a_batch_on_the_device_is_the_one_that_a_cpu_draws() -> None:
    """The plan of many steps, made ahead for CUDA, holds what a CPU draws step by step. Copies work
    on the stand-in, kernels do not: so the plan itself is compared."""
    program = """
from scaling_search.training.batches import Batches
from scaling_search.data.images import Images
from scaling_search.training.recipe import Recipe
import numpy as np
data = random_data()
recipe = Recipe(batch=16, cutout=0.3)
at = np.arange(100)
labels = torch.from_numpy(np.array(data.train_labels[at]))
cpu, cuda = torch.device("cpu"), memory.activate("cuda:0")
ours = Batches(Images(data.train_images, at, 20, cpu), labels, recipe, 3)
theirs = Batches(Images(data.train_images, at, 20, cuda), labels.to(cuda), recipe, 3)
for step in (2, 3, 5, 6, 7, 14):
    ours.seek(step)
    theirs.seek(step)
    row = step - theirs._planned_from
    assert torch.equal(ours._draws, theirs._plan[row].cpu()), step
"""
    stub.check("-c", PRELUDE + program)


def test_a_refused_capture_leaves_the_process_as_it_was() -> None:
    program = """
import effnet
from scaling_search.training.recipe import Recipe
from scaling_search.training.step import Step
from effnet.nn import cuda

data = random_data()
device = memory.activate("cuda:0")
normalise = preparation.Normalise

class Waiting(normalise):
    def __call__(self, images):
        if torch.cuda.is_current_stream_capturing():
            images.sum().item()
        return super().__call__(images)

assert finish(make_trial(data), data).status == "done"
memory.release()
before = torch.cuda.memory_reserved()
preparation.Normalise = Waiting
outcome = finish(make_trial(data, recipe={"dropout": True, "drop_path": 0.2}), data)
preparation.Normalise = normalise
assert outcome.status == "done", outcome.note
assert "not captured" in outcome.note, outcome.note
assert "captur" in outcome.eager, outcome.note
assert cuda.process_is_spoiled()
assert torch.cuda.current_stream() == torch.cuda.default_stream()
torch.rand(4, device=device)
memory.release()
if torch.__version__ >= "2.12":
    assert torch.cuda.memory_reserved() <= before + 8 * MIB
again = finish(make_trial(data, recipe={"dropout": True}), data)
assert again.status == "done"
assert again.eager == ""
"""
    stub.check("-c", PRELUDE + program)


def test_whatever_ends_a_capture_it_is_ended() -> None:
    program = """
from effnet.nn import cuda

device = memory.activate("cuda:1")
x = torch.zeros(4, device=device)

def broken():
    x.add_(1)
    raise ValueError("of Triton's compiler, say")

torch.cuda.manual_seed(7)
try:
    cuda.capture(device, broken)
except ValueError as error:
    assert "compiler" in str(error)
else:
    raise AssertionError("it was swallowed")
assert cuda.process_is_spoiled()
assert torch.cuda.current_stream() == torch.cuda.default_stream()
torch.cuda.synchronize()
assert torch.cuda.default_generators[1].initial_seed() == 7
graph, refusal = cuda.capture(device, lambda: x.add_(1))
assert refusal == ""
assert graph is not None
assert counters.count("captured_nodes") >= 1

# nothing on the device that is captured on is a refusal, not an empty graph
elsewhere = torch.zeros(4, device="cuda:0")
graph, refusal = cuda.capture(device, lambda: None)
assert graph is None, refusal
assert "nothing" in refusal, refusal

# a device without an index is the current one
torch.cuda.set_device(0)
cuda.capture(torch.device("cuda"), lambda: elsewhere.add_(1))
torch.cuda.set_device(1)
graph, refusal = cuda.capture(torch.device("cuda"), lambda: x.add_(1))
assert refusal == "", refusal
"""
    stub.check("-c", PRELUDE + program, gpus=2)


def test_too_little_memory_for_a_capture_is_not_the_networks() -> None:
    """What the failed capture held is gone when the same step is tried eagerly."""
    program = """
import dataclasses
data = random_data()
device = memory.activate("cuda:0")
total = torch.cuda.get_device_properties(device).total_memory
trial = make_trial(data, STANDARD, recipe={"batch": 128})
ready = prepare(trial, data)
ready.step.model.train()
batches = ready.batches

def load():
    images, labels = batches.load()
    if torch.cuda.is_current_stream_capturing():
        torch.empty(3 * total // 4, dtype=torch.uint8, device=device)
    return images, labels

for at in range(3):
    batches.seek(at)
    ready.step(load, 1e-3, at)
# room for the eager step and hardly more
torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 64 * MIB) / total)
for at in range(3, 7):
    batches.seek(at)
    ready.step(load, 1e-3, at)
assert not ready.step.captured, ready.step.eager
assert "out of memory" in ready.step.eager, ready.step.eager
torch.cuda.set_per_process_memory_fraction(1.0)

# a network that does not fit at all is an outcome, and the next run is as good as before
del ready, batches, load
memory.release()
torch.cuda.set_per_process_memory_fraction(0.1)
outcome = finish(dataclasses.replace(trial, checkpoints=trial.checkpoints + "-2"), data)
assert outcome.status == "out-of-memory", outcome.note
torch.cuda.set_per_process_memory_fraction(1.0)
assert finish(make_trial(data), data).status == "done"
"""
    stub.check("-c", PRELUDE + program)


def test_data_beyond_the_devices_memory_are_read_ahead_and_captured() -> None:
    program = """
import threading
from scaling_search.data import images
data = random_data()
images.free_memory = lambda device: 1000
ready = prepare(make_trial(data, recipe={"cutout": 0.3}), data)
assert not ready.images.resident
ready.step.model.train()
for at in range(5):
    ready.batches.seek(at)
    ready.step(ready.batches.load, 1e-3, at)
assert ready.step.captured, ready.step.eager
assert any(t.name.startswith("read-ahead") for t in threading.enumerate())
counters.reset()
ready.batches.seek(5)
ready.step(ready.batches.load, 1e-3, 5)
counts = counters.read()
assert counts["host_to_device_pageable"] == 0, counts
assert counts["synchronisations"] == 0, counts
assert counts["host_to_device_pinned"] == 1, counts
evaluate(ready)
ready.batches.close()
assert not any(t.name.startswith("read-ahead") for t in threading.enumerate())
outcome = finish(make_trial(data), data)
assert outcome.status == "done", outcome.note
assert outcome.eager == "", outcome.note
"""
    stub.check("-c", PRELUDE + program)


def test_latency_is_one_launch_of_the_network() -> None:
    program = """
from effnet.nn.measure import latency, peak_training_memory
counters.reset()
assert latency(SMALL, 4, "bf16", device="cuda", runs=5) > 0
assert counters.count("graph_replays") == 8
assert peak_training_memory(SMALL, 8, device="cuda") > 0
"""
    stub.check("-c", PRELUDE + program)
