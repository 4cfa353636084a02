"""The CUDA step's arithmetic, which needs no GPU to be compared: flat parameters and the forward
pass in few launches, beside the modules' own."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import effnet
from effnet.nn.cuda import FlatParameters, TrainingForward

NETWORKS = {
    "mbconv": effnet.arch("b0-s4", width=0.2, depth=0.5, resolution=16, num_classes=10),
    "fused": effnet.arch("v2-s", width=0.2, depth=0.3, resolution=32, num_classes=10),
    "bottleneck": effnet.arch("resnet50", width=0.2, depth=0.5, resolution=32, num_classes=10),
    "separable": effnet.arch("mobilenetv1", width=0.2, resolution=32, num_classes=10),
    "relu6, no gate": effnet.arch("lite", width=0.3, depth=0.5, resolution=32, num_classes=10),
}


def prepared(net: effnet.Arch, drop: float, same_padding: bool) -> nn.Module:
    """The network with random scales and shifts: zero would hide each branch's last layers."""
    torch.manual_seed(0)
    model = effnet.build(net, dropout=drop, drop_path=drop, same_padding=same_padding).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.to(memory_format=torch.channels_last)


def compare(net: effnet.Arch, drop: float = 0.0, same_padding: bool = False) -> None:
    side = net.resolution
    x = torch.randn(8, 3, side, side).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (8,))

    plain = prepared(net, drop, same_padding)
    torch.manual_seed(1)
    loss = F.cross_entropy(plain(x), labels)
    loss.backward()

    model = prepared(net, drop, same_padding)
    flat = FlatParameters(model, torch.float32)
    leaves = {f"net.{name}": leaf for name, leaf in flat.leaves.items()}
    torch.manual_seed(1)
    logits = torch.func.functional_call(TrainingForward(model, fused=False), leaves, (x,))
    our_loss = F.cross_entropy(logits, labels)
    flat.backward(our_loss)

    torch.testing.assert_close(our_loss, loss, atol=1e-5, rtol=1e-5)
    gradients = flat.gradients()
    for name, parameter in plain.named_parameters():
        assert parameter.grad is not None
        bound = 2e-3 * float(parameter.grad.norm()) + 1e-5
        assert float((gradients[name] - parameter.grad).norm()) < bound, name
    assert gradients.keys() == dict(plain.named_parameters()).keys()


@pytest.mark.parametrize("name", NETWORKS)
def test_loss_and_gradients_are_the_modules_own(name: str) -> None:
    compare(NETWORKS[name])


def test_dropped_branches_and_other_padding_are_the_modules_own() -> None:
    compare(NETWORKS["mbconv"], drop=0.3)
    compare(NETWORKS["mbconv"], same_padding=True)


def test_parameters_are_views_of_one_vector_and_the_copy_follows() -> None:
    model = prepared(NETWORKS["mbconv"], 0.0, False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    flat = FlatParameters(model, torch.bfloat16)
    (matrices, decayed), (rest, not_decayed) = flat.parts()
    assert (decayed, not_decayed) == (True, False)
    assert matrices.numel() == sum(p.numel() for p in before.values() if p.ndim > 1)
    assert rest.numel() == sum(p.numel() for p in before.values() if p.ndim == 1)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name

    flat.vector.mul_(2)
    flat.refresh()
    norms = 0
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, 2 * before[name]), name
        leaf: Tensor = flat.leaves[name]
        assert torch.equal(leaf.float(), (2 * before[name]).to(leaf.dtype).float()), name
        norms += leaf.dtype == torch.float32
    assert norms == 2 * sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def test_running_averages_are_left_alone() -> None:
    model = prepared(NETWORKS["mbconv"], 0.0, False)
    flat = FlatParameters(model, torch.float32)
    leaves = {f"net.{name}": leaf for name, leaf in flat.leaves.items()}
    x = torch.randn(4, 3, 16, 16)
    torch.func.functional_call(TrainingForward(model, fused=False), leaves, (x,))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert int(module.num_batches_tracked) == 0
