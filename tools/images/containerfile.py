"""The image's settings from the last stage of a Containerfile."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from dockerfile_parse import DockerfileParser

from tools.images.errors import ImageError


class ContainerfileError(ImageError):
    """A Containerfile with a setting that images made without it would lack."""


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """The settings of an image. `layers`: the folders of its layers."""

    user: str
    entrypoint: tuple[str, ...]
    environment: Mapping[str, str]
    labels: Mapping[str, str]
    layers: tuple[str, ...]


_COPY_OF_LAYER = re.compile(r"--from=build /layers/(?P<layer>\w+) /")
_UNDERSTOOD = ("ARG", "COMMENT", "COPY", "ENTRYPOINT", "ENV", "LABEL", "USER")


def read(containerfile: Path, arguments: Mapping[str, str]) -> ImageConfig:
    """Read the last stage, with the values of its ARGs; raise ContainerfileError."""
    text = StringIO(containerfile.read_text())
    parser = DockerfileParser(fileobj=text, build_args=dict(arguments), env_replace=True)
    stage = [(step["instruction"], step["value"]) for step in parser.structure]
    stage = stage[max(place for place, step in enumerate(stage) if step[0] == "FROM") :]
    try:
        _check(stage, arguments)
        return ImageConfig(
            user=_the_one("USER", stage),
            entrypoint=tuple(json.loads(_the_one("ENTRYPOINT", stage))),
            environment=dict(parser.envs),
            labels=dict(parser.labels),
            layers=tuple(_layer(value) for value in _all("COPY", stage)),
        )
    except ContainerfileError as error:
        raise ContainerfileError(f"{containerfile}, last stage: {error}") from None


def _check(stage: Sequence[tuple[str, str]], arguments: Mapping[str, str]) -> None:
    if stage[0][1] != "scratch":
        raise ContainerfileError(f"FROM {stage[0][1]} is not allowed; write FROM scratch")
    for instruction, value in stage[1:]:
        if instruction not in _UNDERSTOOD:
            raise ContainerfileError(
                f"{instruction} {value} is not allowed; use only {', '.join(_UNDERSTOOD)}"
            )
    if unset := [name for name in _all("ARG", stage) if name not in arguments]:
        raise ContainerfileError(f"ARG {', '.join(unset)} has no value")


def _all(instruction: str, stage: Sequence[tuple[str, str]]) -> list[str]:
    return [value for name, value in stage if name == instruction]


def _the_one(instruction: str, stage: Sequence[tuple[str, str]]) -> str:
    values = _all(instruction, stage)
    if len(values) != 1:
        raise ContainerfileError(f"{instruction} must occur once, not {len(values)} times")
    return values[0]


def _layer(copied: str) -> str:
    match = _COPY_OF_LAYER.fullmatch(copied)
    if match is None:
        raise ContainerfileError(
            f"COPY {copied} is not allowed; write COPY --from=build /layers/NAME /"
        )
    return match["layer"]
