"""Documents of the API from dataclasses: `-o json` of a run and of a trace, and a probe's status.

A field is written in camelCase with its unit: `p99_ns` as `p99Ns`, `share_percent` as
`sharePercent`. A field without a value (None) is absent. Texts are printable: readers show them in
terminals. A field with another rule has it in its definition, as metadata made by `written()`.

msgspec renames the fields of its own classes only; cattrs would need a hook for each class with
inlined fields. Either takes the operator 2 to 3 MB (RSS).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from latencyprobe.printable import printable

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_METADATA = "document"


@dataclass(frozen=True, slots=True)
class FieldRule:
    """Exceptions for one field."""

    inlined: bool = False
    """The fields of the value replace the field."""
    absent_if_empty: bool = False
    null_if_none: bool = False
    digits: int | None = None
    """Decimal places to round to; None: not rounded."""
    omitted: bool = False
    """It is not part of the document."""
    exact: bool = False
    """A text with all its characters, for writers that escape the others."""
    as_text: bool = False
    """The value is written as its text, not by its fields."""


@runtime_checkable
class SelfWritten(Protocol):
    """A value that makes its document itself, equal to the one by these rules but sooner."""

    def document(self) -> list[Any]:
        """Return the document."""


_PLAIN = FieldRule()
_NUMBERS = frozenset({int, float, bool})


def written(
    *,
    inlined: bool = False,
    absent_if_empty: bool = False,
    null_if_none: bool = False,
    digits: int | None = None,
    omitted: bool = False,
    exact: bool = False,
    as_text: bool = False,
) -> Mapping[str, FieldRule]:
    """Return the metadata of a field with these exceptions; see `FieldRule`."""
    rule = FieldRule(inlined, absent_if_empty, null_if_none, digits, omitted, exact, as_text)
    return {_METADATA: rule}


def document_of(value: DataclassInstance) -> dict[str, Any]:
    """Return the document of a dataclass: objects, lists, texts, numbers, booleans, nulls."""
    document: dict[str, Any] = {}
    for name, key, rule in _fields(type(value)):
        content = getattr(value, name)
        if rule is _PLAIN:
            if content is not None:
                document[key] = content if type(content) in _NUMBERS else _plain(content)
        elif not _is_absent(content, rule):
            _write_by(rule, document, key, content)
    return document


def _is_absent(content: Any, rule: FieldRule) -> bool:
    if rule.omitted or (content is None and not rule.null_if_none):
        return True
    return rule.absent_if_empty and not content


def _write_by(rule: FieldRule, document: dict[str, Any], key: str, content: Any) -> None:
    if rule.inlined:
        document |= document_of(content)
    elif rule.digits is not None:
        document[key] = round(content, rule.digits)
    elif rule.exact:
        document[key] = content
    elif rule.as_text:
        document[key] = printable(str(content))
    else:
        document[key] = _plain(content)


@cache
def _fields(kind: type[DataclassInstance]) -> tuple[tuple[str, str, FieldRule], ...]:
    """Return (name, key in the document, rule) of each field."""
    return tuple(
        (field.name, _camel_case(field.name), field.metadata.get(_METADATA, _PLAIN))
        for field in dataclasses.fields(kind)
    )


def _camel_case(name: str) -> str:
    return re.sub(r"_(\w)", lambda found: found[1].upper(), name)


def _plain(value: Any) -> Any:
    # Most values of a status are numbers, and most others are texts.
    kind = type(value)
    if kind in _NUMBERS:
        return value
    if kind is str:
        return printable(value)
    return _converted(value)


def _converted(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str):  # of a class of its own, which not every writer takes
        return printable(str(value))
    if isinstance(value, Mapping):
        return {_plain(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return document_of(value)
    return value.document() if isinstance(value, SelfWritten) else value
