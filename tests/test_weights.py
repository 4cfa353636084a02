"""Against timm and torchvision with the same weights, onnxruntime and torch.export; files that are
damaged."""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.utils import CheckpointSaver
from torch import Tensor, nn

import effnet
from effnet.nn import weights
from effnet.nn.model import ConvNet

CASES = [
    # ours, library, theirs
    ("b0", "timm", "efficientnet_b0"),
    ("b4", "timm", "efficientnet_b4"),
    ("b0", "timm", "tf_efficientnet_b0"),
    ("v2-s", "timm", "tf_efficientnetv2_s"),
    ("mobilenetv2", "timm", "mobilenetv2_100"),
    ("mobilenetv1", "timm", "mobilenetv1_100"),
    ("resnet50", "timm", "resnet50"),
    ("lite0", "timm", "efficientnet_lite0"),
    ("tinynet-c", "timm", "tinynet_c"),
    ("b0", "torchvision", "efficientnet_b0"),
    ("b4", "torchvision", "efficientnet_b4"),
    ("v2-s", "torchvision", "efficientnet_v2_s"),
    ("mobilenetv2", "torchvision", "mobilenet_v2"),
    ("resnet50", "torchvision", "resnet50"),
]


def randomised(model: nn.Module, images: Tensor) -> Any:
    """Seeded; batch norms with statistics of real passes, so that activations neither vanish nor
    explode."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(images)
    return model.eval()


def peer(library: str, name: str) -> nn.Module:
    module: Any = pytest.importorskip(library)
    made = module.create_model(name) if library == "timm" else getattr(module.models, name)()
    assert isinstance(made, nn.Module)
    return made


def eps(model: nn.Module) -> float:
    return next(m.eps for m in model.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize(("name", "library", "theirs"), CASES)
def test_same_logits_with_the_same_weights_and_back(name: str, library: str, theirs: str) -> None:
    torch.manual_seed(0)
    images = torch.randn(4, 3, 80, 80)
    model = randomised(peer(library, theirs), images)
    ours = effnet.build(name, bn_eps=eps(model), same_padding=theirs.startswith("tf_")).eval()
    ours.load_state_dict(weights.convert(model.state_dict(), ours.arch))
    with torch.no_grad():
        expected, logits = model(images), ours(images)
    assert expected.std() > 1e-2
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    # and back: other weights of ours in the peer's names
    other = randomised(
        effnet.build(ours.arch, bn_eps=eps(model), same_padding=theirs.startswith("tf_")), images
    )
    back = weights.to_peer(other.state_dict(), ours.arch, library)  # type: ignore[arg-type]
    assert list(back) == list(model.state_dict())
    model.load_state_dict(back)
    with torch.no_grad():
        torch.testing.assert_close(model(images), other(images), rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def small() -> ConvNet:
    """SE, fused and plain blocks in one small network."""
    images = torch.randn(8, 3, 48, 48)
    return randomised(
        effnet.build(effnet.arch("v2-s", width=0.25, depth=0.2, resolution=48, num_classes=7)),
        images,
    )


@pytest.mark.parametrize("name", ["b0", "resnet50"])
def test_torch_export_and_onnx(name: str, tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    images = torch.randn(3, 3, 64, 64)
    net = effnet.arch(name, width=0.5, depth=0.4, resolution=64, num_classes=10)
    model = randomised(effnet.build(net, same_padding=name == "b0"), torch.randn(64, 3, 64, 64))
    model.train()
    weights.save_program(model, model.arch, tmp_path / "net.pt2")
    assert model.training, "the caller's model is left as it was"
    model.eval()
    program = torch.export.load(tmp_path / "net.pt2").module()
    weights.save_onnx(model, model.arch, tmp_path / "net.onnx")
    session = ort.InferenceSession(tmp_path / "net.onnx")
    for n in (1, 3):  # exported with a batch of 2
        with torch.no_grad():
            wanted = model(images[:n])
        assert wanted.std() > 1e-2
        # of the logits' scale, 12 for this ResNet: float32 itself lies 3e-4 from float64 there
        bound = 1e-4 * max(1.0, wanted.abs().max().item())
        torch.testing.assert_close(program(images[:n]), wanted, rtol=0, atol=bound)
        (logits,) = session.run(["logits"], {"images": images[:n].numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), wanted, rtol=0, atol=bound)


# ---- our own files


def test_save_and_load(small: ConvNet, tmp_path: Path) -> None:
    weights.save(small, tmp_path / "net")
    assert sorted(p.name for p in (tmp_path / "net").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    loaded = weights.load(tmp_path / "net")
    assert loaded.arch == small.arch
    assert loaded.arch.name == "v2-s"
    assert loaded.bn_eps == 1e-3
    assert not loaded.training
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        assert torch.equal(loaded(images), small(images))
    config = json.loads((tmp_path / "net" / "config.json").read_text())
    assert effnet.Arch.from_dict(config["arch"]) == small.arch


def test_how_it_pads_and_norms_is_saved(tmp_path: Path) -> None:
    net = effnet.arch("b0-s4", width=0.1, resolution=16, num_classes=3)
    weights.save(effnet.build(net, bn_eps=1e-5, same_padding=True), tmp_path)
    loaded = weights.load(tmp_path)
    assert (loaded.bn_eps, loaded.same_padding, eps(loaded)) == (1e-5, True, 1e-5)


def damage(folder: Path, how: str) -> None:
    file, config = folder / "model.safetensors", folder / "config.json"
    data = file.read_bytes()
    if how == "truncated":
        file.write_bytes(data[: len(data) // 2])
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "one bit":
        file.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    elif how == "no weights":
        file.unlink()
    elif how == "no config":
        config.unlink()
    elif how == "config cut":
        config.write_text(config.read_text()[:100])
    else:
        settings = json.loads(config.read_text())
        if how == "even kernel":
            settings["arch"]["stages"][0][2] = 4
        elif how == "no eps":
            del settings["bn_eps"]
        elif how.startswith("eps"):
            settings["bn_eps"] = "1e-3" if how == "eps of text" else float("nan")
        elif how == "padding of text":
            settings["same_padding"] = "false"
        elif how == "altered with its digest":
            file.write_bytes(data[: len(data) // 2])
            settings["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
        else:
            settings["arch"]["stages"][0][4] += 8
        config.write_text(json.dumps(settings))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", "model.safetensors: truncated or altered since it was saved"),
        ("empty", "model.safetensors: truncated or altered since it was saved"),
        ("one bit", "model.safetensors: truncated or altered since it was saved"),
        ("no weights", "model.safetensors: No such file"),
        ("no config", "config.json: No such file"),
        ("config cut", "config.json: not what `save` wrote"),
        ("even kernel", "config.json: not what `save` wrote: network: stage 1: kernel = 4"),
        ("no eps", "config.json: not what `save` wrote: 'bn_eps'"),
        ("eps of text", "config.json: not what `save` wrote: bn_eps must be a number"),
        ("eps of nan", "bn_eps = nan"),
        (
            "padding of text",
            "config.json: not what `save` wrote: bn_eps must be .* same_padding true or false",
        ),
        ("altered with its digest", "model.safetensors: damaged or not a safetensors file"),
        ("other widths", r"state dict does not fit v2-s: blocks.0.fused.0.weight is .*, wanted"),
    ],
)
def test_damaged_folders(small: ConvNet, tmp_path: Path, how: str, message: str) -> None:
    weights.save(small, tmp_path)
    damage(tmp_path, how)
    with pytest.raises(ValueError, match=message) as caught:
        weights.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_reading_state_dicts(small: ConvNet, tmp_path: Path) -> None:
    state = small.state_dict()
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3},
        tmp_path / "net.pth",
    )
    read = weights.convert(weights.read_state(tmp_path / "net.pth"), small.arch)
    assert all(torch.equal(read[k], v) for k, v in state.items())
    weights.save_state(weights.to_peer(state, small.arch, "timm"), tmp_path / "net.safetensors")
    read = weights.convert(
        weights.read_state(tmp_path / "net.safetensors"), small.arch
    )  # a file sorts its names
    assert all(torch.equal(read[k], v) for k, v in state.items())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module."])
def test_names_of_wrapped_modules(prefix: str, small: ConvNet) -> None:
    """As torch.compile and DataParallel leave them."""
    state = small.state_dict()
    wrapped = {f"{prefix}{key}": value for key, value in state.items()}
    read = weights.convert(wrapped, small.arch)
    assert all(torch.equal(read[key], value) for key, value in state.items())


def test_a_checkpoint_of_timms_own_training(tmp_path: Path) -> None:
    """With its arguments, its optimizer and its best accuracy in it."""
    theirs = timm.create_model("efficientnet_b0", num_classes=5)
    args = argparse.Namespace(model="efficientnet_b0", output=Path("out"), lr=0.1)
    saver = CheckpointSaver(
        theirs,
        torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9),
        args=args,
        checkpoint_dir=str(tmp_path),
    )
    saver.save_checkpoint(3, metric=np.float64(71.5))
    (file,) = tmp_path.glob("checkpoint-3*")
    net = effnet.arch("b0", num_classes=5)
    ours = effnet.build(net, bn_eps=1e-5).eval()
    ours.load_state_dict(weights.convert(weights.read_state(file), net))
    image = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(ours(image), theirs.eval()(image), atol=1e-4, rtol=1e-4)


class Bomb:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("/tmp/scaling-search-bomb"),))


def test_damaged_state_dicts(small: ConvNet, tmp_path: Path) -> None:
    weights.save_state(small.state_dict(), tmp_path / "cut.safetensors")
    data = (tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[:-100])
    (tmp_path / "header.safetensors").write_bytes(b"\xff" * 64)
    torch.save(small.state_dict(), tmp_path / "cut.pth")
    data = (tmp_path / "cut.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(data[: len(data) // 2])
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({1: torch.zeros(1)}, tmp_path / "numbered.pth")
    with pytest.raises(ValueError, match="stem.0.weight is missing"):
        weights.convert(weights.read_state(tmp_path / "numbered.pth"), effnet.arch("b0"))
    torch.save({"epoch": 3}, tmp_path / "number.pth")
    torch.save(Bomb(), tmp_path / "bomb.pth")
    (tmp_path / "text.pth").write_text("hello")
    for name, message in (
        ("cut.safetensors", "damaged or not a safetensors file"),
        ("header.safetensors", "damaged or not a safetensors file"),
        ("cut.pth", "damaged, or not a state dict"),
        ("text.pth", "damaged, or not a state dict"),
        ("bomb.pth", "damaged, or not a state dict"),
        ("list.pth", "not a state dict"),
        ("number.pth", "not a state dict"),
        ("none.pth", "No such file"),
        ("none.safetensors", "No such file"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            weights.read_state(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not Path("/tmp/scaling-search-bomb").exists()


def test_a_state_dict_that_does_not_fit_names_the_first_mismatch() -> None:
    net, wider = (effnet.arch("b0", width=w, resolution=32, num_classes=5) for w in (0.25, 0.5))
    state = weights.to_peer(effnet.build(net).state_dict(), net, "timm")
    with pytest.raises(
        ValueError, match=r"conv_stem.weight is \(8, 3, 3, 3\), wanted \(16, 3, 3, 3\)"
    ):
        weights.convert(state, wider)
    lacking = {
        k: v for k, v in state.items() if k not in ("blocks.2.0.conv_dw.weight", "classifier.bias")
    }
    with pytest.raises(
        ValueError,
        match="blocks.2.0.conv_dw.weight is missing .read in timm's names, which 358 of its 358",
    ):
        weights.convert(lacking, net)
    with pytest.raises(ValueError, match="it has no place for blocks.9.weight"):
        weights.convert({**state, "blocks.9.weight": torch.zeros(1)}, net)
    with pytest.raises(ValueError, match="conv_stem.weight is str"):
        weights.convert({**state, "conv_stem.weight": "text"}, net)  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"classifier.weight is \(5, .*wanted \(6, "):
        weights.convert(state, effnet.arch("b0", width=0.25, resolution=32, num_classes=6))
    # counters are what older checkpoints lack
    old = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    assert weights.convert(old, net)["stem.1.num_batches_tracked"] == 0


def test_networks_that_a_peer_does_not_have() -> None:
    for name, library in (
        ("notebook-b0", "timm"),
        ("notebook-b0", "torchvision"),
        ("mobilenetv1", "torchvision"),
    ):
        net = effnet.arch(name, resolution=32)
        with pytest.raises(ValueError, match=f"{library} has no network of"):
            weights.names(net, library)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'keras': known are timm and torchvision"):
        weights.names(effnet.arch("b0"), "keras")  # type: ignore[arg-type]
    state = effnet.build("b0").state_dict()
    with pytest.raises(ValueError, match="'keras': known are timm and torchvision"):
        weights.to_peer(state, effnet.arch("b0"), "keras")  # type: ignore[arg-type]
