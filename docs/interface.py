"""Writes docs/interface.md: what `effnet` and `scaling_search` export, from their own docstrings.

The public names are those of each package's `__all__`, and the classes of ours that its functions
return. Signatures are taken from the source text,
not from the running objects, whose form differs from one Python to the next.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
import typing
from types import ModuleType
from typing import Any

import effnet
import scaling_search

_HEAD = """\
# The Python interface

Written by `docs/generate.py` from the docstrings: change the code, not this file. What is not named
here may change from one release to the next.
"""

_OURS = ("effnet", "scaling_search")
_LONGEST = 92  # columns of a signature on one line


def page() -> str:
    """The whole of docs/interface.md."""
    return _HEAD + "".join(_package(package) for package in (effnet, scaling_search))


def _package(package: ModuleType) -> str:
    """A package's section: its functions first, then its classes and aliases."""
    names = [name for name in getattr(package, "__all__", ()) if not name.startswith("_")]
    if not names:
        return ""
    about = inspect.cleandoc(package.__doc__ or "").split("\n\n")[0]
    public = {name: getattr(package, name) for name in names}
    functions, others = [], []
    for name, item in public.items():
        section = _section(f"{package.__name__}.{name}", item)
        if not inspect.isroutine(item):
            others.append(section)
            continue
        functions.append(section)
        returned = _returned_class(item)
        if returned is not None and returned not in public.values():
            others.append(_returned_section(returned))
    return f"\n## {package.__name__}\n\n{about}\n" + "".join([*functions, *others])


def _section(name: str, item: Any) -> str:
    """One public name: its signature, its docstring, and of a class its methods and properties."""
    head = f"\n### {name}\n"
    if inspect.isroutine(item):
        return head + _code(_function(name, item)) + _paragraphs(item.__doc__)
    if inspect.isclass(item):
        constructor = _constructor(name, _parsed(item))
        return head + constructor + _paragraphs(item.__doc__) + _members(_parsed(item))
    alternatives = [kind.__name__ for kind in typing.get_args(item)]
    short = name.rpartition(".")[2]
    return head + _code(f"{short} = {' | '.join(alternatives) or repr(item)}")


def _returned_class(function: Any) -> Any:
    """The class of these packages that a function says it returns, or None."""
    returns = _parsed(function).returns
    if not isinstance(returns, ast.Name):
        return None
    name = returns.id
    returned = function.__globals__.get(name)
    if returned is None:  # imported for type checkers alone
        for node in ast.walk(_parsed(inspect.getmodule(function))):
            if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
                returned = getattr(importlib.import_module(str(node.module)), name)
    ours = inspect.isclass(returned) and returned.__module__.split(".")[0] in _OURS
    return returned if ours else None


def _returned_section(item: Any) -> str:
    """A class that functions make: without its constructor."""
    name = f"{item.__module__}.{item.__name__}"
    return f"\n### {name}\n" + _paragraphs(item.__doc__) + _members(_parsed(item))


# ---- signatures


def _parsed(item: Any) -> Any:
    """The syntax tree of a function, a class or a module."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(item)))
    return tree if inspect.ismodule(item) else tree.body[0]


def _function(name: str, function: Any) -> str:
    definition = _parsed(function)
    arguments = _arguments(definition.args)
    options = definition.args.kwarg
    if options is not None:
        arguments.pop()
        if not (definition.args.kwonlyargs or definition.args.vararg):
            arguments.append("*")
        arguments += _options(options, function)
    return _signature(name, arguments, definition.returns)


def _signature(name: str, arguments: list[str], returns: ast.expr | None) -> str:
    """`name(arguments) -> returns` on one line, or an argument a line."""
    result = f" -> {ast.unparse(returns)}" if returns is not None else ""
    line = f"{name}({', '.join(arguments)}){result}"
    if len(line) <= _LONGEST:
        return line
    rows = "".join(f"    {argument},\n" for argument in arguments)
    return f"{name}(\n{rows}){result}"


def _arguments(arguments: ast.arguments) -> list[str]:
    """Every argument with its annotation and default, and the marks between them."""
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    defaults += arguments.defaults
    texts = []
    for argument, default in zip(positional, defaults, strict=True):
        if argument.arg not in ("self", "cls"):
            texts.append(_argument(argument, default))
    if arguments.vararg is not None:
        texts.append(f"*{_argument(arguments.vararg, None)}")
    elif arguments.kwonlyargs:
        texts.append("*")
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        texts.append(_argument(argument, default))
    if arguments.kwarg is not None:
        texts.append(f"**{_argument(arguments.kwarg, None)}")
    return texts


def _argument(argument: ast.arg, default: ast.expr | None) -> str:
    text = argument.arg
    if argument.annotation is not None:
        text += f": {ast.unparse(argument.annotation)}"
    if default is None:
        return text
    equals = " = " if argument.annotation is not None else "="
    return f"{text}{equals}{ast.unparse(default)}"


def _options(options: ast.arg, function: Any) -> list[str]:
    """The keyword arguments that `**options: Unpack[SomeDict]` stands for, or itself."""
    annotation = ast.unparse(options.annotation) if options.annotation is not None else ""
    if not annotation.startswith("Unpack["):
        return [f"**{_argument(options, None)}"]
    keys = _parsed(function.__globals__[annotation[len("Unpack[") : -1]])
    return [f"{name}: {kind} = ..." for name, kind, _ in _fields(keys)]


def _fields(definition: ast.ClassDef) -> list[tuple[str, str, str]]:
    """Each public field of a dataclass, a named tuple or a typed dictionary: its name, its type,
    its default as text ("" for none)."""
    fields = []
    for node in definition.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        if node.target.id.startswith("_"):
            continue
        default = node.value
        if isinstance(default, ast.Call) and ast.unparse(default.func) == "field":
            stated = {keyword.arg: keyword.value for keyword in default.keywords}
            default = stated.get("default", stated.get("default_factory"))
        value = "" if default is None else ast.unparse(default)
        fields.append((node.target.id, ast.unparse(node.annotation), value))
    return fields


def _constructor(name: str, definition: ast.ClassDef) -> str:
    """How an object of the class is made; "" where its source does not say."""
    for node in definition.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            return _code(_signature(name, _arguments(node.args), None))
    arguments = []
    for field, kind, default in _fields(definition):
        arguments.append(f"{field}: {kind}" + (f" = {default}" if default else ""))
    return _code(_signature(name, arguments, None)) if arguments else ""


# ---- text


def _members(definition: ast.ClassDef) -> str:
    """A list of the public methods and properties of a class."""
    lines = []
    for node in definition.body:
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
            continue
        decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
        if "overload" in decorators:
            continue
        if "property" in decorators or "cached_property" in decorators:
            heading = node.name
            if node.returns is not None:
                heading += f": {ast.unparse(node.returns)}"
        else:
            heading = _signature(node.name, _arguments(node.args), node.returns)
            heading = " ".join(heading.split()).replace("( ", "(").replace(",)", ")")
        about = " ".join((ast.get_docstring(node) or "").split())
        lines.append(f"- `{heading}`" + (f": {about}" if about else "") + "\n")
    return "\n" + "".join(lines) if lines else ""


def _code(text: str) -> str:
    return f"\n```py\n{text}\n```\n"  # `python` are examples, which the tests run


def _paragraphs(docstring: str | None) -> str:
    return f"\n{inspect.cleandoc(docstring)}\n" if docstring else ""
