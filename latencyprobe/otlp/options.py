"""The options of the push, which the commands of agent and operator share."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from latencyprobe.domain.durations import DurationError, parse_s
from latencyprobe.otlp.settings import (
    DEFAULT_INTERVAL_S,
    OtlpEndpoint,
    OtlpSettings,
    OtlpTlsFiles,
)

_FILE = click.Path(path_type=Path)
_SHORTEST_INTERVAL_S = 1.0
_KEY = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*")


class OtlpEndpointType(click.ParamType[OtlpEndpoint]):
    """HOST:PORT of a collector as an option's value; an IPv6 address is written in brackets."""

    name = "HOST:PORT"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> OtlpEndpoint:
        """Return the endpoint, or fail with an example of one."""
        if isinstance(value, OtlpEndpoint):
            return value
        host, colon, port = str(value).rpartition(":")
        is_bracketed = host.startswith("[") and host.endswith("]")
        if "/" in str(value):
            self.fail(
                f"{value!r} is a URL; write HOST:PORT. TLS is used unless --otlp-insecure is given",
                param,
                ctx,
            )
        if not colon or not host or not port.isdecimal() or not 0 < int(port) <= 65535:
            self.fail(
                f"{value!r} is not HOST:PORT, for example collector.example.org:4317", param, ctx
            )
        if ":" in host and not is_bracketed:
            self.fail(f"{value!r} has an IPv6 address without brackets", param, ctx)
        return OtlpEndpoint(host.removeprefix("[").removesuffix("]"), int(port))


class _IntervalType(click.ParamType[float]):
    """An interval as an option's value."""

    name = "DURATION"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return its seconds, or fail with an example of one."""
        try:
            interval_s = parse_s(str(value))
        except DurationError as error:
            self.fail(str(error), param, ctx)
        if interval_s < _SHORTEST_INTERVAL_S:
            self.fail(f"{value!r} is shorter than {_SHORTEST_INTERVAL_S:g} s", param, ctx)
        return interval_s


class _AttributeType(click.ParamType[tuple[str, str]]):
    """KEY=VALUE as an option's value."""

    name = "KEY=VALUE"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Return key and value, or fail with an example."""
        if isinstance(value, tuple):
            return value
        key, equals, text = str(value).partition("=")
        if not equals or not _KEY.fullmatch(key) or not text.isprintable():
            self.fail(f"{value!r} is not KEY=VALUE, for example k8s.cluster.name=prod", param, ctx)
        return key, text


_OPTIONS = (
    click.option(
        "--otlp-endpoint",
        type=OtlpEndpointType(),
        show_envvar=True,
        help="Push the metrics to a collector of OpenTelemetry, by OTLP over gRPC with TLS.",
    ),
    click.option(
        "--otlp-interval",
        "otlp_interval_s",
        envvar="LATENCYPROBE_OTLP_INTERVAL",
        type=_IntervalType(),
        default=f"{DEFAULT_INTERVAL_S:g}s",
        show_default=True,
        show_envvar=True,
        help="Time between two pushes.",
    ),
    click.option(
        "--otlp-insecure", is_flag=True, show_envvar=True, help="Push without TLS and in the clear."
    ),
    click.option(
        "--otlp-ca-file",
        type=_FILE,
        show_envvar=True,
        help="CA that signed the collector's certificate. Default: the public ones.",
    ),
    click.option(
        "--otlp-cert-file",
        type=_FILE,
        show_envvar=True,
        help="Certificate to show to the collector.",
    ),
    click.option("--otlp-key-file", type=_FILE, show_envvar=True, help="Key of that certificate."),
    click.option(
        "--otlp-headers-file",
        type=_FILE,
        show_envvar=True,
        help="Headers for the collector, such as a token: NAME: VALUE, one a line.",
    ),
    click.option(
        "--otlp-resource-attribute",
        "otlp_resource_attributes",
        type=_AttributeType(),
        multiple=True,
        envvar="LATENCYPROBE_OTLP_RESOURCE_ATTRIBUTE",
        show_envvar=True,
        help="Attribute of this process's resource, such as k8s.cluster.name=prod; repeatable.",
    ),
)


def otlp_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of the push, and their settings as its argument `otlp`."""

    @functools.wraps(command)
    def with_settings(
        *,
        otlp_endpoint: OtlpEndpoint | None,
        otlp_interval_s: float,
        otlp_insecure: bool,
        otlp_ca_file: Path | None,
        otlp_cert_file: Path | None,
        otlp_key_file: Path | None,
        otlp_headers_file: Path | None,
        otlp_resource_attributes: tuple[tuple[str, str], ...],
        **others: Any,
    ) -> None:
        tls = OtlpTlsFiles(otlp_ca_file, otlp_cert_file, otlp_key_file)
        _check(
            tls,
            otlp_headers_file,
            has_endpoint=otlp_endpoint is not None,
            is_insecure=otlp_insecure,
        )
        settings = None
        if otlp_endpoint is not None:
            settings = OtlpSettings(
                otlp_endpoint,
                None if otlp_insecure else tls,
                otlp_headers_file,
                otlp_interval_s,
                dict(otlp_resource_attributes),
            )
        command(otlp=settings, **others)

    for option in reversed(_OPTIONS):
        with_settings = option(with_settings)
    return with_settings


def _check(
    tls: OtlpTlsFiles, headers: Path | None, *, has_endpoint: bool, is_insecure: bool
) -> None:
    """Raise UsageError for options that contradict each other."""
    if not has_endpoint and (tls.paths or headers is not None or is_insecure):
        raise click.UsageError("options of OTLP need --otlp-endpoint, the collector's HOST:PORT")
    if (tls.certificate is None) != (tls.key is None):
        raise click.UsageError("give both --otlp-cert-file and --otlp-key-file")
    if is_insecure and (tls.paths or headers is not None):
        raise click.UsageError(
            "--otlp-insecure uses no certificate, and anyone on the network could read the "
            "headers: leave it out, or the files"
        )
