import dataclasses
import json
import math

import pytest

from effnet.arch import Arch, Scaling, Stage, least_side, scale
from effnet.families import BASELINES, MEMBERS, arch

ROW = Stage("mbconv", 6, 3, 2, 24, 2)


def test_spread_refuses_fewer_blocks_than_stages() -> None:
    with pytest.raises(ValueError, match="at least one for each of the 7 stages"):
        BASELINES["b0"].with_blocks(6)


def test_key_is_the_shape_and_survives_json() -> None:
    for name in ("b3", "resnet50", "v2-s", "lite2"):
        net = arch(name, num_classes=10)
        back = Arch.from_dict(json.loads(json.dumps(net.as_dict())))
        assert back == net
        assert back.key == net.key
        assert hash(net) == hash(back)
        assert back.name == net.name
    assert arch("b0").key == arch("b0", depth=1.0, width=1.0).key
    # x-gpu's are scaled B0s, the others their own; tinynet's baseline and b0 are one network
    assert len({arch(name).key for name in MEMBERS}) == len(MEMBERS)


def test_keys_of_older_studies_still_hold() -> None:
    """Recorded results name networks by key: fields added since are left out at their defaults."""
    assert [arch(name).key for name in ("b0", "b3", "l2")] == [
        "1f832f81cfc4",
        "3a03a16cacf5",
        "f56738599b55",
    ]
    old = arch("b0").as_dict()
    stages = [row[:6] for row in old["stages"]]  # type: ignore[index, union-attr]
    for field in ("stem_kernel", "stem_pool", "activation"):
        del old[field]
    assert Arch.from_dict({**old, "stages": stages}) == arch("b0")


def test_how_layers_train_is_part_of_the_key_except_where_it_was_implied() -> None:
    """The notebook's values came with its operator before they were fields of their own."""
    values = {"bn_eps": 1e-5, "bn_momentum": 0.1, "initialisation": "torch"}
    values["drop_path_rule"] = "constant"
    notebook = arch("notebook-b0")
    assert notebook.key == "0c7af9803c8e"
    recorded = notebook.as_dict()
    assert not values.keys() & recorded.keys()
    assert Arch.from_dict(recorded) == notebook
    assert {name: getattr(notebook, name) for name in values} == values

    keys = {notebook.key, arch("b0").key}
    for name, value in values.items():
        net = dataclasses.replace(arch("b0"), **{name: value})
        assert net.as_dict()[name] == value
        assert Arch.from_dict(json.loads(json.dumps(net.as_dict()))) == net
        keys.add(net.key)
    like_b0 = {name: getattr(arch("b0"), name) for name in values}
    keys.add(dataclasses.replace(notebook, **like_b0).key)
    assert len(keys) == 2 + len(values) + 1


def test_the_identity_of_a_baseline_states_what_was_not_implied() -> None:
    b0, notebook = BASELINES["b0"], BASELINES["notebook"]
    older = {f.name for f in dataclasses.fields(b0)} - {
        "name", "in_channels", "bn_eps", "bn_momentum", "initialisation", "drop_path_rule",
        "columns",
    }  # fmt: skip
    assert set(b0.identity()) == older
    assert set(notebook.identity()) == older
    other = dataclasses.replace(b0, initialisation="torch").identity()
    assert other == {**b0.identity(), "initialisation": "torch"}


def test_total_strides() -> None:
    assert [BASELINES[n].total_stride for n in ("b0", "b0-s16", "b0-s8", "b0-s4")] == [32, 16, 8, 4]
    assert BASELINES["resnet50"].total_stride == 32
    strides = [s.stride for s in BASELINES["b0-s8"].stages]
    assert BASELINES["b0-s8"].stem_stride == 1
    assert strides == [1, 1, 2, 2, 1, 2, 1]


@pytest.mark.parametrize("name", ["b0", "lite", "tinynet", "mobilenetv2"])
def test_a_thin_baseline_is_thin_everywhere(name: str) -> None:
    """Also where the family's rule keeps stem and head from scaling."""
    thin = scale(dataclasses.replace(BASELINES[name], width=0.25))
    whole = scale(BASELINES[name])
    assert (thin.stem_width, thin.head_width) == (8, 320)
    assert whole.head_width == 1280
    wide = scale(dataclasses.replace(BASELINES[name], width=0.25), width=2.0)
    assert (wide.stem_width, wide.head_width) == {
        "b0": (16, 640), "lite": (8, 320), "tinynet": (8, 640), "mobilenetv2": (16, 640),
    }[name]  # fmt: skip


def test_per_stage_overrides() -> None:
    net = arch("b0", stages={5: {"kernel": 3, "repeats": 5}, 7: {"width": 400}})
    assert (net.stages[4].kernel, net.stages[4].repeats, net.stages[6].width) == (3, 5, 400)
    b3 = arch("b3", stages={1: {"se_percent": 0}})
    assert b3.stages[0].se_percent == 0
    assert b3.stages[1:] == arch("b3").stages[1:]
    for changes, message in (
        ({8: {"kernel": 3}}, "stage 8: b0 has stages 1 to 7"),
        ({0: {"kernel": 3}}, "stage 0: b0 has stages 1 to 7"),
        ({2: {"kernal": 3}}, "stage 2: kernal: known keys are operator, expand, kernel"),
        ({2: {"kernel": 4}}, "stage 2: kernel = 4: must be odd"),
        ({2: {"repeats": 0}}, "stage 2: repeats = 0: must be a whole number from 1"),
        ({2: {"width": 2.5}}, "stage 2: width = 2.5: must be a whole number"),
        ({2: {"operator": "conv"}}, "stage 2: operator = 'conv': known are mbconv"),
        ({2: {"operator": [1]}}, "stage 2: operator = .1.: known are mbconv"),
    ):
        with pytest.raises(ValueError, match=message):
            arch("b0", stages=changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": ()}, "at least one row"),
        (
            {"stages": (dataclasses.replace(ROW, kernel=4),)},
            "stage 1: kernel = 4: must be odd, such as 3, 5 or 7",
        ),
        ({"stages": (ROW, dataclasses.replace(ROW, stride=0))}, "stage 2: stride = 0"),
        (
            {"stages": (dataclasses.replace(ROW, repeats=True),)},
            "repeats = True: must be a whole number",
        ),
        (
            {"stages": (Stage("fused", 4, 3, 2, 24, 2),)},
            "se_percent = 25: must be 0, fused has no such layer",
        ),
        ({"stages": (Stage("separable", 4, 3, 2, 24, 2, 0),)}, "expand = 4: must be 1"),
        ({"stages": (dataclasses.replace(ROW, se_percent=200),)}, "se_percent = 200: at most 100"),
        ({"stem_kernel": 2}, "stem_kernel = 2: must be odd"),
        ({"activation": "gelu"}, "activation = 'gelu': known are silu, relu, relu6"),
        ({"bn_eps": 0}, "bn_eps = 0: must be above 0 and below 1"),
        ({"bn_momentum": "0.1"}, "bn_momentum = '0.1': must be above 0 and below 1"),
        ({"initialisation": "he"}, "initialisation = 'he': known are tensorflow, torch"),
        ({"drop_path_rule": "none"}, "drop_path_rule = 'none': known are linear, constant"),
        ({"rounding": "up"}, "rounding = 'up': known are official"),
        ({"width": math.nan}, "width = nan"),
        ({"divisor": 0}, "divisor = 0"),
        ({"dropout_percent": 100}, "dropout_percent = 100"),
        (
            {"resolution": 15},
            "resolution = 15 px: a total stride of 32 leaves no pixels; at least 16",
        ),
    ],
)
def test_a_wrong_baseline(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(BASELINES["b0"], **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_classes": 0}, "num_classes = 0"),
        ({"stem_width": -8}, "stem_width = -8"),
        ({"in_channels": 1.5}, "in_channels = 1.5"),
        ({"stages": [["mbconv", 6, 4, 2, 24, 2]]}, "stage 1: kernel = 4"),
        ({"stages": [["mbconv", 6]]}, "not a description"),
        ({"stages": None}, "not a description"),
        ({"colour": "red"}, "not a description"),
        ({"resolution": 10**9}, "resolution = 1000000000"),
    ],
)
def test_a_wrong_description(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Arch.from_dict({**arch("b0").as_dict(), **change})


def test_strides_that_leave_no_pixels() -> None:
    assert [least_side(s) for s in (32, 4, 1, 7)] == [16, 2, 1, 4]
    assert arch("b0", resolution=16).resolution == 16
    for name in ("b0", "resnet50", "v2-s"):
        with pytest.raises(
            ValueError,
            match="resolution = 15 px: a total stride of 32 leaves no pixels; at least 16",
        ):
            arch(name, resolution=15)
    with pytest.raises(ValueError, match="a total stride of 1024 leaves no pixels"):
        arch("b0", stages={7: {"stride": 32}})


def test_scaling_refuses_what_is_not_a_number() -> None:
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="must be a finite number above 0"):
            Scaling(bad, 1, 1)
        with pytest.raises(ValueError, match="must be a finite number above 0"):
            scale(BASELINES["b0"], width=bad)
    with pytest.raises(ValueError, match="phi = inf"):
        Scaling(1, 1, 1, math.inf)
    for huge in (1e308, 1e7, 1e-7):
        with pytest.raises(ValueError, match="beyond a factor of a million"):
            scale(BASELINES["b0"], depth=huge)
    for wrong in (math.inf, math.nan, 10**9):
        with pytest.raises(ValueError, match="must be a whole number from 1 to 1,000,000"):
            scale(BASELINES["b0"], resolution=wrong)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="must be a whole number from 1 to 1,000,000"):
            scale(BASELINES["b0"], num_classes=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="width = '1': must be a finite number above 0"):
        scale(BASELINES["b0"], width="1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="resolution = 20.5: must be a whole number"):
        scale(BASELINES["b0"], resolution=20.5)  # type: ignore[arg-type]
