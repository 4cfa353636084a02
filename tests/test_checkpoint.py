"""Checkpoints are whole or absent, and hold no code."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from effnet import atomic
from scaling_search.training import checkpoint


def test_round_trip(tmp_path: Path) -> None:
    state = {"model": {"w": torch.randn(3, 4)}, "step": 7, "epochs": [{"epoch": 1, "val_acc": 0.5}]}
    checkpoint.save(str(tmp_path / "a" / "x.ckpt"), state)
    loaded = checkpoint.load(str(tmp_path / "a" / "x.ckpt"))
    assert loaded is not None
    assert torch.equal(loaded["model"]["w"], state["model"]["w"])
    assert loaded["step"] == 7
    assert loaded["epochs"] == state["epochs"]
    assert checkpoint.load(str(tmp_path / "absent.ckpt")) is None


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_damage_is_seen(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("c") / "x.ckpt"
    checkpoint.save(str(path), {"w": torch.arange(5)})
    raw = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    else:
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(raw)
    with pytest.raises(checkpoint.DamagedError):
        checkpoint.load(str(path))


def test_no_code_is_loaded(tmp_path: Path) -> None:
    """A digest can be forged; weights_only still refuses objects."""

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (print, ("loaded",))

    checkpoint.save(str(tmp_path / "x.ckpt"), {"evil": Evil()})
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        checkpoint.load(str(tmp_path / "x.ckpt"))


def test_failed_write_leaves_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    atomic.write(path, b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        atomic.write(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
