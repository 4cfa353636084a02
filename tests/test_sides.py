"""Inputs that are not square: cost, modules, images, a study."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import effnet
from effnet.arch import Arch, columns_at, least_side, parse_sides, scale
from effnet.budget import Budget
from effnet.cost import cost, training_memory
from effnet.definition import parse_baseline
from effnet.families import BASELINES, named_baseline
from effnet.nn.measure import compare
from effnet.solve import fit, solve
from scaling_search.cli import main
from scaling_search.data.augment import augmented
from scaling_search.data.images import Images, resized
from scaling_search.data.randaugment import OPERATIONS, randaugmented
from scaling_search.data.source import Options
from scaling_search.data.sources import load
from scaling_search.results.reading import open_results
from scaling_search.study.settings import preset_path, read


def test_what_is_typed() -> None:
    assert parse_sides(224) == (224, 0)
    assert parse_sides("96x160") == parse_sides("96×160") == parse_sides(" 96 X 160 ") == (96, 160)
    assert parse_sides("96x96") == (96, 96)
    wide = named_baseline("b0").at("96x160")
    assert (wide.at(48).resolution, wide.at(48).columns) == (48, 80)
    assert wide.at("48x48").columns == 0
    for wrong in ("96x", "x96", "96x160x3", "a", "0x4", "-3", "9.5", True):
        with pytest.raises(ValueError, match="rows and columns, such as 96x160"):
            parse_sides(wrong)


def test_a_square_is_what_it_was() -> None:
    """Keys and records of square networks say nothing of columns."""
    net = effnet.arch("b0")
    assert isinstance(net, Arch)
    assert "columns" not in net.as_dict()
    assert effnet.arch("b0", resolution="224x224").key == net.key
    assert (net.sides, net.px) == ((224, 224), "224 px")


def test_counts_of_the_referees() -> None:
    """Random networks of all families at 96×160 and others of its proportion, to the unit; 200 of
    them: benchmarks/exact.py --sides 96x160."""
    rng = random.Random(1)
    for name in rng.sample(sorted(BASELINES), 8):
        base = BASELINES[name].at("96x160")
        net = scale(base, 1.0, 0.3, 96 + rng.choice((0, 7, 20)), num_classes=10)
        report = compare(net)
        assert report.equal, name
        assert report.explained, name
        assert net.columns == round(net.resolution * 160 / 96)


def test_a_network_says_its_sides() -> None:
    net = effnet.arch("b0", resolution="96x160")
    assert isinstance(net, Arch)
    assert net.px == "96×160 px"
    assert Arch.from_dict(net.as_dict()) == net
    assert net.key != effnet.arch("b0", resolution=96).key != effnet.arch("b0", resolution=160).key
    turned = effnet.arch("b0", resolution="160x96")
    assert cost(turned) == cost(net)
    assert turned.key != net.key
    assert training_memory(turned) == training_memory(net)
    small = cost(effnet.arch("b0", resolution=96)).macs
    assert small < cost(net).macs < cost(effnet.arch("b0", resolution=160)).macs
    logits = effnet.build(net).eval()(torch.zeros(1, 3, 96, 160))
    assert logits.shape == (1, 1000)


def test_solved_in_its_proportion() -> None:
    base = named_baseline("b0").at("96x160")
    net = solve(base, "2x", depth=1.0, resolution=112)
    assert isinstance(net, Arch)
    assert net.columns == columns_at(base, net.resolution) == 187
    assert abs(cost(net).macs / cost(scale(base)).macs - 2) <= 0.04
    stages = [
        {"operator": "mbconv", "expand": 1, "kernel": 3, "stride": 2, "width": 8, "repeats": 1}
    ]
    table = {"name": "t", "stem_width": 8, "stem_stride": 2, "head_width": 16, "stages": stages}
    base = parse_baseline({**table, "resolution": "48x64"}, "t.toml")
    assert (base.resolution, base.columns) == (48, 64)
    with pytest.raises(ValueError, match="rows and columns, such as 96x160"):
        parse_baseline({**table, "resolution": "48by64"}, "t.toml")


@pytest.mark.parametrize("sides", ["480x640", "1080x1920", "300x301"])
def test_solved_at_the_sides_that_were_asked_for(sides: str) -> None:
    """Not at those of the baseline's proportion in whole pixels, scaled up."""
    budget = "20x" if sides == "1080x1920" else "4x"
    solution = fit("b0", budget, resolution=sides)
    assert "x".join(map(str, solution.arch.sides)) == sides
    # against the baseline at its own 224 rows
    rows, columns = map(int, sides.split("x"))
    reference = effnet.baseline("b0").at(f"224x{round(224 * columns / rows)}")
    ratio = effnet.cost(solution.arch).macs / effnet.cost(scale(reference)).macs
    assert solution.off == pytest.approx(ratio / float(budget[:-1]) - 1)


def test_tall_images_are_solved_as_far_as_their_columns_go() -> None:
    tall = effnet.baseline("b0").at("320x64")
    half = fit(tall, "0.5x", along="paper")
    assert abs(half.off) < 0.1  # as near as whole blocks and strides of 32 px come
    assert half.arch.sides[0] == pytest.approx(5 * half.arch.sides[1], abs=3)
    least = fit(tall, "0.01x", width=1.0).arch
    assert least_side(32) <= least.sides[1] <= 32


def test_images_are_turned_and_moved_alike() -> None:
    """A rectangle of one colour at the left: flipped it is at the right, moved it has moved."""
    images = torch.zeros(2, 3, 6, 10, dtype=torch.uint8)
    images[:, :, :, :3] = 200
    flipped = augmented(images, mirror=torch.tensor([False, True]))
    assert torch.equal(flipped[1], images[1].flip(-1))
    assert torch.equal(flipped[0], images[0])
    moved = augmented(images, shift=torch.tensor([[0, -2], [0, 2]]))
    assert (moved[0, 0, 0] > 0).sum() == 5
    assert (moved[1, 0, 0] > 0).sum() == 1
    cut = augmented(images, centre=torch.tensor([[5, 9], [0, 0]]), cutout=4)
    assert cut[0, 0, 5, 9] == 128
    assert (cut[0, 0, 0, :3] == 200).all()


@pytest.mark.parametrize("operation", ["ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"])
def test_randaugment_beside_a_larger_square(operation: str) -> None:
    """Shears and turns of a rectangle are those of a square around it, about the same centre; a
    shift is in proportion to its own side."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(1, 256, (2, 3, 20, 36), generator=generator, dtype=torch.uint8)
    number, identity = OPERATIONS.index(operation), OPERATIONS.index("Identity")
    operations = torch.tensor([[number, identity]] * 2)
    signs = torch.tensor([[False, False], [True, False]])
    wide = randaugmented(images, operations, signs)
    turned = {"ShearX": "ShearY", "TranslateX": "TranslateY"}
    turned |= {there: here for here, there in turned.items()}
    if operation != "Rotate":  # of the transposed image it is the other one's
        number = OPERATIONS.index(turned[operation])
        operations = torch.tensor([[number, identity]] * 2)
        tall = randaugmented(images.transpose(2, 3), operations, signs)
        assert torch.equal(tall.transpose(2, 3), wide)
    else:  # turned the other way
        tall = randaugmented(images.transpose(2, 3), operations, ~signs)
        inside = (wide > 0) & (tall.transpose(2, 3) > 0)
        same = wide == tall.transpose(2, 3)
        assert same[inside].float().mean() > 0.95
    assert not torch.equal(wide, images)


def folder(root: Path, height: int, width: int) -> Path:
    """Images whose left edge is red and whose right edge is blue; the middle is of their class."""
    rng = np.random.default_rng(0)
    for name, colour in (("dark", 40), ("light", 200)):
        (root / name).mkdir(parents=True)
        for i in range(40):
            pixels = np.full((height, width, 3), colour, np.uint8)
            pixels += rng.integers(0, 30, pixels.shape, dtype=np.uint8)
            pixels[:, : width // 20] = (255, 0, 0)
            pixels[:, -(width // 20) :] = (0, 0, 255)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def test_images_keep_their_sides(tmp_path: Path) -> None:
    """Squares lose the edges of wide images; 3 to 5 keeps them, in a cache of its own."""
    path = str(folder(tmp_path / "wide", 60, 100))
    square = load(path)
    wide = load(path, Options().cut_to(96, 160))
    assert square.train_images.shape[1:] == (60, 60, 3)
    assert wide.train_images.shape[1:] == (60, 100, 3)
    assert square.folder != wide.folder
    assert "60 rows × 100 columns native" in wide.describe()
    assert any("40% of the usual image is cut away" in note for note in square.notes)
    assert not wide.notes
    assert (wide.train_images[:, :, 0, 0] > 200).all()  # red
    assert (wide.train_images[:, :, -1, 2] > 200).all()  # blue
    assert not (square.train_images[:, :, 0, 0] > 240).any()
    assert load(path, Options().cut_to(3, 5)).folder == wide.folder
    tall = load(path, Options().cut_to(160, 96))
    assert tall.train_images.shape[1:] == (60, 36, 3)
    images = Images(wide.train_images, np.arange(4), 24, torch.device("cpu"), across=40)
    assert images[torch.arange(2)].shape == (2, 3, 24, 40)
    assert torch.equal(
        images[torch.arange(1)], resized(torch.tensor(wide.train_images[:1]), 24, 40)
    )


def test_a_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From 12×20 px on, at twice the cost: planned, trained, reported; and one network alone."""
    data = str(folder(tmp_path / "wide", 36, 60))
    out = tmp_path / "run"
    command = [
        "search", "--data", data, "--device", "cpu", "--preset", "quick", "--resolution", "16x24",
        "--candidates", "3", "--extra", "0", "--set", "references=[]", "--epoch-images", "64",
        "--out", str(out), "--workers", "1",
    ]  # fmt: skip
    assert main(command) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "16×24 px" in printed
    assert "36 rows × 54 columns native" in printed
    with open_results(out) as results:
        records = results.records()
    budget = Budget.parse("2x")
    base = next(r.candidate.arch for r in records if r.candidate.role == "baseline")
    for record in records:
        arch = record.candidate.arch
        assert record.done
        assert arch.sides == (arch.resolution, round(arch.resolution * 1.5))
        if record.candidate.role == "candidate":
            assert budget.met(cost(arch).macs, cost(base).macs)
    assert "16×24 px" in (out / "report.html").read_text()
    results = pd.read_csv(out / "results.csv")
    assert (results["columns"] == results["resolution"] * 1.5).all()
    study = read(out / "study.toml")
    again = read(preset_path("quick"), {"baseline.resolution": "16x24"})
    assert study.network() == again.network()
    command = ["train", "v2-s4", "--width", "0.3", "--resolution", "18x27", "--data", data]
    assert main([*command, "--device", "cpu", "--epochs", "1"]) == 0
    assert "18×27 px" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("search --resolution 16by24 --data shapes --device cpu", "rows and columns, such as"),
        ("search --resolution 16x24 --data shapes --device cpu", "its images are square"),
        ("search --resolution 2x24 --data shapes --device cpu", "greater than or equal to 4"),
        ("cost b0 --resolution 96x", "rows and columns, such as 96x160"),
        ("solve b0 --budget 2x --resolution 9x9x9", "rows and columns, such as 96x160"),
    ],
)
def test_what_cannot_be(
    command: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command.split()) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert says in error
    assert "Traceback" not in error


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", "b0", "--resolution", "96x160", "--check"]) == 0
    printed = capsys.readouterr().out
    assert "96×160 px" in printed
    assert "equal to fvcore" in printed
    assert main(["solve", "b0", "--budget", "2x", "--resolution", "288x480"]) in (0, 1)
    assert "288×480 px" in capsys.readouterr().out
