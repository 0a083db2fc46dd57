"""Every text that the product shows to a person, collected from its source and its `--help`.

A *text* is a string that reaches a terminal, a log, a status or a reader of the code. Placeholders
of f-strings count as one word each. Kinds say where a text stands, since each has a form of its
own: an error does not end with a full stop, the help of an option does.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import click

ROOT = Path(__file__).parent.parent.parent
PRODUCT = ("latencyprobe", "node_agent", "operator", "tools", "setup.py")
BENCH = ("bench",)
DEVCLUSTER = ("devcluster",)
# Stands for each placeholder of a format string: a word without a meaning.
PLACEHOLDER = "X"
_GENERATED = re.compile(r"_pb2(_grpc)?\.py$")
_LOGGERS = frozenset({"log", "logger", "_log", "_logger"})
_LOG_METHODS = frozenset(
    {"debug", "info", "warning", "error", "exception", "critical", "fatal", "log"}
)
_PERCENT_FORMAT = re.compile(r"%[-#0+ ]*[\d*]*(?:\.[\d*]+)?[sdifgrx]")
_PROSE_WORDS = 3


class Kind(Enum):
    """The place of a text, which decides its form."""

    ERROR = "error"
    LOG = "log"
    HELP = "help"
    OTHER = "text"
    FUNCTION = "docstring of a function"
    PROPERTY = "docstring of a property"
    TYPE = "docstring of a type"
    MODULE = "docstring of a module"


@dataclass(frozen=True, slots=True)
class Text:
    """One text. `module` is its file, relative to the checkout."""

    kind: Kind
    module: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.module}:{self.line}: {self.kind.value} {self.text!r}"


def modules(*places: str) -> tuple[str, ...]:
    """Return the modules in these folders and files, as paths from the root of the checkout."""
    return tuple(module for place in places for module in _modules_at(place))


def _modules_at(place: str) -> list[str]:
    path = ROOT / place
    found = [
        str(each.relative_to(ROOT))
        for each in ([path] if place.endswith(".py") else sorted(path.rglob("*.py")))
        if each.exists() and not _GENERATED.search(each.name)
    ]
    # A folder that has moved would leave its texts unread, without a failure.
    assert found, f"no modules at {place}: name the place where they are now"
    return found


def messages_in(module: str) -> Iterator[Text]:
    """Yield the errors, log formats and all other prose of a module, without its docstrings."""
    tree = ast.parse((ROOT / module).read_text(encoding="utf-8"))
    return messages_of(tree, module)


def messages_of(tree: ast.Module, module: str) -> Iterator[Text]:
    """Yield the messages in a syntax tree, each once and under its most special kind."""
    docstrings = {id(node) for node, _, _ in _docstrings(tree)}
    seen: set[int] = set()
    for kind, arguments in _sites(tree):
        for argument in arguments:
            for string in _strings(argument):
                if id(string) not in seen:
                    seen.update(map(id, ast.walk(string)))
                    yield Text(kind, module, string.lineno, _normalised(string, kind))
    for string in _strings(tree):
        if id(string) in seen or id(string) in docstrings:
            continue
        text = _normalised(string, Kind.OTHER)
        if len(text.split()) >= _PROSE_WORDS:
            yield Text(Kind.OTHER, module, string.lineno, text)


def docstrings_in(module: str) -> Iterator[Text]:
    """Yield the docstrings of a module, those of private names too."""
    tree = ast.parse((ROOT / module).read_text(encoding="utf-8"))
    for node, kind, text in _docstrings(tree):
        yield Text(kind, module, node.lineno, text)


def help_texts(
    command: click.Command, path: str, parent: click.Context | None = None
) -> Iterator[Text]:
    """Yield the texts in the `--help` of a command, its options and its subcommands."""
    # With the settings of its parents: click keeps the help option that it makes first.
    context = click.Context(command, parent, info_name=path, **command.context_settings)
    for text in (command.help, command.epilog, command.short_help):
        if text:
            yield Text(Kind.OTHER, path, 0, text)
    for parameter in command.get_params(context):
        if isinstance(parameter, click.Option):
            yield Text(Kind.HELP, f"{path} {parameter.opts[0]}", 0, parameter.help or "")
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            subcommand = command.get_command(context, name)
            assert subcommand is not None
            yield from help_texts(subcommand, f"{path} {name}", context)


def _sites(tree: ast.Module) -> Iterator[tuple[Kind, list[ast.expr]]]:
    """Yield the arguments of every raise, every exception's initialiser and every log call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            yield Kind.ERROR, _arguments(node.exc)
        elif isinstance(node, ast.ClassDef) and _is_exception(node):
            for call in ast.walk(node):
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "super().__init__":
                    yield Kind.ERROR, _arguments(call)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = ast.unparse(node.func.value)
            if owner.rpartition(".")[2] in _LOGGERS and node.func.attr in _LOG_METHODS:
                yield Kind.LOG, node.args[:1]
            elif owner == "self" and node.func.attr == "fail":  # of a click.ParamType
                yield Kind.ERROR, node.args[:1]


def _arguments(call: ast.Call) -> list[ast.expr]:
    return [*call.args, *(keyword.value for keyword in call.keywords)]


def _is_exception(node: ast.ClassDef) -> bool:
    names = [node.name, *(ast.unparse(base) for base in node.bases)]
    return any(name.endswith(("Error", "Exception")) for name in names)


def _strings(node: ast.AST) -> Iterator[ast.expr]:
    """Yield the outermost string expressions: constants, f-strings and sums of those."""
    if isinstance(node, ast.JoinedStr):
        yield node
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                yield from _strings(part.value)
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            yield node
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add) and _is_sum(node):
        yield node
    else:
        for child in ast.iter_child_nodes(node):
            yield from _strings(child)


def _is_sum(node: ast.expr) -> bool:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _is_sum(node.left) and _is_sum(node.right)
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def _normalised(node: ast.expr, kind: Kind) -> str:
    text = _flat(node)
    return _PERCENT_FORMAT.sub(PLACEHOLDER, text) if kind is Kind.LOG else text


def _flat(node: ast.AST) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_flat, node.values))
    if isinstance(node, ast.BinOp):
        return _flat(node.left) + _flat(node.right)
    return PLACEHOLDER


def _docstrings(tree: ast.Module) -> Iterator[tuple[ast.Constant, Kind, str]]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if not node.body or not isinstance(node.body[0], ast.Expr):
            continue
        value = node.body[0].value
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield value, _docstring_kind(node), ast.get_docstring(node) or ""


def _docstring_kind(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
) -> Kind:
    if isinstance(node, ast.Module):
        return Kind.MODULE
    if isinstance(node, ast.ClassDef):
        return Kind.TYPE
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    if any(name.endswith("property") for name in decorators):
        return Kind.PROPERTY
    # click shows it as the help of the command.
    return Kind.FUNCTION
