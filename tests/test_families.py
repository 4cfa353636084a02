import dataclasses
import math

import pytest

import effnet
from effnet.arch import Scaling, scale
from effnet.cost import cost
from effnet.families import BASELINES, MEMBERS, PAPER, arch, baseline, implied_phi, names

# torchvision's and timm's documented counts; those of the teaching notebook measured on its code
PARAMS = {
    "b0": 5_288_548,
    "b1": 7_794_184,
    "b2": 9_109_994,
    "b3": 12_233_232,
    "b4": 19_341_616,
    "b5": 30_389_784,
    "b6": 43_040_704,
    "b7": 66_347_960,
    "b8": 87_413_142,
    "l2": 480_309_308,
    "lite0": 4_652_008,
    "lite1": 5_416_680,
    "lite2": 6_092_072,
    "lite3": 8_197_096,
    "lite4": 13_006_568,
    "mobilenetv1": 4_231_976,
    "mobilenetv2": 3_504_872,
    "resnet50": 25_557_032,
    "v2-s": 21_458_488,
    "v2-m": 54_139_356,
    "v2-l": 118_515_272,
    "notebook-b0": 15_315_556,
    "notebook-b1": 28_565_796,
    "notebook-b2": 30_882_268,
    "notebook-b3": 42_183_006,
    "notebook-b4": 58_146_057,
    "notebook-b5": 97_257_915,
    "notebook-b6": 126_108_940,
    "notebook-b7": 170_880_271,
}


@pytest.mark.parametrize("name", PARAMS)
def test_published_parameters(name: str) -> None:
    assert cost(arch(name)).params == PARAMS[name]


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("b0", "EfficientNet_B0_Weights"),
        ("b7", "EfficientNet_B7_Weights"),
        ("v2-s", "EfficientNet_V2_S_Weights"),
        ("v2-m", "EfficientNet_V2_M_Weights"),
        ("v2-l", "EfficientNet_V2_L_Weights"),
        ("mobilenetv2", "MobileNet_V2_Weights"),
        ("resnet50", "ResNet50_Weights"),
    ],
)
def test_torchvisions_documented_cost(name: str, weights: str) -> None:
    """`_ops` there is in billions of multiply-adds, three decimals, at the resolution that the
    weights are for."""
    meta = getattr(pytest.importorskip("torchvision").models, weights).IMAGENET1K_V1.meta
    total = cost(arch(name))
    assert total.params == meta["num_params"]
    assert total.macs / 1e9 == pytest.approx(meta["_ops"], abs=2e-3)


def test_resolutions_and_dropout_follow_the_tables() -> None:
    assert [(arch(f"b{i}").resolution, arch(f"b{i}").dropout_percent) for i in range(9)] == [
        (224, 20),
        (240, 20),
        (260, 30),
        (300, 30),
        (380, 40),
        (456, 40),
        (528, 50),
        (600, 50),
        (672, 50),
    ]
    assert [arch(f"lite{i}").resolution for i in range(5)] == [224, 240, 260, 280, 300]
    assert [arch(f"tinynet-{c}").resolution for c in "abcde"] == [192, 188, 184, 152, 106]
    assert [arch(f"x-gpu-b{i}").resolution for i in range(1, 8)] == [
        229,
        237,
        255,
        282,
        306,
        328,
        350,
    ]


def test_lists_everything_that_builds() -> None:
    assert effnet.names() == names()
    assert set(names()) == {*MEMBERS, *BASELINES}
    for name in names():
        assert cost(arch(name, num_classes=7)).macs > 0


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("efficientnet_b3", "b3"),
        ("EfficientNet-B0", "b0"),
        ("efficientnet_v2_s", "v2-s"),
        ("B7", "b7"),
        ("efficientnetv2_m", "v2-m"),
        ("mobilenet_v2", "mobilenetv2"),
        ("efficientnet_lite0", "lite0"),
        ("tinynet_a", "tinynet-a"),
        ("ResNet50", "resnet50"),
    ],
)
def test_the_names_others_use(theirs: str, ours: str) -> None:
    assert arch(theirs) == arch(ours)
    assert arch(theirs).name == ours


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [("b9", "b8"), ("lite5", "lite"), ("mobilnetv2", "mobilenetv2"), ("resnet-50", "resnet50")],
)
def test_unknown_names_suggest_the_nearest(typed: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"unknown network '{typed}': did you mean {nearest}"):
        arch(typed)


@pytest.mark.parametrize(
    ("name", "dials", "message"),
    [
        ("b3", {"depth": 2.0}, "already scaled: scale 'b0' instead"),
        ("b3", {"alpha": 2.0}, "already scaled: scale 'b0' instead"),
        ("b0", {"depth": 0.0}, "depth = 0.0: must be a finite number above 0"),
        ("b0", {"width": float("nan")}, "must be a finite number"),
        ("b0", {"alpha": -1.0}, "alpha = -1.0"),
        ("b0", {"resolution": 0}, "resolution = 0"),
        ("b0", {"num_classes": 0}, "num_classes = 0"),
        ("b0", {"alpha": 1.2, "depth": 1.2}, "not both"),
        ("b0", {"phi": 3.0}, "phi scales alpha, beta and gamma"),
        ("b3", {"phi": 2.0}, "phi scales alpha, beta and gamma"),
        ("b0", {"alpha": 2.0, "phi": 5000.0}, "beyond a factor of a million"),
        ("nowhere.toml", {}, "nowhere.toml: No such file"),
    ],
)
def test_wrong_input(name: str, dials: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        arch(name, **dials)


def test_unknown_baseline() -> None:
    with pytest.raises(ValueError, match="unknown baseline 'c3': .*known are b0"):
        baseline("c3")
    assert scale(baseline("b0")).key == arch("b0").key


def test_a_member_at_another_resolution() -> None:
    net = arch("b3", resolution=224, num_classes=10)
    assert net.stages == arch("b3").stages
    assert net.resolution == 224
    assert net.dropout_percent == 30
    assert arch("b0", resolution=192).resolution == 192


def test_a_baselines_own_channels_are_kept() -> None:
    grey = dataclasses.replace(effnet.baseline("b0"), in_channels=1)
    assert effnet.arch(grey).in_channels == 1
    assert effnet.arch(grey, alpha=1.2, phi=1).in_channels == 1
    assert effnet.arch(grey, in_channels=4).in_channels == 4
    assert effnet.arch("b0").in_channels == 3


def test_compound_takes_any_phi() -> None:
    small = arch("b0", alpha=1.2, beta=1.1, gamma=1.15, phi=-1)
    assert small.resolution == round(224 / 1.15)
    assert small.head_width < 1280
    net = arch("b0", alpha=1.2, beta=1.1, gamma=1.15, phi=1)
    assert net.resolution == 258
    assert net.blocks == 23
    halfway = arch("b0", alpha=1.2, beta=1.1, gamma=1.15, phi=0.5)
    assert cost(small).macs < cost(arch("b0")).macs < cost(halfway).macs < cost(net).macs
    assert Scaling(2**0.5, 1, 1, 2).depth == 2.0


def test_implied_phi() -> None:
    assert implied_phi("b0") == (0.0, 0.0, 0.0)
    for name in MEMBERS:
        for factor, c, phi in zip(
            (
                MEMBERS[name].depth,
                MEMBERS[name].width,
                MEMBERS[name].resolution / BASELINES[MEMBERS[name].baseline].resolution,
            ),
            (PAPER.alpha, PAPER.beta, PAPER.gamma),
            implied_phi(name),
            strict=True,
        ):
            assert c**phi == pytest.approx(factor)
    d, w, r = implied_phi(
        "notebook-b5"
    )  # the notebook gives depth and width one phi, and forgets gamma's
    assert d == pytest.approx(4)
    assert w == pytest.approx(4)
    assert r == pytest.approx(math.log(456 / 224, 1.15))
    for name in ("b0-s4", "resnet50"):
        with pytest.raises(ValueError, match="unknown member"):
            implied_phi(name)
    with pytest.raises(ValueError, match="a coefficient of 1"):
        implied_phi("b3", Scaling(1.2, 1.0, 1.15))
