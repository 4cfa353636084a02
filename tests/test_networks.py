"""The commands about networks, as typed; and the wrong things a person would type."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from rich.console import Console

import effnet
from effnet.nn import weights
from scaling_search.cli import main, networks

HEAD = "resolution = 64\nstem_width = 16\nstem_stride = 2\nhead_width = 0\n"


def output(capsys: pytest.CaptureFixture[str], command: str, status: int = 0) -> str:
    """What a command line prints; it must end with `status`."""
    assert main(shlex.split(command)) == status, capsys.readouterr()
    return capsys.readouterr().out


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    rows = output(capsys, "list").splitlines()
    assert len(rows) == 1 + len(effnet.names())
    row = next(r for r in rows if r.split()[:1] == ["v2-s"]).split()
    assert " ".join(row) == "v2-s v2-s 1 1 384 40 8,365,617,152 21,458,488 35,766,624"


@pytest.mark.parametrize("command", ["list", "cost b0 --blocks", "cost b0 --check"])
def test_in_a_narrow_terminal_nothing_is_cut(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Columns give way from the right: what is left is what a wide one shows."""
    wide = [row.split() for row in output(capsys, command).splitlines()]
    monkeypatch.setattr(networks, "_console", lambda: Console(width=80))
    narrow = output(capsys, command).splitlines()
    (said,) = [line for line in narrow if line.startswith("(wider than 80 columns: ")]
    assert said.endswith(" left out)")
    narrow.remove(said)
    assert len(narrow) == len(wide)
    cut = 0
    for row, whole in zip(narrow, wide, strict=True):
        cells = row.split()
        assert cells == whole[: len(cells)]
        assert len(row) <= 80 or cells == whole
        cut += cells != whole
    assert cut > 5


def test_conventions(capsys: pytest.CaptureFixture[str]) -> None:
    out = output(capsys, "cost b0 --convention all")
    for count in ("385,814,752", "771,629,504", "385,825,092", "401,659,392", "399,352,864"):
        assert count in out
    out = output(capsys, "cost b0 --convention pycls")
    assert "385,825,092" in out
    assert "401,659,392" not in out


def test_cost_says_what_a_member_implies(capsys: pytest.CaptureFixture[str]) -> None:
    out = output(capsys, "cost b3")
    assert "phi    depth 1.85, width 1.91, resolution 2.09" in out
    assert "26 blocks, 300 px" in out
    assert "phi " not in output(capsys, "cost b0 --width 2")
    assert "phi " not in output(capsys, "cost b3 --stage 5.kernel=3")
    assert "phi    depth 1.85" in output(capsys, "cost efficientnet_b3 --classes 10")


def test_cost_per_block(capsys: pytest.CaptureFixture[str]) -> None:
    out = output(capsys, "cost resnet50 --blocks")
    assert "224 → 112" in out
    assert "bottleneck" in out
    assert "118,013,952" in out


def test_overrides_and_rounding(capsys: pytest.CaptureFixture[str]) -> None:
    out = output(
        capsys,
        "cost b0 --stage 5.kernel=3 --stage 5.repeats=4 --rounding nearest",
    )
    net = effnet.arch("b0", stages={5: {"kernel": 3, "repeats": 4}}, rounding="nearest")
    assert f"{effnet.cost(net).macs:,}" in out
    assert "17 blocks" in out


def test_check_and_measure(capsys: pytest.CaptureFixture[str]) -> None:
    out = output(capsys, "cost mobilenetv2 --resolution 64 --check")
    assert "equal to fvcore" in out
    assert "of batch_norm" in out
    out = output(capsys, "cost b0-s4 --width 0.2 --resolution 16 --measure --batch 4")
    assert "ms for 1 image" in out
    assert "bytes at the peak of a training step" in out


@pytest.mark.parametrize(
    ("words", "status", "expected"),
    [
        ("b0 --budget 2x --depth 1.2 --resolution 257", 0, "width 0."),
        ("b0 --budget 4x --along paper", 0, "phi 1."),
        ("b0 --budget 4x --along 1.2,1.1,1.15", 0, "phi 1."),
        ("b0 --budget 8GB --width 1", 0, "resolution "),
        (
            "b0 --budget 2x --width 1 --resolution 224",
            0,
            "shares of multiply-adds: depth 100%, width 0%",
        ),
        ("b0 --budget 1x --along paper", 0, "phi 0: 16 blocks, width 1, 224 px"),
        (
            "b0 --budget 2x --width 1 --resolution 224 --rounding spread",
            0,
            "depth ",
        ),
        ("b0 --budget 256x --shares 1,0,0", 0, "resolution 0%"),
        (
            "resnet50 --budget '5M params' --width 1",
            1,
            "nothing within 2% of 5M params; the nearest has",
        ),
        ("b0 --budget 4x --shares 0.28,0.29,0.43", 0, "shares of multiply-adds: depth"),
    ],
)
def test_solve(capsys: pytest.CaptureFixture[str], words: str, status: int, expected: str) -> None:
    out = output(capsys, f"solve {words}", status)
    assert expected in out
    assert "-0%" not in out
    ratio = re.search(r"--budget ([\d.]+)x", words)
    if ratio:  # the cost it prints is within 2% of the budget
        count = re.search(r"macs ([\d,]+)", out)
        assert count
        cost = int(count[1].replace(",", ""))
        assert cost / 385_814_752 == pytest.approx(float(ratio[1]), rel=0.02)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("b0 --budget 2x --width 0.3 --resolution 224", "depth is 16 times the baseline's"),
        (
            "b0 --budget 2x --width 0.3 --resolution 224",
            "width alone multiplies cost by 0.13 while",
        ),
        ("b0 --budget 0.5x --depth 3 --resolution 224", "depth alone multiplies cost by 2.9 while"),
        ("b0 --budget 256x --shares 1,0,0", "depth is 256 times the baseline's"),
        ("b0 --budget 2x --depth 0.8 --resolution 224", ""),
        ("b0 --budget 0.5x --depth 1 --resolution 192", ""),
        ("b0 --budget 16x --along paper", ""),
        ("b0 --budget 4x --shares 1,0,0", ""),
        ("b0-s4 --budget 60x --depth 1 --width 1", ""),
    ],
)
def test_solve_points_out_what_nobody_trains(
    words: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [line for line in output(capsys, f"solve {words}").splitlines() if "note:" in line]
    assert len(lines) == bool(expected)
    if expected:
        assert lines[0].startswith("note: unusual: ")
        assert expected in lines[0]
        assert "let --along paper or --shares 0.3,0.3,0.4 set all three" in lines[0]


def test_a_network_of_ones_own(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    row = '{ operator = "mbconv", expand = 4, kernel = 3, stride = 2, width = 24, repeats = 2 }'
    mine.write_text(f"{HEAD}stages = [{row}]\n")
    out = output(capsys, f"cost {mine} --classes 10 --check")
    assert "2 blocks, 64 px, 10 classes" in out
    assert "equal to fvcore" in out
    out = output(capsys, f"solve {mine} --budget 2x --resolution 64 --tolerance 0.1")
    assert "width" in out


def test_export_and_back(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    peer = timm.create_model("efficientnet_b0", num_classes=4).eval()
    state_dict, folder = tmp_path / "timm.pth", tmp_path / "net"
    torch.save(peer.state_dict(), state_dict)
    export = "export b0 --classes 4 --resolution 64"
    output(capsys, f"{export} --weights {state_dict} --bn-eps 1e-5 --to {folder}")
    model, images = weights.load(folder), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(images), peer(images), rtol=1e-4, atol=1e-4)
    back = tmp_path / "back.safetensors"
    output(capsys, f"{export} --weights {folder} --names timm --to {back}")
    state = weights.read_state(back)
    assert all(torch.equal(state[name], tensor) for name, tensor in peer.state_dict().items())
    output(capsys, f"{export} --weights {folder} --to {tmp_path / 'net.pt2'}")
    assert (tmp_path / "net.pt2").stat().st_size > 1e6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("cost b9", "unknown network 'b9': did you mean b8?"),
        ("cost b0 --width nan", "width = nan: must be a finite number above 0"),
        ("cost b0 --depth 0", "depth = 0.0: must be a finite number above 0"),
        ("cost b0 --alpha inf", "alpha = inf: must be a finite number above 0"),
        ("cost b0 --phi nan --alpha 1.2", "phi = nan: must be finite"),
        ("cost b0 --resolution 8", "leaves no pixels; at least 16"),
        ("cost b0 --classes 0", "num_classes = 0"),
        ("cost b0 --stage 5.kernel=4", "stage 5: kernel = 4: must be odd"),
        ("cost b0 --stage 2.repeats=0", "stage 2: repeats = 0"),
        ("cost b0 --stage 7.stride=64", "leaves no pixels"),
        ("cost b0 --stage kernel=3", "--stage kernel=3: wanted is N.KEY=VALUE"),
        ("cost b0 --rounding up", "rounding = 'up': known are official"),
        ("cost b0 --convention flops", "invalid choice: 'flops'"),
        ("cost b0 --batch 0", "--batch 0: at least 1"),
        ("cost b0 --check --convention all", "not allowed with argument"),
        ("cost b0 --stage '5.operator=[1]'", "stage 5: operator = [1]: known are mbconv"),
        ("cost b0 --measure --batch 100000000", "--batch 100000000 at 224 px: "),
        (
            "cost b0 --measure --batch 1 --resolution 32",
            "--batch 1 at 32 px: Expected more than 1",
        ),
        ("cost b0 --depth 1e308", "depth = 1e+308: beyond a factor of a million"),
        ("cost b0 --width 1e308", "width = 1e+308: beyond a factor of a million"),
        (
            "cost b0 --resolution 1000000000",
            "resolution = 1000000000: must be a whole number from 1 to",
        ),
        ("cost b0 --stage '².kernel=3'", "wanted is N.KEY=VALUE"),
        ("solve b0 --budget 2x --shares=-1,1,1", "each at least 0, must sum to 1"),
        (
            "solve b0 --budget 2x --width 1 --rounding up",
            "rounding = 'up': known are",
        ),
        ("cost none.toml", "none.toml: No such file"),
        ("cost BAD.toml", "BAD.toml: stage 2: kernel = 2: must be odd"),
        ("solve b0 --budget 2", "budget '2': a budget is a ratio such as 2x"),
        ("solve b0 --budget 2x", "give resolution (width is solved)"),
        (
            "solve b0 --budget 2x --along 1.2,1.1",
            "--along 1.2,1.1: paper, or alpha,beta,gamma",
        ),
        (
            "solve b0 --budget 2x --shares 1,2",
            "--shares 1,2: depth,width,resolution",
        ),
        ("solve b0 --budget 2x --shares 1,1,1", "must sum to 1"),
        (
            "solve b0 --budget 2x --shares 1,0,0 --width 1",
            "give it without them",
        ),
        ("solve b0 --budget 2x --width 1 --tolerance 0", "--tolerance 0"),
        ("solve b3 --budget 2x --width 1", "unknown baseline 'b3'"),
        (
            "export b0 --to net.tflite",
            "a folder, or a file that ends in .onnx, .pt2, .safetensors",
        ),
        ("export b0 --to missing/net.safetensors", "there is no folder missing"),
        ("export b0 --to missing/net.pt2", "there is no folder missing"),
        (
            "export b0 --weights FOLDER --bn-eps 1e-5 --to net",
            "FOLDER says itself how",
        ),
        (
            "export b0 --bn-eps 0 --to net",
            "bn_eps = 0.0: must be from 0 to below 1, and above 0",
        ),
        (
            "export b0 --names timm --to net",
            "--names timm is for --to FILE.safetensors",
        ),
        ("export b0 --weights none.pth --to net", "none.pth: No such file"),
        (
            "export b0 --weights TEXT.pth --to net",
            "TEXT.pth: damaged, or not a state dict",
        ),
        (
            "export b0 --weights CUT.safetensors --to net",
            "CUT.safetensors: damaged or not",
        ),
        (
            "export b1 --weights STATE.pth --to net",
            "state dict does not fit b1: stem.0.weight is",
        ),
        (
            "export b0 --weights FOLDER --to net",
            "FOLDER holds another network (b0-s4) than b0",
        ),
        (
            "export b0 --weights ALTERED --to net",
            "truncated or altered since it was saved",
        ),
    ],
)
def test_bad_input(
    words: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    row = '{ operator = "mbconv", expand = 4, kernel = %d, stride = 2, width = 24, repeats = 2 }'
    Path("BAD.toml").write_text(f"{HEAD}stages = [{row % 3}, {row % 2}]\n")
    Path("TEXT.pth").write_text("not a state dict")
    small = effnet.build(effnet.arch("b0-s4", width=0.1, resolution=16, num_classes=3))
    torch.save(small.state_dict(), "STATE.pth")
    weights.save_state(small.state_dict(), "CUT.safetensors")
    Path("CUT.safetensors").write_bytes(Path("CUT.safetensors").read_bytes()[:-64])
    for folder in ("FOLDER", "ALTERED"):
        weights.save(small, folder)
    data = Path("ALTERED/model.safetensors").read_bytes()
    Path("ALTERED/model.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    before = sorted(tmp_path.rglob("*"))
    status = main(shlex.split(words))
    captured = capsys.readouterr()
    assert (status, captured.err.count("\n")) == (2, 1), captured
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert sorted(tmp_path.rglob("*")) == before, "nothing is written"
