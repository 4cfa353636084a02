"""One experiment: everything that determines its results, and what it was read from.

A study comes from a TOML file (a preset or one's own), is overridden from the command line, and is
written, fully resolved, beside its results.

A field says all that there is to know of a setting: type, range, default, the sentence that
describes it, and its command-line flag. The arguments of `search` and `train` and the reference in
docs/cli.md are made from these fields (reference.py).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import tomllib
from collections.abc import Container, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    field_validator,
    model_validator,
)

from effnet import custom
from effnet.arch import AnyBaseline, parse_sides, typed_sides
from effnet.budget import Budget
from effnet.custom import Function, FunctionError
from effnet.definition import parse_baseline, read_table
from effnet.families import named_baseline
from effnet.rounding import round_half_up
from scaling_search import UserError
from scaling_search.data.source import Options
from scaling_search.study.directions import check_direction
from scaling_search.study.flags import PLACE, RECIPE, SPACE, SPENDING, TRAINED, Flag
from scaling_search.training.recipe import RECIPES, Recipe
from scaling_search.training.trial import Metric

logger = logging.getLogger(__name__)

# Raised when the same settings would come to mean other results: studies of before are then others.
SCHEMA = 1
_MOST_EPOCHS = 100_000  # of a run: a week of the fastest network's
PRESETS = ("quick", "standard", "paper")
_BOTH = ("search", "train")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BaselineSpec(_Part):
    """The network that is scaled: a named one, or one's own, with fewer or more blocks, a width and
    a resolution."""

    name: Annotated[str, Flag("--baseline", TRAINED)] = Field(
        "b0-s4",
        description="Network that is scaled: b0-s4, b0, mobilenetv2, resnet50, ... (see list), a "
        "TOML file of your own, or a function that builds a torch module, as FILE.py:FUNCTION or "
        "PACKAGE.MODULE:FUNCTION.",
    )
    definition: dict[str, Any] | None = Field(
        None,
        description="Rows of a baseline of your own: the content of the TOML file that "
        "baseline.name was, kept so that the study does not depend on the file.",
    )
    function: str | None = Field(
        None,
        description="Digest of the source of the function that baseline.name names, as it was when "
        "the study was made.",
    )
    blocks: Annotated[int | None, Flag("--blocks", TRAINED, unset="those of its table")] = Field(
        None, ge=1, le=1000, description="Blocks of the baseline, spread over its stages."
    )
    width: Annotated[float, Flag("--width", TRAINED)] = Field(
        1.0,
        gt=0,
        le=16,
        allow_inf_nan=False,
        description="Width of the baseline, as a multiple of its table's channels.",
    )
    divisor: Annotated[int, Flag("--divisor", TRAINED)] = Field(
        8, ge=1, description="Channels are rounded to multiples of this number."
    )
    resolution: Annotated[
        int | None, Flag("--resolution", TRAINED, unset="that of its table", is_text=True)
    ] = Field(
        None,
        ge=4,
        le=2048,
        description="Resolution of the baseline in px; or rows and columns, such as 96x160, where "
        "images are not square: every network keeps their proportion.",
    )
    columns: int | None = Field(
        None,
        ge=4,
        le=2048,
        description="Columns of the baseline's resolution where images are not square, in px; "
        'resolution = "96x160" sets both.',
    )

    @property
    def sides(self) -> str:
        """The resolution as it is typed; "" where it is the table's."""
        if self.resolution is None:
            return ""
        return typed_sides(self.resolution, self.columns or 0)

    @model_validator(mode="after")
    def _check_columns(self) -> Self:
        if self.columns is not None and self.resolution is None:
            raise ValueError("columns: give resolution with it, or both as 96x160")
        return self

    @model_validator(mode="before")
    @classmethod
    def _split_resolution(cls, settings: Any) -> Any:
        """Make of "96x160" its rows and its columns."""
        return _split_sides(settings) if isinstance(settings, dict) else settings


def _split_sides(baseline: dict[str, Any]) -> dict[str, Any]:
    """A baseline's table with a resolution such as "96x160" as its rows and its columns. Raises
    ValueError."""
    if not isinstance(baseline.get("resolution"), str):
        return baseline
    rows, columns = parse_sides(baseline["resolution"])
    if not columns and baseline.get("columns"):
        return {**baseline, "resolution": rows}
    return {**baseline, "resolution": rows, "columns": columns or None}


class Space(_Part):
    """Which networks are compared."""

    mode: Annotated[Literal["measured", "nominal"], Flag("--mode", SPACE)] = Field(
        "measured",
        description="Which networks are compared: measured, those whose exact cost meets the "
        "budget; nominal, the paper's lattice of coefficients.",
    )
    candidates: Annotated[int | None, Flag("--candidates", SPACE, unset="all")] = Field(
        None, ge=1, description="Networks to train per budget."
    )
    sampler: Annotated[Literal["lattice", "sobol", "tpe"], Flag("--sampler", SPACE)] = Field(
        "lattice",
        description="Which networks stand for the map of shares: those nearest to the points of a "
        "lattice or of a sobol sequence, or those that tpe proposes from the results so far.",
    )
    tolerance: float = Field(
        0.02,
        gt=0,
        lt=0.5,
        description="How far a network's exact cost may lie from the budget, as a fraction of it "
        "(measured mode).",
    )
    max_waste: float = Field(
        0.08,
        ge=0,
        description="Resolutions at which a pixel costs more than this fraction above the cheapest "
        "are left out, since the rounding of feature maps wastes it (measured mode).",
    )
    step: Annotated[int, Flag("--step", SPACE)] = Field(
        5, ge=1, le=100, description="Step of the nominal lattice in hundredths."
    )
    nominal_tolerance: float = Field(
        0.05,
        gt=0,
        lt=0.5,
        description="How far alpha · beta² · gamma² may lie from the budget, as a fraction of it "
        "(nominal mode).",
    )
    resolution_step: int = Field(
        1, ge=1, description="Resolutions are rounded to multiples of this many px (nominal mode)."
    )
    alpha_max: Annotated[
        float | None, Flag("--alpha-max", SPACE, unset="what the budget allows")
    ] = Field(None, ge=1, allow_inf_nan=False, description="Largest depth multiplier.")
    beta_max: Annotated[float | None, Flag("--beta-max", SPACE, unset="what the budget allows")] = (
        Field(None, ge=1, allow_inf_nan=False, description="Largest width multiplier.")
    )
    gamma_max: Annotated[
        float | None, Flag("--gamma-max", SPACE, unset="what the budget allows")
    ] = Field(None, ge=1, allow_inf_nan=False, description="Largest resolution multiplier.")
    upscale: Annotated[bool, Flag("--upscale", SPACE)] = Field(
        False,
        description="Allow resolutions above the images' native side, whose interpolated pixels "
        "carry nothing new.",
    )


class DataSpec(_Part):
    """Which images are trained on."""

    source: Annotated[str, Flag("--data", TRAINED, _BOTH)] = Field(
        "auto",
        description="Data set: fashion-mnist, cifar10, shapes (generated), a folder of class "
        "folders, a parquet file or folder, or hf:OWNER/NAME of the Hugging Face Hub; auto is "
        "fashion-mnist, or shapes where that cannot be had.",
    )
    image_column: Annotated[str | None, Flag("--image-column", TRAINED, _BOTH, unset="found")] = (
        Field(None, description="Column of a parquet file's images.")
    )
    label_column: Annotated[str | None, Flag("--label-column", TRAINED, _BOTH, unset="found")] = (
        Field(None, description="Column of a parquet file's labels.")
    )
    channels: Annotated[int | None, Flag("--channels", TRAINED, _BOTH, unset="the images'")] = (
        Field(
            None,
            ge=1,
            le=16,
            description="Channels that images are trained with: 1 for grey, 3 for colour.",
        )
    )
    train_images: Annotated[int | None, Flag("--train-images", TRAINED, _BOTH, unset="all")] = (
        Field(None, ge=2, description="Training images of one run.")
    )
    epoch_images: Annotated[
        int | None, Flag("--epoch-images", TRAINED, _BOTH, unset="the training images")
    ] = Field(
        None,
        ge=1,
        description="Images that a run sees in one epoch, however few or many there are: the "
        "length of a run, whatever the data.",
    )
    val_images: Annotated[int | None, Flag("--val-images", TRAINED, _BOTH, unset="all")] = Field(
        None, ge=1, description="Validation images of one run."
    )
    test_images: int | None = Field(
        None, ge=1, description="Test images that finalists are measured on; all where not given."
    )

    @property
    def options(self) -> Options:
        """How the images are read."""
        return Options(self.image_column, self.label_column, self.channels)


# In TOML and JSON a budget is written as it is typed.
_Budget = Annotated[Budget, PlainSerializer(str)]


class Study(_Part):
    """One experiment. Its identity is `identity`; everything in it can be written as TOML."""

    baseline: BaselineSpec = BaselineSpec()
    budgets: Annotated[tuple[_Budget, ...], Flag("--budget", SPACE)] = Field(
        (Budget(2, relative=True),),
        min_length=1,
        description="Cost of every network compared: a multiple of the baseline's multiply-adds "
        "such as 2x or 0.5x, or a number such as 400M or 1.2G; or of something else: '2x params', "
        "'5M params', '2x acts', 8GiB@64 (training memory at batch 64), 5ms or '2x latency@8/cuda' "
        "(a forward pass of 1 or 8 images, measured here); several with commas.",
    )
    space: Space = Space()
    data: DataSpec = DataSpec()
    recipe: Annotated[Recipe, Flag("--recipe", RECIPE, _BOTH, setting="recipe.base")] = Field(
        RECIPES["proxy"],
        description="Recipe of every run, which its other settings then change: proxy, for short "
        "runs, or paper, EfficientNet's official one.",
    )
    rungs: Annotated[tuple[int, ...], Flag("--epochs", SPENDING)] = Field(
        (1,),
        min_length=1,
        description="Epochs of each rung: the length of a run, or lengths that grow, such as "
        "1,2,4.",
    )
    allocation: Annotated[Literal["flat", "rungs"], Flag("--allocation", SPENDING)] = Field(
        "flat",
        description="Who trains for how long: flat, every network to the last rung; rungs, the "
        "better half goes on to the next.",
    )
    metric: Annotated[Metric, Flag("--metric", TRAINED, _BOTH)] = Field(
        "accuracy",
        description="What networks are compared by: accuracy, the part of the validation images "
        "that is right; or balanced, the mean of that over classes, for classes of unlike size.",
    )
    seed: Annotated[int, Flag("--seed", SPENDING, _BOTH)] = Field(
        0,
        ge=0,
        lt=2**31,
        description="First random seed; seed + 1, ... follow. A run's seed also says which fifth "
        "of the data validates it.",
    )
    seeds: Annotated[int, Flag("--seeds", SPENDING)] = Field(
        1, ge=1, le=500, description="Runs of every network that reaches the last rung."
    )
    extra: Annotated[int, Flag("--extra", SPENDING)] = Field(
        0,
        ge=0,
        le=100_000,
        description="Runs more per budget, of the networks where they tell most about the best.",
    )
    # A part of the study and not of the machine: with another number other runs follow.
    extra_batch: int = Field(
        4,
        ge=1,
        le=1000,
        description="Extra runs, and networks that tpe proposes, that are decided at once: as many "
        "workers at most have work then, and fewer decide on more results.",
    )
    confirm: Annotated[int, Flag("--confirm", SPENDING)] = Field(
        0,
        ge=0,
        le=500,
        description="Fresh seeds on the test split, for the pick and the networks that it is "
        "compared with.",
    )
    references: tuple[float, ...] = Field(
        (0.5, 1.5),
        description="Networks along the paper's direction that are trained beside the baseline "
        "when there is one budget, as multiples of the baseline's cost.",
    )
    equal: Annotated[Literal["images", "training"], Flag("--equal", SPENDING)] = Field(
        "images",
        description="What networks of a budget have alike in training: images, all see as many; or "
        "training, those of more multiply-adds see fewer, so that their training costs the same "
        "(for budgets of another measure than multiply-adds; takes data.epoch_images).",
    )
    directions: dict[str, tuple[float, float, float]] = Field(
        {},
        description="Directions by name, beside the paper's, the pure ones and EfficientNet-X's: "
        "shares of depth, width and resolution, such as mine = [0.2, 0.5, 0.3]. The network "
        "nearest to each is trained and compared with the pick.",
    )
    device: Annotated[Literal["auto", "cpu", "cuda"], Flag("--device", PLACE, _BOTH)] = Field(
        "auto",
        description="Device of every run: cpu, cuda, or auto, which is cuda where there is a GPU; "
        "on the command line cuda:1 is that card alone.",
    )
    threads: Annotated[int, Flag("--threads", PLACE, _BOTH)] = Field(
        1,
        ge=1,
        le=256,
        description="CPU threads of one training; another number changes the last bits of every "
        "sum.",
    )
    latency_threads: Annotated[int, Flag("--latency-threads", SPACE)] = Field(
        1,
        ge=1,
        le=256,
        description="CPU threads of a forward pass whose latency is measured, for budgets of "
        "latency.",
    )
    compile: Annotated[bool, Flag("--compile", PLACE, ("train",))] = Field(
        False, description="Use torch.compile on CUDA, which pays in runs of many epochs."
    )
    deadline: Annotated[float | None, Flag("--deadline", SPENDING, _BOTH, unset="none")] = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Seconds after which a run is given up; where k runs share a GPU, k times as "
        "many.",
    )

    @field_validator("recipe", mode="before")
    @classmethod
    def _resolve_recipe(cls, value: Any) -> Any:
        """Put what a table says over the recipe that its `base` names; a text is such a name."""
        table = {"base": value} if isinstance(value, str) else value
        if not isinstance(table, dict) or "base" not in table:
            return value
        name = table["base"]
        base = RECIPES.get(name) if isinstance(name, str) else None
        if base is None:
            raise ValueError(f"recipe {name!r}: known are {', '.join(RECIPES)}")
        changes = {key: item for key, item in table.items() if key != "base"}
        return {**dataclasses.asdict(base), **changes}

    @model_validator(mode="before")
    @classmethod
    def _parse_budgets(cls, settings: Any) -> Any:
        """Budgets are texts in a file, `Budget`s from here on; the space says how exactly they are
        met."""
        if not isinstance(settings, dict) or not isinstance(settings.get("budgets"), list | tuple):
            return settings
        space = settings.get("space")
        tolerance = space.get("tolerance") if isinstance(space, dict) else None
        if not isinstance(tolerance, float) or not 0 < tolerance < 0.5:
            tolerance = Space().tolerance  # a wrong one is reported by the field itself
        budgets = [Budget.parse(str(text), tolerance) for text in settings["budgets"]]
        return {**settings, "budgets": tuple(budgets)}

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if len(set(self.budgets)) < len(self.budgets):
            raise ValueError("budgets: the same budget twice")
        measures = {budget.measured_as for budget in self.budgets}
        if len(measures) > 1:
            raise ValueError(
                f"budgets: {', '.join(map(str, self.budgets))} are of different measures; a study "
                "compares networks by one"
            )
        measure = self.budgets[0].of
        if self.equal == "training" and self.data.epoch_images is None:
            raise ValueError("equal: training takes data.epoch_images, the length of a run")
        if self.equal == "training" and measure == "macs":
            raise ValueError(
                "equal: networks of equal multiply-adds cost the same to train; training is for "
                "budgets of another measure"
            )
        if measure != "macs" and self.space.mode == "nominal":
            raise ValueError(
                f"budget {self.budgets[0]}: the paper's nominal lattice is of multiply-adds, such "
                "as 2x or 400M; other measures take space.mode measured"
            )
        if measure == "latency" and self.space.sampler == "tpe":
            raise ValueError(
                f"budget {self.budgets[0]}: tpe proposes networks as it goes, whose latency has "
                "not been measured; take space.sampler lattice or sobol"
            )
        if measure == "memory" and custom.is_place(self.baseline.name):
            raise ValueError(
                f"budget {self.budgets[0]}: the memory of a function's networks is too rough an "
                "estimate to compare by; take multiply-adds, parameters or activations"
            )
        increasing = list(self.rungs) == sorted(set(self.rungs))
        if min(self.rungs) < 1 or max(self.rungs) > _MOST_EPOCHS or not increasing:
            raise ValueError(
                f"rungs: whole numbers of epochs from 1 to {_MOST_EPOCHS:,} that increase, such "
                "as [1, 2, 4]"
            )
        if self.space.sampler == "tpe" and self.allocation == "rungs":
            raise ValueError(
                "space.sampler: tpe proposes from full-length results; take allocation flat with it"
            )
        if any(not 0.01 <= ratio <= 100 for ratio in self.references):
            raise ValueError("references: ratios from 0.01 to 100")
        for name, shares in self.directions.items():
            check_direction(name, shares)
        for field in dataclasses.fields(self.recipe):
            value, valid = getattr(self.recipe, field.name), field.metadata["valid"]
            if valid is not None and value not in valid:
                raise ValueError(f"recipe.{field.name} = {value}: must be {valid}")
        self.network()  # raises ValueError for a baseline that cannot be built
        return self

    def network(self) -> AnyBaseline:
        """The baseline as effnet knows it.

        In measured mode its depth moves in whole blocks (the rounding rule `spread`); the paper's
        nominal lattice keeps the baseline's own rule, as the paper does."""
        spec = self.baseline
        if custom.is_place(spec.name):
            return self._function()
        if spec.function is not None:
            raise ValueError(f"baseline.function goes with a function, which {spec.name} is not")
        if spec.definition is not None:
            base = parse_baseline(spec.definition, spec.name)
        else:
            base = named_baseline(spec.name)
        if spec.blocks is not None:
            base = base.with_blocks(spec.blocks)
        if spec.resolution is not None:
            base = base.at(spec.sides)
        return dataclasses.replace(
            base,
            width=spec.width * base.width,
            divisor=spec.divisor,
            in_channels=self.data.channels or 3,
            rounding=base.rounding if self.space.mode == "nominal" else "spread",
        )

    def steps(self, epochs: int) -> int | None:
        """Training steps of so many epochs; None where only the data say how long an epoch is. A
        limit on the training images counts as their number; fewer images than a batch are one
        step."""
        images = self.data.epoch_images or self.data.train_images
        return None if images is None else epochs * max(1, images // self.recipe.batch)

    @property
    def reading(self) -> Options:
        """How the images are read: cut to the proportion of a baseline that is not square."""
        base = self.network()
        columns = 0 if isinstance(base, Function) else base.columns
        return self.data.options.cut_to(base.resolution, columns)

    def _function(self) -> Function:
        """The function that is the baseline. It is not run: a study is read wherever its report is
        wanted. Raises ValueError for settings of tables."""
        spec = self.baseline
        if spec.function is None or spec.resolution is None:
            raise ValueError(
                f"baseline.name = {spec.name}: a function's digest and resolution go with it; give "
                "it with --baseline, or in a study file that search reads"
            )
        if spec.columns is not None:
            raise ValueError(
                f"baseline {spec.name} at {spec.resolution}x{spec.columns}: a function is given "
                "one side; give --resolution one number"
            )
        if spec.blocks is not None or spec.divisor != BaselineSpec().divisor:
            raise ValueError(
                f"baseline {spec.name}: blocks and divisor are of tables, a function has its own"
            )
        if self.space.mode == "nominal":
            raise ValueError(
                f"baseline {spec.name}: the paper's nominal lattice takes a table, such as b0; "
                "a function is measured"
            )
        return custom.recorded(
            spec.name,
            spec.function,
            spec.resolution,
            width=spec.width,
            in_channels=self.data.channels or 3,
        )

    def settings(self) -> dict[str, Any]:
        """Everything, as plain data; None (the default) left out, since TOML has no null."""
        return _without_none(self.model_dump(mode="json"))

    def changed(self) -> dict[str, Any]:
        """The settings that are not the defaults, flat: {"recipe.lr": 0.01, ...}."""
        return dict(_differences(self.settings(), Study().settings()))

    def identity(self, data_digest: str) -> dict[str, Any]:
        """What determines results, flat and without defaults: new fields do not orphan old studies.

        The data's digest stands for where they came from."""
        flat = self.changed()
        for name in ("source", "image_column", "label_column"):
            flat.pop(f"data.{name}", None)
        if self.baseline.function is not None:
            del flat["baseline.name"]  # the digest says which it is, wherever it lies
        if flat.get("data.channels") == 3:  # as ever, where nothing is said
            del flat["data.channels"]
        if self.baseline.definition is not None:
            for name in [name for name in flat if name.startswith("baseline.definition")]:
                del flat[name]
            # as it is understood, not as it is spelled: a default written out is no difference
            base = parse_baseline(self.baseline.definition, self.baseline.name)
            flat["baseline.definition"] = base.identity()
        return {**flat, "data.digest": data_digest, "schema": SCHEMA}

    def to_toml(self) -> str:
        """The study as a file that `read` takes."""
        return tomli_w.dumps(self.settings())


def identity_hash(identity: dict[str, Any]) -> str:
    """16 hexadecimal digits for an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def check_same(
    folder: Path,
    recorded: dict[str, Any],
    identity: dict[str, Any],
    growing: Container[str] = (),
) -> None:
    """Raises UserError, with the settings that differ, where a run folder holds another study. The
    settings named `growing` may differ."""
    wanted = json.loads(json.dumps(identity))  # tuples become lists, as in what was recorded
    recorded = {name: value for name, value in recorded.items() if name not in growing}
    wanted = {name: value for name, value in wanted.items() if name not in growing}
    if recorded == wanted:
        return
    differing = "; ".join(differences(recorded, wanted))
    raise UserError(
        f"run folder {folder} belongs to a different study: {differing}. Choose another folder "
        "with --out"
    )


# What a default is, where to say "the default" would not help: grey images were once trained with
# three channels, and --channels 3 still does.
_SAID_DEFAULTS = {"data.channels": "3 (--channels 3)"}


def differences(recorded: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """How two studies' flat settings differ, in words, a setting each: what was recorded is said
    to be "there", what is wanted now "here"."""
    words = []
    for name in sorted({*recorded, *wanted}):
        usual = _SAID_DEFAULTS.get(name, "the default")
        old, new = recorded.get(name, usual), wanted.get(name, usual)
        if old != new:
            words.append(f"{name} is {old} there, {new} here")
    return words


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return value


def _differences(
    value: dict[str, Any], default: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """(name, value) of what is not the default, tables opened: ("recipe.lr", 0.01)."""
    for key, item in value.items():
        if isinstance(item, dict):
            yield from _differences(item, default.get(key, {}), f"{prefix}{key}.")
        elif item != default.get(key):
            yield prefix + key, item


def preset_path(name: str) -> Path:
    """studies/NAME.toml: in the checkout, or inside the installed package. Raises UserError."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "studies", package.parent / "studies"):
        if (folder / f"{name}.toml").is_file():
            return folder / f"{name}.toml"
    raise UserError(
        f"preset {name}: no {name}.toml in {package.parent / 'studies'}; reinstall the package"
    )


def read(path: Path, overrides: dict[str, Any] | None = None) -> Study:
    """The study in a TOML file, with `overrides` ({"recipe.lr": 0.01, ...}) put over it.

    Raises UserError naming the file, the field and what would be right."""
    try:
        settings = tomllib.loads(path.read_text("utf-8-sig"))  # Windows' editors begin with a mark
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(
            f"study {path}: {reason}; a study is a TOML file such as studies/quick.toml"
        ) from error
    others = _take_others(settings, path)
    if overrides and "baseline.name" in overrides:
        _forget_function(settings)
    _embed_definition(settings, str(path))
    study = check(settings, str(path))  # what is wrong in the file is not blamed on the command
    logger.info("study read from %s", path)
    if not overrides:
        return study
    if others and overrides.get("baseline.name", study.baseline.name) != study.baseline.name:
        settings["baseline"] = others
    override(settings, overrides)
    logger.info("settings of the command line: %s", overrides)
    _embed_definition(settings, "command line")
    return check(settings, "command line")


def _forget_function(settings: dict[str, Any]) -> None:
    """Take a function out of a study's file, which the command line has another baseline for: it is
    not to be run."""
    spec = settings.get("baseline")
    if isinstance(spec, dict) and custom.is_place(str(spec.get("name", ""))):
        settings["baseline"] = {}


def _take_others(settings: dict[str, Any], path: Path) -> dict[str, Any]:
    """Take [baseline.others] out of a study's file: how a network that the command line names is
    thinned, in place of the file's own. Raises UserError for what is no table of a baseline."""
    baseline_table = settings.get("baseline")
    if not isinstance(baseline_table, dict):
        return {}
    others = baseline_table.pop("others", {})
    if not isinstance(others, dict) or not others.keys() <= BaselineSpec.model_fields.keys():
        raise UserError(
            f"study {path}: baseline.others: a table of {', '.join(BaselineSpec.model_fields)}"
        )
    return others


def override(settings: dict[str, Any], overrides: dict[str, Any]) -> None:
    """Put flat overrides into the tables of `settings`. Raises UserError for a part of a setting
    that has none."""
    name = str(overrides.get("baseline.name", ""))
    if name.endswith(".toml") or custom.is_place(name):
        # a network of one's own is taken as it stands, not thinned as the preset's is
        settings["baseline"] = {}
    elif "baseline.name" in overrides:
        for own in ("definition", "function"):
            settings.get("baseline", {}).pop(own, None)
    _keep_proportion(settings.get("baseline"), overrides)
    if "recipe.base" in overrides:
        settings["recipe"] = {}  # another recipe, not the file's numbers put over it
    if isinstance(settings.get("recipe"), str):
        settings["recipe"] = {"base": settings["recipe"]}
    for path, value in overrides.items():
        *parents, last = path.split(".")
        table = settings
        for parent in parents:
            table = table.setdefault(parent, {})
            if not isinstance(table, dict):
                raise UserError(f"command line: {path}: {parent} has no parts")
        table[last] = value


def _keep_proportion(baseline: Any, overrides: dict[str, Any]) -> None:
    """Where a baseline's table states rows and columns and the command line rows alone, give the
    columns in proportion."""
    rows = str(overrides.get("baseline.resolution", ""))
    if not isinstance(baseline, dict) or not rows.isdecimal():
        return
    with suppress(ValueError):  # which is said when the whole is checked
        baseline = _split_sides(baseline)
    before, columns = baseline.get("resolution"), baseline.get("columns")
    if isinstance(before, int) and isinstance(columns, int):
        overrides["baseline.columns"] = max(1, round_half_up(int(rows) * columns / before))


def _embed_definition(settings: dict[str, Any], where: str) -> None:
    """A baseline in a file becomes part of the study: what was trained stays known when the file
    changes. A function is found and run, and its digest becomes part. Raises UserError, naming
    `where`, for a file that holds no baseline."""
    spec = settings.get("baseline")
    if not isinstance(spec, dict) or "definition" in spec:
        return
    path = str(spec.get("name", ""))
    if custom.is_place(path):
        _embed_function(spec, path, where)
    if not path.endswith(".toml"):
        return
    try:
        spec["definition"] = read_table(path)
        base = parse_baseline(spec["definition"], path)
    except ValueError as error:
        raise UserError(f"{where}: baseline.name: {error}") from error
    spec["name"] = base.name
    spec.setdefault("divisor", base.divisor)


def _embed_function(spec: dict[str, Any], place: str, where: str) -> None:
    """Put what is known of the function at a place into the baseline's table."""
    try:
        function = custom.read(place)
        same = spec.get("function") in (None, function.digest)
        if same:  # what has changed is not run
            function = custom.find(place)
    except FunctionError as error:
        raise UserError(f"{where}: baseline.name: {error}") from error
    if not same:
        raise UserError(
            f"{where}: baseline.function: {place} has changed since the study was made (its digest "
            f"was {spec['function']}, now it is {function.digest}); bring back what it was, a copy "
            "is in the run folder, or leave baseline.function out for another study"
        )
    spec |= {"name": function.place, "function": function.digest}
    if "resolution" not in spec:
        if not function.resolution:
            raise UserError(
                f"{where}: baseline {place}: its resolution has no default; give it one, as in "
                "build(depth, width, resolution=32, ...), or give --resolution"
            )
        spec["resolution"] = function.resolution


def check(settings: dict[str, Any], where: str) -> Study:
    """Settings as a Study; UserError for the first thing that is wrong with them."""
    try:
        study = Study.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
        if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            message = "no such setting; studies/quick.toml shows the known ones"
        elif field and first["type"] != "value_error":  # our own messages name what was given
            message += f", not {first['input']!r}"
        place = f"{where}: {field}" if field else where
        raise UserError(f"{place}: {message}") from error
    _check_truth_values(settings, study.settings(), where)
    return study


def _check_truth_values(given: Any, settled: Any, where: str, field: str = "") -> None:
    """Raise UserError where true or false was given for something else: pydantic takes them for 1
    and 0."""
    if isinstance(given, bool) and not isinstance(settled, bool) and settled is not None:
        raise UserError(f"{where}: {field}: must not be {str(given).lower()}")
    if isinstance(given, dict) and isinstance(settled, dict):
        for name, value in given.items():
            below = f"{field}.{name}" if field else name
            _check_truth_values(value, settled.get(name), where, below)
    if isinstance(given, list | tuple) and isinstance(settled, list | tuple):
        for value, other in zip(given, settled, strict=False):
            _check_truth_values(value, other, where, field)
