"""The fused path against the plain modules and float64: same logits, gradients and running
statistics."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import effnet
from effnet.arch import Arch, scale
from effnet.families import BASELINES
from effnet.nn.cpu import fast, kernels


def twins(arch: Arch, drop_path: float = 0.0) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Plain, fused, and plain in float64, with weights under which nothing is zero."""
    torch.manual_seed(0)
    model = effnet.build(arch, dropout=0.0, drop_path=drop_path).train()
    for p in model.parameters():
        if p.ndim == 1:
            nn.init.normal_(p, 1.0, 0.2)
    return model, copy.deepcopy(model), copy.deepcopy(model).double()


def assert_close(ours: Tensor, plain: Tensor, exact: Tensor, what: str) -> None:
    """Ours is as near to float64 as torch's own float32 is, within a factor, or within 1e-5 of the
    scale."""
    scale = exact.abs().max().item() + 1e-6
    mine, theirs = (ours - exact).abs().max().item(), (plain - exact).abs().max().item()
    assert mine <= max(10 * theirs, 1e-5 * scale), f"{what}: {mine} against {theirs}, scale {scale}"


NETWORKS = [
    pytest.param(
        "b0", {"width": 0.5, "depth": 0.5, "resolution": 37}, 6, id="b0, odd maps down to 2 px"
    ),
    pytest.param("b0", {"width": 0.3, "resolution": 32}, 5, id="b0, maps of 1 px"),
    pytest.param(
        "b0-s4", {"width": 0.13, "resolution": 20}, 7, id="b0-s4, channels that fill no register"
    ),
    pytest.param(
        "v2-s", {"width": 0.2, "depth": 0.4, "resolution": 33}, 4, id="v2-s, fused blocks"
    ),
    pytest.param("mobilenetv2", {"width": 0.3, "resolution": 32}, 4, id="mobilenetv2, ReLU6"),
    pytest.param("mobilenetv1", {"width": 0.3, "resolution": 32}, 4, id="mobilenetv1"),
    pytest.param(
        "resnet50",
        {"width": 0.2, "resolution": 32},
        4,
        id="resnet50, shortcuts and last activations",
    ),
    pytest.param("lite", {"width": 0.4, "resolution": 32}, 4, id="lite, no gate"),
    pytest.param(
        "notebook", {"width": 0.2, "resolution": 32}, 4, id="notebook-b0, dense 3x3 expansion"
    ),
]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("name", "dials", "batch"), NETWORKS)
def test_training_step_equals_the_modules(name: str, dials: dict, batch: int, threads: int) -> None:
    plain, ours, exact = twins(effnet.arch(name, num_classes=10, **dials))
    x, y = torch.randn(batch, 3, dials["resolution"], dials["resolution"]), torch.arange(batch)
    torch.set_num_threads(threads)
    try:
        outputs = plain(x), fast.forward(ours, x), exact(x.double())
        for out in outputs:
            F.cross_entropy(out, y).backward()
    finally:
        torch.set_num_threads(1)
    assert_close(outputs[1], outputs[0], outputs[2], "logits")
    gradient = max(p.grad.abs().max().item() for p in exact.parameters())
    for (what, a), b, c in zip(
        ours.named_parameters(), plain.parameters(), exact.parameters(), strict=True
    ):
        # a bias before a batch norm has no gradient but rounding: the whole network's scale counts
        error = (a.grad - c.grad).abs().max().item()
        assert error <= max(10 * (b.grad - c.grad).abs().max().item(), 3e-6 * gradient), what
    for (what, a), b, c in zip(ours.named_buffers(), plain.buffers(), exact.buffers(), strict=True):
        assert_close(a.double(), b.double(), c.double(), what)


@pytest.mark.parametrize("mode", ["eval", "re-estimation"])
def test_evaluation_equals_the_modules(mode: str) -> None:
    plain, ours, exact = twins(effnet.arch("b0", width=0.4, resolution=40, num_classes=10))
    x = torch.randn(8, 3, 40, 40)
    plain(x), exact(x.double())
    ours.load_state_dict(plain.state_dict())
    for model in (plain, ours, exact):
        model.eval()
        for norm in (
            m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and mode == "re-estimation"
        ):
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
    with torch.no_grad():
        for part in (x, 3 + 2 * x, x.flip(2)):
            outputs = plain(part), fast.forward(ours, part), exact(part.double())
            assert_close(outputs[1], outputs[0], outputs[2], "logits")
    for (what, a), b, c in zip(ours.named_buffers(), plain.buffers(), exact.buffers(), strict=True):
        assert_close(a.double(), b.double(), c.double(), what)


def test_stochastic_depth_draws_the_modules_numbers() -> None:
    net = scale(BASELINES["b0-s4"], width=0.2, resolution=12, num_classes=10)
    plain, ours, _ = twins(net, drop_path=0.5)
    x = torch.randn(16, 3, 12, 12)
    torch.manual_seed(1)
    wanted = plain(x)
    torch.manual_seed(1)
    torch.testing.assert_close(fast.forward(ours, x), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("c", "side", "kernel", "stride"),
    [
        (16, 7, 5, 1),
        (17, 8, 5, 2),
        (33, 2, 5, 1),
        (40, 2, 3, 2),
        (24, 9, 7, 1),
        (31, 1, 3, 1),
        (18, 3, 9, 2),
    ],
)
def test_depthwise_weight_gradient(
    c: int, side: int, kernel: int, stride: int, threads: int
) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, c, side, side, dtype=torch.float64)
    weight = torch.randn(c, 1, kernel, kernel, dtype=torch.float64, requires_grad=True)
    y = F.conv2d(x, weight, None, stride, kernel // 2, 1, c)
    dy = torch.randn_like(y)
    y.backward(dy)
    last = torch.channels_last
    x32, dy32 = x.float().contiguous(memory_format=last), dy.float().contiguous(memory_format=last)
    x32, dy32 = x32.permute(0, 2, 3, 1).contiguous(), dy32.permute(0, 2, 3, 1).contiguous()
    taps = torch.full((kernel * kernel, c), float("nan"))
    torch.set_num_threads(threads)
    ho = dy.shape[-1]
    kernels.call(
        kernels.depthwise,
        x32.data_ptr(),
        dy32.data_ptr(),
        taps.data_ptr(),
        5,
        side,
        side,
        c,
        ho,
        ho,
        kernel,
        stride,
    )
    torch.set_num_threads(1)
    torch.testing.assert_close(
        taps.t().reshape(weight.shape).double(), weight.grad, atol=1e-4, rtol=1e-4
    )


def test_a_nan_stays_one() -> None:
    """A diverged run must be seen: no kernel may turn NaN or infinity into a number."""
    model = effnet.build(
        effnet.arch("b0-s4", width=0.2, resolution=12, num_classes=10), dropout=0.0
    ).train()
    for bad in (float("nan"), float("inf")):
        x = torch.randn(4, 3, 12, 12)
        x[1, 1, 5, 5] = bad
        assert fast.forward(model, x).isnan().all()


def test_one_value_per_channel_is_refused_as_torch_does() -> None:
    model = effnet.build(
        effnet.arch("b0", width=0.1, resolution=32, num_classes=3), dropout=0.0
    ).train()
    for forward in (model, lambda x: fast.forward(model, x)):
        with pytest.raises(ValueError, match="(?i)more than (1|one) value per channel"):
            forward(torch.randn(1, 3, 32, 32))


def test_sigmoid_to_the_limits() -> None:
    """Through the norm's forward pass with scale 1 and shift 0."""
    norm = nn.BatchNorm2d(1, eps=1e-12).eval()
    u = torch.cat([torch.linspace(-100, 100, 20001), torch.tensor([1e30, -1e30, 0.0, 1e-30])])
    normed = fast._norm(norm, u.view(1, 1, 1, -1), True).flatten()
    wanted = F.silu(u.double())
    assert ((normed - wanted).abs() <= 2e-6 * wanted.abs().clamp(min=1)).all()


def test_kernels_are_compiled_where_no_cache_can_be_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in an installation that another user owns, without a home."""
    monkeypatch.setattr("numba.core.caching.CacheImpl._locator_classes", [])
    alone, _ = kernels._kernel(lambda x: x + 1)
    assert alone(1) == 2
