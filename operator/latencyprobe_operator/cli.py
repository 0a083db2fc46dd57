"""`latencyprobe operator`: the command that the operator's container runs."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from kubernetes.aio.config import ConfigException

from latencyprobe import __version__
from latencyprobe.domain.durations import DurationError, parse_s
from latencyprobe.otlp.files import OtlpFileError
from latencyprobe.otlp.options import otlp_options
from latencyprobe.otlp.settings import OtlpSettings
from latencyprobe.process.http_server import ServeError
from latencyprobe.process.listening import ListenAddress, ListenAddressType
from latencyprobe.process.logs import FORMATS, LEVELS
from latencyprobe.process.tasks import TaskFailedError
from latencyprobe_operator import logs
from latencyprobe_operator.admission import (
    ALL_NAMESPACES,
    DEFAULT_MAX_PROBES_PER_NAMESPACE,
    AdminLimits,
)
from latencyprobe_operator.agents.credentials import ClientTlsFiles
from latencyprobe_operator.dns_names import is_label
from latencyprobe_operator.leadership import LeadershipLostError, LeaseTiming, TimingError
from latencyprobe_operator.main import ElectionOptions, Options, run
from latencyprobe_operator.model import STATIC_POD_NAMESPACES

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_PORT = click.IntRange(1, 65535)
# IsDNS1123Label(), k8s.io/apimachinery/pkg/util/validation.


def _read_agents(
    _context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    agents = {}
    for value in values:
        node, _, address = value.partition("=")
        if not node or ":" not in address:
            raise click.BadParameter(f"{value!r} is not NODE=HOST:PORT")
        agents[node] = address
    return agents


def _read_interval(_context: click.Context, _parameter: click.Parameter, value: str) -> float:
    try:
        return parse_s(value)
    except DurationError as error:
        raise click.BadParameter(str(error)) from None


def _read_namespaces(
    _context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> frozenset[str]:
    for value in values:
        if value != ALL_NAMESPACES and not is_label(value):
            raise click.BadParameter(
                f"{value!r} is not the name of a namespace; give one name for each option, or "
                f"{ALL_NAMESPACES!r} for all namespaces"
            )
    return frozenset(values)


def _timing(duration_s: float, renew_deadline_s: float, retry_s: float) -> LeaseTiming:
    if not duration_s.is_integer():
        raise click.UsageError(f"--lease-duration is {duration_s:g} s; the API has whole seconds")
    try:
        return LeaseTiming(int(duration_s), renew_deadline_s, retry_s)
    except TimingError as error:
        raise click.UsageError(str(error)) from None


@click.command("operator", context_settings={"auto_envvar_prefix": "LATENCYPROBE"})
@click.version_option(__version__, prog_name="latencyprobe operator")
@click.option(
    "--kubeconfig",
    type=_FILE,
    help="Kubeconfig of the cluster. Default: the cluster this runs in, else $KUBECONFIG.",
)
@click.option(
    "--namespace",
    default="latencyprobe-system",
    show_default=True,
    help="Namespace of the agents' DaemonSet.",
)
@click.option(
    "--agent-selector",
    default="app.kubernetes.io/name=latencyprobe-agent",
    show_default=True,
    help="Label selector of the agents' pods.",
)
@click.option(
    "--agent-port", type=_PORT, default=9345, show_default=True, help="Port of the agents."
)
@click.option(
    "--agent",
    "agents",
    metavar="NODE=HOST:PORT",
    envvar="LATENCYPROBE_AGENT",
    multiple=True,
    callback=_read_agents,
    help="Address of an agent that is not a pod; repeatable. Disables the DaemonSet search.",
)
@click.option(
    "--ca-file", type=_FILE, required=True, help="CA that signed the agents' certificates."
)
@click.option(
    "--cert-file",
    type=_FILE,
    required=True,
    help="Certificate of the operator, for operator.latencyprobe.io.",
)
@click.option("--key-file", type=_FILE, required=True, help="Key of that certificate.")
@click.option(
    "--watch-namespace",
    "watch_namespaces",
    multiple=True,
    envvar="LATENCYPROBE_WATCH_NAMESPACE",
    help="Serve only the LatencyProbes of this namespace; repeatable. Default: all.",
)
@click.option(
    "--min-interval",
    "min_interval_s",
    envvar="LATENCYPROBE_MIN_INTERVAL",
    default="1s",
    show_default=True,
    callback=_read_interval,
    help="Shortest spec.interval that is served.",
)
@click.option(
    "--max-probes-per-namespace",
    type=click.IntRange(min=1),
    default=DEFAULT_MAX_PROBES_PER_NAMESPACE,
    show_default=True,
    help="LatencyProbes of a namespace that are served: the oldest ones.",
)
@click.option(
    "--node-figures-namespace",
    "node_figures_namespaces",
    multiple=True,
    envvar="LATENCYPROBE_NODE_FIGURES_NAMESPACE",
    callback=_read_namespaces,
    help="Show the LatencyProbes of this namespace figures of whole nodes: module irq, devices and "
    "softirqs, of all tenants together. Their verdicts name pods of all namespaces. Repeatable. "
    "'*': all namespaces. Default: none.",
)
@click.option(
    "--static-pod-namespace",
    "static_pod_namespaces",
    multiple=True,
    default=sorted(STATIC_POD_NAMESPACES),
    show_default=True,
    envvar="LATENCYPROBE_STATIC_POD_NAMESPACE",
    callback=_read_namespaces,
    help="Take a pod of this namespace that has a kubelet's annotations for a static one; "
    "repeatable. Anyone who can create pods there can then measure any pod. '*': all namespaces.",
)
@click.option(
    "--leader-elect/--no-leader-elect",
    default=False,
    show_default=True,
    help="Serve probes only while holding a Lease, so that several operators can run.",
)
@click.option(
    "--lease-namespace",
    default="latencyprobe-system",
    show_default=True,
    help="Namespace of the Lease.",
)
@click.option(
    "--lease-name", default="latencyprobe-operator", show_default=True, help="Name of the Lease."
)
@click.option(
    "--lease-duration",
    "lease_duration_s",
    envvar="LATENCYPROBE_LEASE_DURATION",
    default="15s",
    show_default=True,
    callback=_read_interval,
    help="Time after which another operator takes a Lease that is not renewed; whole seconds.",
)
@click.option(
    "--lease-renew-deadline",
    "lease_renew_deadline_s",
    envvar="LATENCYPROBE_LEASE_RENEW_DEADLINE",
    default="10s",
    show_default=True,
    callback=_read_interval,
    help="Time after which an operator that cannot renew the Lease writes no more.",
)
@click.option(
    "--lease-retry-period",
    "lease_retry_period_s",
    envvar="LATENCYPROBE_LEASE_RETRY_PERIOD",
    default="2s",
    show_default=True,
    callback=_read_interval,
    help="Time between two attempts to take or renew the Lease.",
)
@click.option(
    "--metrics-address", type=ListenAddressType(), help="Serve /metrics for Prometheus over HTTP."
)
@otlp_options
@click.option(
    "--health-address", type=ListenAddressType(), help="Serve /healthz for the kubelet over HTTP."
)
@click.option(
    "--log-format",
    type=click.Choice(FORMATS),
    default="text",
    show_default=True,
    help="Format of the log: text for people, json for programs.",
)
@click.option(
    "--log-level",
    type=click.Choice(LEVELS),
    default="info",
    show_default=True,
    help="Lowest level that is logged.",
)
def operator_command(
    *,
    kubeconfig: Path | None,
    namespace: str,
    agent_selector: str,
    agent_port: int,
    agents: dict[str, str],
    ca_file: Path,
    cert_file: Path,
    key_file: Path,
    watch_namespaces: tuple[str, ...],
    min_interval_s: float,
    max_probes_per_namespace: int,
    node_figures_namespaces: frozenset[str],
    static_pod_namespaces: frozenset[str],
    leader_elect: bool,
    lease_namespace: str,
    lease_name: str,
    lease_duration_s: float,
    lease_renew_deadline_s: float,
    lease_retry_period_s: float,
    metrics_address: ListenAddress | None,
    otlp: OtlpSettings | None,
    health_address: ListenAddress | None,
    log_format: str,
    log_level: str,
) -> None:
    """Serve LatencyProbes: send agents their state, merge their reports, write the statuses.

    Every option can be set in the environment, for example --agent-port as LATENCYPROBE_AGENT_PORT.
    """
    logs.configure(form=log_format, level=log_level)
    timing = _timing(lease_duration_s, lease_renew_deadline_s, lease_retry_period_s)
    options = Options(
        tls=ClientTlsFiles(ca_file, cert_file, key_file),
        kubeconfig=kubeconfig,
        namespace=namespace,
        agent_selector=agent_selector,
        agent_port=agent_port,
        agents=agents,
        watch_namespaces=watch_namespaces,
        metrics_address=metrics_address,
        otlp=otlp,
        health_address=health_address,
        limits=AdminLimits(
            min_interval_s,
            max_probes_per_namespace,
            node_figures_namespaces,
            static_pod_namespaces,
        ),
        election=ElectionOptions(namespace=lease_namespace, name=lease_name, timing=timing)
        if leader_elect
        else None,
    )
    try:
        run(options)
    except ConfigException as error:
        raise click.ClickException(f"cannot find a cluster: {error}") from error
    except (OtlpFileError, ServeError) as error:
        raise click.ClickException(str(error)) from error
    except TaskFailedError as error:
        raise click.ClickException(f"{error}; start again") from error
    except LeadershipLostError as error:
        raise click.ClickException(f"{error}; start again to be a standby") from error


if __name__ == "__main__":
    sys.exit(operator_command())
