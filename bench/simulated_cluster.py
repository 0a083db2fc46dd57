"""The cluster that `bench.operator_scale` simulates: its size, its objects and its counts.

The operator's process knows it too. So it imports little: its imports count as the operator's
memory.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from tools.fakes.samples import Json, pod_body, probe_body

_PROBES_OF_A_NAMESPACE = 10


@dataclass(frozen=True, slots=True)
class Scenario:
    """The size of a cluster: each probe has pods on some of its nodes."""

    nodes: int
    probes: int
    nodes_of_a_probe: int
    pods_of_a_node: int = 10
    """Of one probe."""
    interval_s: int = 10

    @property
    def pods(self) -> int:
        """The number of pods in the cluster."""
        return self.probes * self.nodes_of_a_probe * self.pods_of_a_node

    def with_nodes(self, nodes: int) -> Scenario:
        """Return the same cluster with another number of nodes, and as many probes on each."""
        of_a_probe = min(self.nodes_of_a_probe, nodes) if self.probes > 1 else nodes
        on_each = self.probes * self.nodes_of_a_probe / self.nodes
        probes = max(round(nodes * on_each / of_a_probe), 1)
        return Scenario(nodes, probes, of_a_probe, self.pods_of_a_node, self.interval_s)

    def probe_bodies(self) -> list[Json]:
        """Return the LatencyProbes."""
        return [
            probe_body(
                f"probe-{number:03}",
                namespace=_namespace(number),
                interval=f"{self.interval_s}s",
                window=f"{6 * self.interval_s}s",
            )
            for number in range(self.probes)
        ]

    def pod_bodies(self) -> Iterator[Json]:
        """Yield the pods."""
        numbers = itertools.count()
        for probe in range(self.probes):
            for index in range(self.nodes_of_a_probe):
                node = node_name((probe * self.nodes_of_a_probe + index) % self.nodes)
                for _ in range(self.pods_of_a_node):
                    yield _pod(probe, node, next(numbers))


def node_name(number: int) -> str:
    """Return the name of a node, as long as those of clouds."""
    return f"ip-10-{number // 250}-{number % 250}-17.eu-central-1.compute.internal"


def _namespace(probe: int) -> str:
    return f"shop-{probe // _PROBES_OF_A_NAMESPACE:02}"


def _pod(probe: int, node: str, number: int) -> Json:
    app = f"probe-{probe:03}"
    labels = {
        "app": app,
        "app.kubernetes.io/instance": app,
        "app.kubernetes.io/version": "1.27.3",
        "pod-template-hash": f"7d4b9c{probe:04x}",
    }
    name = f"{app}-7d4b9c6f5-{number:06x}"
    # After the nodes' range.
    address = f"10.{64 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"
    body = pod_body(name, node=node, namespace=_namespace(probe), labels=labels, ips=(address,))
    body["metadata"]["uid"] = f"0e7c1b1e-8f43-4a5c-9d1f-{number:012x}"
    for status in body["status"]["containerStatuses"]:
        status["containerID"] = f"containerd://{number:064x}"
    return body


class Counts(ctypes.Structure):
    """The figures that both processes see. The operator's process sets `all_bad`."""

    _fields_ = (
        ("reports", ctypes.c_uint64),
        ("report_bytes", ctypes.c_uint64),
        ("pods_in_full", ctypes.c_uint64),
        ("requests", ctypes.c_uint64),
        ("status_writes", ctypes.c_uint64),
        ("status_bytes", ctypes.c_uint64),
        ("connections", ctypes.c_uint64),
        ("all_bad", ctypes.c_uint64),
    )
