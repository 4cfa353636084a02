"""What torch counts of a network that a function builds: a pass over the meta device, where shapes
are computed and nothing else."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from effnet import custom
from effnet.custom import Counts, CustomArch, Function, FunctionError, explain


class _Counter(TorchDispatchMode):
    """torch's flop counter without its account by module, which takes half the time: the same
    formulas (torch.utils.flop_counter.flop_registry), and the elements that these operators put
    out, pycls' and fvcore's activations."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        self.outputs = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(func.overloadpacket)
        if formula is None and func is not torch.ops.prim.device.default:
            with self:  # an operator made of others is counted as those
                parts = func.decompose(*args, **kwargs)
                if parts is not NotImplemented:
                    return parts
        result = func(*args, **kwargs)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=result)
            self.outputs += (result[0] if isinstance(result, tuple) else result).numel()
        return result


def build(arch: CustomArch, without_dropout: bool = False) -> nn.Module:
    """The module of a network, on the CPU, drawn from torch's present state of random numbers;
    Python's and numpy's are set from it, so that a function may draw from any of them.
    `without_dropout` sets the rate of its Dropout modules to 0.

    Raises FunctionError for what the function raises, or where it is another network by now than
    was counted."""
    seed = int(torch.randint(2**31, ()).item())
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002: the generator that a function without its own draws from
    function = arch.function
    depth, width = function.multipliers(arch.depth, arch.width)
    model = _call(function, depth, width, arch.resolution, arch.num_classes)
    structure = _structure(model)
    if structure != arch.counts.structure:
        raise FunctionError(
            f"{function.place} at {_words(depth, width, arch.resolution)}: another network than "
            "when it was counted; a function gives the same one at every call"
        )
    if without_dropout:
        for module in model.modules():
            if isinstance(module, _DropoutNd):
                module.p = 0.0
    return model


def count(
    function: Function, depth: float, width: float, resolution: int, num_classes: int
) -> Counts:
    """Count the network of these multipliers.

    Raises FunctionError, with the multipliers, for what the function or its module raises, for
    what is no module, and for outputs that are not [images, classes]."""
    call = _words(depth, width, resolution)
    model = _on_meta(function, depth, width, resolution, num_classes)
    model.eval()
    images = torch.zeros(1, function.in_channels, resolution, resolution, device="meta")
    try:
        with torch.no_grad(), _Counter() as counter:
            logits = model(images)
    except (Exception, SystemExit) as error:
        raise explain(function, call, error) from error
    if not isinstance(logits, Tensor) or logits.shape != (1, num_classes):
        shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise FunctionError(
            f"{function.place} at {call}: its module gives {shape} for one image; wanted is "
            f"[1, {num_classes}], logits of {num_classes} classes"
        )
    macs = counter.flops // 2
    trainable = [p.numel() for p in model.parameters() if p.requires_grad]
    if not macs or not trainable:
        raise FunctionError(
            f"{function.place} at {call}: its module has no convolution or matrix product to count"
            if trainable
            else f"{function.place} at {call}: its module has no parameters to train"
        )
    return Counts(macs, sum(trainable), counter.outputs, _structure(model))


def try_step(arch: CustomArch) -> None:
    """One forward and backward pass on two images of noise, on the CPU. Raises FunctionError."""
    with torch.random.fork_rng(devices=[]):
        model = build(arch).train()
        images = torch.rand(2, arch.in_channels, arch.resolution, arch.resolution)
        labels = torch.zeros(2, dtype=torch.int64)
        try:
            F.cross_entropy(model(images).float(), labels).backward()  # type: ignore[no-untyped-call]
        except (Exception, SystemExit) as error:
            call = f"a training step of two images, {arch.resolution} px"
            raise explain(arch.function, call, error) from error


def saved_for_backward(arch: CustomArch) -> int:
    """Elements per image that the forward pass of a training step leaves for the backward pass.
    Raises FunctionError."""
    function = arch.function
    depth, width = function.multipliers(arch.depth, arch.width)
    model = _on_meta(function, depth, width, arch.resolution, arch.num_classes).train()
    # by their storage: a layer may save its weights turned, which is another tensor
    own = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, int] = {}
    kept: list[Tensor] = []  # while they live, no other tensor has their storage

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in own:
            kept.append(tensor)
            # all of it, where a part is saved: it stays as long as the part does
            saved[_storage(tensor)] = tensor.untyped_storage().nbytes() // tensor.element_size()
        return tensor

    images = torch.zeros(2, function.in_channels, arch.resolution, arch.resolution, device="meta")
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(images)
    except (Exception, SystemExit) as error:
        call = _words(depth, width, arch.resolution)
        raise explain(function, call, error) from error
    return sum(saved.values()) // 2


def _storage(tensor: Tensor) -> int:
    """What tells the memory of a tensor from that of others, on the meta device too."""
    return tensor.untyped_storage()._cdata


_NEEDS_VALUES: set[str] = set()  # digests of functions that cannot build on the meta device


def _on_meta(
    function: Function, depth: float, width: float, resolution: int, num_classes: int
) -> nn.Module:
    """The module without weights. A function that reads values of tensors while it builds, as for
    rates that rise from layer to layer, builds on the CPU first."""
    if function.digest not in _NEEDS_VALUES:
        try:
            with torch.device("meta"):
                return _call(function, depth, width, resolution, num_classes).to("meta")
        except FunctionError as error:
            cause = error.__cause__
            # torch's own words for what has no values
            if cause is None or "meta" not in str(cause).lower():
                raise
        _NEEDS_VALUES.add(function.digest)
    return _call(function, depth, width, resolution, num_classes).to("meta")


def _call(
    function: Function, depth: float, width: float, resolution: int, num_classes: int
) -> nn.Module:
    """What the function returns. Raises FunctionError."""
    with _random_numbers_kept():  # a file may draw, or seed, as it is run: in each process once
        function_itself = custom.load(function)
    try:
        model = function_itself(
            depth=depth,
            width=width,
            resolution=resolution,
            num_classes=num_classes,
            in_channels=function.in_channels,
        )
    except (Exception, SystemExit) as error:
        raise explain(function, _words(depth, width, resolution), error) from error
    if isinstance(model, nn.Module) and any(map(is_lazy, model.parameters())):
        raise FunctionError(
            f"{function.place}: lazy layers have no sizes before a pass; give them theirs"
        )
    if not isinstance(model, nn.Module):
        raise FunctionError(
            f"{function.place} at {_words(depth, width, resolution)} returns "
            f"{type(model).__name__}; wanted is a torch.nn.Module"
        )
    return model


@contextlib.contextmanager
def _random_numbers_kept() -> Iterator[None]:
    """Whatever is drawn or seeded within, torch, numpy and Python go on as before."""
    state, numpys_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        yield
    random.setstate(state)
    np.random.set_state(numpys_state)


def _words(depth: float, width: float, resolution: int) -> str:
    return f"depth {depth:g}, width {width:g}, {resolution} px"


def _structure(model: nn.Module) -> str:
    """12 hexadecimal digits for the names and shapes of parameters and buffers."""
    lines = []
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):  # a module may keep anything beside
            lines.append(f"{name} {list(value.shape)}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]
