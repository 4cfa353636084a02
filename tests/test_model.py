import pytest
import torch
from torch import nn

import effnet
from effnet.arch import scale
from effnet.families import BASELINES
from effnet.model import BN_EPS, BN_MOMENTUM, EfficientNet, MBConv


@pytest.fixture(scope="module")
def b0() -> EfficientNet:
    torch.manual_seed(0)
    return effnet.build(effnet.arch("b0"))


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_same_function_as_peers(b0: EfficientNet, library: str) -> None:
    """The same weights, put over in order of definition, give the same logits."""
    if library == "timm":
        theirs = pytest.importorskip("timm").create_model("efficientnet_b0")
    else:
        theirs = pytest.importorskip("torchvision").models.efficientnet_b0()
    torch.manual_seed(1)
    ours = effnet.build(effnet.arch("b0"))
    for module in ours.modules():  # a zero last norm would hide the branches
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, 0, 0.1)
    state, target = ours.state_dict(), theirs.state_dict()
    assert [v.shape for v in state.values()] == [v.shape for v in target.values()]
    theirs.load_state_dict(dict(zip(target, state.values(), strict=True)))
    for module in theirs.modules():  # both peers follow torch's eps; the paper's code has 1e-3
        if isinstance(module, nn.BatchNorm2d):
            module.eps = BN_EPS
    image = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        a, b = ours.eval()(image), theirs.eval()(image)
    assert a.std() > 1e-3
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_last_norm_of_residual_branches_starts_at_zero(b0: EfficientNet) -> None:
    residual = [m for m in b0.modules() if isinstance(m, MBConv) and m.residual]
    assert len(residual) == 9
    for module in b0.modules():
        if isinstance(module, MBConv):
            assert bool((module.project[1].weight == 0).all()) == module.residual
    x = torch.randn(1, 40, 28, 28)
    block = next(m for m in residual if m.project[1].num_features == 40)
    with torch.no_grad():
        torch.testing.assert_close(block.eval()(x), x)


def test_initialisation_spread(b0: EfficientNet) -> None:
    stem = b0.stem[0].weight
    assert stem.std().item() == pytest.approx((2 / (32 * 9)) ** 0.5, rel=0.1)
    depthwise = b0.blocks[8].depthwise[0].weight
    assert depthwise.std().item() == pytest.approx((2 / depthwise.shape[-1] ** 2) ** 0.5, rel=0.1)
    assert b0.classifier.weight.abs().max().item() <= 1 / 1000**0.5


def test_batch_norm_constants(b0: EfficientNet) -> None:
    for module in b0.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.eps, module.momentum) == (BN_EPS, BN_MOMENTUM) == (1e-3, 0.01)


def test_stochastic_depth_grows_linearly_and_keeps_the_mean() -> None:
    model = effnet.build(effnet.arch("b0"), drop_path=0.2)
    rates = [block.drop for block in model.blocks]
    assert rates == pytest.approx([0.2 * i / 16 for i in range(16)])
    block = next(b for b in model.blocks if b.residual)
    block.drop = 0.5
    nn.init.ones_(block.project[1].weight)
    x = torch.randn(1, block.project[1].num_features, 8, 8).expand(400, -1, -1, -1)
    torch.manual_seed(0)
    block.train()
    with torch.no_grad():
        branch = (block(x) - x).abs().amax((1, 2, 3))
    dropped = (branch < 1e-5).float().mean().item()
    assert dropped == pytest.approx(0.5, abs=0.1)  # binomial, 4 deviations


def test_dropout_defaults_to_the_members() -> None:
    net = scale(BASELINES["b0-s4"], width=0.1, resolution=16, dropout_percent=40)
    assert effnet.build(net).dropout.p == 0.4
    assert effnet.build(net, dropout=0.0).dropout.p == 0.0
    assert effnet.build(effnet.arch("b7", num_classes=2)).dropout.p == 0.5


def test_every_parameter_learns() -> None:
    model = effnet.build(effnet.arch("b0-s4", width=0.1, resolution=16, num_classes=5), dropout=0.0, drop_path=0.0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    model(torch.randn(8, 3, 16, 16)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
