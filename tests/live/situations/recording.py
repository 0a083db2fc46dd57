"""Recorded evidence: the input of a verdict in a file, small, with the kernel that it is from."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
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
    if isinstance(value, tuple):
        return [encoded(each) for each in value]
    return value


def decoded(kind: Any, value: Any) -> Any:
    """The value of this type that was encoded."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if is_dataclass(kind) and isinstance(kind, type):
        return _of_fields(kind, value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {decoded(arguments[0], key): decoded(arguments[1], each) for key, each in value}
    if origin is tuple:
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(map(decoded, kinds, value))
    if origin in (types.UnionType, typing.Union):
        chosen = next(each for each in arguments if each is not types.NoneType)
        return None if value is None else decoded(chosen, value)
    if isinstance(kind, type) and issubclass(kind, tuple):  # a NamedTuple
        return kind(*value)
    return kind(value) if isinstance(kind, type) and issubclass(kind, Enum) else value


def _of_fields(kind: type, value: Mapping[str, Any]) -> Any:
    """Leave the kind's default where the file has nothing."""
    hints = typing.get_type_hints(kind)
    return kind(**{name: decoded(hints[name], each) for name, each in value.items()})
