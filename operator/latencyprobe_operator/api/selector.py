"""A metav1.LabelSelector as the text that the API server's `labelSelector` parameter takes.

The server does the selecting, and judges the text. What is checked here is only that a key or a
value cannot become something else in that text than a key or a value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_PLAIN = re.compile(r"[A-Za-z0-9._/-]*")


class InvalidSelectorError(ValueError):
    """A selector that selects nothing because it cannot be understood. The message says why."""


def selector_text(selector: Mapping[str, Any]) -> str:
    """The selector as text, equal for equal selectors; "" selects everything.

    Raises InvalidSelectorError.
    """
    labels = selector.get("matchLabels") or {}
    expressions = selector.get("matchExpressions") or []
    requirements = {f"{_plain(key)}={_plain(value)}" for key, value in labels.items()}
    requirements.update(_requirement_text(expression) for expression in expressions)
    return ",".join(sorted(requirements))


def _requirement_text(expression: Mapping[str, Any]) -> str:
    key = _plain(expression.get("key", ""))
    operator = expression.get("operator")
    values = expression.get("values") or []
    match operator:
        case "In" | "NotIn":
            return f"{key} {operator.lower()} ({_values_text(key, operator, values)})"
        case "Exists" | "DoesNotExist" if values:
            raise InvalidSelectorError(f"label {key!r}: operator {operator} takes no values")
        case "Exists":
            return key
        case "DoesNotExist":
            return f"!{key}"
    raise InvalidSelectorError(
        f"label {key!r}: unknown operator {operator!r}: known are In, NotIn, Exists, DoesNotExist"
    )


def _values_text(key: str, operator: str, values: Sequence[str]) -> str:
    if not values:
        raise InvalidSelectorError(f"label {key!r}: operator {operator} needs at least one value")
    return ",".join(sorted({_plain(value) for value in values}))


def _plain(text: str) -> str:
    if not _PLAIN.fullmatch(text):
        raise InvalidSelectorError(
            f"{text!r} is neither a label's key nor a label's value: "
            "they consist of letters, digits, '-', '_' and '.'"
        )
    return text
