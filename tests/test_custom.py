"""Functions as baselines: what torch counts of them, what is refused, and whole studies of one."""

import dataclasses
import importlib
import json
import random
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import effnet
from effnet import counting, custom
from effnet.arch import network_from_dict, scale
from effnet.cost import cost, training_memory
from effnet.custom import Counts, CustomArch, Function, FunctionError
from effnet.nn import count, weights
from effnet.solve import fit, width_within
from scaling_search import UserError
from scaling_search.cli import main
from scaling_search.data.dataset import Dataset
from scaling_search.driver.search import StoppedError
from scaling_search.study.plan import plan
from scaling_search.study.settings import check, read
from scaling_search.training.trial import Trial
from tests import functions
from tests.searches import Quiet, Warm, search

EXAMPLES = Path(__file__).parent.parent / "examples"


def network(place: str, depth: float = 1, width: float = 1, side: int = 12) -> CustomArch:
    net = scale(custom.find(place), depth, width, side, num_classes=10)
    assert isinstance(net, CustomArch)
    return net


# ---- counts


def torchs_macs(model: nn.Module, side: int) -> int:
    """What torch's own counter says of a pass. Not of the CPU's attention, of which it has no
    formula: on the meta device attention is products of matrices."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval().to("meta")(torch.zeros(1, 3, side, side, device="meta"))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", ["vit", "resnet", "convnext", "mobilenetv3"])
def test_examples_are_counted_as_torch_counts(name: str) -> None:
    function = custom.find(f"{EXAMPLES / name}.py:build")
    rng = random.Random(name)
    for _ in range(6):
        depth, width = rng.uniform(0.6, 2), rng.uniform(0.6, 1.6)
        side = rng.randrange(32, 97)
        net = scale(function, depth, width, side, num_classes=rng.randrange(2, 30))
        assert isinstance(net, CustomArch)
        model = count.build(net)
        assert net.counts.params == sum(p.numel() for p in model.parameters())
        assert model(torch.zeros(2, 3, side, side)).shape == (2, net.num_classes)
        assert net.counts.macs == torchs_macs(model, side)


def test_attention_is_counted_as_its_products() -> None:
    net = scale(custom.find(f"{EXAMPLES / 'vit.py'}:build"), 1, 1, 16, num_classes=10)
    assert isinstance(net, CustomArch)
    layers, tokens, c, hidden = 6, 8 * 8, 24, 48
    layer = 4 * c * c * tokens + 2 * c * tokens**2 + 2 * c * hidden * tokens
    assert net.counts.macs == 3 * 2 * 2 * c * tokens + layers * layer + 10 * c


def test_b0_through_a_function_costs_what_the_table_says(tmp_path: Path) -> None:
    place = functions.write(
        tmp_path,
        """
        import effnet
        from effnet.families import BASELINES

        def build(depth, width, resolution=224, num_classes=1000, in_channels=3):
            base = BASELINES["b0"]
            return effnet.build(effnet.arch(base, depth=depth, width=width,
                resolution=resolution, num_classes=num_classes, in_channels=in_channels))
        """,
    )
    function = dataclasses.replace(custom.find(place), in_channels=4)
    rng = random.Random(0)
    for _ in range(4):
        depth, width, side = rng.uniform(0.5, 2), rng.uniform(0.5, 2), rng.randrange(32, 300)
        of_function = scale(function, depth, width, side)
        of_table = effnet.arch("b0", depth=depth, width=width, resolution=side, in_channels=4)
        assert cost(of_function) == cost(of_table)


def test_weights_are_no_activations(tmp_path: Path) -> None:
    """A linear layer saves its weights turned, which is a view of them."""
    place = functions.write(
        tmp_path,
        """
        from torch import nn

        def build(depth, width, resolution=8, num_classes=10, in_channels=3):
            hidden = round(2048 * width)
            return nn.Sequential(nn.Flatten(), nn.Linear(3 * resolution**2, hidden), nn.ReLU(),
                                 nn.Linear(hidden, hidden), nn.ReLU(),
                                 nn.Linear(hidden, num_classes))
        """,
    )
    saved = count.saved_for_backward(network(place, side=8))
    # the images, both hidden layers, the logits
    assert saved <= 2 * (3 * 8**2 + 2 * 2048 + 10)


@pytest.fixture
def without_side(tmp_path: Path) -> str:
    """A function that says no resolution of its own."""
    source = functions.SMALL.replace("resolution=12, num_classes=10", "resolution, num_classes")
    return functions.write(tmp_path, source.replace("in_channels=3", "in_channels"))


def test_a_function_without_a_side_of_its_own(without_side: str) -> None:
    with pytest.raises(FunctionError, match="its resolution has no default"):
        effnet.arch(without_side, alpha=1.2, num_classes=10)
    with pytest.raises(FunctionError, match="its resolution has no default"):
        fit(without_side, "2x", along="paper", num_classes=10)
    assert fit(without_side, "2x", resolution=12, num_classes=10).met


def test_a_function_is_asked_for_no_size_far_from_the_answer(tmp_path: Path) -> None:
    """Not for the 16,384 px that a dial may reach."""
    check = "channels = max(1, round(32 * width))\n        assert resolution <= 48, resolution"
    limited = functions.SMALL.replace("channels = max(1, round(32 * width))", check)
    solution = fit(functions.write(tmp_path, limited), "4x", width=1.0, num_classes=10)
    assert solution.met
    assert 22 <= solution.value <= 26


def test_parameters_that_depend_on_resolution_are_solved_for(tmp_path: Path) -> None:
    place = functions.write(
        tmp_path,
        """
        from torch import nn

        def build(depth, width, resolution=32, num_classes=10, in_channels=3):
            return nn.Sequential(nn.Flatten(), nn.Linear(3 * resolution**2, round(64 * width)),
                                 nn.Linear(round(64 * width), num_classes))
        """,
    )
    solution = fit(place, "2x params", width=1.0, num_classes=10)
    assert solution.value == 45
    unmoved = fit(functions.write(tmp_path), "2x params", width=1.0, num_classes=10)
    assert unmoved.value == 12


@pytest.mark.parametrize(
    ("dials", "message"),
    [({"resolution": 32.5}, "must be whole numbers"), ({"num_classes": 0}, "at least 1")],
)
def test_sizes_that_are_none(dials: dict[str, Any], message: str, tmp_path: Path) -> None:
    place = functions.write(tmp_path)
    with pytest.raises(FunctionError, match=message):
        effnet.arch(place, **dials)
    classes = np.int64(10)
    assert effnet.arch(place, num_classes=classes) == effnet.arch(place, num_classes=10)


def test_a_file_is_run_as_python_runs_it(tmp_path: Path) -> None:
    """Annotations stay what they are, unless the file itself defers them."""
    source = textwrap.dedent(functions.SMALL)
    helper = "def helper(x: int): ...\nassert helper.__annotations__['x'] is int\n"
    assert network(functions.write(tmp_path, helper + source)).counts.macs


@pytest.mark.parametrize(
    ("layer", "status", "said"),
    [
        ("nn.LSTM(channels, channels)", 0, "fvcore does not count aten::lstm"),
        ("Vector(channels)", 2, "fvcore cannot count it"),
    ],
)
def test_what_fvcore_cannot_count_is_said(
    layer: str, status: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = f"""
        import torch
        from torch import nn

        class Vector(nn.Module):
            def __init__(self, channels):
                super().__init__()
                self.vector = nn.Parameter(torch.ones(channels))

            def forward(self, x):
                return x * (x @ self.vector)[:, None]

        class Net(nn.Module):
            def __init__(self, channels, classes):
                super().__init__()
                self.stem, self.layer = nn.Conv2d(3, channels, 3, 2, 1), {layer}
                self.head = nn.Linear(channels, classes)

            def forward(self, x):
                x = self.layer(self.stem(x).mean((2, 3)))
                return self.head(x[0] if isinstance(x, tuple) else x)

        def build(depth, width, resolution=12, num_classes=10, in_channels=3):
            channels = max(1, round(16 * width))
            return Net(channels, num_classes)
    """
    place = functions.write(tmp_path, source)
    assert main(["cost", place, "--classes", "10", "--check"]) == status
    captured = capsys.readouterr()
    assert said in captured.out + captured.err


def test_a_network_is_known_by_what_it_is(tmp_path: Path) -> None:
    place = functions.write(tmp_path)
    one, other = network(place, depth=1.0), network(place, depth=1.1)
    assert one == other  # four layers both
    assert one.key == other.key
    assert one != network(place, depth=1.25)
    assert one != network(place, side=13)
    assert network_from_dict(json.loads(json.dumps(one.as_dict()))) == one
    assert "source" not in one.as_dict()
    assert effnet.arch(place, depth=1.1, resolution=12, num_classes=10) == one


def test_memory_is_what_a_step_saves(tmp_path: Path) -> None:
    net = network(functions.write(tmp_path))
    small, large = training_memory(net, 8), training_memory(net, 16)
    # the input, and of each of the layers at 6 px what its backward pass reads
    assert large - small > 8 * 4 * 8 * 36 * 5
    assert training_memory(net, 8, "bf16") < small


def test_counts_are_kept_for_the_next_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCALING_SEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(counting, "_known", {})
    place = functions.write(tmp_path)
    nets = [network(place), network(place, depth=2)]
    (file,) = (tmp_path / "cache" / "counts").iterdir()
    with file.open("a") as lines:
        lines.write('["[1.0, 1.0, 9')  # a process was killed as it wrote
    monkeypatch.setattr(counting, "_known", {})
    counted: list[int] = []
    of_torch = count.count

    def count_and_note(*call: Any) -> Counts:
        counted.append(1)
        return of_torch(*call)

    monkeypatch.setattr(count, "count", count_and_note)
    assert [network(place), network(place, depth=2)] == nets
    assert len(counted) == 1  # the first, to see that nothing has changed
    functions.write(tmp_path, functions.SMALL.replace("32 * width", "33 * width"))
    assert network(place) != nets[0]
    assert len(counted) == 2


def test_counts_that_cannot_be_kept_stop_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SCALING_SEARCH_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(counting, "_known", {})
    assert network(functions.write(tmp_path)).counts.macs > 0


def test_a_function_that_reads_values_as_it_builds(tmp_path: Path) -> None:
    place = functions.write(
        tmp_path,
        functions.SMALL.replace(
            "channels = max",
            "rates = [x.item() for x in torch.linspace(0, 1, 3)]\n        channels = max",
        ),
    )
    (tmp_path / "other").mkdir()
    assert network(place).counts.macs == network(functions.write(tmp_path / "other")).counts.macs


# ---- depths and widths


def test_depths_are_one_for_each_network(tmp_path: Path) -> None:
    function = custom.find(functions.write(tmp_path))
    # int(4 * depth + 0.5): 4 below 1.125, 5 below 1.375, ...
    assert counting.distinct_depths(function, 1, 2, 10) == [1, 1.2, 1.5, 1.7, 2]
    assert counting.distinct_depths(function, 0.5, 1, 10) == [0.6, 0.7, 1]


def test_a_width_within(tmp_path: Path) -> None:
    function = custom.find(functions.write(tmp_path))
    macs = [network(function.place, 1, width / 1000).counts.macs for width in range(1000, 2001)]
    target = 2 * macs[0]
    width = width_within(function, target, 1, 12, 10, (1, 2), 0.0)
    nearest = min(abs(each - target) for each in macs)
    assert abs(network(function.place, 1, width).counts.macs - target) == nearest
    assert width_within(function, macs[0] / 2, 1, 12, 10, (1, 2), 0.0) == 1
    assert width_within(function, 100 * macs[0], 1, 12, 10, (1, 2), 0.0) == 2


# ---- what is refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ((("def build", "def construct"),), "has no function build"),
        ((("def build", "build = 3\n    def other"),), "build is no function"),
        ((("depth, width, resolution=12", "d, w, resolution=12"),), "wanted is build(depth,"),
        ((("import torch", "import torch_geometry"),), "line 2: ModuleNotFoundError"),
        ((("return nn.Sequential", "return nn.Sequentia"),), "line 10: AttributeError"),
        ((("return nn.Sequential(", "return list(("), ("num_classes))", "num_classes)))")), "list"),
        ((("return nn.Sequential", "raise SystemExit(0)\n        return nn.Sequential"),),
         "SystemExit"),
        ((("nn.Linear(channels, num_classes)", "nn.LazyLinear(num_classes)"),), "lazy layers"),
        ((("channels, num_classes)", "channels, 7)"),), "gives [1, 7] for one image; wanted is"),
        ((("nn.Linear(channels, num_classes)", "nn.Identity()"),), "gives [1, 32] for one image"),
        ((("channels = max(1, round(32 * width))", "channels ="),), "line 6: SyntaxError"),
    ],
)  # fmt: skip
def test_functions_that_cannot_be_a_baseline(
    changes: tuple[tuple[str, str], ...], words: str, tmp_path: Path
) -> None:
    source = functions.SMALL
    for old, new in changes:
        assert old in source
        source = source.replace(old, new)
    with pytest.raises(FunctionError) as raised:
        network(functions.write(tmp_path, source))
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("channels = max", "import random; width *= random.uniform(1, 2); channels = max",
         "another network at each call"),
        ("int(4 * depth + 0.5)", "int(4 / depth)", "cost falls as depth rises"),
        ("round(32 * width)", "8", "width does nothing"),
        ("channels = max",
         "if resolution > 20: raise ValueError('too large')\n        channels = max",
         "24 px: net.py, line 6: ValueError: too large"),
        ("nn.Flatten(),", "nn.Flatten(), nn.LogSoftmax(1), nn.BatchNorm1d(channels, affine=False),",
         ""),
        ("nn.Linear(channels, num_classes))",
         "nn.Linear(channels, num_classes), Detached())\n\n    class Detached(nn.Module):\n"
         "        def forward(self, x):\n            return x.detach()",
         "a training step of two images, 12 px"),
    ],
)  # fmt: skip
def test_functions_that_a_search_cannot_take(
    old: str, new: str, words: str, tmp_path: Path
) -> None:
    assert old in functions.SMALL
    function = custom.find(functions.write(tmp_path, functions.SMALL.replace(old, new)))
    if not words:
        assert counting.check(function, 10) == []
        return
    with pytest.raises(FunctionError) as raised:
        counting.check(function, 10)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("nowhere.py:build", "there is no file nowhere.py"),
        ("no.such.module:build", "no.such"),
        ("torch:build", "has no function build"),
        ("not a module:build", "is neither a .py file nor the name of a module"),
    ],
)
def test_wrong_places(place: str, words: str) -> None:
    with pytest.raises(FunctionError, match=words):
        custom.find(place)


def test_a_function_of_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    functions.write(tmp_path / "package")
    monkeypatch.chdir(tmp_path)  # from where it can be imported
    net = network("package.net:build")
    assert net.counts == network(f"{tmp_path}/package/net.py:build").counts
    assert isinstance(effnet.build(net), nn.Sequential)


def test_a_file_beside_the_functions_own(tmp_path: Path) -> None:
    (tmp_path / "layers_of_mine.py").write_text("WIDTH = 8\n")
    source = functions.SMALL.replace("32 * width", "layers_of_mine.WIDTH * width")
    place = functions.write(tmp_path, source.replace("import torch\n", "import layers_of_mine\n"))
    assert network(place).counts.macs > 0


# ---- building


def test_weights_are_the_seeds(tmp_path: Path) -> None:
    draws = (
        "import random\n        import numpy as np\n"
        "        bias = random.random() + np.random.rand()\n"
        "        nn.init.constant_(layers[0].bias, bias)\n        return nn.Sequential"
    )
    source = functions.SMALL.replace("return nn.Sequential", draws)
    net = network(functions.write(tmp_path, source))

    def drawn(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        return [p.detach() for p in effnet.build(net).parameters()]

    for one, other in zip(drawn(1), drawn(1), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(drawn(1)[1], drawn(2)[1])


def test_dropout_is_the_recipes_affair(tmp_path: Path) -> None:
    source = functions.SMALL.replace("nn.Flatten(),", "nn.Flatten(), nn.Dropout(0.4),")
    net = network(functions.write(tmp_path, source))
    rates = [m.p for m in effnet.build(net, dropout=0.0).modules() if isinstance(m, nn.Dropout)]
    assert rates == [0.0]
    rates = [m.p for m in effnet.build(net).modules() if isinstance(m, nn.Dropout)]
    assert rates == [0.4]


def test_what_was_recorded_runs_nothing(tmp_path: Path) -> None:
    net = network(functions.write(tmp_path))
    recorded = network_from_dict(net.as_dict())
    with pytest.raises(FunctionError, match="only what was recorded of this function is here"):
        effnet.build(recorded)


def test_no_source_is_taken_from_a_record(tmp_path: Path) -> None:
    net = network(functions.write(tmp_path))
    recorded = {**net.as_dict(), "source": net.function.source}
    with pytest.raises(FunctionError, match="only what was recorded of this function is here"):
        custom.load(CustomArch.from_dict(recorded).function)
    altered = dataclasses.replace(net.function, source=net.function.source + "print('mine')")
    with pytest.raises(FunctionError, match="its source is not the one of its digest"):
        custom.load(altered)
    for name, wrong in (("macs", None), ("resolution", "<b>"), ("depth", "a"), ("function", 5)):
        with pytest.raises(ValueError, match=f"network: {name} = "):
            CustomArch.from_dict({**net.as_dict(), name: wrong})
    with pytest.raises(ValueError, match="not a description of one"):
        CustomArch.from_dict({"function": "net.py:build"})


def test_what_has_changed_or_is_not_asked_for_is_not_run(tmp_path: Path) -> None:
    place = functions.write(tmp_path)
    (tmp_path / "study.toml").write_text(read_study(place, {}).to_toml())
    (tmp_path / "net.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(UserError, match="has changed since the study was made"):
        read(tmp_path / "study.toml")
    assert read(tmp_path / "study.toml", {"baseline.name": "b0-s4"}).baseline.name == "b0-s4"
    assert not (tmp_path / "ran").exists()


def test_what_a_file_draws_as_it_is_run_changes_no_run(tmp_path: Path) -> None:
    source = functions.SMALL.replace("import torch\n", "import torch\n    torch.manual_seed(0)\n")
    net = network(functions.write(tmp_path, source))

    def first_weights() -> torch.Tensor:
        torch.manual_seed(5)
        return next(effnet.build(net).parameters()).detach()

    custom._run_source.cache_clear()  # as in a process that has not run it
    assert torch.equal(first_weights(), first_weights())


def test_counts_are_forgotten_where_what_a_file_imports_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCALING_SEARCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "width_of_mine.py").write_text("WIDTH = 8\n")
    source = functions.SMALL.replace("32 * width", "width_of_mine.WIDTH * width")
    place = functions.write(
        tmp_path, source.replace("import torch\n", "import width_of_mine\n    import torch\n")
    )
    monkeypatch.setattr(counting, "_known", {})
    before = network(place)
    (tmp_path / "width_of_mine.py").write_text("WIDTH = 16\n")
    for module in ("width_of_mine", f"baseline_{before.function.digest}"):
        sys.modules.pop(module)
    custom._run_source.cache_clear()
    importlib.invalidate_caches()
    monkeypatch.setattr(counting, "_known", {})
    assert network(place).counts.macs > 2 * before.counts.macs


def test_a_file_of_the_users_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = functions.write(tmp_path)
    (tmp_path / "baseline.py").write_text("# precious\n")
    command = ["search", "--baseline", place, *QUICKLY, "--out", str(tmp_path)]
    assert main(command) == 2
    assert "a file of yours" in capsys.readouterr().err
    assert (tmp_path / "baseline.py").read_text() == "# precious\n"


def test_the_source_travels_with_a_trial(trial: Trial, tmp_path: Path) -> None:
    net = network(functions.write(tmp_path))
    sent = dataclasses.replace(trial, arch=net)
    received = Trial.from_dict(json.loads(json.dumps(sent.as_dict())))
    assert received == sent
    assert received.key == sent.key
    (tmp_path / "net.py").unlink()
    assert isinstance(effnet.build(received.arch), nn.Module)


# ---- studies


def refused(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command is refused."""
    assert main(command) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


QUICKLY = [
    "--data", "shapes", "--device", "cpu", "--candidates", "4", "--extra", "0", "--batch", "16",
    "--train-images", "96", "--val-images", "60", "--set", "references=[]",
    "--set", "data.epoch_images=64", "--set", "recipe.bn_images=32", "--budget", "2x",
]  # fmt: skip


def test_a_study_of_a_function(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place = functions.write(tmp_path)
    command = ["search", "--baseline", "net.py:build", *QUICKLY, "--out", "run"]
    assert main(command) == 0
    said = capsys.readouterr().out
    (use,) = [line for line in said.splitlines() if line.startswith("use ")]
    use_command = shlex.split(use, comments=True)[2:]
    assert "net.py:build, width 1, at 12 px" in said
    assert "a function's modules train as torch runs them" in " ".join(said.split())
    assert Path("run/baseline.py").read_text() == Path("net.py").read_text()

    # the same command goes on from there, and so does the study that was written
    assert main(command) == 0
    assert "every run of this study is recorded" in " ".join(capsys.readouterr().out.split())
    assert main(["search", "--study", "run/study.toml", "--out", "run"]) == 0
    capsys.readouterr()

    # the pick is trained by the command that the answer names, and by none that names no code
    assert use_command[:2] == ["train", "run"]
    assert use_command[-4:] == ["--baseline", "net.py:build", "--to", "run/trained.safetensors"]
    assert main(use_command) == 0
    assert "the pick of run, 1" in capsys.readouterr().out
    pick = effnet.read_config("run", "net.py:build")
    effnet.build(pick).load_state_dict(weights.read_state("run/trained.safetensors"))
    assert "give the function itself with --baseline" in refused(["train", "run"], capsys)
    to = ["--to", "pick.safetensors"]
    assert "give the function itself with --baseline" in refused(["export", "run", *to], capsys)
    assert main(["export", "run", "--baseline", "net.py:build", *to]) == 0
    gone = ["train", "run", "--baseline", "gone.py:build"]
    assert "there is no file gone.py" in refused(gone, capsys)
    solving = ["solve", "run", "--budget", "2x", "--width", "1"]
    assert "its baseline is the function net.py:build; give it itself" in refused(solving, capsys)
    in_folder = [*use_command[:-4], "--to", "trained"]
    functions_go_to_files = refused([*in_folder, "--baseline", "net.py:build"], capsys)
    assert "a function's weights go to a file" in functions_go_to_files
    capsys.readouterr()

    # another function is another study
    Path("net.py").write_text(Path("net.py").read_text() + "\n# changed\n")
    assert "baseline.function is" in refused(command, capsys)
    again = ["search", "--study", "run/study.toml", "--out", "run"]
    assert "has changed since the study was made" in refused(again, capsys)

    # a family asks for it
    assert "--baseline net.py:build" in refused(["family", "run", "--budgets", "4x"], capsys)
    changed = ["train", "run", "--baseline", "net.py:build"]
    assert "not the function that built this network" in refused(changed, capsys)
    of_another = ["family", "run", "--budgets", "4x", "--baseline", "net.py:build"]
    assert "not the function of the study" in refused(of_another, capsys)
    Path("net.py").write_text(Path("run/baseline.py").read_text())
    assert main(of_another) in (0, 2)  # 2: the pick shrinks one dimension to grow another
    capsys.readouterr()

    # a report needs no function, and runs none
    Path("net.py").unlink()
    assert main(["report", "run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "choose depth" in said
    assert place not in Path("run/results.csv").read_text()
    assert place not in Path("run/config.json").read_text()
    assert main(["cost", "run"]) == 0
    assert "net.py:build" in json.loads(Path("run/config.json").read_text())["arch"]["function"]
    assert f"{pick.counts.macs:,}" in capsys.readouterr().out


def test_a_study_that_was_stopped_goes_on_from_its_records(
    data: Dataset, warm: Warm, tmp_path: Path
) -> None:
    spent = {"extra": 0, "rungs": [1], "references": [], "space.candidates": 3, "device": "cpu"}
    images = {"data.train_images": 96, "data.val_images": 60, "data.epoch_images": 64}
    study = read_study(functions.write(tmp_path), {**spent, **images, "recipe.batch": 16})
    watcher = Quiet()
    folder = tmp_path / "run"
    with pytest.raises(StoppedError):
        search(study, data, folder, warm(1), watcher, lambda: len(watcher.seen) >= 2)
    _, table = search(study, data, folder, warm(1))
    assert set(table["status"]) == {"done"}, table["note"].tolist()
    # the baseline's run is of the first sitting, and is measured on the test split in the second
    assert table["test_acc"].notna().sum() >= 2


def test_a_function_without_depth_makes_a_map_of_two(tmp_path: Path) -> None:
    place = functions.write(tmp_path, functions.SMALL.replace("int(4 * depth + 0.5)", "4"))
    study = read_study(place, {"space.candidates": 5})
    planned = plan(study, 10, 64)
    assert "net.py:build costs the same at any depth: the map has no depth" in planned.notes
    for candidate in planned.candidates:
        assert candidate.alpha == 1
        assert candidate.shares is not None
        assert candidate.shares[0] == 0


def test_networks_of_a_function_meet_the_budget(tmp_path: Path) -> None:
    said: list[str] = []
    study = read_study(functions.write(tmp_path), {})
    planned = plan(study, 10, 64, progress=said.append)
    assert len(planned.candidates) >= 5
    assert len({candidate.key for candidate in planned.candidates}) == len(planned.candidates)
    for candidate in planned.candidates:
        assert candidate.cost == cost(candidate.arch)
        assert abs(candidate.ratio / 2 - 1) <= 0.02
    assert any(words.startswith("0 of ") for words in said)


def read_study(place: str, changes: dict[str, Any]) -> Any:
    settings = {"baseline.name": place, "data.source": "shapes", **changes}
    preset = Path(__file__).parent.parent / "studies" / "quick.toml"
    return read(preset, settings)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"baseline.blocks": 8}, "blocks and divisor are of tables"),
        ({"baseline.divisor": 2}, "blocks and divisor are of tables"),
        ({"space.mode": "nominal"}, "the paper's nominal lattice takes a table"),
    ],
)
def test_settings_of_tables(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        read_study(functions.write(tmp_path), changes)


def test_a_resolution_is_needed(tmp_path: Path) -> None:
    place = functions.write(
        tmp_path,
        functions.SMALL.replace(
            "resolution=12, num_classes=10, in_channels=3", "resolution, num_classes, in_channels"
        ),
    )
    with pytest.raises(UserError, match="its resolution has no default"):
        read_study(place, {})
    assert read_study(place, {"baseline.resolution": 14}).network().resolution == 14
    with pytest.raises(FunctionError, match="its resolution has no default"):
        effnet.arch(place)


def test_a_study_that_is_only_read_runs_nothing(tmp_path: Path) -> None:
    study = read_study(functions.write(tmp_path), {})
    (tmp_path / "net.py").write_text("raise SystemExit('it was run')")
    again = check(study.settings(), "study.toml")
    assert isinstance(again.network(), Function)
    assert again.network() == study.network()


# ---- the other commands


def test_cost_solve_and_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = functions.write(tmp_path)
    assert main(["cost", place, "--classes", "10", "--check"]) == 0
    said = capsys.readouterr().out
    assert "counted by torch on the meta device" in said
    assert "equal to fvcore (macs)" in said
    assert main(["solve", place, "--budget", "2x", "--depth", "1.5", "--resolution", "14"]) in (
        0,
        1,
    )
    assert "depth 1.5, width" in capsys.readouterr().out
    assert main(["solve", place, "--budget", "2x", "--along", "paper"]) in (0, 1)
    assert main(["solve", place, "--budget", "2x", "--shares", "0.4,0.3,0.3"]) in (0, 1)
    for name in ("net.pt2", "net.safetensors"):
        assert main(["export", place, "--classes", "10", "--to", str(tmp_path / name)]) == 0
        assert (tmp_path / name).stat().st_size > 1000
    capsys.readouterr()
    to = str(tmp_path / "x.safetensors")
    for option in (["--to", str(tmp_path / "folder")], ["--to", to, "--names", "timm"]):
        assert "a function" in refused(["export", place, *option], capsys)
    for option in (["--blocks"], ["--convention", "all"]):
        assert "whose blocks are its own" in refused(["cost", place, *option], capsys)
    rounding = ["solve", place, "--budget", "2x", "--width", "1", "--rounding", "nearest"]
    assert "rounds as it will" in refused(rounding, capsys)


def test_train_and_its_checkpoints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    functions.write(tmp_path)
    words = ["train", "net.py:build", "--data", "shapes", "--device", "cpu", "--resolution", "12"]
    words += ["--train-images", "96", "--val-images", "60", "--batch", "16", "--epochs", "2"]
    assert main(words) == 0
    assert "net.py:build, 12 px" in capsys.readouterr().out


def test_a_function_from_the_shell(tmp_path: Path) -> None:
    functions.write(tmp_path, functions.SMALL.replace("import torch\n", "import no_such_package\n"))
    done = subprocess.run(
        [sys.executable, str(EXAMPLES.parent / "run_search.py"), "--baseline", "net.py:build",
         "--data", "shapes", "--device", "cpu"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "net.py, line 2: ModuleNotFoundError: No module named 'no_such_package'" in line
    assert not (tmp_path / "runs").exists()
