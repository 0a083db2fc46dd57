"""Text from elsewhere, made safe to show.

Names of processes, cgroups, devices and pods and the messages of peers may hold any character. One
that steers a terminal, ends a line or reorders what stands beside it is shown as its escape.

Each text becomes printable where it enters: `protocol` does it for messages, `commands.run` for the
names of local targets. The writers of documents, logs and progress make it printable again.
"""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Return the text with all that is not printable as an escape, such as `\x1b`.

    That is control characters (C0, DEL, C1), line separators, bidirectional and other format
    characters, lone surrogates, and spaces other than U+0020.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode("ascii")
        for each in text
    )


def printable_lines(text: str) -> list[str]:
    """Return the lines of the text, each printable. Only a line feed ends a line."""
    return [printable(line) for line in text.split("\n")]


def bounded(text: str, most: int) -> str:
    """Return at most this number of characters of the text, all of them printable."""
    return printable(text[:most])[:most]
