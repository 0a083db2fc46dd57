"""The JSON of a list, decoded item by item: a page of 500 pods is 25 MiB as Python objects.

Each item can be garbage before the next one is decoded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


class ListReader:
    """The items of one list of the API; iterated once. Malformed JSON raises ValueError."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self.metadata: dict[str, Any] = {}
        """The list's own, complete after the last item."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Decode one item after the other."""
        self._expect("{")
        more = not self._skip("}")
        while more:
            key = self._value()
            self._expect(":")
            if key == "items" and self._skip("["):
                yield from self._items()
            else:
                value = self._value()
                if key == "metadata":
                    self.metadata = value
            more = self._skip(",")
            if not more:
                self._expect("}")

    def _items(self) -> Iterator[dict[str, Any]]:
        if self._skip("]"):
            return
        yield self._value()
        while self._skip(","):
            yield self._value()
        self._expect("]")

    def _value(self) -> Any:
        self._skip_space()
        value, self._at = _DECODER.raw_decode(self._text, self._at)
        return value

    def _skip_space(self) -> None:
        if space := _SPACE.match(self._text, self._at):
            self._at = space.end()

    def _skip(self, character: str) -> bool:
        """Go past this character, if it comes next."""
        self._skip_space()
        found = self._text.startswith(character, self._at)
        self._at += found
        return found

    def _expect(self, character: str) -> None:
        if not self._skip(character):
            raise json.JSONDecodeError(f"Expecting {character!r}", self._text, self._at)
