"""Recorded evidence: the input of a verdict in a file, small, with the kernel that it is from."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

from latencyprobe.domain.measurement import Measurement, NodeMeasurement
from latencyprobe.domain.stages import Module
from tests.live.situations.situation import CATALOGUE, End

FOLDER = Path(__file__).parents[2] / "unit" / "recorded_situations"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the pure function of a verdict is given, and the kernel that it was measured on."""

    kernel: str
    modules: tuple[Module, ...]
    measurement: Measurement
    node: NodeMeasurement


@dataclass(frozen=True, slots=True)
class Recording:
    """The evidence of both ends of a situation, and its truth as the witnesses told it."""

    truth: str
    evidence: Mapping[str, Evidence]

    def of(self, end: End) -> Evidence:
        return self.evidence[str(end)]


def save(name: str, recording: Recording) -> None:
    """Write the recording of a situation."""
    assert name in CATALOGUE, name
    FOLDER.mkdir(exist_ok=True)
    text = json.dumps(encoded(recording), separators=(",", ":"))
    (FOLDER / f"{name}.json").write_text(text + "\n")


def load(name: str) -> Recording:
    """Read the recording of a situation."""
    recording: Recording = decoded(Recording, json.loads((FOLDER / f"{name}.json").read_text()))
    return recording


def encoded(value: Any) -> Any:
    """Any value of dataclasses as JSON can have it; what is a default is left out."""
    if is_dataclass(value) and not isinstance(value, type):
        default = {each.name: each.default for each in fields(value)}
        return {
            each.name: encoded(getattr(value, each.name))
            for each in fields(value)
            if each.init and getattr(value, each.name) != default[each.name]
        }
    if isinstance(value, Mapping):
        return [[encoded(key), encoded(each)] for key, each in value.items()]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, IPv4Address | IPv6Address):
        return str(value)
    if isinstance(value, tuple):
        return [encoded(each) for each in value]
    return value


def decoded(kind: Any, value: Any) -> Any:
    """The value of this type that was encoded."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if is_dataclass(kind) and isinstance(kind, type):
        return _of_fields(kind, value)
    if origin in (types.UnionType, typing.Union):
        return _of_choices(arguments, value)
    if origin is not None:
        return _of_elements(origin, arguments, value)
    if isinstance(kind, type) and issubclass(kind, tuple):  # a NamedTuple
        return kind(*value)
    return kind(value) if isinstance(kind, type) and issubclass(kind, Enum) else value


def _of_choices(kinds: Sequence[Any], value: Any) -> Any:
    if IPv4Address in kinds:
        return ip_address(value)
    chosen = next(each for each in kinds if each is not types.NoneType)
    return None if value is None else decoded(chosen, value)


def _of_elements(origin: Any, kinds: Sequence[Any], value: Any) -> Any:
    """The mapping, sequence or tuple with these types of elements."""
    if issubclass(origin, Mapping):
        return {decoded(kinds[0], key): decoded(kinds[1], each) for key, each in value}
    is_uniform = origin is not tuple or kinds[-1] is Ellipsis
    return tuple(map(decoded, [kinds[0]] * len(value) if is_uniform else kinds, value))


def _of_fields(kind: type, value: Mapping[str, Any]) -> Any:
    """Leave the kind's default where the file has nothing."""
    hints = typing.get_type_hints(kind)
    return kind(**{name: decoded(hints[name], each) for name, each in value.items()})
