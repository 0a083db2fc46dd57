"""A metav1.LabelSelector, validated and evaluated as the API server does it.

Selecting in memory means that a selector costs no watch of its own. The rules are those of
k8s.io/apimachinery: pkg/labels/selector.go and pkg/util/validation/validation.go.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from latencyprobe_operator.dns_names import LONGEST_SUBDOMAIN, is_subdomain

_PLAIN = re.compile(r"[A-Za-z0-9._/-]*")
_NAME = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
_LONGEST_NAME = _LONGEST_VALUE = 63


class InvalidSelectorError(ValueError):
    """A selector that selects nothing because it cannot be understood. The message says why."""


class Operator(StrEnum):
    """The relation of a label to a requirement's values."""

    EQUALS = "="
    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


@dataclass(frozen=True, slots=True)
class Requirement:
    """One condition on one label. `values` are sorted, and empty for (DoesNot)Exist."""

    key: str
    operator: Operator
    values: tuple[str, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Decide whether a pod with these labels meets the requirement."""
        match self.operator:
            case Operator.EXISTS:
                return self.key in labels
            case Operator.DOES_NOT_EXIST:
                return self.key not in labels
            case Operator.NOT_IN:
                # A label that is absent has none of the values.
                return labels.get(self.key) not in self.values
            case Operator.EQUALS | Operator.IN:
                return labels.get(self.key) in self.values

    def __str__(self) -> str:
        match self.operator:
            case Operator.EXISTS:
                return self.key
            case Operator.DOES_NOT_EXIST:
                return f"!{self.key}"
            case Operator.EQUALS:
                return f"{self.key}={self.values[0]}"
            case Operator.IN | Operator.NOT_IN:
                return f"{self.key} {self.operator.lower()} ({','.join(self.values)})"


@dataclass(frozen=True, slots=True)
class LabelSelector:
    """Requirements that must all be met: equal for selectors that say the same."""

    requirements: tuple[Requirement, ...] = ()
    """In the order of their texts. None: every pod matches."""

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Decide whether a pod with these labels is selected."""
        return all(requirement.matches(labels) for requirement in self.requirements)

    def __str__(self) -> str:
        """Write the selector as the API server's `labelSelector` parameter."""
        return ",".join(map(str, self.requirements))


def read_selector(selector: Mapping[str, Any]) -> LabelSelector:
    """Read a selector of the API; raises InvalidSelectorError where the API server refuses it."""
    labels = selector.get("matchLabels") or {}
    expressions = selector.get("matchExpressions") or []
    requirements = {
        Requirement(_key(key), Operator.EQUALS, (_value(key, value),))
        for key, value in labels.items()
    }
    requirements.update(_read_requirement(expression) for expression in expressions)
    return LabelSelector(tuple(sorted(requirements, key=str)))


def _read_requirement(expression: Mapping[str, Any]) -> Requirement:
    key = _key(expression.get("key", ""))
    operator = expression.get("operator")
    values = expression.get("values") or []
    match operator:
        case "In" | "NotIn":
            return Requirement(key, Operator(operator), _values(key, operator, values))
        case "Exists" | "DoesNotExist" if values:
            raise InvalidSelectorError(f"label {key!r}: operator {operator} takes no values")
        case "Exists" | "DoesNotExist":
            return Requirement(key, Operator(operator))
    raise InvalidSelectorError(
        f"label {key!r}: unknown operator {operator!r}: known are In, NotIn, Exists, DoesNotExist"
    )


def _values(key: str, operator: str, values: Sequence[str]) -> tuple[str, ...]:
    if not isinstance(values, list):
        raise InvalidSelectorError(f"label {key!r}: values must be a list, not {values!r}")
    if not values:
        raise InvalidSelectorError(f"label {key!r}: operator {operator} needs at least one value")
    return tuple(sorted({_value(key, value) for value in values}))


def _key(key: str) -> str:
    """Check a label's key as IsQualifiedName() does: `name`, or `dns.prefix/name`."""
    _check_characters(key)
    prefix, slash, name = key.rpartition("/")
    if len(name) > _LONGEST_NAME:
        raise InvalidSelectorError(
            f"label key {key!r}: the name has {len(name)} characters; "
            f"at most {_LONGEST_NAME} are allowed"
        )
    if not _NAME.fullmatch(name):
        raise InvalidSelectorError(
            f"label key {key!r}: the name must begin and end with a letter or digit"
        )
    if len(prefix) > LONGEST_SUBDOMAIN:
        raise InvalidSelectorError(
            f"label key {key!r}: the prefix has {len(prefix)} characters; "
            f"at most {LONGEST_SUBDOMAIN} are allowed"
        )
    if slash and not is_subdomain(prefix):
        raise InvalidSelectorError(
            f"label key {key!r}: the prefix must be a DNS name of lowercase letters, digits, "
            "'-' and '.'"
        )
    return key


def _value(key: str, value: str) -> str:
    """Check a label's value as IsValidLabelValue() does."""
    _check_characters(value)
    if len(value) > _LONGEST_VALUE:
        raise InvalidSelectorError(
            f"label {key!r}: value {value!r} has {len(value)} characters; "
            f"at most {_LONGEST_VALUE} are allowed"
        )
    if "/" in value or (value and not _NAME.fullmatch(value)):
        raise InvalidSelectorError(
            f"label {key!r}: value {value!r} must begin and end with a letter or digit, "
            "and contain only letters, digits, '-', '_' and '.'"
        )
    return value


def _check_characters(text: str) -> None:
    if not _PLAIN.fullmatch(text):
        raise InvalidSelectorError(
            f"{text!r} is neither a label's key nor a label's value: "
            "they consist of letters, digits, '-', '_' and '.'"
        )
