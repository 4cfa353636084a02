"""Every setting of a study as a list: what the command line and docs/cli.md are made from."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from scaling_search.study.flags import RECIPE, Flag
from scaling_search.study.settings import PRESETS, Study, preset_path, read
from scaling_search.training.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: `name` as it stands in a study file ("recipe.lr"), `default` as plain data."""

    name: str
    annotation: Any
    default: Any
    description: str
    flag: Flag | None

    @property
    def kind(self) -> str:
        """What it takes, in a word or two for people: "int", "list of int", "flat or rungs"."""
        return describe_type(self.annotation)

    @property
    def sets(self) -> str:
        """The setting that its flag writes to."""
        return self.flag.setting or self.name if self.flag else self.name


def settings() -> list[Setting]:
    """Every setting, in the order of the study's fields."""
    return list(_walk(Study(), Study().settings()))


def with_flag(command: str) -> list[Setting]:
    """The settings that `command` ("search" or "train") has a flag for.

    A recipe is listed as a whole too, under the name "recipe": `--recipe` chooses one."""
    recipe = Study.model_fields["recipe"]
    whole = Setting("recipe", str, "proxy", recipe.description or "", _flag_in(recipe.metadata))
    listed = []
    for setting in [whole, *settings()]:
        if setting.flag is not None and command in setting.flag.commands:
            listed.append(setting)
    return listed


def common_to_presets() -> dict[str, Any]:
    """The settings that all presets agree in, as plain data by name; the others are a preset's
    own."""
    changes = [read(preset_path(preset)).changed() for preset in PRESETS]
    common = {}
    for setting in settings():
        first, *others = (changed.get(setting.name, setting.default) for changed in changes)
        if all(other == first for other in others):
            common[setting.name] = first
    return common


def describe_type(annotation: Any) -> str:
    """`int | None` → "int", a Literal → its values, `tuple[int, ...]` → "list of int"."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin is typing.Annotated:
        return describe_type(arguments[0])
    if origin is tuple:
        return f"list of {describe_type(arguments[0])}"
    if origin is dict:
        return "table"
    if origin in (Union, types.UnionType):
        (kind,) = (argument for argument in arguments if argument is not type(None))
        return describe_type(kind)
    names = {"str": "text", "bool": "true or false", "Budget": "budget"}
    return names.get(annotation.__name__, annotation.__name__)


def _walk(part: Any, defaults: dict[str, Any], prefix: str = "") -> Iterator[Setting]:
    """The settings of a study's part and of the parts within it; `defaults` as plain data."""
    for name, annotation, description, flag in _fields(type(part)):
        value = getattr(part, name)
        if isinstance(value, BaseModel) or dataclasses.is_dataclass(value):
            yield from _walk(value, defaults[name], f"{prefix}{name}.")
        else:
            yield Setting(prefix + name, annotation, defaults.get(name), description, flag)


def _fields(model: type) -> Iterator[tuple[str, Any, str, Flag | None]]:
    """(name, annotation, description, flag) of each field."""
    if issubclass(model, BaseModel):
        for name, field in model.model_fields.items():
            yield name, field.annotation, field.description or "", _flag_in(field.metadata)
        return
    annotations = typing.get_type_hints(Recipe)
    for recipe_field in dataclasses.fields(Recipe):
        metadata = recipe_field.metadata
        flag = Flag(metadata["flag"], RECIPE, ("search", "train")) if metadata["flag"] else None
        yield recipe_field.name, annotations[recipe_field.name], metadata["description"], flag


def _flag_in(metadata: list[Any]) -> Flag | None:
    return next((item for item in metadata if isinstance(item, Flag)), None)
