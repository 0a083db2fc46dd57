"""Links of the documents lead to files and headings that exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    path.relative_to(ROOT)
    for path in sorted(ROOT.rglob("*.md"))
    if not any(
        part.startswith(".") or part == "node_modules" for part in path.relative_to(ROOT).parts
    )
]
FENCED = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
IN_LINE = re.compile(r"`[^`\n]*`")
LINK = re.compile(
    r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)|^\[[^\]]+\]:\s+(\S+)", re.MULTILINE
)
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)
ANCHOR = re.compile(r"<a\s+(?:id|name)=\"([^\"]+)\"")
MARKUP = re.compile(r"!?\[([^\]]*)\]\([^)]*\)|[`*]")


def links(text: str) -> Iterator[str]:
    """The targets of links, those in code aside."""
    for match in LINK.finditer(IN_LINE.sub("``", FENCED.sub("", text))):
        yield match[1] or match[2]


def anchor_of(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    plain = MARKUP.sub(lambda match: match[1] or "", heading).lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


@cache
def anchors(document: Path) -> frozenset[str]:
    text = FENCED.sub("", document.read_text())
    found: set[str] = set(ANCHOR.findall(text))
    for heading in HEADING.findall(text):
        base = anchor = anchor_of(heading)
        number = 0
        while anchor in found:
            number += 1
            anchor = f"{base}-{number}"
        found.add(anchor)
    return frozenset(found)


def broken(link: str, document: Path) -> str | None:
    """What is wrong with a link of a document, if anything. Other sites are not asked."""
    if re.match(r"[a-z][a-z+.-]*:", link):
        return None
    place, _, anchor = unquote(link).partition("#")
    target = document if not place else (document.parent / place).resolve()
    if not target.exists():
        return f"{link}: no such file"
    if anchor and target.suffix == ".md" and anchor not in anchors(target):
        return f"{link}: no such heading"
    return None


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_links_lead_somewhere(document: Path) -> None:
    path = ROOT / document
    found = [problem for link in links(path.read_text()) if (problem := broken(link, path))]
    assert found == []


@pytest.mark.parametrize(
    ("link", "problem"),
    [
        ("there.md", None),
        ("there.md#a-heading-with-code", None),
        ("#here-1", None),
        ("https://example.org/#nowhere", None),
        ("gone.md", "gone.md: no such file"),
        ("there.md#nowhere", "there.md#nowhere: no such heading"),
        ("#nowhere", "#nowhere: no such heading"),
    ],
)
def test_a_broken_link_is_found(tmp_path: Path, link: str, problem: str | None) -> None:
    (tmp_path / "there.md").write_text("# A heading, with `code`\n")
    document = tmp_path / "here.md"
    document.write_text(
        f"# Here\n\n## Here\n\n[link]({link}) `[no](link.md)`\n\n```\n[no](x)\n```\n"
    )
    assert list(links(document.read_text())) == [link]
    assert broken(link, document) == problem
