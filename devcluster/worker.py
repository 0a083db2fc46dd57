"""A node of the cluster: its namespaces, and the programs in them on every node."""

import subprocess
from collections.abc import Mapping

from .layout import NodeLayout
from .node import Node
from .node_components import CONTAINERD, CONTAINERD_SOCKET, KUBELET, NODE_COMPONENTS, NodeComponents
from .processes import ClusterStartError, ProcessTable
from .programs import Programs


class Worker:
    """One node, from its namespaces to its kubelet. The API server knows if it is ready."""

    def __init__(
        self,
        layout: NodeLayout,
        programs: Programs,
        processes: ProcessTable,
        environment: Mapping[str, str],
    ) -> None:
        self.layout = layout
        self.node = Node(layout, processes)
        self._programs = programs
        self._processes = processes
        self._environment = environment
        self._components = NodeComponents(layout, programs)

    @property
    def process_names(self) -> list[str]:
        """The names of the processes of every node; the holder of the namespaces first."""
        return [self.node.holder, *(self.layout.process(name) for name in NODE_COMPONENTS)]

    @property
    def kubelet(self) -> str:
        """The name of the kubelet's process."""
        return self.layout.process(KUBELET)

    @property
    def containerd(self) -> str:
        """The name of containerd's process."""
        return self.layout.process(CONTAINERD)

    def start(self) -> None:
        """Start its namespaces and containerd. The cluster's network and certificates are there."""
        self.node.start(self._environment)
        self._components.write_files()
        self._start(CONTAINERD)

    def wait_for_containerd(self) -> None:
        """Wait until containerd serves."""

        def unmet() -> str | None:
            there = self.node.has_socket(CONTAINERD_SOCKET)
            return None if there else f"there is no {CONTAINERD_SOCKET}"

        self._processes.wait_for("containerd", self.containerd, unmet)

    def start_kubelet(self) -> None:
        """Start the kubelet, which gives up if the API server does not answer."""
        self._start(KUBELET)

    def stop_kubelet(self) -> None:
        """Stop the kubelet."""
        self._processes.terminate(self.kubelet)

    def run(self, name: str, command: list[str]) -> None:
        """Start a process of the control plane here."""
        self._processes.start(
            name,
            [*self.node.enter(), *command],
            self._environment,
            cgroup=self.layout.components_cgroup,
        )

    def load_image(self, archive: bytes) -> None:
        """Import the image of an OCI archive."""
        ctr = [self._programs["ctr"], f"--address={CONTAINERD_SOCKET}", "--namespace=k8s.io"]
        answer = subprocess.run(
            [*self.node.enter(), *ctr, "images", "import", "-"],
            input=archive,
            capture_output=True,
            check=False,
        )
        if answer.returncode:
            reason = RuntimeError(f"ctr images import: {answer.stderr.decode(errors='replace')}")
            raise ClusterStartError(reason, CONTAINERD, self._processes.log(self.containerd))

    def _start(self, component: str) -> None:
        self.run(self.layout.process(component), self._components.command(component))
