"""Triton's kernels against float64: `TRITON_INTERPRET=1 python -m pytest -n0
tests/triton_numbers.py`.

Not collected by itself: Triton decides at its import whether the interpreter runs its functions, so
this has a process of its own, which tests/test_triton.py starts. On a machine with a GPU the same
command without the variable asks the card.
"""

import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import effnet
from effnet.arch import scale
from effnet.definition import parse_baseline
from effnet.nn import cuda
from effnet.nn.cuda import FlatParameters, TrainingForward, fused

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 1e-3
SINGLE, HALF = torch.float32, torch.bfloat16


def assert_close(ours: Tensor, exact: Tensor, what: str) -> None:
    """fp32 within 1e-5 of the largest value. bf16 is computed in fp32 and rounded once, at the end:
    besides, each value within 2^-7 of itself, the distance of two bf16 numbers (the interpreter
    cuts digits off, where a card rounds to the nearest and errs by half of this)."""
    ours, exact = ours.double().cpu(), exact.double().cpu()
    bound = 1e-5 * exact.abs().max() + 1e-9
    if what.endswith("bfloat16"):
        bound = bound + 2**-7 * exact.abs()
    worst = ((ours - exact).abs() / bound).max().item()
    assert worst <= 1, f"{what}: {worst} times the bound"


def compare(
    ours: Callable[..., Tensor], exact: Callable[..., Tensor], inputs: dict[str, Tensor]
) -> None:
    """The value and every gradient of `ours` against `exact` in float64; each keeps its dtype."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    doubles = {name: t.detach().double().requires_grad_() for name, t in inputs.items()}
    y, wanted = ours(**leaves), exact(**doubles)
    torch.manual_seed(1)
    dy = channels_last(torch.randn(y.shape), y.dtype)
    gradients = torch.autograd.grad(y, list(leaves.values()), dy)
    wanted_gradients = torch.autograd.grad(wanted, list(doubles.values()), dy.double())
    assert_close(y, wanted, f"value, {y.dtype}")
    for name, gradient, wanted_gradient in zip(leaves, gradients, wanted_gradients, strict=True):
        assert gradient.dtype == leaves[name].dtype
        assert gradient.stride() == leaves[name].stride()
        assert_close(gradient, wanted_gradient, f"gradient of {name}, {gradient.dtype}")


def channels_last(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(DEVICE, dtype).contiguous(memory_format=torch.channels_last)


def maps(n: int, c: int, side: int, dtype: torch.dtype) -> Tensor:
    """Channels of different means and deviations, about 1."""
    x = torch.randn(n, c, side, side) * (0.5 + torch.rand(c, 1, 1)) + torch.randn(c, 1, 1)
    return channels_last(x, dtype)


def parameters(c: int) -> dict[str, Tensor]:
    weight, bias = 0.5 + torch.rand(c), torch.randn(c)
    return {"weight": weight.to(DEVICE), "bias": bias.to(DEVICE)}


def batch_norm(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.batch_norm(z, None, None, weight, bias, True, 0.0, EPS)


def norm_act_inputs(
    n: int, c: int, side: int, residual: bool, dtype: torch.dtype
) -> dict[str, Tensor]:
    inputs = {"z": maps(n, c, side, dtype), **parameters(c)}
    if residual:
        inputs["residual"] = maps(n, c, side, dtype)
    return inputs


def compare_norm_act(inputs: dict[str, Tensor], silu: bool) -> None:
    def ours(z: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None) -> Tensor:
        return fused.norm_act(z, weight, bias, EPS, silu, residual)

    def exact(z: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None) -> Tensor:
        y = batch_norm(z, weight, bias)
        y = F.silu(y) if silu else y
        return y if residual is None else y + residual

    compare(ours, exact, inputs)


@pytest.fixture
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each program takes several tiles, images or rows, as on large maps."""
    monkeypatch.setattr(fused, "_PROGRAMS", 3)


NORMS = [
    pytest.param(5, 6, 7, True, False, SINGLE, id="two tiles of rows, the second not full"),
    pytest.param(3, 10, 3, False, True, SINGLE, id="residual"),
    pytest.param(2, 40, 1, True, True, SINGLE, id="two values per channel, two channel blocks"),
    pytest.param(33, 24, 2, False, False, SINGLE, id="neither"),
    pytest.param(3, 72, 5, True, False, HALF, id="bf16"),
    pytest.param(5, 10, 3, False, True, HALF, id="bf16, residual, channels not of 8"),
]


@pytest.mark.parametrize(("n", "c", "side", "silu", "residual", "dtype"), NORMS)
def test_norm_act(
    n: int, c: int, side: int, silu: bool, residual: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    compare_norm_act(norm_act_inputs(n, c, side, residual, dtype), silu)


@pytest.mark.parametrize("dtype", [SINGLE, HALF])
def test_norm_act_on_rows_of_several_tiles(few_programs: None, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    compare_norm_act(norm_act_inputs(17, 8, 7, True, dtype), silu=True)


def test_splits_added_in_several_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(fused._kernels(), "SPLITS", 2)
    compare_norm_act(norm_act_inputs(13, 6, 7, False, SINGLE), silu=True)


@pytest.mark.parametrize("dtype", [SINGLE, HALF])
def test_channels_without_variance(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    inputs = norm_act_inputs(4, 6, 3, False, dtype)
    inputs["z"][:, 1] = 0
    inputs["z"][:, 4] = 3.7
    compare_norm_act(inputs, silu=True)


def test_means_far_from_zero_lose_no_digits() -> None:
    torch.manual_seed(0)
    inputs = norm_act_inputs(4, 6, 5, False, SINGLE)
    inputs["z"] += 100
    compare_norm_act(inputs, silu=False)


GATES = [
    pytest.param(5, 6, 2, 7, SINGLE, id="6 channels"),
    pytest.param(3, 40, 33, 1, SINGLE, id="maps of a pixel, two blocks each of channels and units"),
    pytest.param(17, 10, 3, 1, SINGLE, id="two rounds of images"),
    pytest.param(2, 136, 5, 3, SINGLE, id="two blocks of excited channels"),
    pytest.param(3, 72, 4, 5, HALF, id="bf16"),
    pytest.param(3, 10, 3, 9, HALF, id="bf16, channels not of 8, two tiles an image"),
]


@pytest.mark.parametrize(("n", "c", "s", "side", "dtype"), GATES)
def test_norm_gate(n: int, c: int, s: int, side: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    compare_norm_gate(n, c, s, side, dtype)


def test_norm_gate_with_several_images_a_program(few_programs: None) -> None:
    torch.manual_seed(0)
    compare_norm_gate(7, 16, 4, 5, SINGLE)


def compare_norm_gate(n: int, c: int, s: int, side: int, dtype: torch.dtype) -> None:
    inputs = {"z": maps(n, c, side, dtype), **parameters(c)}
    for name, shape in {"w1": (s, c), "b1": (s,), "w2": (c, s), "b2": (c,)}.items():
        inputs[name] = (torch.randn(shape) / shape[-1] ** 0.5).to(DEVICE, dtype)

    def ours(z: Tensor, weight: Tensor, bias: Tensor, **layers: Tensor) -> Tensor:
        return fused.norm_gate(z, weight, bias, EPS, **layers)

    def exact(
        z: Tensor, weight: Tensor, bias: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor
    ) -> Tensor:
        y = F.silu(batch_norm(z, weight, bias))
        gate = F.linear(F.silu(F.linear(y.mean((2, 3)), w1, b1)), w2, b2).sigmoid()
        return y * gate[:, :, None, None]

    compare(ours, exact, inputs)


DEPTHWISE = [
    pytest.param(5, 24, 5, 5, 1, SINGLE, id="5x5"),
    pytest.param(9, 10, 3, 3, 1, SINGLE, id="3x3, two blocks of images"),
    pytest.param(3, 6, 7, 5, 2, SINGLE, id="5x5, stride 2"),
    pytest.param(3, 40, 2, 3, 2, SINGLE, id="3x3, stride 2, two channel blocks"),
    pytest.param(2, 6, 1, 5, 1, SINGLE, id="maps of a pixel"),
    pytest.param(2, 8, 3, 7, 1, SINGLE, id="7x7"),
    pytest.param(3, 72, 3, 3, 1, HALF, id="bf16"),
    pytest.param(3, 10, 5, 5, 2, HALF, id="bf16, stride 2, channels not of 8"),
]


@pytest.mark.parametrize(("n", "c", "side", "kernel", "stride", "dtype"), DEPTHWISE)
def test_depthwise(
    few_programs: None, n: int, c: int, side: int, kernel: int, stride: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    compare_depthwise(n, c, side, kernel, stride, dtype)


def test_depthwise_of_many_splits() -> None:
    torch.manual_seed(0)
    compare_depthwise(3, 6, 5, 3, 1, SINGLE)


def compare_depthwise(
    n: int, c: int, side: int, kernel: int, stride: int, dtype: torch.dtype
) -> None:
    weight = channels_last(torch.randn(c, 1, kernel, kernel) / kernel, dtype)
    tensors = maps(n, c, side, dtype), weight

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        return fused.depthwise(x, weight, stride)

    def plain(x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, None, stride, kernel // 2, 1, c)

    results = []
    for function, dtype_of_run in ((ours, dtype), (plain, dtype), (plain, torch.float64)):
        x, weight = (tensor.detach().to(dtype_of_run).requires_grad_() for tensor in tensors)
        y = function(x, weight)
        torch.manual_seed(1)
        dy = channels_last(torch.randn(y.shape), dtype).to(dtype_of_run)
        results.append((y, *torch.autograd.grad(y, [x, weight], dy)))
    (y, dx, dw), (wanted_y, wanted_dx, _), (_, _, exact_dw) = results
    # these two are torch's own
    assert torch.equal(y, wanted_y)
    assert torch.equal(dx, wanted_dx)
    assert dw.dtype == dtype
    assert dw.stride() == tensors[1].stride()
    assert_close(dw, exact_dw, f"gradient of the weight, {dtype}")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_nan_stays_one(bad: float) -> None:
    """A diverged run must be seen: no kernel may turn NaN or infinity into a number."""
    torch.manual_seed(0)
    z, norm = maps(3, 6, 3, SINGLE), parameters(6)
    z[1, 2, 0, 1] = bad
    for silu in (False, True):
        y = fused.norm_act(z, norm["weight"], norm["bias"], EPS, silu)
        assert y[:, 2].isnan().all()
        assert y[:, :2].isfinite().all()


def test_one_value_per_channel_is_refused_as_torch_does() -> None:
    with pytest.raises(ValueError, match="more than one value per channel"):
        fused.norm_act(maps(1, 6, 1, SINGLE), *parameters(6).values(), EPS, True)


def test_without_triton_the_call_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "effnet.nn.cuda.kernels", raising=False)
    monkeypatch.delattr(cuda, "kernels", raising=False)
    with pytest.raises(ImportError, match="need Triton, which does not load here"):
        fused._kernels.__wrapped__()


def test_a_network_through_the_kernels_is_the_one_without() -> None:
    """Every place in which the forward pass calls a kernel: loss and each gradient."""
    rows = [
        {"operator": "mbconv", "expand": 1, "kernel": 3, "stride": 1, "width": 8, "repeats": 1},
        {"operator": "mbconv", "expand": 2, "kernel": 5, "stride": 2, "width": 8, "repeats": 2},
    ]
    table = {"name": "two", "resolution": 8, "stem_width": 8, "stem_stride": 1}
    table |= {"head_width": 16, "stages": rows}
    for row in rows:
        row["se_percent"] = 25
    net = scale(parse_baseline(table, "two"), num_classes=3)
    x = torch.randn(3, 3, 8, 8, device=DEVICE).contiguous(memory_format=torch.channels_last)
    labels = torch.tensor([0, 2, 1], device=DEVICE)
    losses, gradients = [], []
    for fuse in (False, True):
        torch.manual_seed(0)
        model = effnet.build(net, dropout=0.0, drop_path=0.0).train().to(DEVICE)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
        flat = FlatParameters(model, SINGLE)
        leaves = {f"net.{name}": leaf for name, leaf in flat.leaves.items()}
        logits = torch.func.functional_call(TrainingForward(model, fuse), leaves, (x,))
        loss = torch.nn.functional.cross_entropy(logits, labels)
        flat.backward(loss)
        losses.append(loss.detach())
        gradients.append({name: g.clone() for name, g in flat.gradients().items()})
    torch.testing.assert_close(losses[0], losses[1], atol=1e-5, rtol=1e-5)
    for name, gradient in gradients[0].items():
        bound = 1e-3 * float(gradient.norm()) + 1e-5
        assert float((gradients[1][name] - gradient).norm()) < bound, name
