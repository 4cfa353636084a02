"""Weights to and from files and other libraries: state dicts of timm and torchvision into our
names and back; safetensors; torch.export and ONNX.

A state dict does not say how its network pads or which eps its batch norms have. Give those to
`effnet.build`: torchvision's and timm's own EfficientNets, MobileNets and ResNets want bn_eps=1e-5;
torchvision's B5-B7 and V2 bn_eps=1e-3; timm's `tf_*` bn_eps=1e-3 and same_padding=True."""

from __future__ import annotations

import argparse
import copy
import hashlib
import io
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PosixPath
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor, nn

import effnet
from effnet import atomic
from effnet.arch import Arch, Network
from effnet.blocks import Block, blocks, ops
from effnet.nn.model import ConvNet

Peer = Literal["timm", "torchvision"]
PEERS: tuple[Peer, ...] = ("timm", "torchvision")
State = dict[str, Tensor]
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
# DataParallel and torch.compile put these before every name, one before the other.
_WRAPPED = re.compile(r"^(module\.|_orig_mod\.)+")
_COUNTER = "num_batches_tracked"  # older checkpoints lack it, and nothing depends on it
# What timm's train.py puts beside the weights: its arguments, and the best accuracy so far, which
# may be a number of numpy's.
_PLAIN: list[Any] = [
    argparse.Namespace,
    PosixPath,
    np.dtype,
    type(np.dtype(np.float64)),
    type(np.dtype(np.float32)),
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),  # numpy before 2
]
_FILE, _CONFIG = "model.safetensors", "config.json"

# ---- names

# Our convolution or linear layer, theirs, and their batch norm after it or "".
Layer = tuple[str, str, str]


def _layers(net: Arch, peer: Peer) -> Iterator[Layer]:
    """Every layer of `net` in both namings. Raises ValueError where the peer has no such
    network."""
    if peer not in PEERS:
        raise ValueError(f"{peer!r}: known are {' and '.join(PEERS)}")
    _, *middle, _ = blocks(net)
    operators = {block.operator for block in middle}
    resnet = operators == {"bottleneck"}
    exchanged = {"timm": {"mbconv", "fused", "separable"}, "torchvision": {"mbconv", "fused"}}
    if not resnet and not operators <= exchanged[peer]:
        raise ValueError(
            f"{peer} has no network of {' and '.join(sorted(operators))} blocks "
            "to exchange weights with"
        )
    if resnet:
        return _resnet_layers(net, middle)
    if peer == "timm":
        return _timm_layers(net, middle)
    # torchvision has two modules for such rows; without gates and fused blocks it is mobilenet_v2
    for block in middle:
        if block.squeezed or block.operator == "fused":
            return _efficientnet_layers(net, middle)
    return _mobilenet_layers(net, middle)


class _Place(NamedTuple):
    """One repeat of a block: its number in the network, its stage and its place in it, from 0."""

    block: Block
    number: int
    stage: int
    place: int


def _places(net: Arch, middle: list[Block]) -> Iterator[_Place]:
    repeats = iter([block for block in middle for _ in range(block.repeats)])
    number = 0
    for stage, row in enumerate(net.stages):
        for place in range(row.repeats):
            yield _Place(next(repeats), number, stage, place)
            number += 1


def _resnet_layers(net: Arch, middle: list[Block]) -> Iterator[Layer]:
    """timm and torchvision have the same names."""
    names = {
        "reduce": ("conv1", "bn1"),
        "conv": ("conv2", "bn2"),
        "expand": ("conv3", "bn3"),
        "shortcut": ("downsample.0", "downsample.1"),
    }
    yield "stem", "conv1", "bn1"
    for block, number, stage, place in _places(net, middle):
        theirs = f"layer{stage + 1}.{place}"
        for op in ops(block):
            convolution, norm = names[op.kind]
            yield f"blocks.{number}.{op.kind}", f"{theirs}.{convolution}", f"{theirs}.{norm}"
    if net.head_width:
        yield "head", "conv_head", "bn2"
    yield "classifier", "fc", ""


def _timm_layers(net: Arch, middle: list[Block]) -> Iterator[Layer]:
    yield "stem", "conv_stem", "bn1"
    for block, number, stage, place in _places(net, middle):
        names = _timm_names([op.kind for op in ops(block)])
        norms = 0
        for kind, name in names.items():
            theirs = f"blocks.{stage}.{place}"
            if kind in ("squeeze", "excite"):
                yield f"blocks.{number}.se.{kind}", f"{theirs}.{name}", ""
            else:
                norms += 1
                yield f"blocks.{number}.{kind}", f"{theirs}.{name}", f"{theirs}.bn{norms}"
    if net.head_width:
        yield "head", "conv_head", "bn2"
    yield "classifier", "classifier", ""


def _timm_names(kinds: list[str]) -> dict[str, str]:
    """timm's names of a block's layers, which depend on which of its classes the block is."""
    names = {
        "expand": "conv_pw",
        "depthwise": "conv_dw",
        "pointwise": "conv_pw",
        "fused": "conv_exp",
        "project": "conv_pwl",
        "squeeze": "se.conv_reduce",
        "excite": "se.conv_expand",
    }
    if "depthwise" in kinds and "expand" not in kinds:  # DepthwiseSeparableConv
        names["project"] = "conv_pw"
    if "fused" in kinds and "project" not in kinds:  # ConvBnAct
        names["fused"] = "conv"
    return {kind: names[kind] for kind in kinds}


def _efficientnet_layers(net: Arch, middle: list[Block]) -> Iterator[Layer]:
    """torchvision's EfficientNet: the layers of a block are numbered, a gate being one of them."""
    yield "stem", "features.0.0", "features.0.1"
    for block, number, stage, place in _places(net, middle):
        ours, theirs = f"blocks.{number}", f"features.{stage + 1}.{place}.block"
        i = 0
        for op in ops(block):
            if op.kind == "squeeze":
                yield f"{ours}.se.squeeze", f"{theirs}.{i}.fc1", ""
            elif op.kind == "excite":
                yield f"{ours}.se.excite", f"{theirs}.{i}.fc2", ""
                i += 1
            else:
                yield f"{ours}.{op.kind}", f"{theirs}.{i}.0", f"{theirs}.{i}.1"
                i += 1
    if net.head_width:
        last = len(net.stages) + 1
        yield "head", f"features.{last}.0", f"features.{last}.1"
    yield "classifier", "classifier.1", ""


def _mobilenet_layers(net: Arch, middle: list[Block]) -> Iterator[Layer]:
    """torchvision's mobilenet_v2: blocks are numbered through, and a layer without activation is no
    module of its own."""
    yield "stem", "features.0.0", "features.0.1"
    for block, number, _, _ in _places(net, middle):
        ours, theirs = f"blocks.{number}", f"features.{number + 1}.conv"
        for i, op in enumerate(ops(block)):
            if op.act:
                yield f"{ours}.{op.kind}", f"{theirs}.{i}.0", f"{theirs}.{i}.1"
            else:
                yield f"{ours}.{op.kind}", f"{theirs}.{i}", f"{theirs}.{i + 1}"
    if net.head_width:
        last = net.blocks + 1
        yield "head", f"features.{last}.0", f"features.{last}.1"
    yield "classifier", "classifier.1", ""


def names(net: Arch, peer: Peer) -> dict[str, str]:
    """Our state dict's keys → the peer's, in order. Raises ValueError where the peer has no such
    network."""
    key_of: dict[str, str] = {}
    for ours, theirs, norm in _layers(net, peer):
        if norm:
            key_of[f"{ours}.0.weight"] = f"{theirs}.weight"
            for part in _NORM:
                key_of[f"{ours}.1.{part}"] = f"{norm}.{part}"
        else:
            for part in ("weight", "bias"):
                key_of[f"{ours}.{part}"] = f"{theirs}.{part}"
    return key_of


# ---- state dicts


def convert(state: Mapping[str, Tensor], net: Arch) -> State:
    """A state dict of timm, torchvision or our own, in our names, for `model.load_state_dict`.

    Raises ValueError naming the first entry that is missing, too many or of another shape."""
    wanted = _shapes(net)
    state = {_WRAPPED.sub("", str(key)): value for key, value in state.items()}
    source, key_of = _nearest_names(state, net, wanted)
    alike = sum(key in state for key in key_of.values())
    naming = f"read in {source} names, which {alike} of its {len(state)} entries have"
    refusal = f"state dict does not fit {net.name or net.key}"
    converted: State = {}
    for ours, shape in wanted.items():
        theirs = key_of[ours]
        if theirs not in state and ours.endswith(_COUNTER):
            converted[ours] = torch.tensor(0)
            continue
        if theirs not in state:
            raise ValueError(f"{refusal}: {theirs} is missing ({naming})")
        value = state[theirs]
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{refusal}: {theirs} is {type(value).__name__}, wanted {tuple(shape)}"
            )
        if value.shape != shape:
            raise ValueError(f"{refusal}: {theirs} is {tuple(value.shape)}, wanted {tuple(shape)}")
        converted[ours] = value
    known = set(key_of.values())
    for key in state:
        if key not in known:
            raise ValueError(f"{refusal}: it has no place for {key} ({naming})")
    return converted


def _nearest_names(
    state: Mapping[str, Tensor], net: Arch, ours: Iterable[str]
) -> tuple[str, dict[str, str]]:
    """Whose names most entries have, and our names → those."""
    namings = {"our": {key: key for key in ours}}
    for peer in PEERS:
        with suppress(ValueError):  # no such network there
            namings[f"{peer}'s"] = names(net, peer)
    nearest = max(namings, key=lambda source: sum(k in state for k in namings[source].values()))
    return nearest, namings[nearest]


def to_peer(state: Mapping[str, Tensor], net: Arch, peer: Peer) -> State:
    """Our state dict in the names of timm or torchvision; `convert` is its inverse. Raises
    ValueError."""
    state = convert(state, net)
    return {theirs: state[ours] for ours, theirs in names(net, peer).items()}


def _shapes(net: Arch) -> dict[str, torch.Size]:
    """The shape of each entry of our state dict; on meta tensors nothing is allocated."""
    with torch.device("meta"):
        return {key: value.shape for key, value in effnet.build(net).state_dict().items()}


# ---- files


def read_state(path: str | Path) -> State:
    """The state dict in a .safetensors file, or in a file of torch.save (weights only: nothing in
    it is run).

    Raises ValueError for anything else, or a damaged file."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from error
    if path.suffix == ".safetensors":
        return _parse(data, path)
    try:
        # weights_only: tensors and plain data are made, and no other object than the named ones,
        # whatever the file says
        with torch.serialization.safe_globals(_PLAIN):
            state: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        # whatever damaged bytes lead to: RuntimeError, UnpicklingError, EOFError, KeyError, ...
        raise ValueError(f"{path}: damaged, or not a state dict of torch.save") from error
    for wrapper in ("state_dict", "model"):  # as training scripts save them
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path}: not a state dict: names and tensors are wanted")
    return state


def _parse(data: bytes, path: Path) -> State:
    """The tensors in the bytes of a .safetensors file. Raises ValueError naming `path`."""
    try:
        return load_bytes(data)
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged or not a safetensors file: {error}") from error


def save_state(state: Mapping[str, Tensor], path: str | Path) -> str:
    """Write tensors into a .safetensors file, put in place whole; return its SHA-256."""
    # copies, since safetensors refuses tensors that share memory, as tied weights do
    data = save_bytes({key: value.detach().clone().contiguous() for key, value in state.items()})
    atomic.write(Path(path), data)
    return hashlib.sha256(data).hexdigest()


def save(model: ConvNet, folder: str | Path, about: Mapping[str, Any] | None = None) -> None:
    """Write model.safetensors and config.json (the Arch, how it was built, the weights' digest, and
    what else is known `about` it, as plain data) into `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "arch": model.arch.as_dict(),
        "bn_eps": model.bn_eps,
        "same_padding": model.same_padding,
        "sha256": save_state(model.state_dict(), folder / _FILE),
        **(about or {}),
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
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / _CONFIG}: not what `save` wrote: {error}") from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError(
            f"{folder / _FILE}: truncated or altered since it was saved "
            "(its SHA-256 is not config.json's)"
        )
    model = effnet.build(net, bn_eps=bn_eps, same_padding=same_padding)
    model.load_state_dict(convert(_parse(data, folder / _FILE), net))
    return model.eval()


# ---- export


def _example(net: Network) -> Tensor:
    # two images: torch.export takes a dimension of 1 for a constant
    return torch.zeros(2, net.in_channels, *net.sides)


def program(model: nn.Module, net: Network) -> torch.export.ExportedProgram:
    """`model`, which is of the network `net`, in eval mode as torch.export's program, for any
    batch."""
    batch = torch.export.Dim("batch", min=1)
    model = copy.deepcopy(model).cpu().eval()  # the caller's may be training on a GPU
    return torch.export.export(model, (_example(net),), dynamic_shapes=({0: batch},))


def save_program(model: nn.Module, net: Network, path: str | Path) -> None:
    """The program as a .pt2 file, for torch.export.load."""
    torch.export.save(program(model, net), str(path))


def save_onnx(model: nn.Module, net: Network, path: str | Path) -> None:
    """`model`, which is of the network `net`, in eval mode as ONNX: input `images` [batch,
    channels, side, side], output `logits` [batch, classes].

    Needs the packages onnx and onnxscript (the extra `onnx`); raises ValueError without them."""
    try:
        import onnxscript  # noqa: F401  # torch's exporter wants it, and says so at length
    except ImportError as error:
        raise ValueError(
            f"ONNX wants two more packages: pip install onnx onnxscript ({error})"
        ) from error
    # the exporter's log lists every torchvision operator that it skips
    exporters_log = logging.getLogger("torch.onnx")
    level = exporters_log.level
    exporters_log.setLevel(logging.ERROR)
    try:
        torch.onnx.export(
            program(model, net),
            (_example(net),),
            str(path),
            input_names=["images"],
            output_names=["logits"],
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    finally:
        exporters_log.setLevel(level)
