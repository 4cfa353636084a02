from dataclasses import replace

import pytest
import torch
from torch import nn

import effnet
from effnet.arch import Stage, scale
from effnet.families import BASELINES
from effnet.nn.model import ConvBlock, ConvNet, SameConv2d


@pytest.fixture(scope="module")
def b0() -> ConvNet:
    torch.manual_seed(0)
    return effnet.build(effnet.arch("b0"))


def test_last_norm_of_residual_branches_starts_at_zero(b0: ConvNet) -> None:
    residual = [m for m in b0.modules() if isinstance(m, ConvBlock) and m.residual]
    assert len(residual) == 9
    for module in b0.modules():
        if isinstance(module, ConvBlock):
            assert bool((module.project[1].weight == 0).all()) == module.residual
    x = torch.randn(1, 40, 28, 28)
    block = next(m for m in residual if m.project[1].num_features == 40)
    with torch.no_grad():
        torch.testing.assert_close(block.eval()(x), x)


def test_initialisation_spread(b0: ConvNet) -> None:
    stem = b0.stem[0].weight
    assert stem.std().item() == pytest.approx((2 / (32 * 9)) ** 0.5, rel=0.1)
    depthwise = b0.blocks[8].depthwise[0].weight
    assert depthwise.std().item() == pytest.approx((2 / depthwise.shape[-1] ** 2) ** 0.5, rel=0.1)
    assert b0.classifier.weight.abs().max().item() <= 1 / 1000**0.5


def test_batch_norm_constants(b0: ConvNet) -> None:
    for module in b0.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.eps, module.momentum) == (1e-3, 0.01)


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
    model = effnet.build(
        effnet.arch("b0-s4", width=0.1, resolution=16, num_classes=5), dropout=0.0, drop_path=0.0
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    model(torch.randn(8, 3, 16, 16)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize(
    "name", ["v2-s", "resnet50", "mobilenetv1", "mobilenetv2", "lite0", "notebook-b0", "tinynet-e"]
)
def test_every_family_learns(name: str) -> None:
    torch.manual_seed(0)
    net = effnet.arch(name, resolution=32, num_classes=5)
    model = effnet.build(net, dropout=0.0, drop_path=0.0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    out = model(torch.randn(4, 3, 32, 32))
    assert out.shape == (4, 5)
    out.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_notebook_drops_at_a_constant_rate() -> None:
    model = effnet.build("notebook-b0", num_classes=3, drop_path=0.2)
    assert {block.drop for block in model.blocks} == {0.2}


def test_the_notebook_is_torchs_own_otherwise() -> None:
    model = effnet.build("notebook-b0", num_classes=3)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.eps, m.momentum, m.weight.min().item()) for m in norms} == {(1e-5, 0.1, 1.0)}
    bound = (3 * 9) ** -0.5  # nn.Conv2d's default: uniform in ± 1 / sqrt(fan in)
    assert 0.9 * bound < model.stem[0].weight.abs().max().item() <= bound


def test_how_layers_train_is_the_baselines_and_not_the_operators() -> None:
    dense = [{"operator": "mbconv3x3"}] * 7
    net = effnet.arch("b0", resolution=32, stages=dict(enumerate(dense, 1)))
    model = effnet.build(net, drop_path=0.2)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.01)}
    assert model.blocks[0].drop == 0.0
    plain = replace(BASELINES["b0-s4"], bn_eps=1e-4, bn_momentum=0.5, drop_path_rule="constant")
    model = effnet.build(scale(plain, width=0.1, resolution=16), drop_path=0.2)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-4, 0.5)}
    assert {block.drop for block in model.blocks} == {0.2}


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"bn_eps": float("nan")}, "bn_eps = nan"),
        ({"bn_eps": 0.0}, "bn_eps = 0.0: must be from 0 to below 1, and above 0"),
        ({"bn_eps": -1.0}, "bn_eps = -1.0"),
        ({"drop_path": 5.0}, "drop_path = 5.0: must be from 0 to below 1"),
        ({"drop_path": -1.0}, "drop_path = -1.0"),
        ({"dropout": 1.0}, "dropout = 1.0"),
    ],
)
def test_rates_out_of_range(rates: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        effnet.build(effnet.arch("b0-s4", width=0.1, resolution=16), **rates)
    with pytest.raises(ValueError, match="stage 1: kernel = 4: must be odd"):
        stages = (Stage("mbconv", 1, 4, 1, 8, 1),)
        effnet.build(replace(effnet.arch("b0"), stages=stages))


def test_build_takes_names_and_classes() -> None:
    assert effnet.build("b1", num_classes=3).classifier.out_features == 3
    with pytest.raises(ValueError, match="an Arch has its own"):
        effnet.build(effnet.arch("b0"), num_classes=3)
    with pytest.raises(ValueError, match="unknown network 'c0'"):
        effnet.build("c0")


@pytest.mark.parametrize(
    ("kernel", "stride", "side"), [(3, 2, 32), (3, 2, 33), (5, 2, 64), (7, 2, 30), (5, 4, 18)]
)
def test_same_padding_is_timms(kernel: int, stride: int, side: int) -> None:
    layers = pytest.importorskip("timm.layers")
    theirs = layers.create_conv2d(4, 6, kernel, stride=stride, padding="same")
    ours = SameConv2d(4, 6, kernel, stride, bias=False)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 4, side, side)
    torch.testing.assert_close(ours(x), theirs(x))
    assert ours(x).shape[-1] == -(-side // stride)
