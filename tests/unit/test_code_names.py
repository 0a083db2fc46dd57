"""Names that the code has alike: `_s`, `log`. Neither they nor comments have replaced words.

That holds for Python, C, the protocol, scripts and settings.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.unit.plain_english import breaches, replaced_words
from tests.unit.product_texts import BENCH, DEVCLUSTER, PRODUCT, ROOT, Kind, Text, modules

MODULES = modules(*PRODUCT, *BENCH, *DEVCLUSTER)
C_SOURCES = sorted((ROOT / "bpf").rglob("*.[ch]"))
# The protocol, scripts, recipes and settings, and C that is no program of ours in the kernel.
OTHER_SOURCES = sorted(
    path
    for pattern in (
        "Makefile",
        "pyproject.toml",
        ".ci/run",
        "*/Containerfile",
        "bench/*.[ch]",
        "bench/*.bt",
        "devcluster/**/*.c",
        "proto/latencyprobe/**/*.proto",
        "tests/**/*.sh",
        "tools/setup-*",
        "tools/system-packages",
        "tools/sign-*",
    )
    for path in ROOT.glob(pattern)
)
# Fields that `-o json` and a status show by these names, and a function of the standard library.
PUBLISHED = frozenset(
    {"duration_seconds", "measured_seconds", "unobserved_seconds", "cert_time_to_seconds"}
)
# A condition's reason that users know, and words of a text or of 64 bits.
KEPT = frozenset({"AGENT_SILENT", "word", "words"})
LOGGER_NAMES = frozenset({"_log", "logger", "_logger", "LOG", "LOGGER"})
LOG_CALLS = frozenset({"debug", "info", "warning", "error", "exception", "critical", "log"})


def names_in(source: str) -> Iterator[tuple[int, str]]:
    """Every name that code uses or gives, with its line. Strings have their own rules."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name):
                yield node.lineno, name
            case ast.arg(arg=name) | ast.keyword(arg=str(name)):
                yield node.lineno, name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield node.lineno, name
            case ast.ClassDef(name=name):
                yield node.lineno, name


def loggers_in(source: str) -> Iterator[tuple[int, str]]:
    """What a logger of a module is assigned to, unless it is `log`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign) and "getLogger" in ast.unparse(node.value):
            yield from (
                (node.lineno, name) for name in map(ast.unparse, node.targets) if name != "log"
            )
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = ast.unparse(node.func.value)
            if owner.rpartition(".")[2] in LOGGER_NAMES and node.func.attr in LOG_CALLS:
                yield node.lineno, owner


def is_in_seconds(name: str) -> bool:
    return re.search(r"_seconds$", name, re.IGNORECASE) is not None and name not in PUBLISHED


@pytest.mark.parametrize("module", MODULES)
def test_a_name_of_seconds_ends_in_s(module: str) -> None:
    named = names_in((ROOT / module).read_text(encoding="utf-8"))

    assert [f"{module}:{line}: {name}" for line, name in named if is_in_seconds(name)] == []


@pytest.mark.parametrize("module", MODULES)
def test_a_logger_is_called_log(module: str) -> None:
    # The root of all loggers, which is set up, is none of a module.
    found = loggers_in((ROOT / module).read_text(encoding="utf-8"))

    assert [f"{module}:{line}: {name}" for line, name in found if name != "root"] == []


def as_text(name: str) -> str:
    """The words of a name."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).replace("_", " ").strip()


@pytest.mark.parametrize("module", MODULES)
def test_a_name_is_in_plain_english(module: str) -> None:
    named = {name for _, name in names_in((ROOT / module).read_text(encoding="utf-8"))} - KEPT
    found = {name: list(replaced_words(as_text(name))) for name in (*named, Path(module).stem)}

    assert {name: words for name, words in found.items() if words} == {}


def comments_in(source: str) -> Iterator[tuple[int, str]]:
    """Every comment of Python, with its line."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def replaced_in(lines: Iterable[tuple[int, str]]) -> Iterator[str]:
    """The replaced words of names and comments. A word of 64 bits is none, nor is a pronoun."""
    for number, line in lines:
        text = re.sub(
            r"->|\.\b|\b(?:words?|whatever|whoever)\b", " ", as_text(line), flags=re.IGNORECASE
        )
        yield from (f"line {number}: {breach}" for breach in replaced_words(text))


@pytest.mark.parametrize("module", MODULES)
def test_a_comment_is_in_plain_english(module: str) -> None:
    found = replaced_in(comments_in((ROOT / module).read_text(encoding="utf-8")))

    assert list(found) == []


@pytest.mark.parametrize("path", C_SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_and_comments_of_c_are_in_plain_english(path: Path) -> None:
    assert list(replaced_in(enumerate(path.read_text().splitlines(), start=1))) == []


@pytest.mark.parametrize("path", OTHER_SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_other_sources_are_in_plain_english(path: Path) -> None:
    assert list(replaced_in(enumerate(path.read_text().splitlines(), start=1))) == []


def test_other_sources_are_found() -> None:
    """A file that has moved would leave its text unread, without a failure."""
    known = ["node_agent.proto", "Containerfile", "guest.sh", "setup-system", "sign-release"]

    assert set(known) <= {path.name for path in OTHER_SOURCES}


def test_names_of_contracts_are_in_plain_english() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    names = [each["name"] for each in settings["tool"]["importlinter"]["contracts"]]
    texts = [Text(Kind.OTHER, "pyproject.toml", 0, name) for name in names]

    assert len(names) > 20
    assert {text.text: found for text in texts if (found := list(breaches(text)))} == {}


@pytest.mark.parametrize(
    "line",
    [
        "static void look_at_device(u64 *ctx)",
        "ns = way->start_ns;",
        "tell(event, owners);",
        "config.told = 1;",
        " * on its way out",
        "# NULL for want of memory",
    ],
)
def test_a_breach_in_a_line_is_found(line: str) -> None:
    assert list(replaced_in([(1, line)]))


@pytest.mark.parametrize("line", ["u64 *known, word;", "/* net/look.c */", "gateway->up = 1;"])
def test_a_line_without_a_breach_passes(line: str) -> None:
    assert not list(replaced_in([(1, line)]))


@pytest.mark.parametrize("name", ["next_look", "LookLater", "_telling", "told", "at_rest"])
def test_a_breach_in_a_name_is_found(name: str) -> None:
    assert list(replaced_words(as_text(name)))


@pytest.mark.parametrize("name", ["look_up", "LookUp", "toldo", "_gateway", "restored"])
def test_a_name_that_only_resembles_a_breach_passes(name: str) -> None:
    assert not list(replaced_words(as_text(name)))


@pytest.mark.parametrize(
    "line",
    [
        "_WAIT_SECONDS = 3",
        "x.wait_seconds",
        "f(wait_seconds=1)",
        "def f(*, wait_seconds): pass",
        "def _seconds(): pass",
    ],
)
def test_a_name_in_seconds_is_found(line: str) -> None:
    assert any(is_in_seconds(name) for _, name in names_in(line))


def test_the_name_of_a_published_metric_or_field_is_kept() -> None:
    source = 'Histogram("latencyprobe_apply_seconds")\nreport.duration_seconds'

    assert not any(is_in_seconds(name) for _, name in names_in(source))


@pytest.mark.parametrize(
    "line",
    ["logger = logging.getLogger(__name__)", "self._log.info('no')", "_logger.error('no')"],
)
def test_another_name_of_a_logger_is_found(line: str) -> None:
    assert list(loggers_in(line))


def test_a_buffer_of_lines_is_no_logger() -> None:
    assert not list(loggers_in("self._log.append(text)\nlog = logging.getLogger(__name__)"))
