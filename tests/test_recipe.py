"""Schedules and optimizers, beside TensorFlow's formulas, timm's and torch's own."""

import pytest
import torch
from torch import nn

import effnet
from scaling_search.training.optimizer import RMSpropTF, flatten, optimizer
from scaling_search.training.recipe import RECIPES, Recipe


def test_paper_recipe_is_the_official_one() -> None:
    paper = RECIPES["paper"]
    assert (paper.optimizer, paper.lr, paper.batch, paper.ema) == ("rmsprop", 0.016, 256, 0.9999)
    assert (paper.label_smoothing, paper.weight_decay, paper.drop_path, paper.dropout) == (
        0.1,
        1e-5,
        0.2,
        True,
    )
    assert paper.randaugment, "whether torchvision is installed or not"
    proxy = RECIPES["proxy"]
    assert not proxy.dropout
    assert proxy.drop_path == 0.0


def test_rmsprop_is_timms() -> None:
    """timm's RMSpropTF is checked against TensorFlow by its author."""
    timm = pytest.importorskip("timm.optim")
    torch.manual_seed(0)
    ours, theirs = torch.randn(7, 5), nn.Parameter(torch.zeros(7, 5))
    theirs.data.copy_(ours)
    mine = RMSpropTF([{"params": [ours], "weight_decay": 1e-2}], lr=0.02, momentum=0.9)
    peer = timm.RMSpropTF([theirs], lr=0.02, momentum=0.9, alpha=0.9, eps=1e-3, weight_decay=1e-2)
    for i in range(30):
        gradient = torch.randn(7, 5)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        for group in (*mine.param_groups, *peer.param_groups):
            group["lr"] = 0.02 / (1 + i)
        mine.step()
        peer.step()
        torch.testing.assert_close(ours, theirs.data, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_flat_vectors_train_as_separate_parameters(name: str) -> None:
    """Weight decay on kernels and matrices alone; the vectors are the model's own memory."""
    torch.manual_seed(0)
    plain = effnet.build(effnet.arch("b0-s4", width=0.1, resolution=12, num_classes=10))
    flat = effnet.build(effnet.arch("b0-s4", width=0.1, resolution=12, num_classes=10))
    flat.load_state_dict(plain.state_dict())
    vectors = flatten(flat)
    assert sum(v.numel() for v, _ in vectors) == sum(p.numel() for p in plain.parameters())
    recipe = Recipe(optimizer=name, lr=0.01, weight_decay=0.3)
    mine = optimizer(vectors, recipe)
    groups = [
        {"params": [p for p in plain.parameters() if p.ndim > 1], "weight_decay": 0.3},
        {"params": [p for p in plain.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    peer = (
        torch.optim.AdamW(groups, lr=0.01)
        if name == "adamw"
        else torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True)
    )
    for _ in range(3):
        for a, b in zip(flat.parameters(), plain.parameters(), strict=True):
            gradient = torch.randn(a.shape)
            a.grad.copy_(gradient)
            b.grad = gradient
        mine.step()
        peer.step()
    for (what, a), b in zip(flat.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5, msg=what)
