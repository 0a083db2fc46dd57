"""A label selector becomes the text that the API server takes, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from latencyprobe_operator.api.selector import InvalidSelectorError, selector_text


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
    assert selector_text(selector) == text


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
    ],
)
def test_what_is_no_selector_is_refused_with_its_fault(
    selector: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidSelectorError, match=message.replace("(", r"\(")):
        selector_text(selector)
