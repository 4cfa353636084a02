"""How a setting of a study is given on the command line."""

from __future__ import annotations

from dataclasses import dataclass

# The headings under which --help lists a command's options.
TRAINED = "what is trained"
SPACE = "the space"
RECIPE = "the recipe"
SPENDING = "spending"
PLACE = "where it runs"
OUTPUT = "output"
GROUPS = (TRAINED, SPACE, RECIPE, SPENDING, PLACE, OUTPUT)


@dataclass(frozen=True, slots=True)
class Flag:
    """The command-line option of a setting, kept in the annotation of its field.

    `commands` have it. `unset` is how the default reads where it is None. `setting` is the name
    that the option sets where it is not the field's own: `--recipe` sets `recipe.base`. `is_text`:
    it is handed on as it is typed, for the setting to read."""

    name: str
    group: str
    commands: tuple[str, ...] = ("search",)
    unset: str = ""
    setting: str = ""
    is_text: bool = False
