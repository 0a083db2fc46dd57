"""`latencyprobe agent`: the options, and from there on `main`."""

from __future__ import annotations

import asyncio
import os
import platform
from pathlib import Path

import click

from latencyprobe import __version__
from latencyprobe.commands.parameters import DurationType
from latencyprobe.domain.identities import OPERATOR_NAME
from latencyprobe.domain.packets import LONGEST_NS
from latencyprobe.otlp.options import otlp_options
from latencyprobe.otlp.settings import OtlpSettings
from latencyprobe.process import logs
from latencyprobe.process.listening import ListenAddress, ListenAddressType
from latencyprobe.process.open_files import raise_open_files_limit
from latencyprobe.process.tasks import TaskFailedError
from latencyprobe_agent.budget import (
    DEFAULT_MAX_CPU_PERCENT,
    LOWEST_SAMPLING_RATIO,
    Ceilings,
)
from latencyprobe_agent.main import (
    Settings,
    StartError,
    check_capabilities,
    exit_with_parent,
    run,
)
from latencyprobe_agent.serving.metrics_access import MetricsAccessFiles
from latencyprobe_agent.serving.service import SocketAddress, TcpAddress
from latencyprobe_agent.serving.tls import MetricsTlsFiles, ServerTlsFiles
from latencyprobe_agent.totals import DEFAULT_MAX_PODS

_FILE = click.Path(path_type=Path)
_NO_CACHE = "none"
# The schema of the chart's values has the same.
_MOST_PODS_WITH_METRICS = 4096


@click.command("agent", context_settings={"auto_envvar_prefix": "LATENCYPROBE"})
@click.version_option(__version__, prog_name="latencyprobe agent")
@click.option(
    "--listen",
    type=ListenAddressType(),
    show_envvar=True,
    help="Serve the operator over TCP with mutual TLS.",
)
@click.option(
    "--socket",
    type=_FILE,
    metavar="PATH",
    show_envvar=True,
    help="Serve a local client on a Unix socket. Its directory must have mode 0700.",
)
@click.option(
    "--ca-file", type=_FILE, show_envvar=True, help="CA that signed the operator's certificate."
)
@click.option("--cert-file", type=_FILE, show_envvar=True, help="Certificate of the agent.")
@click.option("--key-file", type=_FILE, show_envvar=True, help="Key of the certificate.")
@click.option(
    "--operator-name",
    default=OPERATOR_NAME,
    show_default=True,
    show_envvar=True,
    help="DNS name that a client's certificate must have.",
)
@click.option(
    "--node-name",
    default=platform.node,
    show_default="the host's name",
    show_envvar=True,
    help="Name of this node in reports.",
)
@click.option(
    "--host-netns",
    type=_FILE,
    show_default="/proc/1/ns/net, or the agent's own if that is not readable",
    show_envvar=True,
    help="File of the host's network namespace.",
)
@click.option(
    "--proc-root",
    type=_FILE,
    default=Path("/proc"),
    show_default=True,
    show_envvar=True,
    help="Mount point of the host's /proc.",
)
@click.option(
    "--cgroup-root",
    type=_FILE,
    show_default="found in /proc/self/mountinfo",
    show_envvar=True,
    help="Mount point of the host's cgroup v2 hierarchy, or a directory above it.",
)
@click.option(
    "--object-cache",
    metavar="PATH",
    default="/var/cache/latencyprobe",
    show_default=True,
    show_envvar=True,
    help="Folder that keeps compiled eBPF programs; `none`: compile them at each start. It is made "
    "with mode 0700.",
)
@click.option(
    "--hooks",
    type=click.Choice(["best", "scoped", "tracepoints"]),
    default="best",
    show_default=True,
    show_envvar=True,
    help="Use the best hooks of this kernel. Or use those for packets on the targets' cgroups and "
    "devices too. Or attach no program to the targets' cgroups.",
)
@click.option(
    "--metrics-address",
    type=ListenAddressType(),
    show_envvar=True,
    help="Serve /metrics, /healthz and /readyz over HTTP.",
)
@click.option(
    "--metrics-cert-file",
    type=_FILE,
    show_envvar=True,
    help="Certificate for --metrics-address: HTTPS instead of HTTP.",
)
@click.option("--metrics-key-file", type=_FILE, show_envvar=True, help="Key of that certificate.")
@click.option(
    "--metrics-client-ca-file",
    type=_FILE,
    show_envvar=True,
    help="CA whose client certificates may read /metrics.",
)
@click.option(
    "--metrics-token-file",
    type=_FILE,
    show_envvar=True,
    help="Bearer token that may read /metrics.",
)
@click.option(
    "--metrics-max-pods",
    type=click.IntRange(min=0, max=_MOST_PODS_WITH_METRICS),
    default=DEFAULT_MAX_PODS,
    show_default=True,
    show_envvar=True,
    help="Largest number of pods with metrics of their own. Others count in those of their probe.",
)
@click.option(
    "--exemplars",
    type=DurationType(shortest_ns=1_000, longest_ns=LONGEST_NS),
    show_default="none",
    show_envvar=True,
    help="Show packets whose rx.total or tx.total takes at least this long as exemplars of the "
    "metrics, with the addresses of their peers. They are traced whenever no client traces.",
)
@otlp_options
@click.option(
    "--max-cpu-percent",
    type=click.FloatRange(min=0, min_open=True, max=10_000),
    show_default=f"{DEFAULT_MAX_CPU_PERCENT:g} with --listen, no limit with --socket",
    show_envvar=True,
    help="Budget of all eBPF programs on this node, in percent of one core. No probe exceeds it.",
)
@click.option(
    "--min-sampling-ratio",
    type=click.FloatRange(min=LOWEST_SAMPLING_RATIO, max=1),
    default=LOWEST_SAMPLING_RATIO,
    show_default=True,
    show_envvar=True,
    help="Smallest share of packets that is measured to keep a budget.",
)
@click.option(
    "--log-level",
    type=click.Choice(logs.LEVELS),
    default="info",
    show_default=True,
    show_envvar=True,
    help="Lowest level that is logged.",
)
@click.option(
    "--log-format",
    type=click.Choice(logs.FORMATS),
    default="text",
    show_default=True,
    show_envvar=True,
    help="Format of the log: text for people, json for programs.",
)
@click.option(
    "--exit-with-parent",
    type=int,
    is_flag=False,
    flag_value=0,
    metavar="[PID]",
    help="Exit when the parent process exits. PID is the parent that is expected.",
)
def agent_command(
    *,
    listen: ListenAddress | None,
    socket: Path | None,
    ca_file: Path | None,
    cert_file: Path | None,
    key_file: Path | None,
    operator_name: str,
    node_name: str,
    host_netns: Path | None,
    proc_root: Path,
    cgroup_root: Path | None,
    object_cache: str,
    hooks: str,
    metrics_address: ListenAddress | None,
    metrics_cert_file: Path | None,
    metrics_key_file: Path | None,
    metrics_client_ca_file: Path | None,
    metrics_token_file: Path | None,
    metrics_max_pods: int,
    exemplars: int | None,
    otlp: OtlpSettings | None,
    max_cpu_percent: float | None,
    min_sampling_ratio: float,
    log_level: str,
    log_format: str,
    exit_with_parent: int | None,
) -> None:
    """Serve measurements of this node over gRPC.

    Serves the operator (--listen, with --ca-file, --cert-file and --key-file) or a local client
    (--socket). Ends on SIGTERM or SIGINT, and detaches all its programs.
    """
    settings = Settings(
        address=_address(listen, socket, (ca_file, cert_file, key_file), operator_name),
        node_name=node_name,
        host_netns=host_netns,
        proc_root=proc_root,
        cgroup_root=os.path.realpath(cgroup_root) if cgroup_root is not None else None,
        metrics_address=metrics_address,
        metrics_max_pods=metrics_max_pods,
        metrics_access=_metrics_access(
            metrics_cert_file, metrics_key_file, metrics_client_ca_file, metrics_token_file
        ),
        otlp=otlp,
        object_cache=Path(object_cache) if object_cache != _NO_CACHE else None,
        uses_cgroup_hooks=hooks != "tracepoints",
        uses_device_hooks=hooks == "scoped",
        exemplars_ns=exemplars,
        ceilings=_ceilings(max_cpu_percent, min_sampling_ratio, is_local=listen is None),
    )
    if exemplars is not None and not settings.shows_metrics:
        raise click.UsageError("--exemplars needs --metrics-address or --otlp-endpoint")
    logs.configure(form=log_format, level=log_level)
    _start(settings, parent=exit_with_parent)


def _ceilings(
    max_cpu_percent: float | None, min_sampling_ratio: float, *, is_local: bool
) -> Ceilings:
    """Return the ceilings; a local client has by default no budget but its own."""
    if max_cpu_percent is None:
        max_cpu_percent = 0.0 if is_local else DEFAULT_MAX_CPU_PERCENT
    try:
        return Ceilings(max_cpu_percent, min_sampling_ratio)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _metrics_access(
    certificate: Path | None, key: Path | None, client_ca: Path | None, token: Path | None
) -> MetricsAccessFiles | None:
    """Return the files of HTTPS; None for HTTP."""
    if certificate is None or key is None:
        if certificate or key or client_ca or token:
            raise click.UsageError(
                "give both --metrics-cert-file and --metrics-key-file; --metrics-client-ca-file "
                "and --metrics-token-file need them too: without TLS anyone on the network could "
                "read the token"
            )
        return None
    return MetricsAccessFiles(MetricsTlsFiles(certificate, key, client_ca), token)


def _start(settings: Settings, *, parent: int | None) -> None:
    try:
        if parent is not None:
            exit_with_parent(parent or None)
        check_capabilities()
        # With four links for each cgroup of a target, 256 targets take more than 1,024.
        raise_open_files_limit()
        asyncio.run(run(settings))
    except StartError as error:
        raise click.ClickException(str(error)) from None
    except TaskFailedError as error:
        raise click.ClickException(f"{error}; start again") from error


def _address(
    listen: ListenAddress | None,
    socket: Path | None,
    files: tuple[Path | None, Path | None, Path | None],
    operator_name: str,
) -> TcpAddress | SocketAddress:
    """Return the single address to listen on."""
    if (listen is None) == (socket is None):
        raise click.UsageError("give either --listen HOST:PORT or --socket PATH")
    if socket is not None:
        return SocketAddress(socket)
    ca_file, cert_file, key_file = files
    if ca_file is None or cert_file is None or key_file is None:
        raise click.UsageError(
            "--listen needs --ca-file, --cert-file and --key-file; `latencyprobe pki init DIR` "
            "makes them. Without TLS anyone could control the agent"
        )
    assert listen is not None
    return TcpAddress(
        str(listen._replace(host=listen.host or "0.0.0.0")),  # noqa: S104  (no host: every one)
        ServerTlsFiles(ca_file, cert_file, key_file),
        operator_name,
    )
