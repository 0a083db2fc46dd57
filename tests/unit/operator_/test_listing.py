"""A list is decoded item by item, with the result of decoding it as a whole."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe_operator.kube.listing import MOST_OF_A_VALUE, ListReader

OBJECTS = st.recursive(
    st.none()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
LISTS = st.fixed_dictionaries(
    {"metadata": st.dictionaries(st.text(max_size=3), OBJECTS)},
    optional={"items": st.lists(OBJECTS, max_size=4), "kind": st.text(), "other": OBJECTS},
)


async def cut(text: bytes, size: int) -> AsyncIterator[bytes]:
    """The text in pieces of this size."""
    for begin in range(0, len(text), size):
        yield text[begin : begin + size]


async def read(text: str, size: int = 1 << 16) -> tuple[list[Any], dict[str, Any]]:
    """The items and the metadata of a list that arrives in pieces of this size."""
    reader = ListReader(cut(text.encode(), size))
    return [item async for item in reader], reader.metadata


@given(
    LISTS,
    st.randoms(use_true_random=False),
    st.sampled_from([None, 1]),
    st.booleans(),
    st.sampled_from([1, 7, 1000]),
)
async def test_any_list_gives_its_items_and_metadata(
    document: dict[str, Any], random: Any, indent: int | None, is_ascii: bool, size: int
) -> None:
    fields = list(document.items())
    random.shuffle(fields)
    text = json.dumps(dict(fields), indent=indent, ensure_ascii=is_ascii)
    items, metadata = await read(text, size)

    assert items == document.get("items", [])
    assert metadata == document["metadata"]


@pytest.mark.parametrize("text", ["{}", '{"items": null}', ' {"items" : [ ] } '])
async def test_a_list_may_be_empty(text: str) -> None:
    assert await read(text) == ([], {})


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"items": [', '{"items": [1 2]}', '{"items": [1]', '{"items" 1}']
)
async def test_a_list_that_is_cut_off_is_refused(text: str, size: int) -> None:
    with pytest.raises(ValueError, match=r"Expecting"):
        await read(text, size)


async def test_a_list_that_ends_within_a_character_is_refused() -> None:
    with pytest.raises(ValueError, match="utf-8"):
        [item async for item in ListReader(cut('{"items": ["ä'.encode()[:-1], 5))]


async def test_a_number_that_is_cut_is_read_whole() -> None:
    assert await read('{"items": [123, 4.5]}', 1) == ([123, 4.5], {})


def pods(number: int, annotation: str) -> Iterator[bytes]:
    """A list of so many pods with this annotation, in pieces."""
    pod = json.dumps({"metadata": {"annotations": {"a": annotation}}}).encode()
    yield b'{"kind": "PodList", "metadata": {"resourceVersion": "7"}, "items": ['
    for index in range(number):
        whole = pod if index == 0 else b"," + pod
        for begin in range(0, len(whole), 1 << 16):
            yield whole[begin : begin + (1 << 16)]
    yield b"]}"


async def follow(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def test_a_page_takes_the_memory_of_a_few_of_its_items() -> None:
    count, annotation = 0, "x" * (1 << 20)
    tracemalloc.start()
    try:
        async for item in ListReader(follow(pods(100, annotation))):
            count += len(item["metadata"]["annotations"]["a"]) == len(annotation)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 100
    assert peak < 12 * len(annotation)


async def test_a_value_without_an_end_is_not_read_to_the_end_of_the_list() -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        yield b'{"items": ["'
        while True:
            taken += 1 << 20
            yield b"x" * (1 << 20)

    with pytest.raises(ValueError, match="Unterminated"):
        [item async for item in ListReader(endless())]
    assert taken <= 5 * MOST_OF_A_VALUE
