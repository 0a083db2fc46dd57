"""A list is decoded item by item, with the result of decoding it as a whole."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe_operator.kube.listing import ListReader

OBJECTS = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
LISTS = st.fixed_dictionaries(
    {"metadata": st.dictionaries(st.text(max_size=3), OBJECTS)},
    optional={"items": st.lists(OBJECTS, max_size=4), "kind": st.text(), "other": OBJECTS},
)


@given(LISTS, st.randoms(use_true_random=False), st.sampled_from([None, 1]))
def test_any_list_gives_its_items_and_metadata(
    document: dict[str, Any], random: Any, indent: int | None
) -> None:
    fields = list(document.items())
    random.shuffle(fields)
    reader = ListReader(json.dumps(dict(fields), indent=indent))

    assert list(reader) == document.get("items", [])
    assert reader.metadata == document["metadata"]


@pytest.mark.parametrize("text", ["{}", '{"items": null}', ' {"items" : [ ] } '])
def test_a_list_may_be_empty(text: str) -> None:
    assert list(ListReader(text)) == []


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"items": [', '{"items": [1 2]}', '{"items": [1]', '{"items" 1}']
)
def test_a_list_that_is_cut_off_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"Expecting"):
        list(ListReader(text))
