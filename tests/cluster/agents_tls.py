"""The agents of a cluster, as somebody sees them who connects with certificates."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable, Iterator

import grpc
from cryptography import x509

from devcluster.waiting import wait_until
from latencyprobe.domain.identities import AGENT_NAME
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe.protocol.v1.node_agent_pb2_grpc import NodeAgentStub
from tests.cluster.release import AGENT_PORT
from tests.patience import patient


def wait_until_served(
    node: str, address: str, is_wanted: Callable[[x509.Certificate], bool]
) -> None:
    """Wait until the agent at this address serves a certificate that is as wanted."""

    def unmet() -> str | None:
        try:
            pem = ssl.get_server_certificate((address, AGENT_PORT), timeout=patient(5))
        except OSError as error:
            return f"the agent of {node}: {error}"
        served = x509.load_pem_x509_certificate(pem.encode())
        if is_wanted(served):
            return None
        return f"the agent of {node} serves {served.serial_number:x}"

    wait_until("the new certificate", unmet, seconds=120, interval_s=1)


@contextlib.contextmanager
def agent_stub(address: str, operator: dict[str, bytes]) -> Iterator[NodeAgentStub]:
    """Connect to an agent with the operator's certificate."""
    credentials = grpc.ssl_channel_credentials(
        operator["ca.crt"], operator["tls.key"], operator["tls.crt"]
    )
    options = (("grpc.ssl_target_name_override", AGENT_NAME),)
    with grpc.secure_channel(f"{address}:{AGENT_PORT}", credentials, options) as channel:
        yield NodeAgentStub(channel)


def node_name(address: str, operator: dict[str, bytes]) -> str:
    """What an agent says who is asked with the operator's certificate."""
    with agent_stub(address, operator) as stub:
        info: pb.NodeInfo = stub.GetNodeInfo(pb.GetNodeInfoRequest(), timeout=10)
    return info.node_name


def newest_report(
    address: str, operator: dict[str, bytes], term: int, probe_id: str
) -> pb.ProbeReport:
    """The agent's newest report on a probe; the operator's stream ends, and is opened again.

    `term`: that of the operator, which no agent would follow after a newer one.
    """
    with agent_stub(address, operator) as stub:
        opening = iter([pb.WatchReportsRequest(term=term)])
        for report in stub.WatchReports(opening, timeout=patient(10)):
            for each in report.probes:
                if each.id == probe_id and each.HasField("summary"):
                    found: pb.ProbeReport = each
                    return found
    raise AssertionError(f"the agent at {address} has ended its reports")
