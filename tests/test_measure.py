import pytest
import torch
from torch import nn

import effnet
from effnet.nn.measure import Figure, compare, latency, measure, peak_training_memory


@pytest.mark.parametrize("name", ["b0", "v2-s", "resnet50", "mobilenetv1", "notebook-b0"])
def test_the_difference_to_fvcores_total_is_explained(name: str) -> None:
    report = compare(effnet.arch(name, resolution=33, num_classes=10))
    assert report.equal
    assert report.explained
    assert list(report.extras) == ["batch_norm"]  # our pools are means, which fvcore does not count
    assert report.rows[-1].kind == "total"
    assert report.fvcore_total == report.rows[-1].ours.macs + report.extras["batch_norm"]
    assert all(row.torch_macs == row.ours.macs for row in report.rows)


def test_nothing_hides_between_the_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parameter, or a convolution, that belongs to no kind is seen in the total."""
    net, build = effnet.arch("b0-s4", width=0.2, resolution=16, num_classes=3), effnet.build

    def padded(arch: effnet.Arch) -> nn.Module:
        model = build(arch)
        model.stray = nn.Parameter(torch.zeros(14))  # type: ignore[assignment]
        return model

    monkeypatch.setattr("effnet.nn.measure.effnet.build", padded)
    report = compare(net)
    assert not report.equal
    assert all(row.equal for row in report.rows[:-1])
    assert report.rows[-1].theirs.params == report.rows[-1].ours.params + 14


def test_latency_and_memory_are_of_this_device() -> None:
    net = effnet.arch("b0-s4", width=0.2, resolution=16, num_classes=10)
    assert 0 < latency(net, 4, runs=3) < 60
    small, large = (peak_training_memory(net, batch) for batch in (8, 64))
    parameters = 4 * effnet.cost(net).params
    assert 3 * parameters < small < large


def test_figures_come_one_by_one_the_cheap_first() -> None:
    """Nothing is done before it has been announced: what is costly can be left out."""
    net = effnet.arch("b0-s4", width=0.2, resolution=16, num_classes=10)
    items = list(measure(net, 4))
    figures = [item for item in items if isinstance(item, Figure)]
    assert [(f.name, f.batch) for f in figures] == [("latency", 1), ("latency", 4), ("memory", 4)]
    assert all(figure.value > 0 for figure in figures)
    announced = [items[items.index(figure) - 1] for figure in figures]
    assert str(announced[0]).startswith("latency of 1 image: pass ")
    assert str(announced[1]).startswith("latency of 4 images: pass ")
    assert str(announced[2]).startswith("peak memory of a training step of batch 4")
    assert [f.name for f in measure(net, 1) if isinstance(f, Figure)] == ["latency", "memory"]


def test_slow_passes_are_not_repeated_twenty_times(monkeypatch: pytest.MonkeyPatch) -> None:
    net = effnet.arch("b0-s4", width=0.2, resolution=16, num_classes=10)
    monkeypatch.setattr("effnet.nn.measure._LIMIT", 0.0)
    lines = [item for item in measure(net, 2) if isinstance(item, str)]
    assert sum(line.startswith("latency of 2 images: pass") for line in lines) == 3


def test_figures_known_before_memory_ran_out_are_kept() -> None:
    items = measure(effnet.arch("b0", width=0.1, resolution=32), 10**12)
    known = []
    with pytest.raises(RuntimeError):
        for item in items:
            known.append(item)
    assert [item.batch for item in known if isinstance(item, Figure)] == [1]
