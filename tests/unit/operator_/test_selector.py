"""A label selector selects the pods that Kubernetes selects, or is refused as Kubernetes does."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe_operator.kube.selector import InvalidSelectorError, read_selector


@pytest.mark.parametrize(
    ("selector", "text"),
    [
        ({}, ""),
        ({"matchLabels": {"app": "checkout"}}, "app=checkout"),
        ({"matchLabels": {"b": "2", "a": "1"}}, "a=1,b=2"),
        ({"matchLabels": {"example.com/tier": ""}}, "example.com/tier="),
        (
            {"matchExpressions": [{"key": "app", "operator": "In", "values": ["b", "a"]}]},
            "app in (a,b)",
        ),
        (
            {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["a"]}]},
            "app notin (a)",
        ),
        ({"matchExpressions": [{"key": "app", "operator": "Exists"}]}, "app"),
        ({"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}, "!app"),
        (
            {
                "matchLabels": {"app": "checkout"},
                "matchExpressions": [{"key": "canary", "operator": "DoesNotExist"}],
            },
            "!canary,app=checkout",
        ),
    ],
)
def test_every_form_of_selector_has_its_text(selector: dict[str, Any], text: str) -> None:
    assert str(read_selector(selector)) == text


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        ({"matchLabels": {"a,b": "c"}}, "'a,b' is neither a label's key"),
        ({"matchLabels": {"a": "b,c=d"}}, "'b,c=d' is neither"),
        ({"matchLabels": {"a": "b) or"}}, "is neither"),
        ({"matchExpressions": [{"key": "a", "operator": "In"}]}, "In needs at least one value"),
        (
            {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]},
            "Exists takes no values",
        ),
        ({"matchExpressions": [{"key": "a", "operator": "Like"}]}, "unknown operator 'Like'"),
        (
            {"matchExpressions": [{"key": "a", "operator": "In", "values": "bc"}]},
            "label 'a': values must be a list, not 'bc'",
        ),
        ({"matchLabels": {"k" * 64: "v"}}, "the name has 64 characters; at most 63"),
        ({"matchLabels": {"a": "v" * 64}}, "has 64 characters; at most 63"),
        ({"matchLabels": {"p" * 254 + "/a": "v"}}, "the prefix has 254 characters; at most 253"),
        ({"matchLabels": {"": "v"}}, "the name must begin and end"),
        ({"matchLabels": {"-a": "v"}}, "the name must begin and end"),
        ({"matchLabels": {"a_": "v"}}, "the name must begin and end"),
        ({"matchLabels": {"example.com/": "v"}}, "the name must begin and end"),
        ({"matchLabels": {"/a": "v"}}, "the prefix must be a DNS name"),
        ({"matchLabels": {"a/b/c": "v"}}, "the prefix must be a DNS name"),
        ({"matchLabels": {"Example.com/a": "v"}}, "the prefix must be a DNS name"),
        ({"matchLabels": {"a..b/c": "v"}}, "the prefix must be a DNS name"),
        ({"matchLabels": {"a": "-v"}}, "value '-v' must begin and end"),
        ({"matchLabels": {"a": "v/w"}}, "value 'v/w' must begin and end"),
        ({"matchLabels": {"a": "v\n"}}, "is neither"),
    ],
)
def test_an_invalid_selector_is_refused_with_its_fault(
    selector: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidSelectorError, match=message.replace("(", r"\(")):
        read_selector(selector)


@pytest.mark.parametrize(
    ("expression", "matching"),
    [
        ({"operator": "In", "values": ["a", "b"]}, ["a", "b"]),
        ({"operator": "NotIn", "values": ["a", "b"]}, ["", "c", None]),
        ({"operator": "In", "values": [""]}, [""]),
        ({"operator": "NotIn", "values": [""]}, ["a", "b", "c", None]),
        ({"operator": "Exists"}, ["", "a", "b", "c"]),
        ({"operator": "DoesNotExist"}, [None]),
    ],
)
def test_an_expression_matches_these_values_of_a_label(
    expression: dict[str, Any], matching: list[str | None]
) -> None:
    selector = read_selector({"matchExpressions": [{"key": "app", **expression}]})
    found = [
        value
        for value in ("", "a", "b", "c", None)
        if selector.matches({"other": "a"} | ({} if value is None else {"app": value}))
    ]

    assert found == matching


KEYS = st.sampled_from(["app", "tier", "example.com/app"])
VALUES = st.sampled_from(["", "a", "b", "c"])
EXPRESSIONS: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.fixed_dictionaries(
        {
            "key": KEYS,
            "operator": st.sampled_from(["In", "NotIn"]),
            "values": st.lists(VALUES, min_size=1, max_size=3),
        }
    ),
    st.fixed_dictionaries(
        {"key": KEYS, "operator": st.sampled_from(["Exists", "DoesNotExist"])},
        optional={"values": st.just([])},
    ),
)
SELECTORS = st.fixed_dictionaries(
    {},
    optional={
        "matchLabels": st.dictionaries(KEYS, VALUES),
        "matchExpressions": st.lists(EXPRESSIONS, max_size=3),
    },
)


def reference(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """The words of the API's documentation, one after the other."""
    for key, value in selector.get("matchLabels", {}).items():
        if key not in labels or labels[key] != value:
            return False
    for expression in selector.get("matchExpressions", []):
        key, values = expression["key"], expression.get("values", [])
        holds = {
            "In": key in labels and labels[key] in values,
            "NotIn": key not in labels or labels[key] not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }[expression["operator"]]
        if not holds:
            return False
    return True


@given(SELECTORS, st.dictionaries(KEYS, VALUES))
def test_any_selector_matches_what_the_api_says(
    selector: dict[str, Any], labels: dict[str, str]
) -> None:
    assert read_selector(selector).matches(labels) == reference(selector, labels)


@given(SELECTORS)
def test_the_order_within_a_selector_is_of_no_matter(selector: dict[str, Any]) -> None:
    turned = {
        "matchLabels": dict(reversed(selector.get("matchLabels", {}).items())),
        "matchExpressions": list(reversed(selector.get("matchExpressions", []))),
    }
    assert read_selector(turned) == read_selector(selector)


DNS = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
NAME = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
TEXTS = st.text("aZ0-_./ ,", max_size=8) | st.text(max_size=4)


def is_qualified_name(key: str) -> bool:
    """IsQualifiedName() of k8s.io/apimachinery, but for the lengths."""
    parts = key.split("/")
    if len(parts) > 2:
        return False
    return bool(NAME.fullmatch(parts[-1]) and (len(parts) == 1 or DNS.fullmatch(parts[0])))


@given(TEXTS)
def test_keys_are_those_that_the_api_takes(key: str) -> None:
    assert is_accepted({"matchLabels": {key: "v"}}) == is_qualified_name(key)
    expression = {"key": key, "operator": "Exists"}
    assert is_accepted({"matchExpressions": [expression]}) == is_qualified_name(key)


@given(TEXTS)
def test_values_are_those_that_the_api_takes(value: str) -> None:
    allowed = value == "" or NAME.fullmatch(value) is not None
    assert is_accepted({"matchLabels": {"app": value}}) == allowed
    expression = {"key": "app", "operator": "NotIn", "values": ["a", value]}
    assert is_accepted({"matchExpressions": [expression]}) == allowed


def is_accepted(selector: dict[str, Any]) -> bool:
    """Whether the selector can be read."""
    try:
        read_selector(selector)
    except InvalidSelectorError:
        return False
    return True
