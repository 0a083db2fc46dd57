"""The rules of language that a text of the product keeps, as functions from text to breaches.

Subject, verb, object; at most 25 words a sentence; one word for one thing, the field's own; no
clause headed by who, what or which without its noun.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.unit.product_texts import Kind, Text

MOST_WORDS = 25
# Pattern: what to write in its place.
REPLACED_WORDS = {
    r"un?told|tells?|told|telling": "report, tell apart: distinguish",
    r"words?": "message, name",
    r"look(?:s|ed|ing)?(?! ?-?up\b)": "poll, look up, check",
    r"anew": "again",
    r"at rest": "inactive",
    r"ways?": "path, both directions",
    r"gates?|doors?": "TLS handshake, validation",
    r"silen(?:ce|t|tly)": "staleness, stale",
    r"meanwhile": "during the window, since then",
    r"nobody|no one|none (?:is|are|of (?:a|them|us|it))": "no X",
    r"somebody|anybody|everybody|anyone's|whoever|whomever|whatever": "the noun",
    r"(?:for )?want of": "because X is full",
    r"(?:be|are|is|been) had": "is missing, is not available",
    r"of no use": "requires",
    r"can't|don't|doesn't|isn't|aren't|won't|didn't|wasn't|hasn't|haven't": "cannot, do not",
}
_REPLACED = {
    re.compile(rf"(?<![\w./-])(?:{pattern})(?![\w-])", re.IGNORECASE): instead
    for pattern, instead in REPLACED_WORDS.items()
}
_QUESTION_WORDS = r"what|who|whom|whose|whether|how|which"
_HEADLESS_START = re.compile(rf"^\W*(?:{_QUESTION_WORDS})\b", re.IGNORECASE)
_HEADLESS_INSIDE = re.compile(
    r"(?:[:;(]\s+|\b(?:of|to|for|with|by|in|from|than|and|or|but|on|at|as|is|are)\s+)"
    r"(?:who|whom|what)\b(?! to do\b)|,\s+what\b",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n\s*\n")
_PREFORMATTED = "\b"
_CODE = re.compile(r"`[^`\n]+`")
# First words by which a docstring is no command; ruff's D401 knows most others.
_NO_VERBS = frozenset(
    [
        "a",
        "all",
        "an",
        "as",
        "asks",
        "at",
        "both",
        "by",
        "each",
        "for",
        "from",
        "has",
        "her",
        "his",
        "if",
        "in",
        "its",
        "late",
        "no",
        "none",
        "of",
        "on",
        "one",
        "our",
        "packets",
        "so",
        "some",
        "something",
        "such",
        "that",
        "the",
        "their",
        "there",
        "these",
        "this",
        "those",
        "to",
        "two",
        "under",
        "until",
        "what",
        "where",
        "with",
    ]
)


def breaches(text: Text) -> Iterator[str]:
    """Yield one line for each rule that the text breaks."""
    yield from replaced_words(text.text)
    yield from _long_sentences(text.text)
    yield from _headless_clauses(text)
    yield from _form(text)


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences; each line of a preformatted paragraph, a list or an example is one."""
    for paragraph in re.split(r"\n\s*\n", text):
        lines = paragraph.strip().splitlines()
        if paragraph.lstrip(" \n").startswith(_PREFORMATTED):
            yield from lines
            continue
        joined = ""
        for line in lines:
            if joined and re.match(r"\s*([-*|]|\w+:\s)|\s{4}", line):
                yield from _split(joined)
                joined = ""
            joined += f" {line.strip()}"
        yield from _split(joined)


def _split(paragraph: str) -> list[str]:
    return [part.strip() for part in _SENTENCE_END.split(paragraph) if part.strip()]


def replaced_words(text: str) -> Iterator[str]:
    """Yield one line for each replaced word outside of code."""
    text = _CODE.sub("", text)
    for pattern, instead in _REPLACED.items():
        for match in pattern.finditer(text):
            yield f"{match[0]!r} is a replaced word: {instead}"


def _long_sentences(text: str) -> Iterator[str]:
    for sentence in sentences(text):
        count = len(sentence.split())
        if count > MOST_WORDS:
            yield f"a sentence of {count} words: {sentence!r}"


def _headless_clauses(text: Text) -> Iterator[str]:
    if _HEADLESS_START.search(text.text) and not text.text.rstrip().endswith("?"):
        yield f"begins with {text.text.split()[0]!r}"
    for match in _HEADLESS_INSIDE.finditer(text.text):
        yield f"a clause without its noun: {match[0]!r}"


def _form(text: Text) -> Iterator[str]:
    count = len(list(sentences(text.text)))
    stripped = text.text.rstrip()
    if text.kind in {Kind.ERROR, Kind.LOG} and count == 1 and stripped.endswith("."):
        yield "an error or log line of one sentence has no full stop"
    if text.kind is Kind.HELP and not (stripped.endswith((".", "]")) and stripped[:1].isupper()):
        yield "the help of an option is a sentence, from its capital letter to its full stop"
    if text.kind is Kind.FUNCTION and _first_word(stripped) in _NO_VERBS:
        yield "the docstring of a function begins with a verb"


def _first_word(text: str) -> str:
    return text.split(maxsplit=1)[0].lower() if text else ""
