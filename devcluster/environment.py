"""The cluster: its start, its end, and its use by tests and people."""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from ipaddress import IPv4Address
from pathlib import Path
from typing import IO, Any

from tools.progress import Say, say_on_stderr

from . import components
from .client import Client, KubectlError
from .components import Components
from .errors import ClusterError
from .images import build_test_images
from .layout import Layout, NodeLayout
from .network import Network
from .processes import ProcessTable
from .worker import Worker

_CORDONED = "node.kubernetes.io/unschedulable"


class ClusterInUseError(ClusterError):
    """Another process is using the cluster of this name."""

    def __init__(self, layout: Layout) -> None:
        super().__init__(
            f"another process, PID {layout.lock_file.read_text()}, uses the cluster"
            f" {layout.name!r} at the moment (it holds {layout.lock_file}): wait for its end"
        )


class NotRootError(ClusterError):
    """Namespaces, mounts and cgroups are made by root."""

    def __init__(self) -> None:
        super().__init__("a cluster is started and stopped by root")


class NoSuchNodeError(ClusterError):
    """A cluster has at most as many nodes as it has networks for their pods."""

    def __init__(self, layout: Layout, asked: int) -> None:
        super().__init__(f"{asked} nodes: a cluster has from 1 to {len(layout.nodes)}")


class Cluster(Client):
    """A Kubernetes of one node or, once another has joined, of two.

    Not for two threads at once. One process at a time may start or stop a cluster; any may use a
    running one. Large, because starting, pausing and stopping take the same components through the
    same waits, each in its order.
    """

    def __init__(self, layout: Layout, say: Say = say_on_stderr) -> None:
        super().__init__(layout, say)
        self._lock: IO[str] | None = None
        self._processes = ProcessTable(
            pids=layout.pids_directory, logs=layout.logs_directory, cgroup=layout.cgroup
        )
        self._network = Network(layout)

    # --- What is where ---

    @property
    def nodes(self) -> list[NodeLayout]:
        """The nodes that have joined."""
        return [worker.layout for worker in self._joined]

    @property
    def node_name(self) -> str:
        """The name of the first node, which the control plane runs on."""
        return self.layout.nodes[0].name

    @property
    def node_ip(self) -> IPv4Address:
        """The first node's address, reached from this machine as from pods."""
        return self.layout.nodes[0].ip

    @property
    def host_ip(self) -> IPv4Address:
        """The address of this machine, as the node and the pods reach it."""
        return self.layout.host_ip

    @property
    def logs_directory(self) -> Path:
        """The folder of the components' logs."""
        return self.layout.logs_directory

    def node_exec_prefix(self) -> list[str]:
        """Return the start of a command that runs in the first node's network namespace alone.

        So started, a node agent listens at the node's address and sees the containers' processes
        and cgroups. It must have ended before the cluster stops: it holds the namespace open.
        """
        return self._first.node.enter_network()

    def process_ids(self) -> dict[str, int]:
        """Return the PIDs of the running components, and of the holders of nodes' namespaces."""
        names = [*components.CONTROL_PLANE]
        for worker in self._workers:
            names += worker.process_names
        found = {name: self._processes.pid(name) for name in names}
        return {name: pid for name, pid in found.items() if pid is not None}

    # --- Start and stop ---

    def start(self, *, nodes: int = 1) -> None:
        """Bring up a clean cluster, after removing the rest of one that was not stopped.

        If it fails, all is removed again but the logs.
        """
        if not 1 <= nodes <= len(self.layout.nodes):
            raise NoSuchNodeError(self.layout, nodes)
        self._acquire_lock()
        try:
            self._remove_leftovers()
            _ = self._programs  # the first time, this builds them
            shutil.rmtree(self.logs_directory, ignore_errors=True)
            self.layout.state_directory.mkdir(parents=True, mode=0o700)
            try:
                self._bring_up()
                for _ in range(1, nodes):
                    self.join()
            except BaseException:
                self._tear_down()
                raise
        except BaseException:
            self._release_lock()
            raise

    def stop(self) -> None:
        """End all processes and containers, and remove everything but the logs.

        Do nothing if all is gone.
        """
        if self._lock is None:
            self._acquire_lock()
        try:
            if self.layout.state_directory.exists():
                self._tear_down()
        finally:
            self._release_lock()

    def join(self) -> NodeLayout:
        """Add a node, and wait until it is ready. It stays until the cluster stops."""
        joined = self._joined
        if len(joined) == len(self._workers):
            raise NoSuchNodeError(self.layout, len(joined) + 1)
        worker = self._workers[len(joined)]
        worker.start()
        for other in joined:
            worker.node.route(f"{other.layout.pod_network} via {other.layout.ip}")
            other.node.route(f"{worker.layout.pod_network} via {worker.layout.ip}")
        worker.node.route(f"{self.layout.api_service_ip} via {self._first.layout.ip}")
        self._load_test_images(worker)
        worker.start_kubelet()
        self._wait_for_node(worker)
        return worker.layout

    def is_ready(self) -> bool:
        """Return True if all components run and all nodes are ready."""
        joined = self._joined
        wanted = {*components.CONTROL_PLANE}.union(*(worker.process_names for worker in joined))
        if not joined or not wanted <= set(self.process_ids()):
            return False
        return all(self._unmet_node_ready(worker.layout) is None for worker in joined)

    @contextmanager
    def pause_kubelet(self, node: NodeLayout) -> Iterator[None]:
        """Keep the node's kubelet away inside the context, but not its containers."""
        (worker,) = (worker for worker in self._joined if worker.layout == node)
        worker.stop_kubelet()
        try:
            yield
        finally:
            worker.start_kubelet()
            self._wait_for_node(worker)

    @contextmanager
    def drained(self, node: NodeLayout) -> Iterator[None]:
        """Keep all pods but those of DaemonSets off the node inside the context."""
        try:
            self.kubectl(
                *("drain", node.name, "--ignore-daemonsets", "--delete-emptydir-data", "--force"),
                *("--grace-period=2", "--timeout=60s"),
            )
            yield
        finally:
            self.kubectl("uncordon", node.name)
            self._wait_until_untainted(node)

    @contextmanager
    def pause_api_server(self) -> Iterator[None]:
        """Keep the API server away inside the context; after it, wait until its clients are ready.

        It goes at once, with all connections: asked to end, it would keep the open watches for
        another minute (ShutdownTimeout, staging/src/k8s.io/apiserver/pkg/server/config.go).
        """
        self._processes.kill(components.API_SERVER)
        try:
            yield
        finally:
            self._start_control_plane(components.API_SERVER)
            self._wait_for_api_server()
            self._restart_clients()

    # --- Use ---

    def create_namespace(self, name: str) -> None:
        """Create a namespace, and wait for its ServiceAccount: before, pods are rejected."""
        self.kubectl("create", "namespace", name)
        self._wait_for_default_service_account(name)

    def wait_for_pods(self, namespace: str, selector: str, *, count: int) -> list[Any]:
        """Return the pods of the selector, once there are `count` of them and all are ready."""
        found: list[Any] = []

        def unmet() -> str | None:
            found[:] = self.get("pods", f"--namespace={namespace}", f"--selector={selector}")[
                "items"
            ]
            ready = [pod for pod in found if _is_true(pod, "Ready")]
            if len(found) == len(ready) == count:
                return None
            return "\n".join([f"{len(ready)} of {len(found)} are ready", *map(_describe, found)])

        what = f"{count} ready pods of {selector} in {namespace}"
        self._processes.wait_for(what, self._first.kubelet, unmet)
        return found

    def load_image(self, archive: Path | bytes) -> None:
        """Give every node that has joined an image: an OCI archive, or its content."""
        content = archive if isinstance(archive, bytes) else archive.read_bytes()
        for worker in self._joined:
            worker.load_image(content)

    # --- Bring-up ---

    @property
    def _components(self) -> Components:
        return Components(self.layout, self._programs)

    @cached_property
    def _workers(self) -> list[Worker]:
        """The workers of all nodes, also of those that have not joined."""
        # Nothing of this process's own: neither proxies nor credentials.
        home = str(self.layout.state_directory)
        environment = {"PATH": self._programs.search_path, "HOME": home}
        return [
            Worker(node, self._programs, self._processes, environment) for node in self.layout.nodes
        ]

    @property
    def _first(self) -> Worker:
        return self._workers[0]

    @property
    def _joined(self) -> list[Worker]:
        return [worker for worker in self._workers if self._processes.pid(worker.node.holder)]

    def _acquire_lock(self) -> None:
        """Take the lock. The kernel releases it with this process; children do not inherit it."""
        if os.geteuid() != 0:
            raise NotRootError
        self.layout.lock_file.parent.mkdir(parents=True, exist_ok=True)
        lock = self.layout.lock_file.open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise ClusterInUseError(self.layout) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock

    def _release_lock(self) -> None:
        if self._lock:
            self._lock.close()
            self._lock = None

    def _remove_leftovers(self) -> None:
        if self.layout.state_directory.exists():
            self._say(f"Removing what is left of the cluster {self.layout.name!r}.")
            self._tear_down()

    def _bring_up(self) -> None:
        """Start the control plane and the first node."""
        started = time.monotonic()
        self._components.write_files()
        self._network.start()
        first = self._first
        first.start()
        # With this address the API server is what answers at the Service `kubernetes`, and
        # clients inside pods find it although no kube-proxy runs.
        first.node.add_address(self.layout.api_service_ip)
        self._start_control_plane(components.ETCD)
        self._processes.wait_for("etcd", components.ETCD, self._unmet_etcd_listens)
        self._start_control_plane(components.API_SERVER)
        self._load_test_images(first)
        self._wait_for_api_server()
        # These give up if they start before the API server answers.
        for component in components.API_CLIENTS:
            self._start_control_plane(component)
        first.start_kubelet()
        self._wait_for_node(first)
        self._wait_for_default_service_account("default")
        self._say(f"The cluster is ready after {time.monotonic() - started:.1f} s.")

    def _load_test_images(self, worker: Worker) -> None:
        worker.wait_for_containerd()
        for archive in self._test_images:
            worker.load_image(archive)

    @cached_property
    def _test_images(self) -> list[bytes]:
        return build_test_images()

    def _start_control_plane(self, component: str) -> None:
        self._first.run(component, self._components.command(component))

    def _restart_clients(self) -> None:
        """Restart clients of the API server, so that they ask it now.

        By themselves they would within a minute: a reflector that failed waits for up to 30 s, and
        as much again of jitter (defaultBackoffMax, client-go/tools/cache/reflector.go).
        """
        for component in components.API_CLIENTS:
            self._processes.terminate(component)
            self._start_control_plane(component)
        for worker in self._joined:
            worker.stop_kubelet()
            worker.start_kubelet()
        for worker in self._joined:
            self._wait_for_node(worker)

    def _wait_for_api_server(self) -> None:
        self._processes.wait_for("the API server", components.API_SERVER, self._unmet_api_ready)

    def _wait_for_node(self, worker: Worker) -> None:
        self._processes.wait_for(
            f"{worker.layout.name} to be ready",
            worker.kubelet,
            lambda: self._unmet_node_ready(worker.layout),
        )

    def _wait_until_untainted(self, node: NodeLayout) -> None:
        """Wait until the taint of a cordon is gone, some time after the cordon."""

        def unmet() -> str | None:
            taints = [
                taint["key"] for taint in self.get("node", node.name)["spec"].get("taints", [])
            ]
            return f"{node.name} has {taints}" if _CORDONED in taints else None

        what = f"{node.name} to take pods"
        self._processes.wait_for(what, components.CONTROLLER_MANAGER, unmet)

    def _unmet_etcd_listens(self) -> str | None:
        port = components.ETCD_PORT
        return None if self._first.node.is_listening(port) else f"nothing listens at port {port}"

    def _unmet_api_ready(self) -> str | None:
        try:
            self.kubectl("get", "--raw=/readyz", "--request-timeout=5s")
        except KubectlError as error:
            return error.stderr.strip()
        return None

    def _unmet_node_ready(self, layout: NodeLayout) -> str | None:
        try:
            node = self.get("node", layout.name)
        except KubectlError as error:
            return error.stderr.strip()
        return None if _is_true(node, "Ready") else _describe(node)

    def _wait_for_default_service_account(self, namespace: str) -> None:
        def unmet() -> str | None:
            try:
                self.kubectl("get", "serviceaccount", "default", f"--namespace={namespace}")
            except KubectlError as error:
                return error.stderr.strip()
            return None

        what = f"the default ServiceAccount of {namespace}"
        self._processes.wait_for(what, components.CONTROLLER_MANAGER, unmet)

    # --- Tear-down ---

    def _tear_down(self) -> None:
        self._processes.kill_all()
        self._network.remove()
        # Last of all: while this directory exists there is something to stop.
        shutil.rmtree(self.layout.state_directory)


def _is_true(resource: Any, condition: str) -> bool:
    conditions = resource.get("status", {}).get("conditions", [])
    return any(c["type"] == condition and c["status"] == "True" for c in conditions)


def _describe(resource: Any) -> str:
    """Return its conditions that are not met and its containers' states, on one line."""
    status = resource.get("status", {})
    conditions = [
        f"{c['type']}={c['status']} {c.get('reason', '')} {c.get('message', '')}".strip()
        for c in status.get("conditions", [])
        if c["status"] != "True"
    ]
    states = [json.dumps(c.get("state", {})) for c in status.get("containerStatuses", [])]
    return "; ".join([resource["metadata"]["name"], *conditions, *states])
