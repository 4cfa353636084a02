"""One experiment: everything that determines its results, and what it was read from.

A study comes from a TOML file (a preset or one's own), is overridden from the command line, and is
written, fully resolved, beside its results.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import tomllib
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

from effnet.arch import Baseline
from effnet.budget import Budget
from effnet.definition import parse_baseline, read_table
from effnet.families import baseline
from scaling_search import UserError
from scaling_search.training.recipe import RECIPES, Recipe

SCHEMA = 1
PRESETS = ("quick", "standard", "paper")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BaselineSpec(_Part):
    """The network that is scaled: a named one, or one's own with its `definition` (the content of
    the TOML file that `name` was), with fewer or more blocks, a width and a resolution."""

    name: str = "b0-s4"
    definition: dict[str, Any] | None = None
    blocks: int | None = Field(None, ge=1)
    width: float = Field(1.0, gt=0, le=16, allow_inf_nan=False)
    divisor: int = Field(8, ge=1)
    resolution: int | None = Field(None, ge=4, le=2048)


class Space(_Part):
    """Which networks are compared. `measured`: exact budgets; `nominal`: the paper's lattice.

    `alpha_max`, `beta_max`, `gamma_max` bound the multipliers; without them the budget does."""

    mode: Literal["measured", "nominal"] = "measured"
    candidates: int | None = Field(None, ge=1)  # None: all
    sampler: Literal["lattice", "sobol", "tpe"] = (
        "lattice"  # which points of the shares they stand for
    )
    tolerance: float = Field(0.02, gt=0, lt=0.5)  # of exact cost (measured)
    max_waste: float = Field(0.08, ge=0)
    step: int = Field(5, ge=1, le=100)  # hundredths (nominal)
    nominal_tolerance: float = Field(0.05, gt=0, lt=0.5)
    resolution_step: int = Field(1, ge=1)  # px (nominal)
    alpha_max: float | None = Field(None, ge=1, allow_inf_nan=False)
    beta_max: float | None = Field(None, ge=1, allow_inf_nan=False)
    gamma_max: float | None = Field(None, ge=1, allow_inf_nan=False)
    upscale: bool = False  # resolutions above the images' native side


class DataSpec(_Part):
    source: str = "auto"
    train_images: int | None = Field(None, ge=2)  # per run; None: all
    val_images: int | None = Field(None, ge=1)
    test_images: int | None = Field(None, ge=1)


_Budget = Annotated[Budget, PlainSerializer(str)]  # in TOML and JSON as it is typed


class Study(_Part):
    baseline: BaselineSpec = BaselineSpec()
    budgets: tuple[_Budget, ...] = Field((Budget(2, relative=True),), min_length=1)
    space: Space = Space()
    data: DataSpec = DataSpec()
    recipe: Recipe = RECIPES["proxy"]
    rungs: tuple[int, ...] = Field((1,), min_length=1)  # epochs
    allocation: Literal["flat", "rungs"] = (
        "flat"  # every network to the last rung; or half go on to the next
    )
    seed: int = Field(0, ge=0, lt=2**31)  # the first
    seeds: int = Field(1, ge=1, le=500)  # of every network that reaches the last rung
    extra: int = Field(0, ge=0, le=100_000)  # runs more per budget, where the posterior says
    # of those, decided at once; as many workers at most have work then. It changes which runs follow
    extra_batch: int = Field(4, ge=1, le=1000)
    confirm: int = Field(
        0, ge=0, le=500
    )  # fresh seeds on the test split, for what the answer names
    references: tuple[float, ...] = (
        0.5,
        1.5,
    )  # trained beside the baseline when there is one budget
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(1, ge=1, le=256)  # per run: it changes the last bits of every sum
    compile: bool = False  # torch.compile on CUDA, for runs of many epochs
    deadline: float | None = Field(
        None, gt=0, allow_inf_nan=False
    )  # s of a run alone; of k on one GPU: k times

    @field_validator("recipe", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        """recipe = "paper", or a table whose `base` is one: what it says is put over the named
        recipe."""
        given = {"base": value} if isinstance(value, str) else value
        if not isinstance(given, dict) or "base" not in given:
            return value
        base = RECIPES.get(given["base"]) if isinstance(given["base"], str) else None
        if base is None:
            raise ValueError(f"recipe {given['base']!r}: known are {', '.join(RECIPES)}")
        return {**dataclasses.asdict(base), **{key: v for key, v in given.items() if key != "base"}}

    @model_validator(mode="before")
    @classmethod
    def _parse_budgets(cls, settings: Any) -> Any:
        """Budgets are texts in a file, `Budget`s from here on; the space says how exactly they are met."""
        if not isinstance(settings, dict) or not isinstance(settings.get("budgets"), list | tuple):
            return settings
        space = settings.get("space")
        tolerance = space.get("tolerance") if isinstance(space, dict) else None
        if not isinstance(tolerance, float) or not 0 < tolerance < 0.5:
            tolerance = Space().tolerance  # where one is wrong, its own field says so
        budgets = [Budget.parse(str(text), tolerance) for text in settings["budgets"]]
        for budget in budgets:
            if budget.of != "macs":
                raise ValueError(
                    f"budget {budget}: a search compares networks of equal multiply-adds, such as "
                    "2x or 400M"
                )
        return {**settings, "budgets": tuple(budgets)}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.budgets)) < len(self.budgets):
            raise ValueError("budgets: the same budget twice")
        if any(e < 1 for e in self.rungs) or list(self.rungs) != sorted(set(self.rungs)):
            raise ValueError(
                "rungs: whole numbers of epochs above 0 that increase, such as [1, 2, 4]"
            )
        if self.space.sampler == "tpe" and self.allocation == "rungs":
            raise ValueError(
                "space.sampler: tpe proposes from full-length results; take allocation flat with it"
            )
        if any(not 0.01 <= r <= 100 for r in self.references):
            raise ValueError("references: ratios from 0.01 to 100")
        r = self.recipe
        for name, ok, right in (
            ("lr", 0 < r.lr < math.inf, "above 0"),
            ("batch", r.batch >= 2, "at least 2"),
            ("weight_decay", 0 <= r.weight_decay < math.inf, "at least 0"),
            ("momentum", 0 <= r.momentum < 1, "from 0 to below 1"),
            ("label_smoothing", 0 <= r.label_smoothing < 1, "from 0 to below 1"),
            ("warmup_steps", r.warmup_steps >= 0, "at least 0"),
            ("warmup_epochs", 0 <= r.warmup_epochs < math.inf, "at least 0"),
            ("cutout", 0 <= r.cutout < 1, "from 0 to below 1"),
            ("ema", 0 <= r.ema < 1, "from 0 to below 1"),
            ("shift", 0 <= r.shift < 0.5, "from 0 to below 0.5"),
            ("drop_path", 0 <= r.drop_path < 1, "from 0 to below 1"),
            ("bn_images", r.bn_images >= 2, "at least 2"),
        ):
            if not ok:
                raise ValueError(f"recipe.{name} = {getattr(r, name)}: must be {right}")
        self.network()
        return self

    def network(self) -> Baseline:
        """The baseline as effnet knows it. Rounding is its own for the paper's nominal lattice,
        else `spread`, whose depth moves in whole blocks."""
        spec = self.baseline
        base = (
            parse_baseline(spec.definition, spec.name)
            if spec.definition is not None
            else baseline(spec.name)
        )
        if spec.blocks is not None:
            base = base.with_blocks(spec.blocks)
        return dataclasses.replace(
            base,
            width=spec.width * base.width,
            divisor=spec.divisor,
            resolution=spec.resolution or base.resolution,
            rounding=base.rounding if self.space.mode == "nominal" else "spread",
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
        flat.pop("data.source", None)
        if self.baseline.definition is not None:  # as it is understood, not as it is spelled
            flat = {
                key: value
                for key, value in flat.items()
                if not key.startswith("baseline.definition")
            }
            own = dataclasses.asdict(parse_baseline(self.baseline.definition, self.baseline.name))
            flat["baseline.definition"] = {
                key: value for key, value in own.items() if key != "name"
            }
        return {**flat, "data.digest": data_digest, "schema": SCHEMA}

    def to_toml(self) -> str:
        return tomli_w.dumps(self.settings())


def identity_hash(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def check_same(folder: Path, recorded: dict[str, Any], identity: dict[str, Any]) -> None:
    """Raises UserError, with the settings that differ, where a run folder holds another study."""
    wanted = json.loads(json.dumps(identity))  # tuples become lists, as in what was recorded
    if recorded == wanted:
        return
    differing = [
        f"{name} is {recorded.get(name, 'the default')} there, {wanted.get(name, 'the default')} here"
        for name in sorted({*recorded, *wanted})
        if recorded.get(name) != wanted.get(name)
    ]
    raise UserError(
        f"run folder {folder} belongs to a different study: {'; '.join(differing)}. Choose another folder with --out"
    )


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return value


def _differences(
    value: dict[str, Any], default: dict[str, Any], prefix: str = ""
) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, item in value.items():
        if isinstance(item, dict):
            found += _differences(item, default.get(key, {}), f"{prefix}{key}.")
        elif item != default.get(key):
            found.append((prefix + key, item))
    return found


def preset_path(name: str) -> Path:
    """studies/NAME.toml: in the checkout, or inside the installed package."""
    here = Path(__file__).resolve().parent.parent
    for folder in (here / "studies", here.parent / "studies"):
        if (folder / f"{name}.toml").is_file():
            return folder / f"{name}.toml"
    raise UserError(
        f"preset {name}: no {name}.toml in {here.parent / 'studies'}; reinstall the package"
    )


def read(path: Path, overrides: dict[str, Any] | None = None) -> Study:
    """The study in a TOML file, with `overrides` ({"recipe.lr": 0.01, ...}) put over it.

    Raises UserError naming the file, the field and what would be right."""
    try:
        settings = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(
            f"study {path}: {reason}; a study is a TOML file such as studies/quick.toml"
        ) from None
    _embed(settings, str(path))
    study = check(settings, str(path))
    if not overrides:
        return study
    if str(overrides.get("baseline.name", "")).endswith(".toml"):
        settings[
            "baseline"
        ] = {}  # a network of one's own is taken as it stands, not thinned as the preset's is
    elif "baseline.name" in overrides:
        settings.get("baseline", {}).pop("definition", None)
    if "recipe.base" in overrides:
        settings["recipe"] = {}  # another recipe, not the file's numbers put over it
    for name, value in overrides.items():
        *parents, last = name.split(".")
        place = settings
        if isinstance(settings.get("recipe"), str):
            settings["recipe"] = {"base": settings["recipe"]}
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise UserError(f"command line: {name}: {parent} has no parts")
        place[last] = value
    _embed(settings, "command line")
    return check(settings, "command line")


def _embed(settings: dict[str, Any], where: str) -> None:
    """A baseline in a file becomes part of the study: what was trained stays known when the file
    changes."""
    spec = settings.get("baseline")
    if (
        not isinstance(spec, dict)
        or "definition" in spec
        or not str(spec.get("name", "")).endswith(".toml")
    ):
        return
    try:
        spec["definition"] = read_table(spec["name"])
        base = parse_baseline(spec["definition"], spec["name"])
    except ValueError as error:
        raise UserError(f"{where}: baseline.name: {error}") from None
    spec["name"] = base.name
    spec.setdefault("divisor", base.divisor)


def check(settings: dict[str, Any], where: str) -> Study:
    """Settings as a Study; UserError for the first thing that is wrong with them."""
    try:
        return Study.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
        if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            message = "no such setting; studies/quick.toml shows the known ones"
        elif field and first["type"] != "value_error":  # our own messages name what was given
            message += f", not {first['input']!r}"
        raise UserError(f"{where}: {field + ': ' if field else ''}{message}") from None
