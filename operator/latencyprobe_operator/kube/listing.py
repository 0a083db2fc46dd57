"""The JSON of a list, decoded item by item while it arrives.

A page of 500 pods may have hundreds of MiB: anyone who may create pods may give each of them
hundreds of KiB of annotations. So the reader keeps one item of it, which can be garbage before the
next one is decoded.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import AsyncIterator
from typing import Any

_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()
# Values that end so are whole. Of others, such as numbers, more may come, unless one of these does.
_ENDS = frozenset('}]"')
_FOLLOWS = frozenset(",]} \t\r\n")
# The most letters of one value. etcd takes objects of 1.5 MiB (--max-request-bytes).
MOST_OF_A_VALUE = 16 << 20


class ListReader:
    """The items of one list of the API; iterated once. Malformed JSON raises ValueError.

    `pieces`: the list's text in UTF-8, cut anywhere. They are read as the items are asked for.
    """

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces
        self._characters = codecs.getincrementaldecoder("utf-8")()
        self._text = ""
        self._at = 0
        self.metadata: dict[str, Any] = {}
        """The list's own, complete after the last item."""

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        """Decode one item after the other."""
        await self._expect("{")
        more = not await self._skip("}")
        while more:
            key = await self._value()
            await self._expect(":")
            if key == "items" and await self._skip("["):
                async for item in self._items():
                    yield item
            else:
                value = await self._value()
                if key == "metadata":
                    self.metadata = value
            more = await self._skip(",")
            if not more:
                await self._expect("}")

    async def _items(self) -> AsyncIterator[dict[str, Any]]:
        if await self._skip("]"):
            return
        yield await self._value()
        while await self._skip(","):
            yield await self._value()
        await self._expect("]")

    async def _value(self) -> Any:
        await self._skip_space()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError:
                if not await self._read_more():
                    raise
                continue
            is_whole = self._text[end - 1] in _ENDS or self._text[end : end + 1] in _FOLLOWS
            if is_whole or not await self._read_more():
                self._at = end
                return value

    async def _skip_space(self) -> None:
        while True:
            if space := _SPACE.match(self._text, self._at):
                self._at = space.end()
            if self._at < len(self._text) or not await self._read_more():
                return

    async def _skip(self, character: str) -> bool:
        """Go past this character, if it comes next."""
        await self._skip_space()
        found = self._text.startswith(character, self._at)
        self._at += found
        return found

    async def _expect(self, character: str) -> None:
        if not await self._skip(character):
            raise json.JSONDecodeError(f"Expecting {character!r}", self._text, self._at)

    async def _read_more(self) -> bool:
        """Read on; return False at the end of the text, and if a value is too long.

        What is there is doubled at least, so that a long value is decoded a few times only.
        """
        rest = self._text[self._at :]
        parts, length = [rest], len(rest)
        while length <= 2 * len(rest) and len(rest) <= MOST_OF_A_VALUE:
            piece = await anext(self._pieces, None)
            text = self._characters.decode(piece or b"", final=piece is None)
            parts.append(text)
            length += len(text)
            if piece is None:
                break
        if length > len(rest):
            self._text, self._at = "".join(parts), 0
        return length > len(rest)
