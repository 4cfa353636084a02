"""A run from its first step to its outcome: the same bits however it was interrupted."""

import dataclasses
import functools
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import effnet
from scaling_search import UserError
from scaling_search.data import shapes
from scaling_search.data.dataset import CacheWriter, Dataset, split
from scaling_search.data.images import Normalise
from scaling_search.training import checkpoint
from scaling_search.training.evaluation import Evaluation, evaluate
from scaling_search.training.preparation import Ready, prepare
from scaling_search.training.recipe import Recipe
from scaling_search.training.schedule import decay_start
from scaling_search.training.train import _evenly, run
from scaling_search.training.trial import Epoch, Outcome, Pulse, Trial


def events_of(trial: Trial, data: Dataset) -> Iterator[Epoch | Outcome]:
    """What a run yields, but for the pulses."""
    return (event for event in run(trial, data) if not isinstance(event, Pulse))


def finish(trial: Trial, data: Dataset) -> Outcome:
    *_, outcome = run(trial, data)
    assert isinstance(outcome, Outcome)
    return outcome


def weights(trial: Trial) -> dict[str, torch.Tensor]:
    state = checkpoint.load(f"{trial.folder}/e{trial.epochs}.ckpt")
    assert state is not None
    return state["model"]


def assert_same_weights(a: Trial, b: Trial) -> None:
    wanted, reached = weights(a), weights(b)
    assert wanted.keys() == reached.keys()
    for name, tensor in wanted.items():
        assert torch.equal(tensor, reached[name]), name


def elsewhere(trial: Trial, tmp_path: Path, **changes: object) -> Trial:
    return dataclasses.replace(trial, checkpoints=str(tmp_path / "other"), **changes)


def assert_same(a: Outcome, b: Outcome) -> None:
    assert [(e.train_loss, e.val_loss, e.val_acc, e.losses) for e in a.epochs] == [
        (e.train_loss, e.val_loss, e.val_acc, e.losses) for e in b.epochs
    ]
    assert a.right == b.right


def test_balanced_accuracy_is_the_mean_recall_of_classes(trial: Trial, tmp_path: Path) -> None:
    """Against the bits of which images were right, on classes of unlike size; the test split's is
    balanced too."""
    images, labels = shapes.generate(600, 0)
    rare = (labels < 5) & (np.arange(600) % 6 != 0)
    test = shapes.generate(100, 1)
    with CacheWriter(tmp_path / "unbalanced") as writer:
        unbalanced = writer.commit("u", "g", shapes.CLASSES, images[~rare], labels[~rare], test)
    plain = elsewhere(trial, tmp_path, data_digest=unbalanced.digest, val_images=None, test=True)
    balanced = dataclasses.replace(plain, metric="balanced")
    assert balanced.key != plain.key
    counted, weighed = finish(plain, unbalanced), finish(balanced, unbalanced)
    assert counted.right == weighed.right
    _, val = split(unbalanced.train_hashes, plain.seed)
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(weighed.right), np.uint8))[: len(val)]
    truth = unbalanced.train_labels[val]
    recalls = [bits[truth == c].mean() for c in np.unique(truth)]
    assert weighed.epochs[-1].val_acc == pytest.approx(np.mean(recalls))
    assert counted.epochs[-1].val_acc == pytest.approx(bits.mean())
    # as uncertain as a plain accuracy of so many images, were each class as hard as the others
    of_class = np.bincount(truth)[np.unique(truth)]
    assert weighed.effective_images == round(len(of_class) ** 2 / (1 / of_class).sum())
    assert weighed.effective_images < len(val)
    assert counted.effective_images == 0
    assert weighed.test_acc is not None


def test_reports_every_epoch_then_the_outcome(trial: Trial, data: Dataset) -> None:
    events = list(events_of(trial, data))
    assert [type(e) for e in events] == [Epoch, Epoch, Outcome]
    outcome = events[-1]
    assert outcome.status == "done"
    assert outcome.epochs == tuple(events[:-1])
    assert [len(epoch.losses) for epoch in outcome.epochs] == [1, 1]  # 6 steps each
    for epoch in outcome.epochs:
        assert epoch.losses[0] == pytest.approx(epoch.train_loss)
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(outcome.right), np.uint8))[:60]
    assert bits.mean() == pytest.approx(outcome.epochs[-1].val_acc)
    assert outcome.test_acc is None
    assert outcome.traceback == ""
    assert outcome.images_per_s > 0
    assert outcome.peak_memory > 2**20
    assert Outcome.from_dict(outcome.as_dict()) == outcome


def test_same_seed_same_numbers_other_seed_others(
    trial: Trial, data: Dataset, tmp_path: Path
) -> None:
    first = finish(trial, data)
    assert_same(first, finish(elsewhere(trial, tmp_path), data))
    other = finish(elsewhere(trial, tmp_path, seed=1), data)
    assert other.epochs[0].train_loss != first.epochs[0].train_loss


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "rmsprop"])
def test_resumed_after_an_epoch_is_bit_identical(
    trial: Trial, data: Dataset, tmp_path: Path, optimizer: str
) -> None:
    recipe = dataclasses.replace(
        trial.recipe, optimizer=optimizer, dropout=True, drop_path=0.2, cutout=0.3, ema=0.9
    )
    trial = dataclasses.replace(trial, recipe=recipe, epochs=3)
    whole = finish(trial, data)
    stopped = elsewhere(trial, tmp_path)
    events = events_of(stopped, data)
    next(events)
    next(events)
    events.close()
    torch.manual_seed(12345)  # whatever else ran in the meantime
    assert_same(whole, finish(stopped, data))
    assert_same_weights(trial, stopped)


@pytest.mark.parametrize("step", [0, 5, 6, 16])
def test_stopped_between_any_two_steps_is_bit_identical(
    trial: Trial, data: Dataset, tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closed at a pulse, a run writes where it is; 6 steps an epoch, the decay begins at step
    15."""
    recipe = dataclasses.replace(trial.recipe, dropout=True, drop_path=0.2, cutout=0.3, ema=0.9)
    trial = dataclasses.replace(trial, recipe=recipe, epochs=3)
    whole = finish(trial, data)
    stopped = elsewhere(trial, tmp_path)
    monkeypatch.setattr("scaling_search.training.train._PULSE", -1.0)  # at every step
    events = run(stopped, data)
    pulses = (event for event in events if isinstance(event, Pulse))
    for _ in range(step + 1):
        next(pulses)
    events.close()
    state = checkpoint.load(f"{stopped.folder}/e3.ckpt")
    assert state is not None
    assert state["step"] == step
    torch.manual_seed(12345)
    assert_same(whole, finish(stopped, data))
    assert_same_weights(trial, stopped)


def test_promoted_from_before_the_decay_equals_a_run_from_scratch(
    trial: Trial, data: Dataset, tmp_path: Path
) -> None:
    scratch = dataclasses.replace(trial, epochs=5)
    whole = finish(scratch, data)
    short = elsewhere(trial, tmp_path, epochs=2)
    finish(short, data)
    promoted = dataclasses.replace(short, epochs=5)
    state = checkpoint.load(f"{promoted.folder}/before-decay.ckpt")
    assert state is not None
    assert state["step"] == decay_start(trial.recipe, 2 * 6)
    events = list(events_of(promoted, data))
    assert_same(whole, events[-1])
    assert len(events) == 1 + 4, "the first epoch was not trained again"
    assert_same_weights(scratch, promoted)


def test_without_a_decay_every_run_can_be_continued(
    trial: Trial, data: Dataset, tmp_path: Path
) -> None:
    recipe = dataclasses.replace(
        trial.recipe,
        optimizer="rmsprop",
        lr=1e-3,
        schedule="exponential",
        warmup_epochs=1.0,
        ema=0.9,
    )
    scratch = dataclasses.replace(trial, recipe=recipe, epochs=4)
    whole = finish(scratch, data)
    short = elsewhere(scratch, tmp_path, epochs=2)
    finish(short, data)
    events = list(events_of(dataclasses.replace(short, epochs=4), data))
    assert len(events) == 1 + 2
    assert_same(whole, events[-1])


def train_and_die(trial: Trial, data: Dataset, part: float) -> None:
    """Kill this process some time after its first epoch, `part` of that epoch's time; three epochs
    later at the latest, where a busy machine lets the clock's thread wait."""
    events = events_of(trial, data)
    first = next(events)
    assert isinstance(first, Epoch), first  # an outcome says why the run ended
    kill = functools.partial(os.kill, os.getpid(), signal.SIGKILL)
    threading.Timer(part * first.seconds, kill).start()
    for _ in range(3):
        event = next(events)
        assert isinstance(event, Epoch), event
    kill()


def test_killed_at_random_moments_ends_with_the_same_weights(
    trial: Trial, data: Dataset, tmp_path: Path
) -> None:
    """SIGKILL five times, anywhere: in a step, in an evaluation, while a checkpoint is written."""
    trial = dataclasses.replace(trial, train_images=None, epochs=30)
    whole = finish(trial, data)
    stopped = elsewhere(trial, tmp_path)
    # Forked from this process they could not train, where an earlier test used autograd's threads.
    context = multiprocessing.get_context("spawn")
    moments, reached = random.Random(0), [0]
    for _ in range(5):
        part = moments.uniform(0.05, 0.95)
        worker = context.Process(target=train_and_die, args=(stopped, data, part))
        worker.start()
        worker.join()
        assert worker.exitcode == -signal.SIGKILL
        state = checkpoint.load(f"{stopped.folder}/e30.ckpt")
        assert state is not None
        reached.append(state["step"])
    assert reached == sorted(set(reached)), "each one goes on from the one before"
    assert reached[-1] < 30 * 30, "the kills came in the middle"
    assert_same(finish(stopped, data), whole)
    assert_same_weights(trial, stopped)


def test_deadline_is_an_outcome(trial: Trial, data: Dataset) -> None:
    outcome = finish(dataclasses.replace(trial, deadline=1e-3), data)
    assert outcome.status == "timeout"
    assert "deadline of 0.001 s at step" in outcome.note
    assert outcome.peak_memory > 2**20
    assert outcome.seconds > 1e-3
    assert finish(dataclasses.replace(trial, deadline=1000.0), data).status == "done"


def test_a_run_set_free_after_its_deadline_has_the_whole_deadline_again(
    trial: Trial, data: Dataset
) -> None:
    assert finish(dataclasses.replace(trial, deadline=1e-3), data).status == "timeout"
    path = f"{trial.folder}/e{trial.epochs}.ckpt"
    state = checkpoint.load(path)
    assert state is not None
    assert state["seconds"] > 1e-3
    checkpoint.save(path, {**state, "seconds": 5000.0})
    outcome = finish(dataclasses.replace(trial, deadline=1000.0), data)
    assert outcome.status == "done"
    assert outcome.seconds > 5000.0, "all that it took is on record"


def test_a_checkpoint_without_its_step_is_passed_over_for_a_whole_one(
    trial: Trial, data: Dataset
) -> None:
    finish(trial, data)
    path = f"{trial.folder}/e{trial.epochs}.ckpt"
    state = checkpoint.load(path)
    assert state is not None
    del state["step"]
    checkpoint.save(path, state)
    assert finish(trial, data).status == "done", "from the one before the decay"


def test_randaugment_is_drawn_from_the_seed(trial: Trial, data: Dataset, tmp_path: Path) -> None:
    recipe = dataclasses.replace(trial.recipe, randaugment=True)
    changed = dataclasses.replace(trial, recipe=recipe, train_images=48)
    assert_same(finish(changed, data), finish(elsewhere(changed, tmp_path), data))
    plain = finish(dataclasses.replace(trial, train_images=48), data)
    assert plain.epochs[0].train_loss != finish(changed, data).epochs[0].train_loss


def test_finished_run_is_only_measured(trial: Trial, data: Dataset) -> None:
    first = finish(trial, data)
    events = list(events_of(dataclasses.replace(trial, test=True), data))
    assert len(events) == 1
    assert_same(first, events[0])
    assert 0 <= events[0].test_acc <= 1
    part = finish(dataclasses.replace(trial, test=True, test_images=50), data)
    assert part.test_acc * 50 == pytest.approx(round(part.test_acc * 50), abs=1e-4)


def test_test_indices_are_spread() -> None:
    assert _evenly(100, 10).tolist() == list(range(0, 100, 10))
    assert _evenly(7, 10).tolist() == list(range(7))
    assert len(set(_evenly(1000, 333).tolist())) == 333


def test_damaged_checkpoint_counts_as_absent(trial: Trial, data: Dataset) -> None:
    first = finish(trial, data)
    for file in Path(trial.folder).iterdir():
        raw = bytearray(file.read_bytes())
        raw[len(raw) // 2] ^= 1
        file.write_bytes(raw)
    events = list(events_of(trial, data))
    assert len(events) == 3
    assert_same(first, events[-1])


@pytest.mark.parametrize("part", ["trained_images", "optimizer", "model"])
def test_a_checkpoint_of_another_release_is_refused_in_one_line(
    trial: Trial, data: Dataset, part: str
) -> None:
    """Whole by its digest, and not what this release writes: it is neither a crash of the network
    nor silently overwritten."""
    finish(trial, data)
    path = f"{trial.folder}/e2.ckpt"
    state = checkpoint.load(path)
    assert state is not None
    if part == "model":
        name = next(iter(state["model"]))
        state["model"][f"renamed.{name}"] = state["model"].pop(name)
    else:
        del state[part]
    checkpoint.save(path, state)
    with pytest.raises(UserError, match=r"e2\.ckpt: of another release .*; delete it") as caught:
        finish(trial, data)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None


def test_diverging_run_is_an_outcome(trial: Trial, data: Dataset) -> None:
    recipe = dataclasses.replace(trial.recipe, optimizer="sgd", lr=1e20, warmup_steps=0)
    outcome = finish(dataclasses.replace(trial, recipe=recipe), data)
    assert outcome.status == "diverged"
    assert "epoch 1" in outcome.note
    assert outcome.epochs == ()


def test_crash_and_lack_of_memory_are_outcomes(
    trial: Trial, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = finish(dataclasses.replace(trial, data_digest="another"), data)
    assert wrong.status == "crashed"
    assert "digest" in wrong.note
    assert wrong.traceback.startswith("Traceback"), "the note is one line of it"
    assert 'preparation.py", line' in wrong.traceback
    assert wrong.traceback.endswith(f"{wrong.note}\n")
    assert "traceback" not in wrong.as_dict()

    def no_memory(*args: object) -> None:
        # a real one cannot be had without a GPU
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")

    monkeypatch.setattr("scaling_search.training.train.Step.__call__", no_memory)
    short = finish(trial, data)
    assert short.status == "out-of-memory"
    assert "in no_memory" in short.traceback
    assert short.peak_memory > 2**20
    assert (
        "batch 16 needs about 0.0 GiB; CUDA out of memory. Tried to allocate 20 MiB" in short.note
    )


def test_it_learns(data: Dataset, trial: Trial) -> None:
    """Ten classes, so chance is 10%; the outline alone gives 50%."""
    longer = dataclasses.replace(trial, train_images=None, val_images=None, epochs=6)
    outcome = finish(longer, data)
    assert outcome.epochs[-1].train_loss < outcome.epochs[0].train_loss - 0.1
    assert outcome.epochs[-1].val_acc > 0.2


def test_the_processs_floats_stay_as_they_were(data: Dataset, trial: Trial) -> None:
    tiny = torch.tensor(1e-39)
    for before in (False, True):
        torch.set_flush_denormal(before)
        try:
            finish(trial, data)
            assert (tiny * 1 == 0).item() is before
        finally:
            torch.set_flush_denormal(False)


def test_batch_norms_are_reestimated(trial: Trial, data: Dataset) -> None:
    """After evaluation the running statistics are the training images' own."""
    ready = prepare(
        dataclasses.replace(trial, recipe=dataclasses.replace(trial.recipe, bn_images=90)), data
    )
    model = ready.step.model
    model.stem[1].running_mean.fill_(1e3)
    evaluate(ready)
    with torch.no_grad():
        features = model.stem[0](
            Normalise(data, torch.device("cpu"))(ready.images[ready.norm_index])
        )
    assert len(features) == 90
    torch.testing.assert_close(
        model.stem[1].running_mean, features.mean((0, 2, 3)), atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(
        model.stem[1].running_var, features.var((0, 2, 3)), atol=1e-4, rtol=1e-3
    )
    assert model.stem[1].momentum == 0.01


def test_data_sorted_by_class_evaluate_like_shuffled(
    trial: Trial, data: Dataset, tmp_path: Path
) -> None:
    """A folder of class folders is sorted by class; its first images are no sample of it."""
    from scaling_search.data.dataset import CacheWriter

    order = np.argsort(data.train_labels, kind="stable")
    with CacheWriter(tmp_path / "sorted") as writer:
        images, labels = np.array(data.train_images)[order], np.array(data.train_labels)[order]
        test = np.array(data.test_images), np.array(data.test_labels)
        ordered = writer.commit("sorted", "x", data.classes, images, labels, test)
    seen: list[torch.Tensor] = []

    def record(ready: Ready) -> Evaluation:
        seen.append(ready.images[ready.norm_index])
        return Evaluation(loss=1.0, accuracy=0.5, right="ff", effective_images=0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scaling_search.training.train.evaluate", record)
        recipe = dataclasses.replace(trial.recipe, bn_images=128)
        changes = {"train_images": None, "recipe": recipe, "data_digest": ordered.digest}
        finish(elsewhere(trial, tmp_path, epochs=1, **changes), ordered)
    small = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    small = torch.nn.functional.interpolate(
        small, size=(12, 12), mode="bilinear", antialias=True
    ).round()
    classes = [
        int(labels[(small - image).abs().flatten(1).sum(1).argmin()]) for image in seen[0].float()
    ]
    assert len(seen[0]) == 128
    assert len(set(classes)) == 10
    assert max(np.bincount(classes)) < 30


def test_disk_failure_is_not_a_networks(
    trial: Trial, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("scaling_search.training.checkpoint.save", full)
    with pytest.raises(OSError, match="No space left"):
        finish(trial, data)


def test_losses_are_kept_in_detail_whatever_interrupts_the_run(
    trial: Trial, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an epoch of 80 images in batches of 8: the means of 4, 4 and 2 steps."""
    monkeypatch.setattr("scaling_search.training.train._DENSE", 4)
    monkeypatch.setattr("scaling_search.training.train._PULSE", -1.0)
    recipe = dataclasses.replace(trial.recipe, batch=8)
    trial = dataclasses.replace(trial, recipe=recipe, epoch_images=80, epochs=2)
    whole = finish(trial, data)
    first = whole.epochs[0]
    assert len(first.losses) == 3
    assert np.average(first.losses, weights=[4, 4, 2]) == pytest.approx(first.train_loss)
    stopped = elsewhere(trial, tmp_path)
    events = run(stopped, data)
    pulses = (event for event in events if isinstance(event, Pulse))
    for _ in range(7):
        next(pulses)
    events.close()
    assert_same(whole, finish(stopped, data))


def test_an_earlier_releases_checkpoint_leaves_an_epoch_without_detail(
    trial: Trial, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scaling_search.training.train._DENSE", 2)
    monkeypatch.setattr("scaling_search.training.train._PULSE", -1.0)
    events = run(trial, data)
    pulses = (event for event in events if isinstance(event, Pulse))
    for _ in range(4):
        next(pulses)
    events.close()
    path = f"{trial.folder}/e{trial.epochs}.ckpt"
    state = checkpoint.load(path)
    assert state is not None
    del state["loss_sums"]
    checkpoint.save(path, state)
    assert [len(epoch.losses) for epoch in finish(trial, data).epochs] == [0, 3]


def test_an_epoch_has_as_many_images_as_the_study_says(trial: Trial, data: Dataset) -> None:
    """Two epochs of three quarters of a pass are the first steps of one epoch of a pass and a
    half."""
    short = dataclasses.replace(trial, epoch_images=72, epochs=2)
    outcome = finish(short, data)
    assert [epoch.epoch for epoch in outcome.epochs] == [1, 2]
    step = prepare(short, data).batches
    assert step.per_epoch == 72 // step.size


def test_key_is_what_determines_the_run(trial: Trial) -> None:
    assert Trial.from_dict(trial.as_dict()) == trial
    same = dataclasses.replace(
        trial, epochs=9, checkpoints="x", data_folder="y", test=True, device="cpu"
    )
    assert same.key == trial.key
    for change in (
        {"seed": 1},
        {"threads": 2},
        {"train_images": 95},
        {"data_digest": "z"},
        {"device": "cuda:0"},
    ):
        assert dataclasses.replace(trial, **change).key != trial.key
    assert (
        dataclasses.replace(trial, device="cuda:0").key
        == dataclasses.replace(trial, device="cuda:1").key
    )


def test_keys_of_earlier_releases_hold() -> None:
    """Checkpoints lie under the key: were it another one, they would be lost in silence."""
    trial = Trial(
        arch=effnet.arch("b0-s4", width=0.25, resolution=16, num_classes=10),
        data_digest="0123456789abcdef",
        data_folder="",
        recipe=Recipe(),
        seed=0,
        epochs=1,
        train_images=64,
        val_images=64,
        device="cpu",
        threads=1,
        checkpoints="",
    )
    assert trial.key == "6f36bbd8a4fb5004"
    assert dataclasses.replace(trial, kernels="numba").key == trial.key
    on_cuda = dataclasses.replace(trial, device="cuda:1", compile=True, kernels="triton")
    assert on_cuda.key == "5edc3d87a05a535c"


def test_trains_with_torch_and_numpy_alone() -> None:
    """A bare GPU machine has nothing else: importing train must not import the rest."""
    code = (
        "import sys, builtins\n"
        "allowed = builtins.__import__\n"
        "banned = {'optuna', 'ray', 'plotly', 'pandas', 'pydantic', 'rich', 'pyarrow', 'PIL',\n"
        "          'scipy', 'fvcore'}\n"
        "def guard(name, *a, **k):\n"
        "    if name.split('.')[0] in banned: raise ImportError(name)\n"
        "    return allowed(name, *a, **k)\n"
        "builtins.__import__ = guard\n"
        "import scaling_search.training.train, effnet.nn.model\n"
        "effnet_model = sys.modules['effnet'].build(sys.modules['effnet'].arch('b0', width=0.1))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda(trial: Trial, data: Dataset) -> None:
    outcome = finish(dataclasses.replace(trial, device="cuda"), data)
    assert outcome.status == "done"
    assert outcome.peak_memory > 0
