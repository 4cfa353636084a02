"""Weights: state dicts of timm and torchvision into our names and back; safetensors; torch.export
and ONNX.

A state dict does not say how its network pads or which eps its batch norms have. Give those to
`effnet.build`: torchvision's and timm's own EfficientNets, MobileNets and ResNets want bn_eps=1e-5;
torchvision's B5-B7 and V2 bn_eps=1e-3; timm's `tf_*` bn_eps=1e-3 and same_padding=True."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor

import effnet
from effnet import atomic
from effnet.arch import Arch
from effnet.blocks import Block, blocks, ops
from effnet.nn.model import ConvNet

Peer = Literal["timm", "torchvision"]
PEERS: tuple[Peer, ...] = ("timm", "torchvision")
State = dict[str, Tensor]
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_COUNTER = "num_batches_tracked"  # older checkpoints lack it, and nothing depends on it
_FILE, _CONFIG = "model.safetensors", "config.json"

# ---- names: (our convolution or linear layer, theirs, their batch norm after it or "")

Layer = tuple[str, str, str]


def _layers(net: Arch, peer: Peer) -> Iterator[Layer]:
    """Every layer of `net` in both namings. Raises ValueError where the peer has no such
    network."""
    if peer not in PEERS:
        raise ValueError(f"{peer!r}: known are {' and '.join(PEERS)}")
    _, *middle, _ = blocks(net)
    kinds = {b.operator for b in middle}
    resnet = kinds == {"bottleneck"}
    if peer == "timm":
        known = resnet or kinds <= {"mbconv", "fused", "separable"}
    else:
        known = resnet or kinds <= {"mbconv", "fused"}
    if not known:
        raise ValueError(
            f"{peer} has no network of {' and '.join(sorted(kinds))} blocks to exchange weights with"
        )
    plain = not any(
        b.squeezed or b.operator == "fused" for b in middle
    )  # torchvision: mobilenet_v2's names
    if resnet:
        yield "stem", "conv1", "bn1"
    else:
        yield (
            ("stem", "conv_stem", "bn1")
            if peer == "timm"
            else ("stem", "features.0.0", "features.0.1")
        )
    n = 0
    for block, stage, place in _places(net, middle):
        ours = f"blocks.{n}"
        if resnet:
            yield from _resnet(block, ours, f"layer{stage + 1}.{place}")
        elif peer == "timm":
            yield from _timm(block, ours, f"blocks.{stage}.{place}")
        elif plain:
            yield from _mobilenet(block, ours, f"features.{n + 1}.conv")
        else:
            yield from _torchvision(block, ours, f"features.{stage + 1}.{place}.block")
        n += 1
    if net.head_width:
        last = n + 1 if plain else len(net.stages) + 1
        yield (
            ("head", "conv_head", "bn2")
            if peer == "timm"
            else ("head", f"features.{last}.0", f"features.{last}.1")
        )
    yield "classifier", "fc" if resnet else "classifier" if peer == "timm" else "classifier.1", ""


def _places(net: Arch, middle: list[Block]) -> Iterator[tuple[Block, int, int]]:
    """Each repeat of each block with its stage and its place in the stage, from 0."""
    each = iter([block for block in middle for _ in range(block.repeats)])
    for stage, row in enumerate(net.stages):
        for place in range(row.repeats):
            yield next(each), stage, place


def _timm(block: Block, ours: str, theirs: str) -> Iterator[Layer]:
    kinds = [op.kind for op in ops(block)]
    names = {
        "depthwise": "conv_dw",
        "pointwise": "conv_pw",
        "fused": "conv_exp",
        "project": "conv_pwl",
    }
    if "expand" in kinds:
        names["expand"] = "conv_pw"
    elif "depthwise" in kinds:  # DepthwiseSeparableConv
        names["project"] = "conv_pw"
    elif "project" not in kinds:  # ConvBnAct
        names["fused"] = "conv"
    names |= {"squeeze": "se.conv_reduce", "excite": "se.conv_expand"}
    norms = 0
    for kind in kinds:
        if kind in ("squeeze", "excite"):
            yield f"{ours}.se.{kind}", f"{theirs}.{names[kind]}", ""
        else:
            norms += 1
            yield f"{ours}.{kind}", f"{theirs}.{names[kind]}", f"{theirs}.bn{norms}"


def _torchvision(block: Block, ours: str, theirs: str) -> Iterator[Layer]:
    place = 0
    for op in ops(block):
        if op.kind == "squeeze":
            yield f"{ours}.se.squeeze", f"{theirs}.{place}.fc1", ""
        elif op.kind == "excite":
            yield f"{ours}.se.excite", f"{theirs}.{place}.fc2", ""
            place += 1
        else:
            yield f"{ours}.{op.kind}", f"{theirs}.{place}.0", f"{theirs}.{place}.1"
            place += 1


def _mobilenet(block: Block, ours: str, theirs: str) -> Iterator[Layer]:
    for place, op in enumerate(ops(block)):
        if op.act:
            yield f"{ours}.{op.kind}", f"{theirs}.{place}.0", f"{theirs}.{place}.1"
        else:
            yield f"{ours}.{op.kind}", f"{theirs}.{place}", f"{theirs}.{place + 1}"


def _resnet(block: Block, ours: str, theirs: str) -> Iterator[Layer]:
    names = {"reduce": ("conv1", "bn1"), "conv": ("conv2", "bn2"), "expand": ("conv3", "bn3")}
    names["shortcut"] = ("downsample.0", "downsample.1")
    for op in ops(block):
        conv, norm = names[op.kind]
        yield f"{ours}.{op.kind}", f"{theirs}.{conv}", f"{theirs}.{norm}"


def names(net: Arch, peer: Peer) -> dict[str, str]:
    """Our state dict's keys → the peer's, in order."""
    found: dict[str, str] = {}
    for ours, theirs, norm in _layers(net, peer):
        if norm:
            found[f"{ours}.0.weight"] = f"{theirs}.weight"
            found |= {f"{ours}.1.{part}": f"{norm}.{part}" for part in _NORM}
        else:
            found |= {f"{ours}.{part}": f"{theirs}.{part}" for part in ("weight", "bias")}
    return found


# ---- state dicts


def convert(state: Mapping[str, Tensor], net: Arch) -> State:
    """A state dict of timm, torchvision or our own, in our names, for `model.load_state_dict`.

    Raises ValueError naming the first entry that is missing, too many or of another shape."""
    wanted = _shapes(net)
    state = {
        str(key).removeprefix("module."): value for key, value in state.items()
    }  # DataParallel's
    if "stem.0.weight" in state:
        source, table = "ours", {key: key for key in wanted}
    elif "features.0.0.weight" in state:
        source, table = "torchvision", names(net, "torchvision")
    else:
        source, table = "timm", names(net, "timm")
    label = net.name or net.key
    found: State = {}
    for ours, shape in wanted.items():
        theirs = table[ours]
        if theirs not in state:
            if ours.endswith(_COUNTER):
                found[ours] = torch.tensor(0)
                continue
            raise ValueError(
                f"state dict does not fit {label}: {theirs} is missing (read in {source}'s names)"
            )
        if not isinstance(state[theirs], Tensor) or state[theirs].shape != shape:
            got = (
                tuple(state[theirs].shape)
                if isinstance(state[theirs], Tensor)
                else type(state[theirs]).__name__
            )
            raise ValueError(
                f"state dict does not fit {label}: {theirs} is {got}, wanted {tuple(shape)}"
            )
        found[ours] = state[theirs]
    known = set(table.values())
    extra = next((key for key in state if key not in known), None)
    if extra is not None:
        raise ValueError(
            f"state dict does not fit {label}: it has no place for {extra} (read in {source}'s names)"
        )
    return found


def to_peer(state: Mapping[str, Tensor], net: Arch, peer: Peer) -> State:
    """Our state dict in the names of timm or torchvision; `convert` is its inverse. Raises
    ValueError."""
    state = convert(state, net)
    return {theirs: state[ours] for ours, theirs in names(net, peer).items()}


def _shapes(net: Arch) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {key: value.shape for key, value in effnet.build(net).state_dict().items()}


# ---- files


def read_state(path: str | Path) -> State:
    """The state dict in a .safetensors file, or in a file of torch.save (weights only: nothing in
    it is run).

    Raises ValueError for anything else, or a damaged file."""
    path = Path(path)
    safe = path.suffix == ".safetensors"
    try:
        state: Any = (
            path.read_bytes() if safe else torch.load(path, map_location="cpu", weights_only=True)
        )
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    except Exception:  # torch.load raises RuntimeError, UnpicklingError, EOFError, KeyError, ...
        raise ValueError(f"{path}: damaged, or not a state dict of torch.save") from None
    if safe:
        return _parse(state, path)
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path}: not a state dict: names and tensors are wanted")
    return state


def _parse(data: bytes, path: Path) -> State:
    try:
        return load_bytes(data)
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged or not a safetensors file: {error}") from None


def save_state(state: Mapping[str, Tensor], path: str | Path) -> str:
    """Tensors into a .safetensors file, put in place whole; returns its SHA-256."""
    data = save_bytes({key: value.contiguous() for key, value in state.items()})
    atomic.write(Path(path), data)
    return hashlib.sha256(data).hexdigest()


def save(model: ConvNet, folder: str | Path) -> None:
    """model.safetensors and config.json (the Arch, how it was built, and the weights' digest) into
    `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "arch": model.arch.as_dict(),
        "bn_eps": model.bn_eps,
        "same_padding": model.same_padding,
        "sha256": save_state(model.state_dict(), folder / _FILE),
    }
    atomic.write(folder / _CONFIG, json.dumps(config, indent=1).encode())


def load(folder: str | Path) -> ConvNet:
    """The model that `save` wrote, in eval mode.

    Raises ValueError for a missing, truncated or altered file."""
    folder = Path(folder)
    try:
        config = json.loads((folder / _CONFIG).read_text())
        net = Arch.from_dict(config["arch"])
        bn_eps, same_padding = config["bn_eps"], config["same_padding"]
        if not isinstance(bn_eps, float) or not isinstance(same_padding, bool):
            raise ValueError("bn_eps must be a number such as 1e-3, same_padding true or false")
        digest, data = config["sha256"], (folder / _FILE).read_bytes()
    except OSError as error:
        raise ValueError(
            f"{error.filename}: {error.strerror}; `effnet.nn.weights.save` writes such a folder"
        ) from None
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / _CONFIG}: not what `save` wrote: {error}") from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError(
            f"{folder / _FILE}: truncated or altered since it was saved (its SHA-256 is not config.json's)"
        )
    model = effnet.build(net, bn_eps=bn_eps, same_padding=same_padding)
    model.load_state_dict(convert(_parse(data, folder / _FILE), net))
    return model.eval()


# ---- export


def _example(model: ConvNet) -> Tensor:
    # torch.export takes a dimension of 1 for a constant
    return torch.zeros(2, model.arch.in_channels, model.arch.resolution, model.arch.resolution)


def program(model: ConvNet) -> torch.export.ExportedProgram:
    """`model` in eval mode as torch.export's program, for any batch."""
    batch = torch.export.Dim("batch", min=1)
    model = copy.deepcopy(model).cpu().eval()  # the caller's may be training on a GPU
    return torch.export.export(model, (_example(model),), dynamic_shapes=({0: batch},))


def save_program(model: ConvNet, path: str | Path) -> None:
    """The program as a .pt2 file, for torch.export.load."""
    torch.export.save(program(model), str(path))


def save_onnx(model: ConvNet, path: str | Path) -> None:
    """`model` in eval mode as ONNX: input `images` [batch, 3, side, side], output `logits` [batch,
    classes].

    Needs the packages onnx and onnxscript (the extra `onnx`); raises ValueError without them."""
    try:
        import onnxscript  # noqa: F401  torch's exporter wants it, and says so at length
    except ImportError as error:
        raise ValueError(
            f"ONNX wants two more packages: pip install onnx onnxscript ({error})"
        ) from None
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(
        logging.ERROR
    )  # it lists every torchvision operator that it skips
    try:
        torch.onnx.export(
            program(model),
            (_example(model),),
            str(path),
            input_names=["images"],
            output_names=["logits"],
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
