"""Every text of the product is plain English: the rules of `plain_english` hold for each."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

import click
import pytest

from latencyprobe.commands.cli import main
from tests.unit import chart_texts
from tests.unit.plain_english import breaches, sentences
from tests.unit.product_texts import (
    BENCH,
    DEVCLUSTER,
    PRODUCT,
    Kind,
    Text,
    docstrings_in,
    help_texts,
    messages_in,
    messages_of,
    modules,
)

# Texts for machines: networks for `ip -batch`, C for the compiler, accounts for /etc/passwd, and
# the configuration of containerd.
NOT_PROSE = frozenset(
    {
        ("devcluster/node_components.py", "version = 2"),
        ("latencyprobe/commands/demo.py", "link set lo up"),
        ("node_agent/latencyprobe_agent/kernel/build/headers.py", "#pragma once"),
        ("tools/images/layers.py", "root:x:0:"),
    }
)


def _complaints(texts: Iterable[Text]) -> str:
    lines = [
        f"{text}\n  -> {breach}"
        for text in texts
        for breach in breaches(text)
        if not _is_for_machines(text)
    ]
    return "\n".join(lines)


def _is_for_machines(text: Text) -> bool:
    return any(text.module == path and text.text.startswith(begin) for path, begin in NOT_PROSE)


@pytest.mark.parametrize("module", modules(*PRODUCT, *BENCH, *DEVCLUSTER))
def test_messages_are_plain_english(module: str) -> None:
    assert not (complaints := _complaints(messages_in(module))), complaints


@pytest.mark.parametrize("module", modules(*PRODUCT, *BENCH, *DEVCLUSTER))
def test_docstrings_are_plain_english(module: str) -> None:
    assert not (complaints := _complaints(docstrings_in(module))), complaints


@pytest.mark.parametrize(
    ("texts", "least"),
    [
        (chart_texts.refusals(), 15),
        (chart_texts.notes(), 8),
        (chart_texts.all_comments(), 170),
        (chart_texts.explanations(), 18),
        (chart_texts.descriptions(), 100),
    ],
    ids=["refusals", "notes", "comments", "explanations", "fields"],
)
def test_the_chart_is_in_plain_english(texts: Iterator[Text], least: int) -> None:
    found = list(texts)
    assert len(found) >= least
    assert not (complaints := _complaints(found)), complaints


def test_help_is_plain_english() -> None:
    texts = list(help_texts(main, "latencyprobe"))
    assert {"latencyprobe run --pid", "latencyprobe agent --listen", "latencyprobe pki init"} <= {
        text.module for text in texts
    }
    assert not (complaints := _complaints(texts)), complaints


@pytest.mark.parametrize("place", ["moved", "latencyprobe/moved.py", "tests/unit/golden"])
def test_a_place_without_modules_is_refused(place: str) -> None:
    with pytest.raises(AssertionError, match=f"no modules at {place}"):
        modules("latencyprobe", place)


def test_many_messages_are_collected() -> None:
    """The collector must not turn blind without notice."""
    texts = [text for module in modules(*PRODUCT) for text in messages_in(module)]
    counts = {kind: sum(text.kind is kind for text in texts) for kind in Kind}
    assert counts[Kind.ERROR] > 100
    assert counts[Kind.LOG] > 20
    assert counts[Kind.OTHER] > 300


def _collected(source: str) -> list[tuple[Kind, str]]:
    return [(text.kind, text.text) for text in messages_of(ast.parse(source), "module.py")]


@pytest.mark.parametrize(
    ("source", "texts"),
    [
        ('raise ValueError("a" f"{b} c")', [(Kind.ERROR, "aX c")]),
        ('self._log.info("no %s", a)', [(Kind.LOG, "no X")]),
        ('raise Other(field, f"{x}: {y!r}")', [(Kind.ERROR, "X: X")]),
        (
            'raise ValueError("a " + f"{b}" + "; ".join(c))',
            [(Kind.ERROR, "a X"), (Kind.ERROR, "; ")],
        ),
        ('log.warning("no %s in %d of %.1f", a, b, c)', [(Kind.LOG, "no X in X of X")]),
        ('def f():\n    "Do this and that."\n    x = "one two"', []),
        ('REASON = f"{a} two three"', [(Kind.OTHER, "X two three")]),
        (
            "class OneError(Exception):\n  def __init__(self):\n    super().__init__('short')",
            [(Kind.ERROR, "short")],
        ),
    ],
)
def test_the_collector_finds(source: str, texts: list[tuple[Kind, str]]) -> None:
    assert _collected(source) == texts


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Kind.ERROR, "the port is of no use"),
        (Kind.ERROR, "no types are to be had"),
        (Kind.ERROR, "this can't be read"),
        (Kind.ERROR, "dropped for want of room"),
        (Kind.ERROR, "nobody reads it"),
        (Kind.ERROR, "what was sent is too long"),
        (Kind.ERROR, "refused: who calls needs a certificate"),
        (Kind.ERROR, "cannot read it."),
        (Kind.LOG, "looked at X"),
        (Kind.LOG, "X told of it meanwhile"),
        (Kind.OTHER, "its certificate is none of a client"),
        (Kind.OTHER, " ".join(["word"] * 26)),
        (Kind.HELP, "Port of the agents"),
        (Kind.HELP, "port of the agents."),
        (Kind.HELP, ""),
        (Kind.FUNCTION, "Whether it is open."),
        (Kind.TYPE, "Who may call."),
    ],
)
def test_a_breach_is_found(kind: Kind, text: str) -> None:
    assert list(breaches(Text(kind, "module.py", 1, text)))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Kind.ERROR, "cannot attach kretprobe/inet_csk_accept: Operation not permitted (EPERM)"),
        (Kind.ERROR, "the agents, of which none answered, look up the name"),
        (Kind.ERROR, "cannot read X. Give another file"),
        (Kind.LOG, "gateway X has a path.way"),
        (Kind.HELP, "Port of the agents."),
        (Kind.HELP, "Duration of the trace.  [default: until Ctrl-C]"),
        (Kind.OTHER, " ".join(["word."] * 60).replace("word", "name")),
        (Kind.FUNCTION, "Return the path, or None if the reader, who may be slow, has closed it."),
    ],
)
def test_plain_english_passes(kind: Kind, text: str) -> None:
    assert not list(breaches(Text(kind, "module.py", 1, text)))


def test_a_preformatted_paragraph_has_a_sentence_a_line() -> None:
    text = "\b\nExamples:\n  one two\n  three\n\nA paragraph\nof two lines. Another"
    assert [each.strip() for each in sentences(text)] == [
        "\b",
        "Examples:",
        "one two",
        "three",
        "A paragraph of two lines",
        "Another",
    ]


def test_help_of_a_lazy_subcommand_is_found() -> None:
    @click.group("outer")
    def outer() -> None:
        """Do this."""

    @outer.command("inner")
    @click.option("--what", help="Name of it.")
    def inner(what: str) -> None:
        """Do that."""
        del what

    assert [(text.module, text.text) for text in help_texts(outer, "outer")] == [
        ("outer", "Do this."),
        ("outer --help", "Show this message and exit."),
        ("outer inner", "Do that."),
        ("outer inner --what", "Name of it."),
        ("outer inner --help", "Show this message and exit."),
    ]
